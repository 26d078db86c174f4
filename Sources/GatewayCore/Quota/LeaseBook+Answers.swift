// What comes back from the store.
extension LeaseBook {
    /// The answer to a question, one a row and in its order.
    public mutating func answered(_ number: UInt64, _ answers: [LeaseAnswer], now: Int64) {
        guard let asked = question, asked.number == number else { return }
        precondition(answers.count == asked.slots.count, "one answer a question")
        question = nil
        for (slot, answer) in zip(asked.slots, answers) {
            shelves[slot].isAsking = false
            switch answer {
            case .notAssigned:
                forgetQuota(slot)
                resolve(slot) { waiter, _ in waiter.ticket.number < asked.horizon ? .notAssigned : nil }
            case .unlimited:
                forgetQuota(slot)
                shelves[slot].unlimitedUntil = asked.sentAt + limits.unlimitedFor
                resolve(slot) { waiter, book in
                    .held(book.unleased(book.shelves[slot].row, waiter.units, outage: false))
                }
            case .limited(let numbers):
                learn(numbers, slot, asked.sentAt)
                keepWarm(slot, now)
                serve(slot, now)
                judge(slot, numbers, asked, now)
            }
        }
        isDue = true
    }

    /// A question failed although the connection stands: it is asked again while requests wait.
    public mutating func askFailed(_ number: UInt64, now: Int64) {
        guard let asked = question, asked.number == number else { return }
        for slot in asked.slots { shelves[slot].isAsking = false }
        question = nil
        askNotBefore = now + limits.retryInterval
        // The units may be granted all the same.
        scheduleRead(now)
        isDue = true
    }

    private mutating func forgetQuota(_ slot: Int) {
        retire(slot)
        shelves[slot].limit = nil
        shelves[slot].free = 0
    }

    private mutating func learn(_ numbers: LeaseNumbers, _ slot: Int, _ sentAt: Int64) {
        if shelves[slot].lease?.period != numbers.period {
            retire(slot)
            if let index = shelves[slot].past.firstIndex(where: { $0.period == numbers.period }) {
                shelves[slot].lease = shelves[slot].past.remove(at: index)
            }
        }
        // Done with while there was no limit: what was charged from it may not be booked yet, and is open in the store.
        if shelves[slot].lease == nil { shelves[slot].lease = shelves[slot].takeDropped(of: numbers.period) }
        if shelves[slot].lease == nil {
            shelves[slot].lease = Lease(period: numbers.period, totals: numbers.totals, open: numbers.ownOpen)
        } else if shelves[slot].lease!.learn(numbers.totals) {
            counters.leasesLost += 1
        }
        shelves[slot].limit = numbers.limit
        shelves[slot].free = numbers.free
        shelves[slot].useUntil = sentAt + limits.useFor
        shelves[slot].resetAt = numbers.resetIn.map { sentAt + $0 } ?? .max
        shelves[slot].unlimitedUntil = .min
        // Overcommitted: what is idle beyond the limit is not to be admitted from.
        _ = shelves[slot].lease!.returnIdle(keeping: max(0, shelves[slot].lease!.idle + min(0, numbers.free)))
    }

    /// Gives idle units to waiting requests, in order of arrival, as far as they reach; one that does not fit does
    /// not stop those behind it.
    mutating func serve(_ slot: Int, _ now: Int64) {
        guard !shelves[slot].waiters.isEmpty, shelves[slot].isUsable(now), link != .fenced,
            let lease = shelves[slot].lease, lease.idle > 0
        else { return }
        let row = shelves[slot].row
        var idle = lease.idle
        resolve(slot) { waiter, book in
            guard idle >= waiter.units else { return nil }
            idle -= waiter.units
            book.shelves[slot].lease!.inUse += waiter.units
            book.shelves[slot].count(waiter.units, now)
            return .held(
                QuotaHold(row: row, period: lease.period, units: waiter.units, leased: true, outage: false))
        }
    }

