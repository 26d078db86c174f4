/// One (environment, service): what a quota is counted for.
public struct QuotaRow: Hashable, Sendable, Comparable {
    public var environmentID: Int64
    public var serviceID: Int64

    public init(environmentID: Int64, serviceID: Int64) {
        self.environmentID = environmentID
        self.serviceID = serviceID
    }

    public static func < (a: QuotaRow, b: QuotaRow) -> Bool {
        (a.environmentID, a.serviceID) < (b.environmentID, b.serviceID)
    }
}

/// What a route does with a request whose quota cannot be asked for.
public enum OutageRule: UInt8, Sendable {
    /// 503 with Retry-After.
    case deny
    /// Forwarded without a lease; counted, charged once the store is back, and marked in the log.
    case allow
}

/// What a request wants to hold before it is forwarded.
public struct QuotaWant: Sendable, Equatable {
    public var row: QuotaRow
    /// Units the request may cost at most, ≥ 0.
    public var units: Int64
    /// Whether the key's entry says that the row has a limit; without one no lease is needed.
    public var limited: Bool
    public var outage: OutageRule

    public init(environmentID: Int64, serviceID: Int64, units: Int64, limited: Bool, outage: OutageRule) {
        row = QuotaRow(environmentID: environmentID, serviceID: serviceID)
        self.units = units
        self.limited = limited
        self.outage = outage
    }
}

/// Units that one request holds until it is settled or released, exactly once.
public struct QuotaHold: Sendable, Equatable {
    public var row: QuotaRow
    /// The period the units belong to; 0 means whichever is current when the hop is booked (no lease was needed).
    public var period: Int64
    public var units: Int64
    /// Whether the units came out of a lease, so that the hop settles it.
    public var leased: Bool
    /// Whether the request was let through without a lease because the store was away.
    public var outage: Bool

    init(row: QuotaRow, period: Int64, units: Int64, leased: Bool, outage: Bool) {
        self.row = row
        self.period = period
        self.units = units
        self.leased = leased
        self.outage = outage
    }

    /// What is really charged where `reported` units were asked for: never more than was held, never less than none.
    public func charge(_ reported: Int64) -> Int64 { max(0, min(reported, units)) }
}

/// The quota of a row as this node last knew it, for the RateLimit header fields.
public struct QuotaView: Sendable, Equatable {
    public var limit: Int64
    /// Free units at the last answer of the store, plus the idle units of the own lease.
    public var remaining: Int64
    /// Whole seconds until the period ends, rounded up; nil where the quota is never reset.
    public var resetSeconds: Int64?
}

/// The answer to a want.
public enum Admission: Sendable, Equatable {
    case held(QuotaHold)
    /// 429: the period's units are used.
    case refusedUsedUp(retryAfter: Int64, QuotaView)
    /// 429: what is left is held by requests in flight, flows or other nodes, and may come back.
    case refusedHeld(retryAfter: Int64, QuotaView)
    /// The service is not (any more) assigned to the environment: 403.
    case notAssigned
    /// 503: the store could not be asked, or too many requests wait for it.
    case unavailable(retryAfter: Int64)
}

extension QuotaView {
    static let unknown = QuotaView(limit: 0, remaining: 0, resetSeconds: nil)
}
