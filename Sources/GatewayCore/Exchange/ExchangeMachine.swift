/// One client request and its answer, as a state machine: what happened goes in, what to do comes out. No I/O and no clock.
///
///     resolving ──▶ admitting ──▶ forwarding ──▶ (settling) ──▶ streaming ──▶ ended
///         └────────────┴─────────────┴───────────────┴──────────────┴────────────▲
///
/// Settling is for hops of flows alone: the answer waits until it is known what became of the flow.
/// Every path ends in `ended` with exactly one ``Ending``, which says what the log and the quota hear.
public struct ExchangeMachine: Sendable {
    public enum Phase: Sendable, Equatable {
        /// The route is known, the key is looked up. Legal exits: admitting, forwarding (no units to hold), ended.
        case resolving
        /// Quota, or the flow, is asked for. Legal exits: forwarding, ended.
        case admitting
        /// The request is on its way, the upstream's head is not there. Legal exits: settling, streaming, ended.
        case forwarding
        /// The upstream's head is there and waits for the flow's settlement. Legal exits: streaming, ended.
        case settling
        /// The upstream's head was passed on. Legal exit: ended.
        case streaming
        case ended
    }

    /// What to do next.
    public enum Step: Sendable, Equatable {
        case admit(QuotaWant)
        /// The route has a part in a flow, which is asked instead of quota.
        case enterFlow(FlowRole, QuotaRow)
        case forward
        case refuse(Reason)
    }

    /// Why the gateway answers itself, and what the client is told besides the refusal's own words.
    public struct Reason: Sendable, Equatable {
        public var refusal: Refusal
        /// Seconds.
        public var retryAfter: Int64?
        public var detail: String?

        public init(_ refusal: Refusal, retryAfter: Int64? = nil, detail: String? = nil) {
            self.refusal = refusal
            self.retryAfter = retryAfter ?? refusal.retryAfter
            self.detail = detail
        }

        /// Where no end of a period brings the units back, the client is told so.
        static func usedUp(_ retryAfter: Int64, _ view: QuotaView) -> Reason {
            let isReset = view.resetSeconds != nil
            return Reason(
                .quotaExceeded, retryAfter: retryAfter,
                detail: isReset ? nil : "no reset of the quota is scheduled: an operator has to raise it")
        }
    }

    /// How the exchange ended.
    public struct Ending: Sendable, Equatable {
        public var status: ExecutionStatus
        public var refusal: Refusal?
        /// What the client was answered; nil where it was not.
        public var statusCode: UInt16?
        /// Units to charge of those held.
        public var charge: Int64
        /// The answer has begun and cannot be completed: the connection must end so that the client sees it.
        public var cutsAnswer = false
    }

    public private(set) var phase = Phase.resolving
    public private(set) var hold: QuotaHold?
    /// The grant that the request uses, or was refused with.
    public private(set) var grant: KeyEntry.Grant?
    private var upstreamStatus: UInt16?
    private let charge: Route.Charge

    public init(charge: Route.Charge) { self.charge = charge }

    // MARK: Before the upstream

    /// The key's entry is there. `now` is microseconds since 1970.
    public mutating func keyResolved(_ entry: KeyEntry, route: Route, now: Int64) -> Step {
        expect(.resolving)
        let settings = route.settings
        let verdict = entry.grant(for: route.service, deprecatedPasses: settings.deprecatedPasses)
        // The service is noted before anything is refused, so that the log can name it.
        if case .granted(let found) = verdict { grant = found }
        if let refusal = entry.refusal(at: now) { return .refuse(Reason(refusal)) }
        switch verdict {
        case .refused(let refusal, let refused):
            grant = refused
            return .refuse(Reason(refusal))
        case .granted(let grant):
            phase = .admitting
            if let role = settings.flow {
                return .enterFlow(role, QuotaRow(environmentID: entry.environmentID, serviceID: grant.serviceID))
            }
            return .admit(
                QuotaWant(
                    environmentID: entry.environmentID, serviceID: grant.serviceID,
                    units: settings.charge == .never ? 0 : settings.units, limited: grant.limited, outage: settings.outage))
        }
    }

    public mutating func admitted(_ admission: Admission) -> Step {
        expect(.admitting)
        switch admission {
        case .held(let hold):
            self.hold = hold
            phase = .forwarding
            return .forward
        case .refusedUsedUp(let retryAfter, let view): return .refuse(.usedUp(retryAfter, view))
        case .refusedHeld(let retryAfter, _): return .refuse(Reason(.quotaHeld, retryAfter: retryAfter))
        case .notAssigned: return .refuse(Reason(.serviceNotAssigned))
        case .unavailable(let retryAfter): return .refuse(Reason(.quotaUnavailable, retryAfter: retryAfter))
        }
    }

