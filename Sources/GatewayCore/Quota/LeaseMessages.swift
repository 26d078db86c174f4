/// One row of a question to the store.
public struct LeaseQuestion: Sendable, Equatable {
    public var row: QuotaRow
    /// Units that waiting requests want now.
    public var need: Int64
    /// Units wanted ahead of traffic.
    public var wish: Int64

    public init(row: QuotaRow, need: Int64, wish: Int64) {
        self.row = row
        self.need = need
        self.wish = wish
    }
}

/// What the store knows of one lease: totals that only grow, so that a lost, late or repeated message changes
/// nothing in what follows from them.
public struct LeaseTotals: Sendable, Hashable {
    public var granted: Int64
    /// Units the holder gave back unused.
    public var returned: Int64
    /// Units booked as used although the store knew no lease for them.
    public var overrun: Int64

    public init(granted: Int64, returned: Int64, overrun: Int64) {
        self.granted = granted
        self.returned = returned
        self.overrun = overrun
    }

    public static let zero = LeaseTotals(granted: 0, returned: 0, overrun: 0)
}

/// The store's answer for one row of a question.
public enum LeaseAnswer: Sendable, Equatable {
    case notAssigned
    /// No limit in force: requests need no lease.
    case unlimited(period: Int64)
    case limited(LeaseNumbers)
}

/// A limited row right after its grant.
public struct LeaseNumbers: Sendable, Equatable {
    public var period: Int64
    /// This holder's lease of that period.
    public var totals: LeaseTotals
    /// Open units of this holder as the store counts them: idle, in use, and used but not booked yet.
    public var ownOpen: Int64
    /// available − held; negative while overcommitted.
    public var free: Int64
    /// Open units of all leases and reservations, this holder's included.
    public var held: Int64
    public var limit: Int64
    /// Microseconds from the answer to the end of the period by the store's clock; nil: never.
    public var resetIn: Int64?
    /// Microseconds to the earliest deadline of a flow that holds units, where the need was not met.
    public var flowDeadlineIn: Int64?

    public init(
        period: Int64, totals: LeaseTotals, ownOpen: Int64, free: Int64, held: Int64, limit: Int64,
        resetIn: Int64?, flowDeadlineIn: Int64?
    ) {
        self.period = period
        self.totals = totals
        self.ownOpen = ownOpen
        self.free = free
        self.held = held
        self.limit = limit
        self.resetIn = resetIn
        self.flowDeadlineIn = flowDeadlineIn
    }
}

/// A return of idle units: the lease's total so far, not a difference, so that sending it twice returns once.
public struct LeaseReturn: Sendable, Equatable {
    public var row: QuotaRow
    public var period: Int64
    public var totalReturned: Int64

    public init(row: QuotaRow, period: Int64, totalReturned: Int64) {
        self.row = row
        self.period = period
        self.totalReturned = totalReturned
    }
}

/// A lease row as the store has it.
public struct LeaseRecord: Sendable, Hashable {
    public var row: QuotaRow
    public var period: Int64
    public var totals: LeaseTotals
    /// Units neither used, given back nor written off, as the store counts them.
    public var open: Int64

    public init(row: QuotaRow, period: Int64, totals: LeaseTotals, open: Int64) {
        self.row = row
        self.period = period
        self.totals = totals
        self.open = open
    }
}

/// Names a request that waits for units.
public struct QuotaTicket: Hashable, Sendable {
    var number: UInt64
}

/// What the caller is to do for a ``LeaseBook``.
public enum LeaseAction: Sendable, Equatable {
    /// Send one statement for all rows; report with `answered` or `askFailed` and the same number.
    case ask(number: UInt64, [LeaseQuestion])
    /// Return idle units; report with `gaveBack`.
    case giveBack(number: UInt64, [LeaseReturn])
    /// Ask the other holders of the row to return idle units.
    case recall(QuotaRow)
    /// Read all leases of this holder; report with `leasesRead` or `readFailed`.
    case readLeases(number: UInt64)
    /// Tell a waiting request its answer.
    case answer(QuotaTicket, Admission)
}
