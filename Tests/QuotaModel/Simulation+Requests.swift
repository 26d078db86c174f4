internal import GatewayCore

// Requests of clients, and what the lease book says to them.
extension Simulation {
    func arrive(_ node: Int) throws(Violation) {
        guard !isQuiet else { return }
        // Bursts: now and then many at once.
        let burst = random.chance(60) ? random.pick(10...120) : 1
        after(random.delay(options.arrivalGap), .arrive(node))
        guard nodes[node].isAlive, nodes[node].pausedUntil <= now else { return }
        for _ in 0..<burst {
            let row = rows[Int(random.pick(0...Int64(rows.count - 1)))]
            let units = random.chance(6) ? random.pick(0...12) : 1
            let want = QuotaWant(
                environmentID: row.environmentID, serviceID: row.serviceID, units: units, limited: true,
                outage: random.chance(10) ? .allow : .deny)
            sequence += 1
            switch nodes[node].book.admit(want, now: local(node)) {
            case .answered(let admission):
                try conclude(node, want, nil, waited: 0, admission)
            case .waits(let ticket):
                nodes[node].waiting[ticket] = SimulatedNode.Waiting(want: want, arrived: sequence, since: local(node))
            }
        }
        try pump(node)
    }

    func conclude(
        _ node: Int, _ want: QuotaWant, _ arrived: UInt64?, waited: Int64, _ admission: Admission
    ) throws(Violation) {
        switch admission {
        case .held(let hold):
            admitted += 1
            if !hold.leased { try checkUnleased(node, want, hold, waited: waited) }
            try begin(node, hold)
        case .refusedUsedUp:
            refused += 1
            try checkRefusal(node, want, arrived, usedUp: true)
        case .refusedHeld:
            refused += 1
            try checkRefusal(node, want, arrived, usedUp: false)
        case .notAssigned:
            refused += 1
            guard nodes[node].evidence[want.row]?.isAssigned == false else {
                throw violation("node \(node) says that \(want.row) is not assigned")
            }
        case .unavailable:
            unavailable += 1
            if want.outage == .allow, !nodes[node].book.isFenced { throw violation("node \(node) did not allow \(want)") }
        }
    }

    /// Units need a lease, except of rows without a limit, and where the rule allows it while the store is away.
    private func checkUnleased(_ node: Int, _ want: QuotaWant, _ hold: QuotaHold, waited: Int64) throws(Violation) {
        guard hold.outage else {
            if hold.units == 0 || unlimited.contains(where: { $0.row == hold.row }) { return }
            throw violation("node \(node) admitted \(hold) without a lease")
        }
        guard want.outage == .allow, hold.units == want.units else { throw violation("node \(node) let through \(hold)") }
        if nodes[node].connection != nil, waited < nodes[node].book.limits.waitMax {
            throw violation("node \(node) let through \(hold) although the store was there")
        }
        unitsAllowed += hold.units
    }

    private func begin(_ node: Int, _ hold: QuotaHold) throws(Violation) {
        let request = nextRequest
        nextRequest += 1
        nodes[node].inFlight[request] = hold
        if hold.leased {
            let id = ModelStore.RowPeriod(row: hold.row, period: hold.period)
            inUse[id, default: 0] += hold.units
            try checkAdmission(node, id)
        }
        let duration = random.chance(500) ? random.pick(1...120_000_000) : random.delay(30_000)
        if random.chance(5) { after(random.pick(0...duration), .report(node, life: nodes[node].life, request: request)) }
        after(duration, .finish(node, life: nodes[node].life, request: request))
    }

    /// Nothing is admitted beyond the limit, except units that may be sold twice, by holders who do not know yet.
    private func checkAdmission(_ node: Int, _ id: ModelStore.RowPeriod) throws(Violation) {
        let out = inUse[id]! + (charged[id] ?? 0)
        let (limit, twice) = (highestLimit[id] ?? 0, mayBeSoldTwice[id] ?? 0)
        if out > limit + twice { throw violation("node \(node) admitted \(out) units of \(id), limit \(limit), sold twice \(twice)") }
        guard options.failovers, twice > 0, nodes[node].connection != nil, nodes[node].hasReadLeases else { return }
        let due = overrunDue(node, id) - (nodes[node].reopened[id] ?? 0)
        if due > 0 { throw violation("node \(node) admits units of \(id) from a lease it knows is lost, \(due) too many") }
    }