    /// The flow was reserved, lets the step pass, or is claimed. A hop of a flow holds nothing by itself.
    public mutating func flowEntered() {
        expect(.admitting)
        phase = .forwarding
    }

    // MARK: The upstream

    /// The upstream's final head. Charging is decided by it.
    ///
    /// - Parameters:
    ///   - settles: whether the head decides about a flow and waits for that.
    ///   - reported: units that the upstream says the answer costs: where it is charged, ``hold`` has no more from now on,
    ///     and the lease gets the rest back (``LeaseBook/reduce(_:to:now:)``).
    public mutating func upstreamAnswered(status: UInt16, settles: Bool = false, reported: Int64? = nil) {
        expect(.forwarding)
        upstreamStatus = status
        phase = settles ? .settling : .streaming
        if let reported, let hold, charges(status) { self.hold!.units = hold.charge(reported) }
    }

    /// The flow is settled, or its settlement is in the spool: the answer may go out.
    public mutating func flowSettled() {
        expect(.settling)
        phase = .streaming
    }

    /// The upstream's answer is complete.
    public mutating func upstreamCompleted() -> Ending {
        expect(.streaming)
        let status = upstreamStatus!
        return end(ExecutionStatus(upstreamStatus: status), statusCode: status, charge: charges(status) ? units : 0)
    }

    /// The transfer failed. Before the head the gateway answers with `reason`; after it the answer is cut.
    ///
    /// - Parameter attempts: how often the request went out.
    public mutating func upstreamFailed(_ reason: Reason, attempts: Int) -> Ending {
        let isStreaming = phase == .streaming
        if !isStreaming, phase != .settling { expect(.forwarding) }
        // What is charged always is charged for having reached the upstream at all. A client that breaks its request off after
        // the head pays like one that goes, or it would have answers for nothing. Everything else is given back.
        let isBroken = reason.refusal.blamesClient && upstreamStatus.map(charges) ?? false
        let charged = isBroken || charge == .always && attempts > 0 ? units : 0
        var ending = end(ExecutionStatus(reason.refusal), statusCode: reason.refusal.status, charge: charged)
        ending.refusal = reason.refusal
        if isStreaming { (ending.statusCode, ending.cutsAnswer) = (upstreamStatus, true) }
        return ending
    }

    // MARK: Other ends

    /// The gateway answers itself before or instead of the upstream, or has to cut an answer that has begun.
    public mutating func refused(_ reason: Reason, attempts: Int = 0) -> Ending {
        precondition(phase != .ended, "refused after the end")
        if phase == .forwarding || phase == .settling || phase == .streaming { return upstreamFailed(reason, attempts: attempts) }
        var ending = end(ExecutionStatus(reason.refusal), statusCode: reason.refusal.status, charge: 0)
        ending.refusal = reason.refusal
        return ending
    }

    /// The client's connection is gone. After the upstream's head the request is charged as it decided, before it nothing is.
    public mutating func clientGone(attempts: Int) -> Ending {
        precondition(phase != .ended, "gone after the end")
        let charged: Bool
        if let upstreamStatus { charged = charges(upstreamStatus) } else { charged = charge == .always && attempts > 0 }
        return end(.clientAborted, statusCode: phase == .streaming ? upstreamStatus : nil, charge: charged ? units : 0)
    }

    /// The gateway answered one of its own endpoints.
    public mutating func answeredByGateway(status: UInt16) -> Ending {
        expect(.resolving)
        return end(.success, statusCode: status, charge: 0)
    }

    private var units: Int64 { hold?.units ?? 0 }

    /// Whether the route charges an answer of this status.
    public func charges(_ status: UInt16) -> Bool {
        switch charge {
        case .always: true
        case .never: false
        case .onSuccess: ExecutionStatus(upstreamStatus: status) == .success
        }
    }

    private mutating func end(_ status: ExecutionStatus, statusCode: UInt16?, charge: Int64) -> Ending {
        phase = .ended
        return Ending(status: status, refusal: nil, statusCode: statusCode, charge: charge)
    }

    private func expect(_ wanted: Phase) {
        precondition(phase == wanted, "an event of phase \(wanted) came in \(phase)")
    }
}
