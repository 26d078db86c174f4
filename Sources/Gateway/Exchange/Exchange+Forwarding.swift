internal import Curl
internal import GatewayCore
internal import NIOCore
internal import Reactor

/// The upstream side of an exchange.
extension Exchange {
    /// Targets that are tried, where the ones before could not be connected to.
    static let connectionTriesMax = 3

    // MARK: The request

    /// Sends the request to the next target.
    func forward() {
        let plan = plan!
        guard let target = plan.pool.next() else { return refuse(.init(.upstreamUnavailable)) }
        self.target = target
        connectionTries += 1
        guard let request = request(to: target, plan) else {
            return refuse(.init(.requestMalformed, detail: "a header field has a control character in its value"))
        }
        do throws(TransferError) {
            if isUpgrade {
                tunnel = try worker.curl.open(request, upgrade: "websocket", delegate: self)
            } else {
                transfer = try worker.curl.start(request, delegate: self)
            }
        } catch {
            return refuse(reason(for: error))
        }
        if head.expectsContinue, !isRequestComplete { connection?.writeContinue() }
        sendWaitingBody()
    }

    private func request(to target: UpstreamPool.Member, _ plan: RoutePlan) -> TransferRequest? {
        let trace = trace ?? worker.makeTrace(continuing: head.trace)
        self.trace = trace
        let identity = ForwardedFields.Identity(
            entry: entry!, grant: machine.grant!, requestID: id, startPoint: startPoint, trace: trace)
        let forwarded = ForwardedFields(
            head, plan, host: hostField(target, plan), remote: connection?.remoteText ?? "unknown", identity: identity)
        guard !forwarded.isBroken else { return nil }
        return TransferRequest(
            destination: target.destination, method: head.method, target: forwardedTarget(plan), headers: forwarded.fields,
            body: head.body, timeouts: plan.timeouts, resend: isRepeatable ? .allowed : .never)
    }

    private func hostField(_ target: UpstreamPool.Member, _ plan: RoutePlan) -> String {
        switch plan.pool.upstream.hostHeader {
        case .preserve: head.host
        case .target: target.host
        case .fixed(let host): host
        }
    }

    /// The target as the route wants it, without a key in its query.
    private func forwardedTarget(_ plan: RoutePlan) -> [UInt8] {
        var text = head.target
        let rewritten = text.withUTF8 { plan.route.settings.rewrite.apply(to: UnsafeRawBufferPointer($0)) }
        let target = rewritten ?? Array(head.target.utf8)
        guard let name = plan.keyQuery else { return target }
        return target.withUnsafeBytes { TargetQuery.removing(name, from: $0) } ?? target
    }

    /// Whether libcurl may send the request again by itself when a kept connection turns out to be dead (RFC 9110, 9.2.2).
    private var isRepeatable: Bool {
        guard head.body == .none else { return false }
        switch head.method {
        case "GET", "HEAD", "OPTIONS", "PUT", "DELETE": return true
        default: return false
        }
    }

    // MARK: The request's body

    /// A piece of the request's body.
    func receive(_ bytes: ByteBuffer) {
        guard !isEnded else { return }
        bodyReceived += Int64(bytes.readableBytes)
        if let plan, bodyReceived > plan.bodyLimit {
            return refuse(.init(.bodyTooLarge, detail: "the route takes \(plan.bodyLimit) bytes"))
        }
        guard let transfer else {
            waitingBody.append(bytes)
            waitingBodyBytes += bytes.readableBytes
            if waitingBodyBytes >= Worker.windowBytes { connection?.pauseBody() }
            return
        }
        if !transfer.send(bytes) { connection?.pauseBody() }
    }

    /// The request's body is complete.
    func requestEnded() {
        guard !isRequestComplete else { return }
        isRequestComplete = true
        transfer?.finishSending()
    }

    private func sendWaitingBody() {
        guard let transfer, head.body != .none else { return }
        var hasRoom = true
        for bytes in waitingBody { hasRoom = transfer.send(bytes) }
        waitingBody.removeAll()
        waitingBodyBytes = 0
        if isRequestComplete { transfer.finishSending() } else if hasRoom { connection?.resumeBody() }
    }

    /// The client's bytes are no request any more, or take too long.
    func requestBroken(_ reason: ExchangeMachine.Reason) {
        keepsAlive = false
        refuse(reason)
    }

    // MARK: The answer

    /// The client takes bytes again.
    func clientWritable() {
        // What waits for a flow's settlement does not wait for the client.
        guard machine.phase != .settling else { return }
        transfer?.resumeReceiving()
        tunnel?.resumeReceiving()
    }

    func clientFull() { if isMoreToCome { holdUpstreamBack() } }

    private func holdUpstreamBack() {
        transfer?.pauseReceiving()
        tunnel?.pauseReceiving()
    }

    /// The last bytes leave only once the transfer has ended: its end must not wait for them to leave.
    private var isMoreToCome: Bool {
        switch framing {
        case .empty, .tunnel: false
        case .length: answerLeft > 0
        case .chunked, .close: true
        }
    }

    /// The upstream has sent all that its head announced, perhaps before it has taken all of the request: whatever fails after
    /// that, the answer is complete.
    var isAnswerWhole: Bool { machine.phase == .streaming && framing != .tunnel && !isMoreToCome }

    /// Whether the upstream is to be held back. Where the answers before this one filled the connection nobody else says it.
    var mustHoldBack: Bool { isMoreToCome && connection?.isWritable == false }
}

extension Exchange: TransferDelegate {
    func transferInformational(_ transfer: Transfer, _ head: TransferHead) { takeInformational(head) }

