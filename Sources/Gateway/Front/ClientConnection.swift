internal import Curl
internal import GatewayCore
internal import NIOCore
internal import NIOHTTP1
internal import Reactor

/// A client's connection: one exchange at a time, in the order of the requests. Confined to its worker.
///
/// Bytes keep coming in while an exchange is under way, so that a client that goes away is noticed and no system call is spent
/// on stopping and starting; only when a further request has arrived meanwhile, or a body comes faster than the upstream takes
/// it, reading stops.
final class ClientConnection: ChannelInboundHandler {
    typealias InboundIn = HTTPServerRequestPart
    typealias OutboundOut = ByteBuffer

    private enum Phase {
        /// No request, no byte of one. Legal exits: arriving, busy, lingering.
        case idle
        /// Bytes have come that are no head yet. Legal exits: busy, lingering.
        case arriving
        /// An exchange is under way. Legal exits: idle, arriving, tunnel, lingering.
        case busy
        /// The protocol has changed: bytes go through. Legal exit: lingering.
        case tunnel
        /// The last answer is out; what the client still sends is read and thrown away, so that the answer is not lost with a
        /// reset (RFC 9112, 9.6).
        case lingering
    }

    /// What has arrived for a later exchange.
    private enum Arrival {
        case part(HTTPServerRequestPart)
        case fault(RequestHead.Fault)
    }

    private unowned let worker: Worker
    private let decoder: RequestDecoder
    private var context: ChannelHandlerContext?
    private var phase = Phase.idle
    private var exchange: Exchange?
    private var arrivals = CircularBuffer<Arrival>()
    private var isTakingArrivals = false
    /// The head of a request was taken, its end was not.
    private var isInsideRequest = false
    /// Of a head that is arriving, and of its first line; what comes in one piece with the request before it is not counted.
    private var headBytes = 0
    private var lineBytes = 0
    private var isLineComplete = false
    /// The decoder stops with the request.
    private var endsDecoding = false
    private var relay: TunnelRelay?
    private var isBodyPaused = false
    private var isReading = true
    private var isLast = false
    /// The answer that has begun cannot be completed.
    private var cut: Cut?

    enum Cut {
        /// The framing shows that bytes are missing.
        case closing
        /// Only a reset tells the client that the end of the connection is not the end of the answer.
        case resetting
    }

    /// The client gets FIN behind what is queued.
    private var isOutputEnding = false

    private(set) var isDirty = false
    /// When the phase has lasted too long.
    private var deadline: NIODeadline
    /// Bytes that waited for the client at the last look, and since when none of them has gone.
    private var stalled: (bytes: Int, since: NIODeadline)?

    private(set) var remoteText = "unknown"
    private(set) var remoteAddress: RemoteAddress?

    init(_ worker: Worker, _ decoder: RequestDecoder) {
        (self.worker, self.decoder) = (worker, decoder)
        deadline = worker.reactor.turnNow + worker.keepAlive
    }

