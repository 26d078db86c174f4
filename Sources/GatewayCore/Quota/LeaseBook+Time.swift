// What time brings: questions, returns, idle units, waits that end.
extension LeaseBook {
    /// Does what is due at `now` and sets ``deadline``.
    public mutating func advance(to now: Int64) {
        isDue = false
        endLongWaits(now)
        scanWarm(now)
        if mayRead, let first = readAt.first, first <= now {
            readAt.removeFirst()
            read()
        }
        sendReturns(now)
        sendQuestion(now)
        deadline = nextDeadline(now)
    }

    // MARK: - Waits

    private mutating func endLongWaits(_ now: Int64) {
        guard !waitingSlots.isEmpty else { return }
        for slot in waitingSlots {
            guard let first = shelves[slot].waiters.first, first.since + limits.waitMax <= now else { continue }
            let row = shelves[slot].row
            resolve(slot) { waiter, book in
                guard waiter.since + book.limits.waitMax <= now else { return nil }
                return book.duringOutage(row, waiter.units, waiter.outage, now)
            }
        }
        var kept = 0
        for slot in waitingSlots {
            if shelves[slot].waiters.isEmpty {
                shelves[slot].isListedWaiting = false
            } else {
                waitingSlots[kept] = slot
                kept += 1
            }
        }
        waitingSlots.removeLast(waitingSlots.count - kept)
    }

    // MARK: - Idle units

    private mutating func scanWarm(_ now: Int64) {
        guard !warmSlots.isEmpty else {
            scanAt = .max
            return
        }
        guard now >= scanAt || isClosing || scanAt == .max else { return }
        var kept = 0
        for slot in warmSlots {
            if lookAfter(slot, now) {
                warmSlots[kept] = slot
                kept += 1
            } else {
                shelves[slot].isListedWarm = false
            }
        }
        warmSlots.removeLast(warmSlots.count - kept)
        scanAt = warmSlots.isEmpty ? .max : now + limits.idleScanInterval
    }

    /// Gives up units nobody needs.  Returns whether the row is to be looked after again.
    private mutating func lookAfter(_ slot: Int, _ now: Int64) -> Bool {
        if now >= shelves[slot].resetAt { retire(slot) }
        shelves[slot].roll(now)
        // While the store is away idle units are all there is to serve from.
        if link == .ready || isClosing, shelves[slot].lease != nil, shelves[slot].waiters.isEmpty,
            !shelves[slot].isAsking
        {
            let isIdle = isClosing || now - shelves[slot].lastTraffic >= limits.idleAfter
            // Traffic that slowed down leaves units over as well.
            let kept = isIdle ? 0 : 2 * wish(of: shelves[slot])
            _ = shelves[slot].lease!.returnIdle(keeping: kept)
        }
        var index = 0
        while index < shelves[slot].past.count {
            _ = shelves[slot].past[index].returnIdle()
            let lease = shelves[slot].past[index]
            if lease.inUse == 0, !lease.owesReturn {
                shelves[slot].drop(lease, remembering: limits.droppedMax)
                shelves[slot].past.remove(at: index)
            } else {
                index += 1
            }
        }
        guard shelves[slot].past.isEmpty else { return true }
        return shelves[slot].lease.map { $0.idle > 0 || $0.owesReturn } ?? false
    }

    private mutating func sendReturns(_ now: Int64) {
        guard link == .ready, returnInFlight == nil, now >= returnNotBefore else { return }
        var returns: [LeaseReturn] = []
        for slot in warmSlots where returns.count < limits.rowsPerStatement {
            let shelf = shelves[slot]
            if let lease = shelf.lease, lease.owesReturn {
                returns.append(LeaseReturn(row: shelf.row, period: lease.period, totalReturned: lease.returned))
            }
            for lease in shelf.past where lease.owesReturn {
                returns.append(LeaseReturn(row: shelf.row, period: lease.period, totalReturned: lease.returned))
            }
        }
        guard !returns.isEmpty else { return }
        returnInFlight = (nextNumber, returns)
        actions.append(.giveBack(number: nextNumber, returns))
        nextNumber += 1
        counters.returns += 1
    }

    // MARK: - Questions

    private mutating func sendQuestion(_ now: Int64) {
        guard link == .ready, question == nil, now >= askNotBefore,
            !waitingSlots.isEmpty || !aheadSlots.isEmpty
        else { return }
        var slots: [Int] = []
        var questions: [LeaseQuestion] = []
        var waitingOn: [Int] = []
        for slot in waitingSlots {
            guard slots.count < limits.rowsPerStatement, shelves[slot].askAt <= now, !shelves[slot].waiters.isEmpty
            else { waitingOn.append(slot); continue }
            include(slot, now, &slots, &questions)
        }
        // Rows that were asked for go to the end, so that more rows than fit take turns.
        waitingSlots = waitingOn + slots
        var aheadLeft: [Int] = []
        for slot in aheadSlots {
            guard slots.count < limits.rowsPerStatement else { aheadLeft.append(slot); continue }
            shelves[slot].isListedAhead = false
            if !shelves[slot].isAsking { include(slot, now, &slots, &questions) }
        }
        aheadSlots = aheadLeft
        guard !slots.isEmpty else { return }
        question = Question(number: nextNumber, sentAt: now, slots: slots, horizon: nextTicket)
        actions.append(.ask(number: nextNumber, questions))
        nextNumber += 1
        askNotBefore = now + limits.askInterval
        counters.asks += 1
    }

    private mutating func include(_ slot: Int, _ now: Int64, _ slots: inout [Int], _ questions: inout [LeaseQuestion]) {
        if now >= shelves[slot].resetAt { retire(slot) }
        let shelf = shelves[slot]
        // Negative where the store lost a grant that was used: what is granted now has to cover that first.
        let idle = shelf.lease?.idle ?? 0
        questions.append(
            LeaseQuestion(
                row: shelf.row, need: shelf.waitingUnits == 0 ? 0 : max(0, shelf.waitingUnits - idle),
                wish: max(0, wish(of: shelf) + shelf.waitingUnits - idle)))
        shelves[slot].isAsking = true
        shelves[slot].aheadAt = now + limits.aheadInterval
        slots.append(slot)
    }

    // MARK: - The next deadline

    private func nextDeadline(_ now: Int64) -> Int64? {
        if isDue { return now }
        var next = Int64.max
        for slot in waitingSlots {
            guard let first = shelves[slot].waiters.first else { continue }
            next = min(next, first.since + limits.waitMax)
            if link == .ready, question == nil { next = min(next, max(askNotBefore, shelves[slot].askAt)) }
        }
        if link == .ready, question == nil, !aheadSlots.isEmpty { next = min(next, askNotBefore) }
        next = min(next, scanAt)
        if mayRead, let first = readAt.first { next = min(next, first) }
        if link == .ready, returnInFlight == nil, returnNotBefore > now { next = min(next, returnNotBefore) }
        return next == .max ? nil : next
    }
}
