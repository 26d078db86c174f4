// The connection to the store: made, lost, made again.
extension LeaseBook {
    /// The connection stands: nothing is asked before the leases were read.
    ///
    /// The first time, the spool must have been shipped to its end: what is open in its leases then was not used
    /// by the process that died, and goes back.
    public mutating func connected(now: Int64) {
        guard link != .fenced else { return }
        forgetMessages()
        link = .reading
        readAt = [now + limits.firstAudit, now + limits.secondAudit]
        read()
        isDue = true
    }

    /// The connection is lost.  Questions on their way may have been heard or not; the leases will tell.
    public mutating func disconnected(now: Int64) {
        guard link != .fenced else { return }
        forgetMessages()
        link = .away
        answerAllWaiting(now)
        isDue = true
    }

    /// This process opened the spool under a new epoch.  The one before may be forgotten together with the commits of a failover:
    /// a question that came too early was answered as if somebody else had the spool.
    public mutating func opened() {
        if link == .fenced { link = .away }
    }

    /// Another process opened the spool under a higher epoch.
    public mutating func fenced(now: Int64) {
        forgetMessages()
        link = .fenced
        answerAllWaiting(now)
        isDue = true
    }

    /// Orderly end: nothing is asked ahead of traffic any more, idle units go back at once.
    public mutating func close(now: Int64) {
        isClosing = true
        for slot in liveSlots { keepWarm(slot, now) }
        scanAt = now
        isDue = true
    }

    /// Whether, after ``close(now:)``, every unit was settled or given back and the store has heard of it.
    public var isClosed: Bool {
        isClosing && waiting == 0 && returnInFlight == nil && question == nil
            && liveSlots.allSatisfy { shelves[$0].isEmpty }
    }

    /// Whether nothing may be admitted any more because another process has the spool.
    public var isFenced: Bool { link == .fenced }

    /// In the order in which rows were met: a dictionary's own order differs from run to run.
    private var liveSlots: some Sequence<Int> {
        shelves.indices.lazy.filter { [shelves, slotOfRow] in slotOfRow[shelves[$0].row] == $0 }
    }

    private mutating func forgetMessages() {
        for slot in question?.slots ?? [] { shelves[slot].isAsking = false }
        question = nil
        returnInFlight = nil
        readInFlight = nil
        readAt = []
    }

    private mutating func answerAllWaiting(_ now: Int64) {
        for slot in waitingSlots {
            let row = shelves[slot].row
            resolve(slot) { waiter, book in
                guard book.link != .fenced else {
                    book.counters.unavailable += 1
                    return .unavailable(retryAfter: book.limits.retryAfterOutage)
                }
                return book.duringOutage(row, waiter.units, waiter.outage, now)
            }
        }
    }

    // MARK: - Reading the leases

    mutating func read() {
        guard readInFlight == nil else { return }
        readInFlight = nextNumber
        actions.append(.readLeases(number: nextNumber))
        nextNumber += 1
    }

    /// Also where the first read of a connection failed: nothing is asked before one succeeded.
    var mayRead: Bool { link == .ready || link == .reading }

    mutating func scheduleRead(_ now: Int64) {
        readAt.append(now + limits.retryInterval)
        readAt.sort()
    }

    /// The read failed although the connection stands.
    public mutating func readFailed(_ number: UInt64, now: Int64) {
        guard readInFlight == number else { return }
        readInFlight = nil
        scheduleRead(now)
        isDue = true
    }

    /// All leases of this holder as the store has them: the truth.
    public mutating func leasesRead(_ number: UInt64, _ records: [LeaseRecord], now: Int64) {
        guard readInFlight == number else { return }
        readInFlight = nil
        let inherits = !hasReadLeases
        hasReadLeases = true
        if link == .reading { link = .ready }
        var known: Set<LeaseID> = []
        for record in records {
            known.insert(LeaseID(row: record.row, period: record.period))
            learn(record, inherits: inherits, now)
        }
        for slot in liveSlots { disown(slot, known, now) }
        if slotOfRow.count > limits.rowsMax / 2 { forgetEmptyRows(open: records.lazy.filter { $0.open > 0 }, now) }
        for slot in waitingSlots { shelves[slot].askAt = now }
        isDue = true
    }

    private struct LeaseID: Hashable {
        var row: QuotaRow
        var period: Int64
    }

    private mutating func learn(_ record: LeaseRecord, inherits: Bool, _ now: Int64) {
        if let slot = slotOfRow[record.row] {
            if let lost = shelves[slot].withLease(of: record.period, { $0.learn(record.totals) }) {
                if lost { counters.leasesLost += 1 }
                keepWarm(slot, now)
                return
            }
            guard record.open > 0 else { return }
            if var lease = shelves[slot].takeDropped(of: record.period) {
                // Done with, but a failover may have lost that: what was returned is said again.
                _ = lease.learn(record.totals)
                shelves[slot].past.append(lease)
                keepWarm(slot, now)
            } else if record.period > shelves[slot].forgottenPeriod {
                // A grant whose answer was lost.  It goes back: a question will follow if its units are wanted.
                adopt(record, slot, now)
            }
        } else if inherits, record.open > 0, let slot = makeShelf(record.row) {
            adopt(record, slot, now)
        }
    }

    private mutating func adopt(_ record: LeaseRecord, _ slot: Int, _ now: Int64) {
        var lease = Lease(period: record.period, totals: record.totals, open: record.open)
        _ = lease.returnIdle()
        if shelves[slot].lease == nil {
            shelves[slot].lease = lease
        } else {
            shelves[slot].past.append(lease)
        }
        keepWarm(slot, now)
    }

    /// Leases the store does not know at all: a failover lost their grants, or they were dropped, long settled, from a period
    /// that is over.  Where they are asked for once more, what was charged from them counts.
    private mutating func disown(_ slot: Int, _ known: Set<LeaseID>, _ now: Int64) {
        let row = shelves[slot].row
        if let lease = shelves[slot].lease, lease.granted > 0, !known.contains(LeaseID(row: row, period: lease.period)) {
            if lease.idle > 0 || lease.inUse > 0 { counters.leasesLost += 1 }
            _ = shelves[slot].lease!.learn(.zero)
            retire(slot)
            shelves[slot].rememberUntil = now + limits.rememberFor
        }
        for index in shelves[slot].past.indices {
            let lease = shelves[slot].past[index]
            guard lease.granted > 0, !known.contains(LeaseID(row: row, period: lease.period)) else { continue }
            _ = shelves[slot].past[index].learn(.zero)
            shelves[slot].rememberUntil = now + limits.rememberFor
        }
    }

    /// Rows without units and traffic, whose charges the store has booked, are worth no memory.
    private mutating func forgetEmptyRows(open: some Sequence<LeaseRecord>, _ now: Int64) {
        let booked = Set(open.map(\.row))
        for slot in Array(liveSlots)
        where shelves[slot].isEmpty && !shelves[slot].isListedWaiting && !shelves[slot].isListedAhead
            && !shelves[slot].isListedWarm && now - shelves[slot].lastTraffic > limits.forgetAfter
            && now > shelves[slot].rememberUntil && !booked.contains(shelves[slot].row)
        {
            slotOfRow[shelves[slot].row] = nil
            spareSlots.append(slot)
        }
    }
}