    // MARK: Life

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        (remoteText, remoteAddress) = RemoteAddress.read(context.channel.remoteAddress)
    }

    func handlerRemoved(context: ChannelHandlerContext) { self.context = nil }

    func channelActive(context: ChannelHandlerContext) { worker.opened(self) }

    func channelInactive(context: ChannelHandlerContext) {
        self.context = nil
        arrivals.removeAll()
        let exchange = exchange
        self.exchange = nil
        exchange?.clientGone()
        relay?.clientGone()
        relay = nil
        worker.closed(self)
    }

    /// Looks at the clock, a few times a second.
    func tick(_ now: NIODeadline) {
        if isStalled(now) { return close() }
        guard now >= deadline else { return }
        switch phase {
        case .idle: close()
        case .lingering:
            // A client that still takes its answer gets all of it.
            if pendingBytes == 0 { close() }
        case .tunnel: break
        case .arriving: refuseUnread(RequestHead.Fault(.requestTimeout, "the head took too long"))
        case .busy:
            guard let exchange, !exchange.isRequestComplete, !isBodyPaused else { return }
            exchange.requestBroken(.init(.requestTimeout, detail: "the body took too long"))
        }
    }

    /// A client that takes nothing of its answer for as long as a body may idle is given up.
    private func isStalled(_ now: NIODeadline) -> Bool {
        let waiting = pendingBytes
        guard waiting > 0, let before = stalled, before.bytes == waiting else {
            stalled = waiting > 0 ? (waiting, now) : nil
            return false
        }
        return now >= before.since + worker.bodyIdle
    }

    /// The request under way, or one whose bytes are in the kernel already, is the last; an idle connection ends after `patience`.
    func drain(_ patience: TimeAmount) {
        isLast = true
        if phase == .idle { deadline = worker.reactor.turnNow + patience }
    }

    /// The drain is over: what is in flight is refused or cut.
    func giveUp() {
        isLast = true
        if let exchange { exchange.refuse(.init(.draining)) } else { close() }
    }

    // MARK: In

    /// Bytes have arrived; the decoder sees them next. False: nobody wants them any more.
    func bytesArrived(_ bytes: ByteBuffer) -> Bool {
        guard bytes.readableBytes > 0 else { return true }
        switch phase {
        case .idle:
            headBegins()
            measure(bytes)
        case .arriving: measure(bytes)
        case .busy: deadline = worker.reactor.turnNow + worker.bodyIdle
        case .tunnel: break
        case .lingering: return false
        }
        return true
    }

    /// The decoder has made of them what it can.
    func bytesDecoded() {
        if phase == .arriving, headBytes > decoder.headMax { return decodingFailed(HTTPParserError.headerOverflow) }
        noticeHead()
        updateReading()
    }

    private func headBegins() {
        phase = .arriving
        deadline = worker.reactor.turnNow + worker.requestHead
        (headBytes, lineBytes, isLineComplete) = (0, 0, false)
    }

    /// Behind an answer a part of the next head may be here already: then the connection is not idle.
    private func noticeHead() {
        if phase == .idle, !isInsideRequest, decoder.undecodedBytes > 0 { headBegins() }
    }

    private func measure(_ bytes: ByteBuffer) {
        headBytes += bytes.readableBytes
        if isLineComplete { return }
        let end = bytes.readableBytesView.firstIndex(of: UInt8(ascii: "\n"))
        lineBytes += end.map { $0 - bytes.readerIndex } ?? bytes.readableBytes
        isLineComplete = end != nil
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let part = unwrapInboundIn(data)
        if phase == .lingering { return }
        if let relay {
            if case .body(let bytes) = part { relay.clientSent(bytes) }
            return
        }
        if decoder.hasStopped { return distrust(.part(part)) }
        // While an exchange is under way only its own body is taken; what comes after it waits.
        if arrivals.isEmpty, !isTakingArrivals, takes(part) { return take(part) }
        arrivals.append(.part(part))
        updateReading()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        // Errors of the socket end the channel, and what breaks off with it is no fault of syntax.
        guard error is HTTPParserError, context.channel.isActive, phase != .lingering else { return }
        decodingFailed(error)
    }

    private func decodingFailed(_ error: any Error) {
        var fault = RequestHead.Fault(error)
        // The decoder does not say what was too large.
        if fault.refusal == .headersTooLarge, phase == .arriving, lineBytes > worker.limits.requestTarget {
            fault = .init(.targetTooLong, "more than \(worker.limits.requestTarget) bytes")
        }
        if let exchange, isInsideRequest {
            // The faulty bytes are its body.
            return exchange.requestBroken(.init(fault.refusal, detail: fault.detail))
        }
        arrivals.append(.fault(fault))
        takeArrivals()
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
        if context.channel.isWritable {
            exchange?.clientWritable()
            relay?.clientWritable()
        } else {
            exchange?.clientFull()
            relay?.clientFull()
        }
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if let event = event as? ChannelEvent, event == .inputClosed { relay?.clientEnded() }
        context.fireUserInboundEventTriggered(event)
    }

    /// Whether a part belongs to what is under way now.
    private func takes(_ part: HTTPServerRequestPart) -> Bool {
        if case .head = part { exchange == nil && !isInsideRequest } else { isInsideRequest }
    }

    /// Parts of a request whose exchange has ended already have nobody to go to.
    private func take(_ part: HTTPServerRequestPart) {
        switch part {
        case .head(let head):
            isInsideRequest = true
            begin(head)
        case .body(let bytes): exchange?.receive(bytes)
        case .end:
            isInsideRequest = false
            if endsDecoding { holdDecoding() }
            exchange?.requestEnded()
        }
    }

    private func holdDecoding() {
        decoder.hold()
        if let arrival = arrivals.popFirst() { return distrust(arrival) }
        if exchange == nil, phase == .idle { goOn(raw: false) }
    }

    /// NIO's decoder went on where the head says that it stops: nobody knows any more where requests begin. The answer that is
    /// under way is the last.
    private func distrust(_ arrival: Arrival) {
        isLast = true
        arrivals.append(arrival)
        if exchange == nil { linger() } else { updateReading() }
    }

    private func begin(_ received: HTTPRequestHead) {
        do throws(RequestHead.Fault) {
            let head = try RequestHead(received, limits: worker.limits)
            endsDecoding = head.endsDecoding
            let exchange = Exchange(head, on: self, worker)
            self.exchange = exchange
            phase = .busy
            deadline = worker.reactor.turnNow + worker.bodyIdle
            exchange.begin()
        } catch {
            refuseUnread(error)
        }
    }

    /// Answers a request that could not be read; nothing after it can be trusted.
    private func refuseUnread(_ fault: RequestHead.Fault) {
        isLast = true
        let refused = UnreadRequest(fault, worker, remoteAddress)
        write(refused.answer)
        linger()
    }

    /// Works off what arrived while an exchange was under way.
    private func takeArrivals() {
        guard !isTakingArrivals else { return }
        isTakingArrivals = true
        while let arrival = arrivals.first, phase != .lingering {
            switch arrival {
            case .fault(let fault):
                if exchange != nil { break }
                arrivals.removeFirst()
                refuseUnread(fault)
                continue
            case .part(let part):
                guard takes(part) else { break }
                arrivals.removeFirst()
                take(part)
                continue
            }
            break
        }
        isTakingArrivals = false
        updateReading()
    }

    // MARK: Reading

    func pauseBody() {
        isBodyPaused = true
        updateReading()
    }

    func resumeBody() {
        guard isBodyPaused else { return }
        isBodyPaused = false
        deadline = worker.reactor.turnNow + worker.bodyIdle
        updateReading()
    }

    private func updateReading() {
        let isFull = isBodyPaused || !arrivals.isEmpty || (decoder.isHolding && decoder.undecodedBytes > Worker.windowBytes)
        let wanted = phase == .lingering || !isFull
        guard wanted != isReading else { return }
        isReading = wanted
        try? context?.channel.syncOptions?.setOption(.autoRead, value: wanted)
    }

    // MARK: Out

    /// Whether the client takes bytes as they come.
    var isWritable: Bool { context?.channel.isWritable ?? true }

    private var pendingBytes: Int { (context?.channel as? StreamChannel)?.pendingBytes ?? 0 }

    /// Queues bytes; they leave in the flush phase of a turn after `flushSoon()`.
    func write(_ bytes: ByteBuffer) { context?.write(wrapOutboundOut(bytes), promise: nil) }

    func flushSoon() {
        guard !isDirty, context != nil else { return }
        isDirty = true
        worker.flushSoon(self)
    }

    /// `Expect: 100-continue` (RFC 9110, 10.1.1): nobody else tells the client to go on.
    func writeContinue() {
        write(ByteBuffer(staticString: "HTTP/1.1 100 Continue\r\n\r\n"))
        flushSoon()
    }

    /// In the flush phase: the hops of everything that was queued are in the spool.
    func flush() {
        isDirty = false
        guard let context else { return }
        context.flush()
        switch cut {
        case .closing?: close()
        case .resetting?: (context.channel as? StreamChannel)?.closeWithReset()
        // What was queued goes out first, then FIN.
        case nil: if phase == .lingering || isOutputEnding { context.close(mode: .output, promise: nil) }
        }
    }

    /// The exchange is over, its answer queued.
    func exchangeEnded(keepsAlive: Bool) {
        exchange = nil
        isBodyPaused = false
        flushSoon()
        guard keepsAlive, !isLast else { return linger() }
        phase = .idle
        deadline = worker.reactor.turnNow + worker.keepAlive
        if decoder.isHolding { goOn(raw: false) }
        takeArrivals()
        noticeHead()
    }

    /// The answer that has begun cannot be completed: what there is of it goes out, then the client has to see it.
    func cut(_ how: Cut) {
        exchange = nil
        cut = how
        linger()
    }

    private func linger() {
        phase = .lingering
        deadline = worker.reactor.turnNow + Worker.lingerTime
        arrivals.removeAll()
        isBodyPaused = false
        flushSoon()
        updateReading()
    }

    // MARK: Another protocol

    /// The answer was 101, and is queued: what the client has sent since, and sends, is the tunnel's.
    func becomeTunnel(_ tunnel: Tunnel) {
        exchange = nil
        flushSoon()
        // A decoder that did not stop has taken for requests what were none.
        guard decoder.isHolding, arrivals.isEmpty else {
            tunnel.cancel()
            return linger()
        }
        phase = .tunnel
        relay = TunnelRelay(tunnel, self)
        try? context?.channel.syncOptions?.setOption(.allowRemoteHalfClosure, value: true)
        goOn(raw: true)
    }

    /// Gives the decoder what it held.
    private func goOn(raw: Bool) {
        endsDecoding = false
        decoder.goOn(raw: raw)
        updateReading()
        context?.channel.pipeline.fireChannelRead(ByteBuffer())
    }

    /// The upstream sends no more: FIN, behind what is queued.
    func endOutput() {
        isOutputEnding = true
        flushSoon()
    }

    func tunnelEnded(isBroken: Bool) {
        relay = nil
        if isBroken { cut(.resetting) } else { linger() }
    }

    private func close() { context?.close(mode: .all, promise: nil) }
}
