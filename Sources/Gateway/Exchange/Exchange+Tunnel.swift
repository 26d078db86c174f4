internal import Curl
internal import GatewayCore
internal import NIOCore

/// An exchange whose client asked to change the protocol, on a route that lets it. Until the upstream's head it is one like any
/// other, and stays one where the upstream declines.
extension Exchange {
    /// The request asks for what the route lets through.
    var isUpgrade: Bool {
        head.asksForWebSocket && plan?.route.settings.takesWebSocket == true && head.method == "GET" && head.isHTTP11 && head.body == .none
    }

    /// 101: the exchange ends here, charged and logged before the head of its answer leaves, so that no tunnel that a client
    /// has can be missing after the death of the process. What goes through the tunnel is not the log's.
    private func changeProtocol(_ tunnel: Tunnel, _ head: TransferHead) {
        attempts += tunnel.attempts
        noteHead(head)
        firstByteAt = worker.reactor.now
        let answer = AnswerHead(head, isHead: false, own: own(), hiding: plan?.unitsHeader, allocator: worker.allocator)
        framing = answer.framing
        completion = answer.bytes
        conclude(machine.upstreamCompleted())
    }
}

extension Exchange: TunnelDelegate {
    func tunnelHead(_ tunnel: Tunnel, _ head: TransferHead) {
        switch head.status {
        case 101: changeProtocol(tunnel, head)
        case ..<200: takeInformational(head)
        default: takeHead(head)
        }
    }

    func tunnelReceived(_ tunnel: Tunnel, _ bytes: ByteBuffer) { takeBody(bytes) }

    // Both only after 101, when the tunnel is not this exchange's any more.
    func tunnelReceivedEnd(_ tunnel: Tunnel) {}
    func tunnelHasRoom(_ tunnel: Tunnel) {}

    func tunnelEnded(_ tunnel: Tunnel, _ error: TransferError?) {
        self.tunnel = nil
        if let error { upstreamFailed(error) } else { answerComplete(attempts: tunnel.attempts) }
    }
}
