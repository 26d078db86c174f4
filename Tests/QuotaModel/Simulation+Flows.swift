internal import GatewayCore

/// A flow as its client sees it.
struct SimulatedFlow {
    let start: FlowStart
    /// How its file declares it.
    let flow: Flow
    /// Units of the settlement with which a success was answered; what the store must have charged in the end.
    var answered: Int64?
    /// Hops that have claimed the finish, as far as their nodes know, until they hear what became of it.
    var claims: [RequestID: Claim] = [:]

    /// When the store holds the claims for void.
    var voids: [RequestID: Int64] = [:]

    struct Claim {
        let node: Int
        /// Its settlement is on its way, and may have taken effect.
        var isSettling = false
    }
    var finishes = 0
}

// Flows of clients over all nodes: started, stepped, finished by one or several at once, resolved, or abandoned.
extension Simulation {
    private static let open: Int64 = 12

    /// Less patient than real ones, so that more is pending and taken back.
    static let flowLimits = {
        var limits = FlowLimits()
        limits.waitMax = 300_000
        limits.settleMax = 200_000
        limits.renewInterval = 150_000
        return limits
    }()

    func flowArrive() {
        guard !isQuiet, let gap = options.flowGap else { return }
        after(random.delay(gap), .flowArrive)
        for _ in 0..<(random.chance(40) ? random.pick(5...40) : 1) {
            let row = rows[Int(random.pick(0...Int64(rows.count - 1)))]
            let flow = Flow(
                name: "f", start: "a", steps: ["b", "c"], finish: "d", units: random.chance(4) ? random.pick(0...9) : 1,
                timeToLive: .microseconds(random.pick(2_000_000...20_000_000)), timeMax: .seconds(40), hops: 6,
                ordered: random.chance(2), open: Int(Self.open), onFailure: random.chance(2) ? .keep : .rollback)
            let start = FlowStart(
                flow, id: ReservationID(UUIDBits(high: nextFlow, low: 1)), requestID: newRequest(),
                keyID: KeyID(UUIDBits(high: UInt64(row.environmentID), low: UInt64(random.pick(0...2)))), row: row)
            flows[start.id] = SimulatedFlow(start: start, flow: flow)
            events.add(.flowWork(anyNode(), .start(start)), at: now)
        }
    }

    private func newRequest() -> RequestID {
        nextFlow += 1
        return RequestID(UUIDBits(high: nextFlow, low: 0))
    }

    private func anyNode() -> Int { Int(random.pick(0...Int64(nodes.count - 1))) }

    /// A node gets to work on a request, or on what the upstream answered.
    func begin(_ node: Int, _ work: FlowWork) throws(Violation) {
        let time = local(node)
        switch work {
        case .start(let start):
            switch nodes[node].flows.start(start, now: time) {
            case .answered(let answer): try started(node, start, answer)
            case .waits(let ticket): nodes[node].flowTickets[ticket] = work
            }
        case .hop(let hop):
            switch nodes[node].flows.take(hop, now: time) {
            case .answered(let answer): try advanced(node, hop, answer)
            case .waits(let ticket): nodes[node].flowTickets[ticket] = work
            }
        case .settle(let settlement):
            flows[settlement.id]!.claims[settlement.hop]?.isSettling = true
            try wait(node, work, nodes[node].flows.settle(settlement, now: time))
        case .resolve(let resolution):
            try wait(node, work, nodes[node].flows.resolve(resolution, now: time))
        }
        try pump(node)
    }

    private func wait(_ node: Int, _ work: FlowWork, _ decision: FlowBook.Decision<FlowSettled>) throws(Violation) {
        switch decision {
        case .answered(let answer): try settled(node, work, answer)
        case .waits(let ticket): nodes[node].flowTickets[ticket] = work
        }
    }

    // MARK: - Answers

    private func started(_ node: Int, _ start: FlowStart, _ answer: FlowStartAnswer) throws(Violation) {
        let evidence = nodes[node].flowEvidence.removeValue(forKey: start.id)
        switch answer {
        case .started(let flow, _):
            flowsStarted += 1
            // A start that fails begins nothing; one in many ends the flow by itself.
            let verdict: FlowVerdict = random.chance(12) ? .rollback : (random.chance(30) ? .commit : .stay)
            if let settlement = flow.settlement(verdict, hop: start.requestID, of: flows[start.id]!.flow) {
                let life = nodes[node].life
                after(random.delay(20_000), .flowAnswer(node, life: life, .settle(settlement)))
            } else {
                continueFlow(start.id, step: 0)
            }
        case .usedUp, .held:
            flowsRefused += 1
            guard case .short(let numbers, let leased, _) = evidence, numbers.available! - numbers.held < start.units else {
                throw violation("node \(node) refused \(start) on \(String(describing: evidence))")
            }
            if case .usedUp = answer, numbers.available! >= start.units {
                throw violation("node \(node) called \(start) used up on \(numbers), \(leased)")
            }
        case .limitReached:
            flowsRefused += 1
            guard case .limit = evidence else { throw violation("node \(node): no limit for \(start)") }
        case .notAssigned:
            guard evidence == .notAssigned else { throw violation("node \(node) says not assigned of \(start)") }
        case .unavailable:
            unavailable += 1
        }
    }