    func transferHead(_ transfer: Transfer, _ head: TransferHead) { takeHead(head) }

    func transferBody(_ transfer: Transfer, _ bytes: ByteBuffer) { takeBody(bytes) }

    func transferTrailers(_ transfer: Transfer, _ trailers: TransferHead) { self.trailers = trailers }

    func transferNeedsBody(_ transfer: Transfer) { connection?.resumeBody() }

    func transferEnded(_ transfer: Transfer, _ result: TransferResult) {
        self.transfer = nil
        switch result {
        case .success(let timings): answerComplete(attempts: timings.attempts)
        case .failure(let error): upstreamFailed(error)
        }
    }
}

/// What the upstream answers, whichever way it came.
extension Exchange {
    func takeInformational(_ head: TransferHead) {
        guard self.head.isHTTP11, head.status != 100 else { return }
        connection?.write(AnswerHead(informational: head, hiding: plan?.unitsHeader, allocator: worker.allocator).bytes)
        connection?.flushSoon()
    }

    func takeHead(_ head: TransferHead) {
        let wish = flow == nil ? nil : head.flowWish
        let settles = settlement(status: UInt16(head.status), wish: wish) != nil
        noteHead(head, settles: settles)
        noteStep(status: UInt16(head.status))
        if settles { settleBeforeAnswering(head, wish: wish) } else { passHead(head) }
    }

    /// The head decides what is charged; what is held beyond that goes back at once.
    func noteHead(_ head: TransferHead, settles: Bool = false) {
        let held = machine.hold
        machine.upstreamAnswered(status: UInt16(head.status), settles: settles, reported: reportedUnits(head))
        if let held, let kept = machine.hold, kept.units < held.units { worker.quota.reduce(held, to: kept.units) }
    }

    /// What the upstream says that the answer costs, where the route asks it; nil: all that is held.
    private func reportedUnits(_ head: TransferHead) -> Int64? {
        guard let plan, let name = plan.unitsHeader, let hold = machine.hold, hold.units > 0, machine.charges(UInt16(head.status)) else {
            return nil
        }
        switch UnitsReport(head.values(of: name), bound: hold.units) {
        case .units(let units): return units
        case .faulty(let fault):
            worker.noteUnits(fault, plan)
            return nil
        }
    }

    func passHead(_ head: TransferHead) {
        firstByteAt = worker.reactor.now
        // The rest of the body will not be taken (libcurl stops sending on a refusal): the client is told at once.
        if !isRequestComplete, head.status >= 400 { keepsAlive = false }
        let answer = AnswerHead(
            head, isHead: self.head.method == "HEAD", own: own(), hiding: plan?.unitsHeader, allocator: worker.allocator)
        framing = answer.framing
        if case .length(let length) = framing { answerLeft = length }
        if framing == .close { keepsAlive = false }
        if isAnswerWhole {
            completion = answer.bytes
        } else {
            connection?.write(answer.bytes)
            connection?.flushSoon()
        }
        if mustHoldBack { holdUpstreamBack() }
    }

    func takeBody(_ bytes: ByteBuffer) {
        answerBytes += Int64(bytes.readableBytes)
        switch framing {
        case .empty, .tunnel: return
        case .length:
            answerLeft -= Int64(bytes.readableBytes)
            if isAnswerWhole {
                completion = bytes
            } else {
                connection?.write(bytes)
                connection?.flushSoon()
            }
        case .close:
            connection?.write(bytes)
            connection?.flushSoon()
        case .chunked:
            var chunk = worker.allocator.buffer(capacity: bytes.readableBytes + 16)
            chunk.writeChunkHead(bytes.readableBytes)
            chunk.writeImmutableBuffer(bytes)
            chunk.writeStaticString("\r\n")
            connection?.write(chunk)
            connection?.flushSoon()
        }
    }

    func answerComplete(attempts: Int) {
        self.attempts += attempts
        if framing == .chunked {
            completion = AnswerHead.lastChunk(trailers, hiding: plan?.unitsHeader, allocator: worker.allocator)
        }
        if !isRequestComplete { keepsAlive = false }
        conclude(machine.upstreamCompleted())
    }

    func upstreamFailed(_ error: TransferError) {
        attempts += error.attempts
        if isAnswerWhole { return answerComplete(attempts: 0) }
        if mayTryAnother(error) { return forward() }
        worker.noteFailure(error, plan!)
        refuse(reason(for: error))
    }

    /// A target that could not be connected to never saw the request; another may take it, as long as its body is still here.
    private func mayTryAnother(_ error: TransferError) -> Bool {
        guard error.isRetrySafe, connectionTries < min(Self.connectionTriesMax, plan!.pool.members.count), head.body == .none else {
            return false
        }
        switch error.kind {
        case .refused, .unreachable, .connectTimeout, .tls: return true
        default: return false
        }
    }

    func reason(for error: TransferError) -> ExchangeMachine.Reason {
        switch error.kind {
        case .refused, .unreachable: .init(.upstreamRefused)
        case .connectTimeout, .firstByteTimeout, .idleTimeout, .totalTimeout: .init(.upstreamTimeout)
        case .closedBeforeHead, .diedMidBody: .init(.upstreamClosed)
        case .tls: .init(.upstreamTLS)
        case .protocolError, .headTooLarge, .other: .init(.upstreamProtocol)
        case .overloaded: .init(.overloaded)
        case .bodyMismatch: .init(.requestMalformed, detail: "the body is not as long as Content-Length says")
        case .shutdown: .init(.draining)
        }
    }
}