    /// Refuses what the answer allows to refuse: requests that had arrived when the question was sent.
    private mutating func judge(_ slot: Int, _ numbers: LeaseNumbers, _ asked: Question, _ now: Int64) {
        guard !shelves[slot].waiters.isEmpty else { return }
        // The period ended, or the holder slept, while the answer travelled: ask again.
        guard shelves[slot].isUsable(now) else { return }
        let lease = shelves[slot].lease!
        let others = numbers.held > numbers.ownOpen
        // What went back since the question was sent, at a recall or a limit that was lowered, is held in the answer, by nobody.
        // Less than nothing is idle where a failover lost a grant: what is free is asked for to make up for it, then refused.
        let reach = numbers.free + max(0, lease.idle) + lease.returning
        let view = view(of: shelves[slot], now) ?? .unknown
        let retryHeld = max(limits.retryAfterHeld, numbers.flowDeadlineIn.map(Self.seconds) ?? 0)
        resolve(slot) { waiter, book in
            guard waiter.ticket.number < asked.horizon, reach < waiter.units else { return nil }
            guard others || lease.inUse > 0 else {
                book.counters.refusedUsedUp += 1
                return .refusedUsedUp(
                    retryAfter: view.resetSeconds.map { max(1, $0) } ?? book.limits.retryAfterNeverReset, view)
            }
            guard waiter.isDenied else {
                waiter.isDenied = true
                return nil
            }
            let heardAt = waiter.recallHeardAt ?? now
            waiter.recallHeardAt = heardAt
            // Until the question, not until the answer: one that travelled for long tells of a moment long ago.
            guard asked.sentAt - heardAt >= book.limits.recallWait else { return nil }
            book.counters.refusedHeld += 1
            return .refusedHeld(retryAfter: retryHeld, view)
        }
        // Requests that came after the question are asked for at once, others when a recall may have worked.
        guard let last = shelves[slot].waiters.last else { return }
        shelves[slot].askAt = last.ticket.number >= asked.horizon ? now : now + limits.recallAskInterval
        if others, now >= shelves[slot].recalledAt + limits.recallInterval {
            shelves[slot].recalledAt = now
            counters.recalls += 1
            actions.append(.recall(shelves[slot].row))
        }
    }

    /// Answers those waiters for which `verdict` has an answer, in order of arrival.
    mutating func resolve(_ slot: Int, _ verdict: (inout QuotaWaiter, inout LeaseBook) -> Admission?) {
        guard !shelves[slot].waiters.isEmpty else { return }
        var waiters: [QuotaWaiter] = []
        swap(&waiters, &shelves[slot].waiters)
        var kept = 0
        for index in waiters.indices {
            if let admission = verdict(&waiters[index], &self) {
                shelves[slot].waitingUnits -= waiters[index].units
                waiting -= 1
                actions.append(.answer(waiters[index].ticket, admission))
            } else {
                if kept != index { waiters[kept] = waiters[index] }
                kept += 1
            }
        }
        waiters.removeLast(waiters.count - kept)
        swap(&waiters, &shelves[slot].waiters)
    }

    // MARK: - Returns and recalls

    /// Another holder waits for units of the row: the idle ones go back, and those of requests that end before it would
    /// recall again.
    public mutating func recalled(_ row: QuotaRow, now: Int64) {
        guard let slot = slotOfRow[row], shelves[slot].lease != nil else { return }
        shelves[slot].wantedUntil = now + limits.recallInterval
        keepWarm(slot, now)
        answerRecall(slot)
    }

    /// While the store is away idle units are all there is to serve from, and could not go back.
    mutating func answerRecall(_ slot: Int) {
        if link == .ready, shelves[slot].lease?.returnIdle() == true { isDue = true }
    }

    /// The store took a return (`ok`), or the statement failed while the connection stands.
    public mutating func gaveBack(_ number: UInt64, ok: Bool, now: Int64) {
        guard let sent = returnInFlight, sent.number == number else { return }
        returnInFlight = nil
        isDue = true
        guard ok else {
            returnNotBefore = now + limits.retryInterval
            return
        }
        for part in sent.sent {
            guard let slot = slotOfRow[part.row] else { continue }
            _ = shelves[slot].withLease(of: part.period) { $0.confirmed = max($0.confirmed, part.totalReturned) }
        }
    }

    /// Moves the current lease among those of other periods, its idle units on their way back.
    mutating func retire(_ slot: Int) {
        guard var lease = shelves[slot].lease else { return }
        _ = lease.returnIdle()
        shelves[slot].lease = nil
        shelves[slot].useUntil = .min
        shelves[slot].resetAt = .max
        shelves[slot].past.append(lease)
        if !shelves[slot].isListedWarm {
            shelves[slot].isListedWarm = true
            warmSlots.append(slot)
        }
        isDue = true
    }
}
