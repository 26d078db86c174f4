/// The leases of one worker: a state machine without I/O.
///
/// Units are taken from the store ahead of traffic, so that a request costs no round trip.  Three rules make it
/// exact.  Units leave a lease only by this holder's word, never by a clock.  A refusal answers a question that was
/// asked after the request arrived.  The store's row is the truth: its totals only grow, so a lost, late or
/// repeated message is found by comparing totals, not by remembering messages.
///
/// The caller calls an event, then ``advance(to:)``, then does what ``takeActions()`` says, and calls
/// ``advance(to:)`` again at ``deadline``.  ``admit(_:now:)`` answers at once where the lease has units.  Times are
/// microseconds of a clock that does not stop while the machine sleeps (CLOCK_BOOTTIME).
public struct LeaseBook {
    /// What became of a want.
    public enum Decision: Sendable, Equatable {
        case answered(Admission)
        /// ``LeaseAction/answer(_:_:)`` with this ticket follows.
        case waits(QuotaTicket)
    }

    /// Counts since the book was made.
    public struct Counters: Sendable, Equatable {
        public var asks = 0
        public var returns = 0
        public var recalls = 0
        public var refusedUsedUp = 0
        public var refusedHeld = 0
        public var unavailable = 0
        /// Requests let through without a lease while the store was away.
        public var allowed = 0
        /// Answers in which the store no longer knew units it had granted.  Not where it knew nothing of a lease of which nothing
        /// was in hand any more: it may have been dropped as settled.
        public var leasesLost = 0
    }

    enum Link: Equatable {
        /// Not connected yet: requests wait.
        case starting
        /// No connection: leases in hand are used, everything else follows the outage rule.
        case away
        /// Connected, leases not read yet: leases in hand are used, everything else waits.
        case reading
        case ready
        /// Another process opened the spool: nothing may be admitted any more.
        case fenced
    }

    struct Question {
        let number: UInt64
        let sentAt: Int64
        let slots: [Int]
        /// Tickets below it had arrived when the question was sent.
        let horizon: UInt64
    }

    public let limits: LeaseLimits
    public internal(set) var counters = Counters()
    /// When ``advance(to:)`` is wanted next; nil: only after an event.
    public internal(set) var deadline: Int64?
    /// Requests that wait for an answer.
    public internal(set) var waiting = 0

    var link = Link.starting
    var hasReadLeases = false
    var isClosing = false
    var shelves: [LeaseShelf] = []
    var slotOfRow: [QuotaRow: Int] = [:]
    var spareSlots: [Int] = []
    /// Rows with waiters, rows that want units ahead, rows with leases to look after.
    var waitingSlots: [Int] = []
    var aheadSlots: [Int] = []
    var warmSlots: [Int] = []

    var actions: [LeaseAction] = []
    var question: Question?
    var returnInFlight: (number: UInt64, sent: [LeaseReturn])?
    var readInFlight: UInt64?
    var readAt: [Int64] = []
    var askNotBefore: Int64 = .min
    var returnNotBefore: Int64 = .min
    var scanAt: Int64 = .max
    var nextNumber: UInt64 = 1
    var nextTicket: UInt64 = 1

    public init(limits: LeaseLimits = LeaseLimits()) { self.limits = limits }

    /// Whether ``advance(to:)`` has something to do before ``deadline``.
    public internal(set) var isDue = false

    // MARK: - Requests

    /// Asks for units for one request.
    public mutating func admit(_ want: QuotaWant, now: Int64) -> Decision {
        guard want.limited, want.units > 0 else {
            return .answered(.held(unleased(want.row, want.units, outage: false)))
        }
        guard want.units <= limits.unitsMax, let slot = slotOfRow[want.row] ?? makeShelf(want.row) else {
            counters.unavailable += 1
            return .answered(.unavailable(retryAfter: limits.retryAfterOutage))
        }
        if link != .fenced, shelves[slot].waiters.isEmpty, shelves[slot].isUsable(now),
            let period = take(want.units, at: slot, now)
        {
            return .answered(
                .held(QuotaHold(row: want.row, period: period, units: want.units, leased: true, outage: false)))
        }
        return admitSlowly(want, slot, now)
    }

    private mutating func take(_ units: Int64, at slot: Int, _ now: Int64) -> Int64? {
        guard let lease = shelves[slot].lease, lease.idle >= units else { return nil }
        shelves[slot].lease!.inUse += units
        shelves[slot].count(units, now)
        if lease.idle - units < wish(of: shelves[slot]) / 2 { wantAhead(slot, now) }
        return lease.period
    }

    private mutating func admitSlowly(_ want: QuotaWant, _ slot: Int, _ now: Int64) -> Decision {
        switch link {
        case .fenced:
            counters.unavailable += 1
            return .answered(.unavailable(retryAfter: limits.retryAfterOutage))
        case .away:
            return .answered(duringOutage(want.row, want.units, want.outage, now))
        case .starting, .reading, .ready:
            break
        }
        if now < shelves[slot].unlimitedUntil {
            return .answered(.held(unleased(want.row, want.units, outage: false)))
        }
        guard waiting < limits.waitingMax else {
            counters.unavailable += 1
            return .answered(.unavailable(retryAfter: limits.retryAfterOutage))
        }
        let ticket = QuotaTicket(number: nextTicket)
        nextTicket += 1
        shelves[slot].waiters.append(
            QuotaWaiter(ticket: ticket, units: want.units, outage: want.outage, since: now))
        shelves[slot].waitingUnits += want.units
        shelves[slot].askAt = now
        waiting += 1
        if !shelves[slot].isListedWaiting {
            shelves[slot].isListedWaiting = true
            waitingSlots.append(slot)
        }
        isDue = true
        return .waits(ticket)
    }

