// What a request is told that its flow, or the flow that it would start, keeps from being forwarded.

extension ExchangeMachine.Reason {
    /// Nil: the flow has started.
    public init?(_ answer: FlowStartAnswer) {
        switch answer {
        case .started: return nil
        case .usedUp(let retryAfter, let view): self = .usedUp(retryAfter, view)
        case .held(let retryAfter, _): self.init(.quotaHeld, retryAfter: retryAfter)
        case .limitReached(let retryAfter): self.init(.flowLimit, retryAfter: retryAfter)
        case .notAssigned: self.init(.serviceNotAssigned)
        case .unavailable(let retryAfter): self.init(.quotaUnavailable, retryAfter: retryAfter)
        }
    }

    /// Nil: the hop may be forwarded.
    public init?(_ answer: FlowHopAnswer) {
        switch answer {
        case .passed, .repeated: return nil
        case .finishing: self.init(.flowFinishing)
        case .ended(let outcome): self.init(outcome)
        case .unknown: self.init(.flowNotFound)
        case .refused(.foreign): self.init(.flowRouteRefused, detail: "the route is not of this flow")
        case .refused(.order): self.init(.flowStepRefused)
        case .refused(.hops): self.init(.flowHopsExceeded)
        case .unavailable(let retryAfter): self.init(.quotaUnavailable, retryAfter: retryAfter)
        }
    }

    /// The flow has ended, and not as the client wants it now.
    public init(_ outcome: FlowOutcome) {
        switch outcome {
        case .committed, .rolledBack: self.init(.flowClosed, detail: outcome.text)
        case .expired(charged: 0): self.init(.flowExpired)
        case .expired: self.init(.flowExpired, detail: "its finish succeeded after that, and was charged")
        }
    }

    /// Nil: the flow has ended as the client wanted it, or before.
    public init?(_ settled: FlowSettled) {
        switch settled {
        case .ended, .open, .pending: return nil
        case .finishing: self.init(.flowFinishing)
        case .unknown: self.init(.flowNotFound)
        case .unavailable(let retryAfter): self.init(.quotaUnavailable, retryAfter: retryAfter)
        }
    }
}

extension FlowOutcome {
    /// One word, as in `Pandora-Flow-State` and in the flow endpoints.
    public var text: String {
        switch self {
        case .committed: "committed"
        case .rolledBack: "rolled_back"
        case .expired: "expired"
        }
    }
}

extension FlowSettled {
    /// The value of `Pandora-Flow-State`; nil where there is nothing to say. Of a hop that had no word in it that another one
    /// is finishing the flow.
    public var stateText: String? {
        switch self {
        case .ended(let outcome): outcome.text
        case .open: "open"
        case .pending: "pending"
        case .finishing: "finishing"
        case .unknown: "unknown"
        case .unavailable: nil
        }
    }
}
