/// The numbers of a ``LeaseBook``.  Times are microseconds.
public struct LeaseLimits: Sendable, Equatable {
    /// How long a holder admits from a lease after the store last answered for it.
    public var useFor: Int64 = 10_000_000
    /// Idle units go back when nothing was admitted from the lease for so long.
    public var idleAfter: Int64 = 1_000_000
    /// Least time between two questions.
    public var askInterval: Int64 = 5_000
    /// Least time between two questions while only a recall is waited for.
    public var recallAskInterval: Int64 = 10_000
    /// Least time between two recalls of one row.
    public var recallInterval: Int64 = 50_000
    /// How long a request waits for what a recall brings: it is refused as held by the answer to a question that was
    /// sent so long after the recall had reached the store.
    public var recallWait = Limits.recallWait.wholeMicroseconds
    /// How long a request waits altogether before it is answered as in an outage; longer than ``recallWait``.
    public var waitMax: Int64 = 2_000_000
    /// How long the store may take to answer a question; the connection is given up after it.
    public var answerMax: Int64 = 2_000_000
    /// Requests that may wait at once; the next is refused as unavailable.
    public var waitingMax = 16_384
    /// Units one request may hold; what wants more is refused as unavailable, so that sums cannot overflow.
    public var unitsMax: Int64 = 1_000_000_000_000
    /// Rows of one question or return.
    public var rowsPerStatement = 256
    /// Rows remembered; above it requests for unknown rows are refused as unavailable until idle ones were forgotten.
    public var rowsMax = 100_000
    /// A row without units, waiters and traffic for so long is forgotten.
    public var forgetAfter: Int64 = 60_000_000
    /// A row of which the store did not know a lease is remembered for so long: as spools are kept for a failover.
    public var rememberFor: Int64 = 3_600_000_000
    /// Periods of a row whose leases are remembered after they were done with, some 60 bytes each.  A failover that loses commits
    /// of older ones leaves what it opens again of them held until the process ends; nothing is admitted in them any more.
    public var droppedMax = 8
    /// How long "no limit" is believed where the key's entry says otherwise.
    public var unlimitedFor: Int64 = 250_000
    /// Least time between two questions for units ahead of traffic, a row.
    public var aheadInterval: Int64 = 100_000
    /// How often leases in hand are looked through for idle units.
    public var idleScanInterval: Int64 = 250_000
    /// Pause after a question or a return that the store refused.
    public var retryInterval: Int64 = 50_000
    /// After a reconnect the leases are read again twice, for grants that the old connection still committed.
    public var firstAudit: Int64 = 5_000_000
    public var secondAudit: Int64 = 60_000_000
    /// Least number of units wished for, so that slow traffic does not ask for each request.  The store caps a
    /// wish at its share of what is free.
    public var wishMin: Int64 = 64
    /// Most units wished for at once.
    public var wishMax: Int64 = 1_000_000
    /// Retry-After in seconds: of an outage, of held units, of used-up units that are never reset.
    public var retryAfterOutage: Int64 = 2
    public var retryAfterHeld: Int64 = 1
    public var retryAfterNeverReset: Int64 = 3600

    public init() {}
}
