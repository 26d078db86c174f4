public import GatewayCore

extension ModelStore {
    public struct Reservation: Sendable, Equatable {
        public var row: QuotaRow
        public var keyID: KeyID
        public var startPoint: RequestID
        public var flow: String
        public var units: Int64
        public var period: Int64
        public var hops: Int64 = 1
        public var step: Int64 = 0
        public var lastHop: RequestID?
        public var finishingHop: RequestID?
        public var expiresAt: Int64
        public var deadlineMax: Int64
        /// Steps with keys: the request, and what it was answered.
        public var steps: [StepKey: Step] = [:]

        public struct Step: Sendable, Equatable {
            public var request: RequestID
            public var status: UInt16?
        }
    }

    public struct EndedFlow: Sendable, Equatable {
        public var row: QuotaRow
        public var period: Int64
        public var outcome: FlowOutcome
        /// Charged after it had expired, if only nothing: once is enough.
        public var isLate = false

        public var charged: Int64 {
            switch outcome {
            case .committed(let units), .expired(let units): units
            case .rolledBack: 0
            }
        }
    }

    // MARK: - Start

    private struct Key: Hashable {
        var id: KeyID
        var service: Int64
    }

    /// `flow_start`.
    public mutating func start(_ starts: [FlowStart]) -> [FlowStartReply] {
        resetIfDue()
        var opened: [Key: (count: Int64, deadline: Int64?)] = [:]
        for flow in reservations.values {
            let key = Key(id: flow.keyID, service: flow.row.serviceID)
            let known = opened[key] ?? (0, nil)
            opened[key] = (known.count + 1, min(known.deadline ?? .max, flow.expiresAt))
        }
        var replies = [FlowStartReply?](repeating: nil, count: starts.count)
        for index in starts.indices.sorted(by: { (starts[$0].row, $0) < (starts[$1].row, $1) }) {
            replies[index] = start(starts[index], &opened)
        }
        return replies.map { $0! }
    }

    private mutating func start(
        _ start: FlowStart, _ opened: inout [Key: (count: Int64, deadline: Int64?)]
    ) -> FlowStartReply {
        func numbers(_ quota: Quota?, period: Int64) -> FlowNumbers {
            FlowNumbers(
                period: period, limit: quota?.limit, available: quota?.available, held: quota?.held ?? 0,
                resetIn: quota == nil ? nil : nextReset.map { $0 - now })
        }
        if let own = reservations[start.id] {
            return .started(numbers(quotas[start.row], period: own.period), expiresIn: own.expiresAt - now)
        }
        if ended[start.id] != nil { return .ended }
        guard let quota = quotas[start.row] else { return .notAssigned }
        let key = Key(id: start.keyID, service: start.row.serviceID)
        let open = opened[key] ?? (0, nil)
        if open.count >= start.openMax { return .limit(deadlineIn: open.deadline.map { $0 - now }) }
        if quota.limit != nil, quota.free < start.units {
            let leased = leases.lazy.filter { $0.key.row == start.row && $0.key.period == quota.period }
            let deadline = reservations.values.lazy.filter { $0.row == start.row && $0.period == quota.period }
                .map(\.expiresAt).min()
            return .short(
                numbers(quota, period: quota.period), leased: leased.reduce(0) { $0 + $1.value.open },
                deadlineIn: deadline.map { $0 - now })
        }
        let life = min(start.timeToLive, start.timeMax)
        reservations[start.id] = Reservation(
            row: start.row, keyID: start.keyID, startPoint: start.requestID, flow: start.flow, units: start.units,
            period: quota.period, expiresAt: now + life, deadlineMax: now + start.timeMax)
        quotas[start.row]!.held += start.units
        opened[key] = (open.count + 1, min(open.deadline ?? .max, now + life))
        return .started(numbers(quotas[start.row], period: quota.period), expiresIn: life)
    }

    // MARK: - Turns

    /// What a session does in one transaction.
    public mutating func take(_ turn: FlowTurn) -> FlowTurnAnswers {
        var answers = FlowTurnAnswers()
        answers.hops = advance(turn.hops)
        answers.orders = settle(turn.orders)
        answers.starts = start(turn.starts)
        note(turn.notes)
        return answers
    }

    // MARK: - Hops

    /// `flow_advance`.
    public mutating func advance(_ hops: [FlowHop]) -> [FlowHopAnswer] { hops.map { advance($0) } }

    private mutating func advance(_ hop: FlowHop) -> FlowHopAnswer {
        guard var flow = reservations[hop.id], flow.row.environmentID == hop.environmentID else {
            guard let past = ended[hop.id], past.row.environmentID == hop.environmentID else { return .unknown }
            return .ended(past.outcome)
        }
        func passed() -> OpenFlow {
            OpenFlow(
                id: hop.id, row: flow.row, period: flow.period, units: flow.units, startPoint: flow.startPoint,
                hops: flow.hops, expiresIn: flow.expiresAt - now)
        }
        if flow.flow != hop.flow { return .refused(.foreign) }
        if let finishing = flow.finishingHop {
            guard hop.isFinish, finishing == hop.requestID else { return .finishing }
            flow.expiresAt = now + hop.claimTime
            reservations[hop.id] = flow
            return .passed(passed())
        }
        if hop.isFinish, flow.lastHop == hop.requestID || hop.hopsMax == 0 { return .finishing }
        let known = hop.isFinish ? nil : hop.key.flatMap { flow.steps[$0] }
        if let known, known.request != hop.requestID {
            return .repeated(passed(), first: known.request, status: known.status)
        }
        if known != nil || flow.lastHop == hop.requestID { return .passed(passed()) }
        if hop.isOrdered, hop.position != flow.step + 1, hop.isFinish || hop.position != flow.step {
            return .refused(.order)
        }
        if !hop.isFinish, flow.hops + 1 >= hop.hopsMax { return .refused(.hops) }
        flow.hops += 1
        flow.lastHop = hop.requestID
        if hop.isFinish {
            flow.finishingHop = hop.requestID
            flow.expiresAt = now + hop.claimTime
        } else {
            flow.step = hop.position
            flow.expiresAt = min(now + hop.timeToLive, flow.deadlineMax)
            if let key = hop.key { flow.steps[key] = Reservation.Step(request: hop.requestID) }
        }
        reservations[hop.id] = flow
        return .passed(passed())
    }

