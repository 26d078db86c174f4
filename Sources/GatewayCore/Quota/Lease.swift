/// One worker's lease of one row in one period.
///
/// granted, returned and overrun are the store's totals (`returned` runs ahead of the store while a return is on
/// its way); charged and inUse are the worker's own.  What is left is idle.
struct Lease: Equatable {
    let period: Int64
    var granted: Int64 = 0
    var returned: Int64 = 0
    var overrun: Int64 = 0
    /// Units of settled requests since this book knows the lease.
    var charged: Int64 = 0
    /// Units of requests in flight.
    var inUse: Int64 = 0
    /// The part of `returned` that the store has confirmed.
    var confirmed: Int64 = 0

    /// Units to admit from; negative where the store lost a grant whose units were used already.
    var idle: Int64 { granted - returned - (charged - overrun) - inUse }

    /// Units on their way back, which the store still counts as held.
    var returning: Int64 { returned - confirmed }

    /// Whether the store still has to hear of a return.
    var owesReturn: Bool { returning > 0 }

    /// A lease this book knew nothing of: nothing was charged from it that the store has not booked, so what is
    /// open there is idle here.
    init(period: Int64, totals: LeaseTotals, open: Int64) {
        self.period = period
        granted = totals.granted
        returned = totals.returned
        overrun = totals.overrun
        charged = totals.granted - totals.returned + totals.overrun - open
        confirmed = totals.returned
    }

    /// Takes over the store's totals.  Returns whether it no longer knows of units it had granted.
    mutating func learn(_ totals: LeaseTotals) -> Bool {
        let lost = totals.granted < granted
        granted = totals.granted
        overrun = totals.overrun
        confirmed = totals.returned
        // A store that went back in time also forgot returns; sent again they would free units in use.
        if lost || returned < totals.returned { returned = totals.returned }
        return lost
    }

    /// Gives up all idle units.  Returns whether there were any.
    mutating func returnIdle(keeping kept: Int64 = 0) -> Bool {
        guard idle > kept else { return false }
        returned += idle - kept
        return true
    }
}

/// A request that waits for units.
struct QuotaWaiter {
    let ticket: QuotaTicket
    let units: Int64
    let outage: OutageRule
    let since: Int64
    /// An answer to a question asked after its arrival said that units are held elsewhere; a recall is on its way.
    var isDenied = false
    /// When the next answer said so: its question was sent after the recall, over the same connection, so others have
    /// been asked for units by then.
    var recallHeardAt: Int64?
}

/// What a worker knows of one row.
struct LeaseShelf {
    let row: QuotaRow
    var lease: Lease?
    /// Leases of other periods with requests in flight or returns on the way; almost always empty.
    var past: [Lease] = []
    /// Leases that were done with, by period, the newest last: a failover may bring one back by losing its returns, and a
    /// limit that is set again in the same period.
    private var dropped: [Lease] = []
    /// No lease up to this period is remembered.
    private(set) var forgottenPeriod: Int64 = 0
    /// The store did not know a lease of the row: until then what was charged from it may have to be booked yet.
    var rememberUntil: Int64 = .min
    /// The lease may be used before this moment …
    var useUntil: Int64 = .min
    /// … and before this one, the end of its period.
    var resetAt: Int64 = .max
    /// The store said "no limit" and is believed until then.
    var unlimitedUntil: Int64 = .min
    /// The store's numbers at its last answer.
    var limit: Int64?
    var free: Int64 = 0

    /// In order of arrival.
    var waiters: [QuotaWaiter] = []
    var waitingUnits: Int64 = 0
    /// The next question about this row is not asked before.
    var askAt: Int64 = .min
    var recalledAt: Int64 = .min
    /// Another holder recalled units and may still wait for them.
    var wantedUntil: Int64 = .min
    var aheadAt: Int64 = .min
    var lastTraffic: Int64 = 0

    var isAsking = false
    var isListedWaiting = false
    var isListedAhead = false
    var isListedWarm = false

    private var windowStart: Int64 = 0
    private var windowUnits: Int64 = 0
    private var lastWindowUnits: Int64 = 0

    init(row: QuotaRow) { self.row = row }

    func isUsable(_ now: Int64) -> Bool { now < useUntil && now < resetAt }

    /// Units of the last full second or of the current one, whichever is more.
    var rate: Int64 { max(windowUnits, lastWindowUnits) }

    mutating func count(_ units: Int64, _ now: Int64) {
        roll(now)
        windowUnits += units
        lastTraffic = now
    }

    /// Starts a new one-second window when the current one is over.
    mutating func roll(_ now: Int64) {
        let age = now - windowStart
        guard age >= 1_000_000 else { return }
        lastWindowUnits = age < 2_000_000 ? windowUnits : 0
        windowUnits = 0
        windowStart = now
    }

    /// Whether nothing is in use, idle, owed, waited for or asked.
    var isEmpty: Bool {
        waiters.isEmpty && !isAsking && past.isEmpty
            && (lease.map { $0.inUse == 0 && $0.idle == 0 && !$0.owesReturn } ?? true)
    }

    /// Remembers a lease that was done with, beside `most - 1` others.
    mutating func drop(_ lease: Lease, remembering most: Int) {
        guard lease.period > forgottenPeriod else { return }
        let index = dropped.firstIndex { $0.period > lease.period } ?? dropped.endIndex
        dropped.insert(lease, at: index)
        if dropped.count > most { forgottenPeriod = dropped.removeFirst().period }
    }

    /// The lease of a period that was done with, remembered no longer; nil: there was none, or it is forgotten.
    mutating func takeDropped(of period: Int64) -> Lease? {
        dropped.firstIndex { $0.period == period }.map { dropped.remove(at: $0) }
    }

    mutating func withLease<T>(of period: Int64, _ body: (inout Lease) -> T) -> T? {
        if lease?.period == period { return body(&lease!) }
        guard let index = past.firstIndex(where: { $0.period == period }) else { return nil }
        return body(&past[index])
    }
}
