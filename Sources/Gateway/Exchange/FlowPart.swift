internal import GatewayCore

/// An exchange's part in a flow.
struct FlowPart {
    let flow: Flow
    let role: FlowRole
    /// Once the store has let the hop pass.
    var open: OpenFlow?
    /// The flow, once the store has said that there is or was one of this name in the environment, also to a hop that may not pass.
    var id: ReservationID?
    /// The step was sent before, under the same `Idempotency-Key`, and answered: it is forwarded again, and neither counted nor
    /// chained twice.
    var isRepeat = false
    var stepKey: StepKey?
    /// The value of `Pandora-Flow-State`.
    var state: String?
    /// What became of the flow was said, or is being said.
    var isSettled = false
    var isSettling = false
    /// Place in the spool is kept for a settlement.
    var hasPlace = false

    init(_ flow: Flow, _ role: FlowRole) { (self.flow, self.role) = (flow, role) }

    /// What the answer says of the flow. An answer of our own may not have waited for what was said.
    var fields: AnswerHead.FlowFields? {
        guard let open else { return nil }
        return AnswerHead.FlowFields(id: open.id, state: state ?? (isSettled ? "pending" : "open"))
    }
}