    /// The client's next request: steps, then one or more finishes, or none.
    private func continueFlow(_ id: ReservationID, step: Int) {
        let flow = flows[id]!
        let environment = flow.start.row.environmentID
        let pause = random.delay(random.chance(20) ? 2_000_000 : 60_000)
        switch random.pick(0...9) {
        case 0: break  // Abandoned.
        case 1:
            let resolution = FlowResolution(id: id, environmentID: environment, commits: random.chance(2))
            after(pause, .flowWork(anyNode(), .resolve(resolution)))
        case 2...5 where step < flow.flow.steps.count:
            let key = random.chance(2) ? StepKey("key-\(step)".utf8) : nil
            let hop = FlowHop(
                stepOf: flow.flow, index: step, id: id, requestID: newRequest(), environmentID: environment, key: key)
            after(pause, .flowWork(anyNode(), .hop(hop)))
            if random.chance(6) {
                var again = hop
                again.requestID = newRequest()
                after(pause + random.delay(50_000), .flowWork(anyNode(), .hop(again)))
            }
        default:
            for _ in 0..<(random.chance(3) ? 3 : 1) { finish(id, in: pause) }
        }
    }

    private func finish(_ id: ReservationID, in pause: Int64) {
        let flow = flows[id]!
        guard flow.finishes < 8 else { return }
        flows[id]!.finishes += 1
        var hop = FlowHop(
            finishOf: flow.flow, id: id, requestID: newRequest(), environmentID: flow.start.row.environmentID)
        // Short enough that a node which sleeps through it wakes to find its flow expired.
        hop.claimTime = random.pick(400_000...5_000_000)
        after(pause + random.delay(2_000), .flowWork(anyNode(), .hop(hop)))
    }

    private func advanced(_ node: Int, _ hop: FlowHop, _ answer: FlowHopAnswer) throws(Violation) {
        switch answer {
        case .passed(let open) where hop.isFinish:
            for (other, claim) in flows[hop.id]!.claims where other != hop.requestID && flows[hop.id]!.voids[other] ?? 0 > now {
                if !options.failovers, !claim.isSettling {
                    throw violation("\(hop.id) is claimed by \(other) on node \(claim.node) and again by \(hop.requestID)")
                }
            }
            flows[hop.id]!.claims[hop.requestID] = .init(node: node)
            let status: UInt16? = random.chance(4) ? (random.chance(2) ? 500 : nil) : 200
            let wish: FlowWish? = random.chance(10) ? (random.chance(2) ? .commit : .rollback) : nil
            let verdict = flows[hop.id]!.flow.verdict(on: .finish(flow: "f"), status: status, wish: wish)
            let charge = random.chance(5) ? random.pick(0...open.units + 1) : nil
            guard let settlement = open.settlement(verdict, hop: hop.requestID, of: flows[hop.id]!.flow, charge: charge)
            else { throw violation("a finish settles nothing") }
            // Now and then it takes much longer than its claim lives.
            let time = random.chance(6) ? random.pick(0...3 * hop.claimTime) : random.delay(30_000)
            after(time, .flowAnswer(node, life: nodes[node].life, .settle(settlement)))
        case .passed(let open):
            let verdict: FlowVerdict = random.chance(25) ? .commit : (random.chance(25) ? .rollback : .stay)
            if let settlement = open.settlement(verdict, hop: hop.requestID, of: flows[hop.id]!.flow) {
                after(random.delay(20_000), .flowAnswer(node, life: nodes[node].life, .settle(settlement)))
            } else {
                continueFlow(hop.id, step: Int(hop.position))
            }
        case .unknown:
            guard options.failovers else { throw violation("\(hop.id) is unknown") }
        case .finishing, .ended, .refused, .repeated: break
        case .unavailable:
            unavailable += 1
            if hop.isFinish { finish(hop.id, in: random.delay(500_000)) }
        }
    }

