/// The numbers of a ``FlowBook``.  Times are microseconds.
public struct FlowLimits: Sendable, Equatable {
    /// How long a start, a step or a claim waits for the store before it is refused as unavailable; longer than
    /// ``recallWait``.
    public var waitMax: Int64 = 2_000_000
    /// How long an answer waits for its settlement before it goes out as pending.
    public var settleMax: Int64 = 2_000_000
    /// How long the store may take to answer; the connection is given up after it.
    public var answerMax: Int64 = 2_000_000
    /// What a request that gave up waiting may have left in the store is taken back, and tried for so long; after
    /// that the flow's deadline does it.
    public var undoMax: Int64 = 60_000_000
    /// How long a start waits for what a recall of leases brings: it is refused as held by the answer to a question that
    /// was sent so long after the recall had reached the store.
    public var recallWait = Limits.recallWait.wholeMicroseconds
    /// Least time between two questions while only a recall is waited for, and between two recalls of a row.
    public var recallAskInterval: Int64 = 10_000
    public var recallInterval: Int64 = 50_000
    /// How often the claims of hops on their way are renewed.
    public var renewInterval = Limits.flowClaimRenewal.wholeMicroseconds
    /// Pause after a turn that the store refused.
    public var retryInterval: Int64 = 50_000
    /// Requests of one kind that may wait at once.
    public var waitingMax = 16_384
    /// Requests of one kind in a turn.
    public var rowsPerTurn = 256
    /// Units one flow may hold; what wants more is refused as unavailable, so that sums cannot overflow.
    public var unitsMax: Int64 = 1_000_000_000_000
    /// Retry-After in seconds: of an outage, where units or places may come back at any moment, and of units that are
    /// never reset.
    public var retryAfterOutage: Int64 = 2
    public var retryAfterHeld: Int64 = 1
    public var retryAfterNeverReset: Int64 = 3600

    public init() {}
}
