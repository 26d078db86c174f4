/// A process of several hops that is paid once.
public struct Flow: Sendable, Equatable {
    /// What an unsuccessful finishing hop does.
    public enum Failure: String, Sendable, CaseIterable {
        /// The flow stays open: the client may try again.
        case keep
        case rollback
    }

    public var name: String
    /// Names of routes.
    public var start: String
    public var steps: [String]
    public var finish: String
    public var units: Int64
    /// Without a hop for so long, the flow is given back.
    public var timeToLive: Duration
    /// However many hops there are, not longer than this.
    public var timeMax: Duration
    public var hops: Int
    /// Whether steps must come in the order of the file.
    public var ordered: Bool
    /// Open flows per key and service.
    public var open: Int
    /// Statuses that are success of a start and of a finish.
    public var success: [ClosedRange<UInt16>]
    public var onFailure: Failure

    public init(
        name: String, start: String, steps: [String], finish: String, units: Int64 = 1,
        timeToLive: Duration = Limits.flowTime, timeMax: Duration = Limits.flowTimeMax, hops: Int = Limits.flowHops,
        ordered: Bool = false, open: Int = Limits.openFlowsPerKey, success: [ClosedRange<UInt16>] = Limits.flowSuccess,
        onFailure: Failure = .keep
    ) {
        (self.name, self.start, self.steps, self.finish) = (name, start, steps, finish)
        (self.units, self.timeToLive, self.timeMax, self.hops) = (units, timeToLive, timeMax, hops)
        (self.ordered, self.open, self.success, self.onFailure) = (ordered, open, success, onFailure)
    }
}

/// What a route is to a flow.
public enum FlowRole: Sendable, Equatable {
    case start(flow: String)
    case step(flow: String, index: Int)
    case finish(flow: String)

    public var flowName: String {
        switch self {
        case .start(let flow), .step(let flow, _), .finish(let flow): flow
        }
    }
}
