// What comes back from the store.
extension FlowBook {
    /// The turn in flight was carried out.
    public mutating func answered(_ number: UInt64, _ answers: FlowTurnAnswers, now: Int64) {
        guard inFlight == number else { return }
        inFlight = nil
        turnsApart = max(0, turnsApart - 1)
        advanced(hops.answered(), answers.hops, now)
        settled(orders.answered(), answers.orders)
        started(starts.answered(), answers.starts, now)
        _ = notes.answered()
        isDue = true
    }

    private mutating func started(_ waiters: [FlowLane<FlowStart>.Waiter?], _ replies: [FlowStartReply], _ now: Int64) {
        precondition(replies.count == waiters.count, "one answer a request")
        var again: [FlowLane<FlowStart>.Waiter] = []
        for (waiter, reply) in zip(waiters, replies) {
            // Whoever gave up has it taken back already.
            guard var waiter, let ticket = waiter.ticket else { continue }
            if case .short(let numbers, let leased, _) = reply, mayComeBack(numbers, leased, &waiter, now) {
                again.append(waiter)
            } else {
                actions.append(.answerStart(ticket, answer(waiter.request, reply)))
            }
        }
        starts.askAgain(again)
    }

    private mutating func answer(_ start: FlowStart, _ reply: FlowStartReply) -> FlowStartAnswer {
        switch reply {
        case .started(let numbers, let expiresIn):
            counters.started += 1
            let flow = OpenFlow(
                id: start.id, row: start.row, period: numbers.period, units: start.units, startPoint: start.requestID,
                hops: 1, expiresIn: expiresIn)
            return .started(flow, numbers.view)
        case .short(let numbers, let leased, let deadlineIn):
            let view = numbers.view ?? .unknown
            if numbers.available ?? 0 < start.units {
                counters.refusedUsedUp += 1
                return .usedUp(
                    retryAfter: numbers.resetIn.map { max(1, Self.seconds($0)) } ?? limits.retryAfterNeverReset, view)
            }
            counters.refusedHeld += 1
            return .held(retryAfter: leased > 0 ? limits.retryAfterHeld : retryAfter(deadlineIn), view)
        case .limit(let deadlineIn):
            counters.refusedLimit += 1
            return .limitReached(retryAfter: retryAfter(deadlineIn))
        case .notAssigned:
            return .notAssigned
        case .ended:
            // Its start was taken back before it was said again.
            return unavailable()
        }
    }

    private func retryAfter(_ deadlineIn: Int64?) -> Int64 {
        max(limits.retryAfterHeld, deadlineIn.map(Self.seconds) ?? 0)
    }

    /// Whether the next turn, or a recall, may bring the units: then the request waits a moment more.
    private mutating func mayComeBack(
        _ numbers: FlowNumbers, _ leased: Int64, _ waiter: inout FlowLane<FlowStart>.Waiter, _ now: Int64
    ) -> Bool {
        // The period ended while the start waited for its row: the next turn resets it first.
        if let left = numbers.resetIn, left <= 0 { return true }
        let start = waiter.request
        guard let available = numbers.available, leased > 0, available >= start.units else { return false }
        // As the leases do: see ``LeaseLimits/recallWait``.
        if waiter.isDenied, waiter.recallHeardAt == nil { waiter.recallHeardAt = now }
        waiter.isDenied = true
        if let heardAt = waiter.recallHeardAt, let sentAt = waiter.sentAt, sentAt - heardAt >= limits.recallWait { return false }
        waiter.askAt = now + limits.recallAskInterval
        if now >= recalledAt[start.row] ?? .min {
            if recalledAt.count >= limits.rowsPerTurn { recalledAt.removeAll { $0.value <= now } }
            recalledAt[start.row] = now + limits.recallInterval
            counters.recalls += 1
            actions.append(.recall(start.row))
        }
        return true
    }

    private mutating func advanced(_ waiters: [FlowLane<FlowHop>.Waiter?], _ answers: [FlowHopAnswer], _ now: Int64) {
        precondition(answers.count == waiters.count, "one answer a request")
        for (waiter, answer) in zip(waiters, answers) {
            guard let waiter else { continue }
            if waiter.request.isFinish { noteClaim(waiter, answer, now) }
            if let ticket = waiter.ticket { actions.append(.answerHop(ticket, answer)) }
        }
    }

    private mutating func noteClaim(_ waiter: FlowLane<FlowHop>.Waiter, _ answer: FlowHopAnswer, _ now: Int64) {
        let hop = waiter.request
        if case .passed = answer {
            // A renewal that is answered after its hop was settled begins nothing.
            guard waiter.ticket != nil else { return }
            claims[hop.requestID] = hop.renewal
            if renewAt == .max { renewAt = now + limits.renewInterval }
        } else if claims.removeValue(forKey: hop.requestID) != nil {
            // Void: what the hop says at its end will be answered with what became of the flow.
            counters.claimsLost += 1
        }
    }

    private mutating func settled(_ waiters: [FlowLane<FlowOrder>.Waiter?], _ answers: [FlowSettled]) {
        precondition(answers.count == waiters.count, "one answer a request")
        for (waiter, answer) in zip(waiters, answers) {
            guard let ticket = waiter?.ticket else { continue }
            switch answer {
            case .ended(.committed): counters.committed += 1
            case .ended(.rolledBack): counters.rolledBack += 1
            case .ended(.expired(let charged)): counters.late += charged > 0 ? 1 : 0
            case .open: counters.reopened += 1
            default: break
            }
            actions.append(.answerOrder(ticket, answer))
        }
    }
}

extension Dictionary {
    fileprivate mutating func removeAll(where isGone: (Element) -> Bool) {
        for element in self where isGone(element) { self[element.key] = nil }
    }
}
