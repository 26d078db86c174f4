/// What is asked of the store about one flow.
protocol FlowRequest: Sendable {
    var id: ReservationID { get }
}

/// A flow that is to begin.  Times are microseconds.
public struct FlowStart: FlowRequest, Equatable {
    /// Made by this node: said twice, it is one flow.
    public var id: ReservationID
    /// The starting hop, root of the chain.
    public var requestID: RequestID
    public var keyID: KeyID
    public var row: QuotaRow
    public var flow: String
    public var units: Int64
    /// Without a hop for so long it expires …
    public var timeToLive: Int64
    /// … and after so long in any case.
    public var timeMax: Int64
    /// Flows that the key may have open of the service, this one included.
    public var openMax: Int64

    public init(_ flow: Flow, id: ReservationID, requestID: RequestID, keyID: KeyID, row: QuotaRow) {
        (self.id, self.requestID, self.keyID, self.row) = (id, requestID, keyID, row)
        self.flow = flow.name
        units = flow.units
        timeToLive = flow.timeToLive.wholeMicroseconds
        timeMax = flow.timeMax.wholeMicroseconds
        openMax = Int64(flow.open)
    }
}

/// An `Idempotency-Key`: 1 to 255 visible ASCII characters or spaces.
public struct StepKey: Sendable, Hashable {
    public let text: String

    public init?(_ value: some Collection<UInt8>) {
        guard 1...255 ~= value.count, value.allSatisfy({ 0x20...0x7e ~= $0 }) else { return nil }
        text = String(decoding: value, as: UTF8.self)
    }
}

/// A hop of an open flow: a step, or the claim of the hop that would finish it.  Times are microseconds.
public struct FlowHop: FlowRequest, Equatable {
    public var id: ReservationID
    public var requestID: RequestID
    /// The key's environment; a flow of another one is unknown.
    public var environmentID: Int64
    /// The flow that the route belongs to.
    public var flow: String
    public var isFinish: Bool
    /// Place in the declared order: the first step is 1, the finish comes after the last step.
    public var position: Int64
    public var isOrdered: Bool
    /// Of a renewal 0.
    public var hopsMax: Int64
    /// Until a flow without a further hop expires.
    public var timeToLive: Int64
    /// Until a claim is void, unless it is said again: by then its hop must have been settled.
    public var claimTime: Int64
    public var key: StepKey?

    private init(_ flow: Flow, _ id: ReservationID, _ requestID: RequestID, _ environmentID: Int64) {
        (self.id, self.requestID, self.environmentID) = (id, requestID, environmentID)
        self.flow = flow.name
        (isFinish, isOrdered) = (false, flow.ordered)
        position = Int64(flow.steps.count) + 1
        hopsMax = Int64(flow.hops)
        timeToLive = flow.timeToLive.wholeMicroseconds
        claimTime = 0
    }

    /// A step; `index` is that of its route's role.
    public init(
        stepOf flow: Flow, index: Int, id: ReservationID, requestID: RequestID, environmentID: Int64, key: StepKey? = nil
    ) {
        self.init(flow, id, requestID, environmentID)
        position = Int64(index) + 1
        self.key = key
    }

    /// The claim of a finish.
    public init(
        finishOf flow: Flow, id: ReservationID, requestID: RequestID, environmentID: Int64, claim: Duration = Limits.flowClaim
    ) {
        self.init(flow, id, requestID, environmentID)
        isFinish = true
        claimTime = claim.wholeMicroseconds
    }

    /// The claim said again.  Where it does not stand any more it claims nothing, however late it is heard: its hop may be
    /// settled, the flow open again and with others.
    public var renewal: FlowHop {
        var hop = self
        hop.hopsMax = 0
        return hop
    }

    var life: Int64 { isFinish ? claimTime : timeToLive }
}

/// An open flow as one of its hops sees it.
public struct OpenFlow: Sendable, Equatable {
    public var id: ReservationID
    /// The environment, and the service of the starting route: whose quota is held.
    public var row: QuotaRow
    /// The period whose quota is held; it may have ended since.
    public var period: Int64
    public var units: Int64
    /// Root of the chain.
    public var startPoint: RequestID
    public var hops: Int64
    /// Microseconds until it expires, as of the store's answer.
    public var expiresIn: Int64

    public init(
        id: ReservationID, row: QuotaRow, period: Int64, units: Int64, startPoint: RequestID, hops: Int64,
        expiresIn: Int64
    ) {
        (self.id, self.row, self.period, self.units) = (id, row, period, units)
        (self.startPoint, self.hops, self.expiresIn) = (startPoint, hops, expiresIn)
    }

    /// What `hop` has to settle; nil: nothing.
    ///
    /// - Parameter charge: units that the upstream reported; all that are held where nil, never more.
    public func settlement(
        _ verdict: FlowVerdict, hop: RequestID, of flow: Flow, charge: Int64? = nil
    ) -> FlowSettlement? {
        let action: FlowSettlement.Action
        switch verdict {
        case .stay: return nil
        case .commit: action = .commit(units: max(0, min(charge ?? units, units)))
        case .rollback: action = .rollback
        case .reopen: action = .reopen(timeToLive: flow.timeToLive.wholeMicroseconds)
        }
        return FlowSettlement(id: id, hop: hop, row: row, period: period, action: action)
    }
}

/// What a hop says became of its flow.  Complete in itself: it can be said again, later, by another process, and to a
/// database that lost the flow.
public struct FlowSettlement: FlowRequest, Equatable {
    public enum Action: Sendable, Equatable {
        case commit(units: Int64)
        case rollback
        /// The finish failed, the flow goes on for so many microseconds.
        case reopen(timeToLive: Int64)
    }

    public var id: ReservationID
    public var hop: RequestID
    public var row: QuotaRow
    /// 0: whichever is current, where the hop never learnt it.
    public var period: Int64
    public var action: Action

    public init(id: ReservationID, hop: RequestID, row: QuotaRow, period: Int64, action: Action) {
        (self.id, self.hop, self.row, self.period, self.action) = (id, hop, row, period, action)
    }
}

/// The word of a client (who has an environment) or an operator on an open flow.
public struct FlowResolution: FlowRequest, Equatable {
    public var id: ReservationID
    /// nil: of whatever environment it is.
    public var environmentID: Int64?
    public var commits: Bool

    public init(id: ReservationID, environmentID: Int64?, commits: Bool) {
        (self.id, self.environmentID, self.commits) = (id, environmentID, commits)
    }
}

/// What ends flows or opens them again, in one statement.
public enum FlowOrder: FlowRequest, Equatable {
    case settle(FlowSettlement)
    case resolve(FlowResolution)

    public var id: ReservationID {
        switch self {
        case .settle(let settlement): settlement.id
        case .resolve(let resolution): resolution.id
        }
    }
}

/// What a step was answered, for the one who sends it again.
public struct FlowNote: FlowRequest, Equatable {
    public var id: ReservationID
    public var key: StepKey
    public var status: UInt16

    public init(id: ReservationID, key: StepKey, status: UInt16) { (self.id, self.key, self.status) = (id, key, status) }
}
