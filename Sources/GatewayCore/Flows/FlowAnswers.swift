/// A quota row as the store saw it when a flow wanted to start.  Times are microseconds from the answer.
public struct FlowNumbers: Sendable, Equatable {
    public var period: Int64
    /// nil: unlimited; then there is nothing available either.
    public var limit: Int64?
    public var available: Int64?
    /// Units in leases and reservations.
    public var held: Int64
    /// To the end of the period; nil: never.
    public var resetIn: Int64?

    public init(period: Int64, limit: Int64?, available: Int64?, held: Int64, resetIn: Int64?) {
        (self.period, self.limit, self.available, self.held, self.resetIn) = (period, limit, available, held, resetIn)
    }

    var view: QuotaView? {
        guard let limit, let available else { return nil }
        return QuotaView(limit: limit, remaining: max(0, available - held), resetSeconds: resetIn.map(FlowBook.seconds))
    }
}

/// The store's answer to a start.
public enum FlowStartReply: Sendable, Equatable {
    case started(FlowNumbers, expiresIn: Int64)
    /// Units are short.  `leased`: units in leases; `deadlineIn`: of the first flow that will give units back.
    case short(FlowNumbers, leased: Int64, deadlineIn: Int64?)
    /// The key has as many flows open as it may have.
    case limit(deadlineIn: Int64?)
    case notAssigned
    /// A flow of this id began and ended, or must not begin.
    case ended
}

/// What becomes of the request that would start a flow.
public enum FlowStartAnswer: Sendable, Equatable {
    /// The view is nil where there is no limit.
    case started(OpenFlow, QuotaView?)
    /// 429: even with everything given back that is held there are not enough units in this period.
    case usedUp(retryAfter: Int64, QuotaView)
    /// 429: units are held by flows and requests, and may come back.
    case held(retryAfter: Int64, QuotaView)
    /// 429: the key has too many flows open.
    case limitReached(retryAfter: Int64)
    /// The service is not (any more) assigned to the environment: 403.
    case notAssigned
    /// 503.
    case unavailable(retryAfter: Int64)
}

/// How a flow ended; the ledger says it for as long as it is kept.
public enum FlowOutcome: Sendable, Equatable {
    case committed(units: Int64)
    case rolledBack
    /// `charged`: units used by a hop that succeeded after it had expired.
    case expired(charged: Int64)
}

/// What becomes of a step or a finish.
public enum FlowHopAnswer: Sendable, Equatable {
    public enum Reason: Sendable, Equatable {
        /// The route is not of this flow.
        case foreign
        /// Not the next step in the declared order.
        case order
        /// The flow has had its hops.
        case hops
    }

    /// To be forwarded; a finish is claimed.
    case passed(OpenFlow)
    /// The step of request `first` was sent again; it is not counted.  `status`: what that one was answered, as far as
    /// known.
    case repeated(OpenFlow, first: RequestID, status: UInt16?)
    /// 409: another hop is finishing.
    case finishing
    /// 409, or for a repeated finish the truth.
    case ended(FlowOutcome)
    /// 404.
    case unknown
    /// 403.
    case refused(Reason)
    /// 503.
    case unavailable(retryAfter: Int64)

    /// Whether it says that the flow is, or was, one of the asker's environment.
    public var knowsFlow: Bool {
        switch self {
        case .passed, .repeated, .finishing, .ended, .refused: true
        case .unknown, .unavailable: false
        }
    }
}

/// What became of a flow that was to be settled or resolved.
public enum FlowSettled: Sendable, Equatable {
    /// Ended, now or before, by this word or another.
    case ended(FlowOutcome)
    /// It goes on.
    case open
    /// Another hop is finishing: nothing was done.
    case finishing
    case unknown
    /// The store could not be reached in time: a settlement belongs into the spool.
    case pending(FlowSettlement)
    /// A resolution for which the store could not be reached, or too many waited: 503.
    case unavailable(retryAfter: Int64)

    /// Whether it says that the flow is, or was, one of the asker's environment.
    public var knowsFlow: Bool {
        switch self {
        case .ended, .open, .finishing: true
        case .unknown, .pending, .unavailable: false
        }
    }
}

/// A flow as `GET /.pandora/flows/{id}` and operators see it.  Moments are microseconds since 1970.
public struct FlowView: Sendable, Equatable {
    public enum State: Sendable, Equatable {
        case open
        case finishing
        case ended(FlowOutcome, at: Int64)
    }

    /// What only an open flow has.
    public struct Progress: Sendable, Equatable {
        public var flow: String
        public var keyID: KeyID?
        public var startPoint: RequestID?
        public var units: Int64
        public var hops: Int64
        public var startedAt: Int64
        public var expiresAt: Int64
        /// Microseconds until it expires by the store's clock.
        public var expiresIn: Int64

        public init(
            flow: String, keyID: KeyID?, startPoint: RequestID?, units: Int64, hops: Int64, startedAt: Int64,
            expiresAt: Int64, expiresIn: Int64
        ) {
            (self.flow, self.keyID, self.startPoint, self.units) = (flow, keyID, startPoint, units)
            (self.hops, self.startedAt, self.expiresAt, self.expiresIn) = (hops, startedAt, expiresAt, expiresIn)
        }
    }

    public var id: ReservationID
    public var row: QuotaRow
    public var period: Int64
    public var state: State
    public var progress: Progress?

    public init(id: ReservationID, row: QuotaRow, period: Int64, state: State, progress: Progress?) {
        (self.id, self.row, self.period, self.state, self.progress) = (id, row, period, state, progress)
    }
}