    /// It is known what a request costs before it ends: the rest of its units is free to admit from at once.  From then
    /// on its hold has `units`, until it is settled.
    public mutating func reduce(_ hold: QuotaHold, to units: Int64, now: Int64) {
        precondition(0...hold.units ~= units, "a hold only gets smaller")
        guard hold.leased, units < hold.units else { return }
        let slot = change(hold) { $0.inUse -= hold.units - units }
        unitsCameBack(slot, now)
    }

    /// A request ended: `charge` of its units are used, the rest are free to admit from.  Once per hold.
    ///
    /// - Returns: the units charged, never more than were held: what the hop's record is to say.
    @discardableResult
    public mutating func settle(_ hold: QuotaHold, charge: Int64, now: Int64) -> Int64 {
        let charged = hold.charge(charge)
        // Where all of it went back before, its lease may be gone.
        guard hold.leased, hold.units > 0 else { return charged }
        let slot = change(hold) { lease in
            lease.inUse -= hold.units
            lease.charged += charged
        }
        if charged < hold.units || shelves[slot].lease?.period != hold.period || isClosing {
            unitsCameBack(slot, now)
        }
        return charged
    }

    private mutating func change(_ hold: QuotaHold, _ body: (inout Lease) -> Void) -> Int {
        guard let slot = slotOfRow[hold.row] else { preconditionFailure("settled a hold of a row without requests") }
        let known: Void? = shelves[slot].withLease(of: hold.period) { lease in
            precondition(lease.inUse >= hold.units, "settled a hold twice")
            body(&lease)
        }
        precondition(known != nil, "settled a hold of a lease without requests")
        return slot
    }

    private mutating func unitsCameBack(_ slot: Int, _ now: Int64) {
        serve(slot, now)
        keepWarm(slot, now)
        if now < shelves[slot].wantedUntil { answerRecall(slot) }
        if !shelves[slot].past.isEmpty || isClosing || !actions.isEmpty { isDue = true }
    }

    // MARK: - Answers without the store

    func unleased(_ row: QuotaRow, _ units: Int64, outage: Bool, period: Int64 = 0) -> QuotaHold {
        QuotaHold(row: row, period: period, units: units, leased: false, outage: outage)
    }

    mutating func duringOutage(_ row: QuotaRow, _ units: Int64, _ rule: OutageRule, _ now: Int64) -> Admission {
        switch rule {
        case .deny:
            counters.unavailable += 1
            return .unavailable(retryAfter: limits.retryAfterOutage)
        case .allow:
            counters.allowed += 1
            // The period it happens in, where it is known: the batch that books it may come after a reset.
            let shelf = slotOfRow[row].map { shelves[$0] }
            let period = shelf.flatMap { now < $0.resetAt ? $0.lease?.period : nil } ?? 0
            return .held(unleased(row, units, outage: true, period: period))
        }
    }

    /// The row's quota as last known, nil where the store was not asked yet or there is no limit.
    public func view(_ row: QuotaRow, now: Int64) -> QuotaView? {
        guard let slot = slotOfRow[row] else { return nil }
        return view(of: shelves[slot], now)
    }

    func view(of shelf: LeaseShelf, _ now: Int64) -> QuotaView? {
        guard let limit = shelf.limit else { return nil }
        let idle = shelf.lease.map { max(0, $0.idle) } ?? 0
        let reset = shelf.resetAt == .max ? nil : Self.seconds(shelf.resetAt - now)
        return QuotaView(limit: limit, remaining: max(0, shelf.free) + idle, resetSeconds: reset)
    }

    /// Units in hand that no request holds, usable or not; for tests and metrics.
    package func idleUnits(_ row: QuotaRow) -> Int64 { slotOfRow[row].flatMap { shelves[$0].lease?.idle } ?? 0 }

    /// Whole seconds, rounded up, at least 0.
    static func seconds(_ microseconds: Int64) -> Int64 { max(0, (microseconds + 999_999) / 1_000_000) }

    // MARK: - Rows

    mutating func makeShelf(_ row: QuotaRow) -> Int? {
        guard slotOfRow.count < limits.rowsMax else { return nil }
        let slot: Int
        if let spare = spareSlots.popLast() {
            slot = spare
            shelves[slot] = LeaseShelf(row: row)
        } else {
            slot = shelves.count
            shelves.append(LeaseShelf(row: row))
        }
        slotOfRow[row] = slot
        return slot
    }

    /// Units to have in hand: what one second of traffic takes.  The store caps it at a share of what is free.
    func wish(of shelf: LeaseShelf) -> Int64 {
        isClosing ? 0 : min(limits.wishMax, max(limits.wishMin, shelf.rate))
    }

    mutating func wantAhead(_ slot: Int, _ now: Int64) {
        guard !shelves[slot].isListedAhead, !isClosing, shelves[slot].free > 0, now >= shelves[slot].aheadAt
        else { return }
        shelves[slot].isListedAhead = true
        aheadSlots.append(slot)
        isDue = true
    }

    mutating func keepWarm(_ slot: Int, _ now: Int64) {
        guard !shelves[slot].isListedWarm else { return }
        shelves[slot].isListedWarm = true
        warmSlots.append(slot)
        if scanAt == .max {
            scanAt = now + limits.idleScanInterval
            isDue = true
        }
    }

    /// The actions since the last call, in order.
    public mutating func takeActions() -> [LeaseAction] {
        guard !actions.isEmpty else { return [] }
        defer { actions = [] }
        return actions
    }
}