    /// `flow_note`.
    public mutating func note(_ notes: [FlowNote]) {
        for note in notes { reservations[note.id]?.steps[note.key]?.status = note.status }
    }

    // MARK: - The end

    /// `flow_settle`.
    public mutating func settle(_ orders: [FlowOrder]) -> [FlowSettled] {
        orders.map { order in
            switch order {
            case .settle(let settlement): settle(settlement)
            case .resolve(let resolution): resolve(resolution)
            }
        }
    }

    private mutating func settle(_ said: FlowSettlement) -> FlowSettled {
        if var flow = reservations[said.id] {
            guard flow.row.environmentID == said.row.environmentID else { return .unknown }
            if let finishing = flow.finishingHop, finishing != said.hop { return .finishing }
            switch said.action {
            case .reopen(let timeToLive):
                if flow.finishingHop != nil { flow.expiresAt = min(now + timeToLive, flow.deadlineMax) }
                flow.finishingHop = nil
                flow.lastHop = said.hop
                reservations[said.id] = flow
                return .open
            case .rollback:
                return .ended(end(said.id, .rolledBack))
            case .commit(let units):
                return .ended(end(said.id, .committed(units: max(0, min(units, flow.units)))))
            }
        }
        if let past = ended[said.id], past.row.environmentID != said.row.environmentID { return .unknown }
        switch (said.action, ended[said.id]?.outcome) {
        case (.commit(let units), .expired) where !ended[said.id]!.isLate:
            book(said, .expired(charged: units), late: units)
            ended[said.id]!.isLate = true
            return .ended(.expired(charged: units))
        case (_, .some(let outcome)):
            return .ended(outcome)
        case (.reopen, nil):
            return .unknown
        case (.commit(let units), nil):
            book(said, .committed(units: units), flows: units)
            return .ended(.committed(units: units))
        case (.rollback, nil):
            book(said, .rolledBack)
            return .ended(.rolledBack)
        }
    }

    /// A flow without a row: the store lost it, or its start must not happen any more.
    private mutating func book(
        _ said: FlowSettlement, _ outcome: FlowOutcome, flows: Int64 = 0, late: Int64 = 0
    ) {
        let row = ended[said.id]?.row ?? said.row
        let period = ended[said.id]?.period ?? (said.period == 0 ? quotas[row]?.period ?? 0 : said.period)
        ended[said.id] = EndedFlow(row: row, period: period, outcome: outcome)
        let id = RowPeriod(row: row, period: period)
        ledger[id, default: Booked()].flows += flows
        ledger[id]!.unheldFlows += flows
        ledger[id]!.late += late
        if quotas[row]?.period == period { quotas[row]!.used += flows + late }
    }

    private mutating func resolve(_ said: FlowResolution) -> FlowSettled {
        guard let flow = reservations[said.id] else {
            guard let past = ended[said.id], said.environmentID ?? past.row.environmentID == past.row.environmentID else {
                return .unknown
            }
            return .ended(past.outcome)
        }
        guard said.environmentID ?? flow.row.environmentID == flow.row.environmentID else { return .unknown }
        guard flow.finishingHop == nil else { return .finishing }
        return .ended(end(said.id, said.commits ? .committed(units: flow.units) : .rolledBack))
    }

    private mutating func end(_ id: ReservationID, _ outcome: FlowOutcome) -> FlowOutcome {
        let flow = reservations.removeValue(forKey: id)!
        ended[id] = EndedFlow(row: flow.row, period: flow.period, outcome: outcome)
        let charged = ended[id]!.charged
        ledger[RowPeriod(row: flow.row, period: flow.period), default: Booked()].flows += charged
        if quotas[flow.row]?.period == flow.period {
            quotas[flow.row]!.used += charged
            quotas[flow.row]!.held -= flow.units
        }
        return outcome
    }

    /// `flow_expire`.  Returns how many.
    @discardableResult
    public mutating func expireFlows(atMost: Int = 1_000) -> Int {
        let due = reservations.filter { $0.value.expiresAt < now }.sorted { ($0.value.expiresAt, $0.key) < ($1.value.expiresAt, $1.key) }
        for (id, _) in due.prefix(atMost) { _ = end(id, .expired(charged: 0)) }
        return min(due.count, atMost)
    }

    /// Moves the deadline of a flow into the past, as time would.
    public mutating func makeOverdue(_ id: ReservationID) { reservations[id]?.expiresAt = now - 1 }
}
