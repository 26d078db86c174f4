internal import GatewayCore

// Messages between nodes and the store, and the shipping of spools.
extension Simulation {
    /// Less than a gateway has, so that leases are dropped within a run.
    private static let leaseKeep: Int64 = 5_000_000

    func send(_ node: Int, _ request: StoreRequest) {
        guard let connection = nodes[node].connection else { return }
        let at = max(nodes[node].lastDelivery, now + random.delay(400))
        nodes[node].lastDelivery = at
        events.add(
            .request(node, life: nodes[node].life, nodes[node].holder, connection: connection, request), at: at)
    }

    /// The store hears a request.  One of a connection that broke meanwhile may still be carried out, now or late.
    func execute(_ node: Int, _ life: Int, _ holder: SpoolHolder, _ connection: Int, _ request: StoreRequest) {
        let isCurrent = nodes[node].connection == connection && nodes[node].life == life
        guard isCurrent || random.chance(2), storeDownUntil <= now, connection > lastConnectionLost else { return }
        // A statement that the server refuses has no effect, and the connection stands.
        var reply = random.chance(200) ? .refused(request) : carryOut(holder, request)
        // Said twice; the second answer is the one that gets through.
        if random.chance(40) { reply = carryOut(holder, request) }
        noteLimits()
        guard isCurrent else { return }
        let at = max(nodes[node].lastReply, now + random.delay(400))
        nodes[node].lastReply = at
        events.add(.reply(node, life: life, connection: connection, reply), at: at)
    }

    private func carryOut(_ holder: SpoolHolder, _ request: StoreRequest) -> StoreReply {
        do throws(ModelStore.Failure) {
            switch request {
            case .ask(let number, let questions):
                return .answers(number, try store.acquire(holder.spool, epoch: holder.epoch, questions))
            case .giveBack(let number, let returns):
                try store.giveBack(holder.spool, epoch: holder.epoch, returns)
                return .gaveBack(number)
            case .read(let number):
                return .leases(number, try store.readLeases(holder.spool, epoch: holder.epoch))
            case .takeFlows(let number, let turn):
                let answers = store.take(turn)
                for (hop, answer) in zip(turn.hops, answers.hops) where hop.isFinish {
                    if case .passed = answer { flows[hop.id]!.voids[hop.requestID] = now + hop.claimTime }
                }
                return .flowsTaken(number, answers)
            }
        } catch {
            return .fenced
        }
    }

    func receive(_ node: Int, _ reply: StoreReply) throws(Violation) {
        let time = local(node)
        switch reply {
        case .answers(let number, let answers):
            if let (sent, rows) = nodes[node].askSent.removeValue(forKey: number) {
                for (row, answer) in zip(rows, answers) { nodes[node].evidence[row] = Self.evidence(sent, answer) }
            }
            nodes[node].book.answered(number, answers, now: time)
        case .gaveBack(let number):
            nodes[node].book.gaveBack(number, ok: true, now: time)
        case .leases(let number, let records):
            nodes[node].book.leasesRead(number, records, now: time)
            nodes[node].hasReadLeases = true
        case .flowsTaken(let number, let answers):
            for (start, reply) in zip(nodes[node].flowStarts.removeValue(forKey: number) ?? [], answers.starts) {
                nodes[node].flowEvidence[start.id] = reply
            }
            nodes[node].flows.answered(number, answers, now: time)
        case .refused(let request):
            refuse(node, request, time)
        case .fenced:
            nodes[node].book.fenced(now: time)
            return try fenced(node)
        }
        try pump(node)
    }

    private func refuse(_ node: Int, _ request: StoreRequest, _ time: Int64) {
        switch request {
        case .ask(let number, _):
            nodes[node].askSent[number] = nil
            nodes[node].book.askFailed(number, now: time)
        case .giveBack(let number, _): nodes[node].book.gaveBack(number, ok: false, now: time)
        case .read(let number): nodes[node].book.readFailed(number, now: time)
        case .takeFlows(let number, _):
            nodes[node].flowStarts[number] = nil
            nodes[node].flows.failed(number, now: time)
        }
    }

    private static func evidence(_ sent: UInt64, _ answer: LeaseAnswer) -> SimulatedNode.Evidence {
        switch answer {
        case .notAssigned:
            SimulatedNode.Evidence(sent: sent, free: 0, isAssigned: false, heldByOthers: false)
        case .unlimited:
            SimulatedNode.Evidence(sent: sent, free: .max, isAssigned: true, heldByOthers: false)
        case .limited(let numbers):
            SimulatedNode.Evidence(
                sent: sent, free: numbers.free, isAssigned: true, heldByOthers: numbers.held > numbers.ownOpen)
        }
    }

