internal import Curl
internal import GatewayCore
internal import NIOCore
internal import Reactor

/// The flow side of an exchange: before it is forwarded the store is asked, and its answer waits until it is known what became
/// of the flow.
extension Exchange {
    // MARK: Before the upstream

    /// Why a request with this `Pandora-Flow`, or without one, has no place on the route; nil: it has.
    func flowMismatch(_ role: FlowRole?) -> ExchangeMachine.Reason? {
        switch role {
        case nil, .start?:
            guard head.flow != nil else { return nil }
            return .init(.flowRouteRefused, detail: "the route is no step of a flow")
        case .step?, .finish?:
            guard let text = head.flow else { return .init(.flowInvalid, detail: "the route needs Pandora-Flow") }
            return ReservationID(text) == nil ? .init(.flowInvalid) : nil
        }
    }

    /// Starts the flow, or asks whether the hop may pass.
    func enterFlow(_ role: FlowRole, _ row: QuotaRow) {
        let flow = plan!.flow!
        var part = FlowPart(flow, role)
        if case .step = role, let text = head.idempotencyKey {
            guard let key = StepKey(text.utf8) else {
                return refuse(.init(.requestMalformed, detail: "Idempotency-Key is not 1 to 255 printable characters"))
            }
            part.stepKey = key
        }
        // A settlement that cannot reach the database waits in the spool: its place is kept from the beginning.
        part.hasPlace = worker.spool.reserve()
        self.flow = part
        guard part.hasPlace else { return refuse(.init(.logUnavailable)) }
        let environment = entry!.environmentID
        switch role {
        case .start:
            let start = FlowStart(flow, id: worker.makeReservationID(), requestID: root ?? id, keyID: entry!.keyID, row: row)
            worker.flows.start(start) { [self] in flowStarted($0, start.id) }
        case .step(_, let index):
            let hop = FlowHop(
                stepOf: flow, index: index, id: ReservationID(head.flow!)!, requestID: id, environmentID: environment, key: part.stepKey)
            worker.flows.step(hop) { [self] in flowHopped($0, hop.id) }
        case .finish:
            let hop = FlowHop(finishOf: flow, id: ReservationID(head.flow!)!, requestID: id, environmentID: environment)
            worker.flows.claim(hop) { [self] in flowHopped($0, hop.id) }
        }
    }

    private func flowStarted(_ answer: FlowStartAnswer, _ id: ReservationID) {
        switch answer {
        case .started(let open, let view):
            flow?.open = open
            flow?.id = id
            quotaView = view
        case .usedUp(_, let view), .held(_, let view): quotaView = view
        case .limitReached, .notAssigned, .unavailable: break
        }
        entered(ExchangeMachine.Reason(answer))
    }

    private func flowHopped(_ answer: FlowHopAnswer, _ id: ReservationID) {
        if answer.knowsFlow { flow?.id = id }
        switch answer {
        case .passed(let open): flow?.open = open
        case .repeated(let open, _, let status):
            flow?.open = open
            // Of one that was never answered nobody may have logged anything: this one stands in the chain then.
            flow?.isRepeat = status != nil
        default: break
        }
        entered(ExchangeMachine.Reason(answer))
    }

    private func entered(_ reason: ExchangeMachine.Reason?) {
        guard machine.phase == .admitting else {
            // The client went away while the store was asked.
            settleFlow(status: nil, wish: nil) {}
            return releaseFlowPlace()
        }
        if let reason { return refuse(reason) }
        // Every hop of a flow carries the flow's start point, whatever the client sent.
        if let open = flow?.open, open.startPoint != id {
            root = open.startPoint
            startPoint.removeAll(keepingCapacity: true)
            worker.signer.append(environment: entry!.environmentID, root: open.startPoint, to: &startPoint)
        }
        machine.flowEntered()
        forward()
    }

    // MARK: After the upstream

    /// What the answer's head says of the flow; nil where nothing is to be settled.
    func settlement(status: UInt16?, wish: FlowWish?) -> FlowSettlement? {
        guard let flow, let open = flow.open, !flow.isSettled else { return nil }
        return open.settlement(flow.flow.verdict(on: flow.role, status: status, wish: wish), hop: id, of: flow.flow)
    }

    /// Says what became of the flow. `done` runs once it is in the database or in the spool; at once where there is nothing to
    /// say.
    func settleFlow(status: UInt16?, wish: FlowWish?, _ done: @escaping () -> Void) {
        guard let settlement = settlement(status: status, wish: wish) else { return done() }
        flow?.isSettled = true
        flow?.isSettling = true
        worker.flows.settle(settlement, keep: keep) { [self] settled in
            flow?.state = settled.stateText
            flow?.isSettling = false
            if isEnded { releaseFlowPlace() }
            done()
        }
    }

    /// It must be in the database or in the spool before the client is answered.
    private func keep(_ late: FlowSettlement) -> Bool {
        guard worker.spool.append(late, reserved: flow?.hasPlace == true) else { return false }
        flow?.hasPlace = false
        return true
    }

    /// The place that was kept for a settlement, unless one is still on its way.
    func releaseFlowPlace() {
        guard let flow, flow.hasPlace, !flow.isSettling else { return }
        worker.spool.cancelReservation()
        self.flow?.hasPlace = false
    }

    /// The upstream's head waits for the flow.
    func settleBeforeAnswering(_ head: TransferHead, wish: FlowWish?) {
        transfer?.pauseReceiving()
        settleFlow(status: UInt16(head.status), wish: wish) { [self] in
            // The client may have gone meanwhile.
            guard machine.phase == .settling else { return }
            machine.flowSettled()
            passHead(head)
            if let lateFailure { return refuse(lateFailure) }
            if !mustHoldBack { transfer?.resumeReceiving() }
        }
    }

    /// Remembers what a step was answered, for whoever sends it again.
    func noteStep(status: UInt16) {
        guard let flow, let key = flow.stepKey, let open = flow.open, !flow.isRepeat else { return }
        worker.flows.note(FlowNote(id: open.id, key: key, status: status))
    }
}

extension TransferHead {
    /// `Pandora-Flow-Outcome`: what the upstream wants to become of the flow. Said twice it is a list, which is no word.
    var flowWish: FlowWish? {
        let said = values(of: Array("pandora-flow-outcome".utf8))
        return said.count == 1 ? FlowWish(header: said[0]) : nil
    }
}