    private func settled(_ node: Int, _ work: FlowWork, _ answer: FlowSettled) throws(Violation) {
        guard case .settle(let said) = work else { return }
        let claim = flows[said.id]!.claims.removeValue(forKey: said.hop)
        if case .ended(.expired) = answer, let claim, flows[said.id]!.voids[said.hop] ?? 0 >= now, !options.failovers {
            throw violation("\(said.id) expired before the claim of node \(claim.node) was void")
        }
        switch answer {
        case .ended(.committed(let units)):
            flowsCommitted += 1
            note(said, units)
        case .ended(.expired(let charged)) where charged > 0:
            flowsLate += 1
            note(said, charged)
        case .pending:
            flowsPending += 1
            nodes[node].spool.append(ModelFrame(said))
            // A step's word is no claim: whoever else ends the flow first is heard.
            if case .commit(let units) = said.action, claim != nil { note(said, units) }
        case .open:
            // The client may try again.
            if random.chance(2) { finish(said.id, in: random.delay(100_000)) }
        default: break
        }
    }

    /// The client was told of a success that costs units.
    private func note(_ said: FlowSettlement, _ units: Int64) {
        guard case .commit = said.action else { return }
        if flows[said.id]!.answered == nil { flows[said.id]!.answered = units }
    }

    func forgetClaims(of node: Int) {
        for (id, flow) in flows where !flow.claims.isEmpty {
            flows[id]!.claims = flow.claims.filter { $0.value.node != node }
        }
    }

    // MARK: - Driving

    func pumpFlows(_ node: Int) throws(Violation) {
        var rounds = 0
        repeat {
            nodes[node].flows.advance(to: local(node))
            for action in nodes[node].flows.takeActions() { try perform(node, action) }
            rounds += 1
            if rounds > 20 { throw violation("the flows of node \(node) never come to rest") }
        } while nodes[node].flows.isDue
    }

    private func perform(_ node: Int, _ action: FlowAction) throws(Violation) {
        switch action {
        case .turn(let number, let turn):
            nodes[node].flowStarts[number] = turn.starts
            send(node, .takeFlows(number, turn))
        case .recall(let row): recall(row)
        case .answerStart(let ticket, let answer):
            guard case .start(let start) = try work(node, ticket) else { throw violation("\(answer) for no start") }
            try started(node, start, answer)
        case .answerHop(let ticket, let answer):
            guard case .hop(let hop) = try work(node, ticket) else { throw violation("\(answer) for no hop") }
            try advanced(node, hop, answer)
        case .answerOrder(let ticket, let answer):
            try settled(node, try work(node, ticket), answer)
        }
    }

    private func work(_ node: Int, _ ticket: FlowTicket) throws(Violation) -> FlowWork {
        guard let work = nodes[node].flowTickets.removeValue(forKey: ticket) else {
            throw violation("node \(node) answered \(ticket) twice")
        }
        return work
    }

    func recall(_ row: QuotaRow) {
        for other in nodes.indices where nodes[other].isAlive && !random.chance(20) {
            after(random.delay(2_000), .recall(other, life: nodes[other].life, row))
        }
    }

    // MARK: - Checks

    /// After every step: no key has more flows open than it may, and nothing is admitted beyond a limit.
    func checkFlows() throws(Violation) {
        guard options.flowGap != nil else { return }
        var open: [KeyID: [Int64: Int64]] = [:]
        for flow in store.reservations.values { open[flow.keyID, default: [:]][flow.row.serviceID, default: 0] += 1 }
        for (key, counts) in open {
            for (_, count) in counts where count > Self.open { throw violation("\(key) has \(count) flows open") }
        }
        for (row, quota) in store.quotas {
            let id = ModelStore.RowPeriod(row: row, period: quota.period)
            guard !unlimited.contains(id) else { continue }
            // What was used while there was no limit, or no store, may be booked when there is one.
            let booked = store.ledger[id] ?? ModelStore.Booked()
            let unheld = booked.late + booked.overrun + booked.unleased + booked.unheldFlows
            if quota.used + quota.held > (highestLimit[id] ?? 0) + unheld {
                throw violation("\(id): \(quota) beyond \(highestLimit[id] ?? 0), \(booked)")
            }
        }
    }

    /// At rest: no flow is open, and every success that a client heard of was charged, once.
    func checkEndOfFlows() throws(Violation) {
        if let flow = store.reservations.first { throw violation("\(flow) is open for ever") }
        // A failover, or a disk that is set back, may lose what was acknowledged.
        for (id, flow) in flows where !mayForget {
            let charged = store.ended[id]?.charged ?? 0
            if let answered = flow.answered, charged != answered {
                throw violation("\(id): a client heard of \(answered) units, \(String(describing: store.ended[id]))")
            }
        }
        var sums: [ModelStore.RowPeriod: Int64] = [:]
        for flow in store.ended.values { sums[ModelStore.RowPeriod(row: flow.row, period: flow.period), default: 0] += flow.charged }
        for (id, booked) in store.ledger where booked.flows + booked.late != sums[id] ?? 0 {
            throw violation("\(id): \(booked) for flows that were charged \(sums[id] ?? 0)")
        }
    }
}