    func cut(_ node: Int) {
        guard nodes[node].isAlive, nodes[node].connection != nil else { return }
        nodes[node].connection = nil
        after(random.delay(50_000), .noticeLoss(node, life: nodes[node].life))
    }

    func connect(_ node: Int) throws(Violation) {
        guard nodes[node].connection == nil else { return }
        guard storeDownUntil <= now else {
            after(random.delay(200_000), .connect(node, life: nodes[node].life))
            return
        }
        nextConnection += 1
        nodes[node].connection = nextConnection
        nodes[node].lastDelivery = now
        nodes[node].lastReply = now
        nodes[node].askSent = [:]
        nodes[node].hasReadLeases = false
        nodes[node].book.connected(now: local(node))
        nodes[node].flows.connected(now: local(node))
        try pump(node)
    }

    // MARK: - Shipping

    /// Cuts a batch from the store's mark and sends it; it may arrive late, twice or never.
    func ship(_ node: Int) {
        after(random.delay(100_000), .ship(node, life: nodes[node].life))
        guard storeDownUntil <= now else { return }
        let start = store.spools[nodes[node].holder.spool]!.shippedTo
        let end = min(nodes[node].spool.count, start + Int(random.pick(1...400)))
        guard start < end else { return }
        for _ in 0..<(random.chance(30) ? 2 : 1) where !random.chance(30) {
            after(
                random.delay(2_000),
                .shipped(node, life: nodes[node].life, nodes[node].holder, from: start, Array(nodes[node].spool[start..<end])))
        }
    }

    func deliverBatch(_ node: Int, _ life: Int, _ holder: SpoolHolder, _ from: Int, _ frames: [ModelFrame]) throws(Violation) {
        guard storeDownUntil <= now else { return }
        do throws(ModelStore.Failure) {
            _ = try store.ship(holder.spool, epoch: holder.epoch, from: from, frames[...])
        } catch {
            // The batch of an earlier life is nobody's.
            if nodes[node].life == life, nodes[node].isAlive { try fenced(node) }
        }
    }

    /// A process starts on the spool: fences its forerunner, ships what it left, then begins.
    func restart(_ node: Int) throws(Violation) {
        guard !nodes[node].isAlive else { return }
        guard storeDownUntil <= now else {
            after(random.delay(200_000), .restart(node))
            return
        }
        let spool = store.open(nodes[node].holder.spool)
        nodes[node].isAlive = true
        nodes[node].life += 1
        nodes[node].holder.epoch = spool.epoch
        nodes[node].pausedUntil = 0
        nodes[node].timerAt = .max
        nodes[node].book = LeaseBook()
        nodes[node].flows = FlowBook(limits: Self.flowLimits)
        (nodes[node].inherited, nodes[node].reopened) = (nodes[node].spool.count, [:])
        let left = nodes[node].spool[spool.shippedTo...]
        _ = try? store.ship(nodes[node].holder.spool, epoch: spool.epoch, from: spool.shippedTo, left)
        after(random.delay(10_000), .connect(node, life: nodes[node].life))
        after(random.delay(100_000), .ship(node, life: nodes[node].life))
    }

    func kill(_ node: Int) {
        guard nodes[node].isAlive else { return }
        for hold in nodes[node].inFlight.values where hold.leased {
            inUse[ModelStore.RowPeriod(row: hold.row, period: hold.period)]! -= hold.units
        }
        nodes[node].inFlight = [:]
        nodes[node].waiting = [:]
        nodes[node].askSent = [:]
        nodes[node].evidence = [:]
        nodes[node].flowTickets = [:]
        nodes[node].flowEvidence = [:]
        nodes[node].flowStarts = [:]
        forgetClaims(of: node)
        nodes[node].connection = nil
        nodes[node].isAlive = false
        after(isQuiet ? 1 : random.delay(2_000_000), .restart(node))
    }

    func sweep() {
        guard !isQuiet || !events.isEmpty else { return }
        after(1_000_000, .sweep)
        guard storeDownUntil <= now else { return }
        store.resetIfDue()
        // A store that came up a moment ago waits for the settlements that wait for it.
        if now >= storeDownUntil + 2_000_000 || storeDownUntil == 0 { store.expireFlows() }
        if let silence = options.writeOffAfter { store.writeOff(silence: silence) }
        let leases = store.leases
        if store.dropSettledLeases(olderThan: Self.leaseKeep) > 0 {
            droppedLeases.merge(leases.filter { store.leases[$0.key] == nil }) { _, last in last }
        }
        noteLimits()
        if random.chance(3) { updateStandby() }
    }
}