    /// Units that the node charged in this life or has in use, and that its lease in the store does not cover.
    private func overrunDue(_ node: Int, _ id: ModelStore.RowPeriod) -> Int64 {
        let spool = nodes[node].holder.spool
        let lease = store.leases[ModelStore.LeaseKey(spool: spool, row: id.row, period: id.period)] ?? ModelStore.Lease()
        let unbooked = nodes[node].spool[max(store.spools[spool]!.shippedTo, nodes[node].inherited)...].lazy
            .filter { $0.leased && $0.row == id.row && $0.period == id.period }.reduce(0) { $0 + $1.units }
        let inFlight = nodes[node].inFlight.values.lazy
            .filter { $0.leased && $0.row == id.row && $0.period == id.period }.reduce(0) { $0 + $1.units }
        return unbooked + inFlight - lease.open - (lease.lost - lease.refunded)
    }

    /// The upstream says what the request costs: the rest may be sold again at once.
    func report(_ node: Int, _ request: Int) throws(Violation) {
        guard let hold = nodes[node].inFlight[request] else { return }
        let units = random.pick(0...hold.units)
        nodes[node].book.reduce(hold, to: units, now: local(node))
        nodes[node].inFlight[request]!.units = units
        if hold.leased { inUse[ModelStore.RowPeriod(row: hold.row, period: hold.period)]! -= hold.units - units }
        try pump(node)
    }

    /// A refusal rests on an answer whose question was sent after the request arrived.
    private func checkRefusal(_ node: Int, _ want: QuotaWant, _ arrived: UInt64?, usedUp: Bool) throws(Violation) {
        guard let arrived, let evidence = nodes[node].evidence[want.row], evidence.sent >= arrived else {
            throw violation("node \(node) refused \(want) without having asked")
        }
        if evidence.free >= want.units {
            throw violation("node \(node) refused \(want) although \(evidence.free) units were free")
        }
        if nodes[node].book.idleUnits(want.row) >= want.units {
            throw violation("node \(node) refused \(want) although it has idle units")
        }
        if usedUp, evidence.heldByOthers { throw violation("node \(node) called held units used up") }
    }

    func finish(_ node: Int, _ request: Int) throws(Violation) {
        guard let hold = nodes[node].inFlight.removeValue(forKey: request) else { return }
        // Success mostly; failure, and fewer units than were held, now and then.
        let charge = random.chance(7) ? 0 : (random.chance(9) ? random.pick(0...hold.units + 2) : hold.units)
        let units = nodes[node].book.settle(hold, charge: charge, now: local(node))
        if units != min(charge, hold.units) { throw violation("node \(node) charged \(units) of \(hold), asked for \(charge)") }
        if hold.leased {
            let id = ModelStore.RowPeriod(row: hold.row, period: hold.period)
            inUse[id]! -= hold.units
            charged[id, default: 0] += units
        } else {
            chargedUnleased[hold.row, default: 0] += units
        }
        nodes[node].spool.append(
            ModelFrame(row: hold.row, period: hold.period, units: units, leased: hold.leased))
        try pump(node)
    }

    /// Lets the book do what is due and carries out its actions.
    func pump(_ node: Int) throws(Violation) {
        var rounds = 0
        repeat {
            nodes[node].book.advance(to: local(node))
            for action in nodes[node].book.takeActions() { try perform(node, action) }
            rounds += 1
            if rounds > 20 { throw violation("node \(node) never comes to rest") }
        } while nodes[node].book.isDue
        try pumpFlows(node)
        let deadline = min(nodes[node].book.deadline ?? .max, nodes[node].flows.deadline ?? .max)
        guard deadline < .max else { return }
        let at = max(now + 1, deadline - nodes[node].clockOffset)
        guard at < nodes[node].timerAt else { return }
        nodes[node].timerAt = at
        events.add(.timer(node, life: nodes[node].life), at: at)
    }

    private func perform(_ node: Int, _ action: LeaseAction) throws(Violation) {
        switch action {
        case .ask(let number, let questions):
            sequence += 1
            nodes[node].askSent[number] = (sequence, questions.map(\.row))
            send(node, .ask(number, questions))
        case .giveBack(let number, let returns):
            send(node, .giveBack(number, returns))
        case .readLeases(let number):
            send(node, .read(number))
        case .recall(let row):
            recall(row)
        case .answer(let ticket, let admission):
            guard let waiting = nodes[node].waiting.removeValue(forKey: ticket) else {
                throw violation("node \(node) answered \(ticket) twice")
            }
            let waited = local(node) - waiting.since
            if case .refusedHeld = admission, waited < nodes[node].book.limits.recallWait {
                throw violation("node \(node) refused \(waiting.want) before anybody had time to give back")
            }
            try conclude(node, waiting.want, waiting.arrived, waited: waited, admission)
        }
    }
}
