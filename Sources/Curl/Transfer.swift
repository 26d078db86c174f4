internal import CLibcurl
public import NIOCore
internal import Reactor

/// One request on its way and its answer. Confined to its reactor; ends by `transferEnded` or by `cancel()`.
public final class Transfer: Errand {
    let request: TransferRequest
    private let client: CurlClient
    /// Until the transfer is over: who gives it up early cancels it.
    private var delegate: (any TransferDelegate)?

    /// Both from the launch to the end; nil while the transfer waits for its destination.
    var handle: EasyHandle?
    var multi: Multi?

    // What the callbacks note, delivered in this order, which is that of their happening.
    private var informational: [TransferHead] = []
    private var head: TransferHead?
    private var owesNeedsBody = false
    private var hasBody = false
    private var isQueued = false
    private var heads: HeadParser
    private var received = ByteBuffer()
    private var outgoing: OutgoingBody
    private var owesRoom = false
    private var isReceivingPaused = false
    private var hasLibcurlPausedReceiving = false
    private var hasLibcurlPausedSending = false

    private let startedAt: NIODeadline
    private var launchedAt: NIODeadline
    private var lastProgress: NIODeadline
    private var requestSentAt: NIODeadline?
    private var headAt: NIODeadline?

    /// How often the request went out so far.
    public private(set) var attempts = 0
    public private(set) var bytesReceived: Int64 = 0
    public var bytesSent: Int64 { outgoing.taken }

    /// libcurl is done with the transfer, or it never got it.
    private(set) var ended: CURLcode?
    /// What we know better than libcurl's code.
    private var failure: (kind: TransferError.Kind, detail: String?)?
    /// The end does not wait for a paused owner.
    private var endsAtOnce = false
    /// Nothing more will happen.
    private(set) var isOver = false

    init(_ client: CurlClient, _ request: TransferRequest, _ delegate: any TransferDelegate) {
        (self.client, self.request, self.delegate) = (client, request, delegate)
        heads = HeadParser(bytesMax: client.configuration.headBytesMax)
        outgoing = OutgoingBody(request.body)
        startedAt = client.reactor.turnNow
        (launchedAt, lastProgress) = (startedAt, startedAt)
    }

    public var destination: Destination { request.destination }
    /// The final head has arrived.
    public var hasHead: Bool { heads.isFinished }

    private var now: NIODeadline { client.reactor.turnNow }
    private var window: Int { client.configuration.windowBytes }

    // MARK: What the owner does

    /// Queues a piece of the request's body. False: the window is full, wait for `transferNeedsBody` before the next one (this
    /// one is taken nevertheless). More than an announced length ends the transfer with `bodyMismatch`.
    @discardableResult
    public func send(_ bytes: ByteBuffer) -> Bool {
        guard ended == nil, !isOver else { return true }
        guard outgoing.append(bytes) else {
            abort(.bodyMismatch, "the request's body is longer than announced")
            return true
        }
        continueSending()
        let hasRoom = outgoing.waiting < window
        owesRoom = !hasRoom
        return hasRoom
    }

    /// The body is complete. Less than an announced length ends the transfer with `bodyMismatch`.
    public func finishSending() {
        guard ended == nil, !isOver else { return }
        guard outgoing.finish() else { return abort(.bodyMismatch, "the request's body is shorter than announced") }
        continueSending()
    }

    /// No body, and no end, reaches the delegate until `resumeReceiving()`; the upstream is held back by TCP.
    public func pauseReceiving() { isReceivingPaused = true }

    public func resumeReceiving() {
        guard isReceivingPaused, !isOver else { return }
        isReceivingPaused = false
        lastProgress = now
        hasBody = received.readableBytes > 0
        if hasBody || ended != nil { enqueue() }
        continueReceiving()
        // The owner may be at work after this turn's delivery, and nothing else would bring the next.
        client.reactor.requestTurn()
    }

    /// Ends the transfer; its connection is closed unless the answer was complete. No call of the delegate follows.
    public func cancel() {
        guard !isOver else { return }
        over()
    }

    private func over() {
        isOver = true
        delegate = nil
        outgoing.discard()
        client.release(self)
    }

    private func continueSending() {
        guard hasLibcurlPausedSending, outgoing.waiting > 0 || outgoing.isFinished else { return }
        hasLibcurlPausedSending = false
        unpause()
    }

    private func continueReceiving() {
        guard hasLibcurlPausedReceiving, !isReceivingPaused, received.readableBytes < window else { return }
        hasLibcurlPausedReceiving = false
        unpause()
    }

    private func unpause() {
        guard ended == nil, let handle else { return }
        lastProgress = now
        let bits = (hasLibcurlPausedReceiving ? CURLPAUSE_RECV : 0) | (hasLibcurlPausedSending ? CURLPAUSE_SEND : 0)
        // May call the callbacks below before it returns: nothing of ours is held here.
        let code = curl_easy_pause(handle.raw, bits)
        // 43: it has lost its connection already, and how the transfer ended is about to be told.
        if code != CURLE_OK, code != CURLE_BAD_FUNCTION_ARGUMENT, ended == nil { client.abort(self, code) }
        client.reactor.requestTurn()
    }

    /// Ends the transfer for a reason of ours; the delegate hears of it at the end of the turn.
    func abort(_ kind: TransferError.Kind, _ detail: String?) {
        guard ended == nil, !isOver else { return }
        failure = (kind, detail)
        endsAtOnce = true
        client.abort(self, CURLE_ABORTED_BY_CALLBACK)
    }

    // MARK: What libcurl does. These run inside its calls: they only note.

    func libcurlWrites(_ bytes: UnsafeRawBufferPointer) -> Int {
        // The window may be smaller than what libcurl hands over at once, never exceeded by a second piece.
        guard received.readableBytes == 0 || received.readableBytes + bytes.count <= window, !isReceivingPaused else {
            hasLibcurlPausedReceiving = true
            // It means "took nothing": the same bytes come again (CURLOPT_WRITEFUNCTION(3)).
            return Int(CURL_WRITEFUNC_PAUSE)
        }
        received.writeBytes(bytes)
        bytesReceived += Int64(bytes.count)
        lastProgress = now
        hasBody = true
        enqueue()
        return bytes.count
    }

    func libcurlReads(into buffer: UnsafeMutableRawBufferPointer) -> Int {
        guard outgoing.waiting > 0 || outgoing.isFinished else {
            hasLibcurlPausedSending = true
            return Int(CURL_READFUNC_PAUSE)
        }
        let filled = outgoing.fill(buffer)
        lastProgress = now
        if outgoing.isTaken { requestSentAt = now }
        if owesRoom, outgoing.waiting < window / 2 {
            owesRoom = false
            owesNeedsBody = true
            enqueue()
        }
        return filled
    }

    /// One line of a head or of the trailers, with its line end. False ends the transfer.
    func libcurlHeads(_ line: UnsafeRawBufferPointer) -> Bool {
        lastProgress = now
        switch heads.take(line) {
        case .more: return true
        case .informational(let head):
            informational.append(head)
            enqueue()
        case .final(let head):
            headAt = .now()
            self.head = head
            enqueue()
        case .refused(let refusal):
            failure = (refusal == .tooLarge ? .headTooLarge : .protocolError, refusal.rawValue)
            return false
        }
        return true
    }

    /// Whether this attempt may go out (CURLOPT_PREREQFUNCTION: before every one, also those that libcurl repeats by itself
    /// because a reused connection was closed under the request).
    func libcurlAttempts() -> Bool {
        guard attempts == 0 || request.resend == .allowed else {
            failure = (.closedBeforeHead, "a kept connection was closed under the request, which may not be sent again")
            return false
        }
        attempts += 1
        lastProgress = now
        if outgoing.isTaken { requestSentAt = now }
        return true
    }

    // MARK: Delivery, at the end of the turn

    private func enqueue() {
        guard !isQueued else { return }
        isQueued = true
        client.ready.append(self)
    }

    /// Calls the delegate with everything that happened. The delegate may do anything with the transfer meanwhile.
    func deliver() {
        isQueued = false
        while let delegate, deliverNext(to: delegate) {}
        if isReceivingPaused, endsAtOnce { received.clear() }
        if !isReceivingPaused || endsAtOnce { deliverEnd() }
    }

    /// False when nothing was left to tell.
    private func deliverNext(to delegate: any TransferDelegate) -> Bool {
        if !informational.isEmpty {
            delegate.transferInformational(self, informational.removeFirst())
        } else if let head {
            self.head = nil
            deliverHead(head, to: delegate)
        } else if owesNeedsBody {
            owesNeedsBody = false
            delegate.transferNeedsBody(self)
        } else if hasBody {
            hasBody = false
            deliverBody(to: delegate)
        } else {
            return false
        }
        return true
    }

    private func deliverHead(_ head: TransferHead, to delegate: any TransferDelegate) {
        // libcurl stops sending on a refusal (CURLOPT_KEEP_SENDING_ON_ERROR is off), yet would wait for ever for a body that it
        // had paused.
        if head.status >= 400, hasLibcurlPausedSending {
            hasLibcurlPausedSending = false
            unpause()
        }
        delegate.transferHead(self, head)
    }

    private func deliverBody(to delegate: any TransferDelegate) {
        guard received.readableBytes > 0, !isReceivingPaused else { return }
        let bytes = received
        received = ByteBuffer()
        delegate.transferBody(self, bytes)
        if !isOver { continueReceiving() }
    }

    private func deliverEnd() {
        // What `continueReceiving` brought in comes first, in the next round.
        guard !isOver, let code = ended, received.readableBytes == 0 else { return }
        let result = result(code)
        if case .success = result, let trailers = heads.trailers { delegate?.transferTrailers(self, trailers) }
        guard !isOver, let delegate else { return }
        over()
        delegate.transferEnded(self, result)
    }

    func prepare(_ handle: EasyHandle) { handle.prepare(self) }

    func libcurlIsDone(_ code: CURLcode) { client.abort(self, code) }

    /// libcurl is done with the handle; the end is delivered after what was received.
    func finished(_ code: CURLcode) {
        ended = code
        enqueue()
    }

    private func result(_ code: CURLcode) -> TransferResult {
        guard code == CURLE_OK, hasHead, failure == nil else { return .failure(error(code)) }
        return .success(
            TransferTimings(
                attempts: attempts, bytesReceived: bytesReceived, bytesSent: bytesSent, head: (headAt ?? startedAt) - startedAt,
                total: .now() - startedAt))
    }

    private func error(_ code: CURLcode) -> TransferError {
        let kind = failure?.kind ?? TransferError.Kind(code, hasHead: hasHead)
        let reason = failure?.detail ?? handle?.message ?? String(cString: curl_easy_strerror(code))
        return TransferError(
            kind: kind, isRetrySafe: attempts == 0, detail: "\(destination.address):\(destination.port): \(reason)", attempts: attempts)
    }

    // MARK: Deadlines

    func launched(_ handle: EasyHandle, _ multi: Multi) {
        (self.handle, self.multi) = (handle, multi)
        (launchedAt, lastProgress) = (now, now)
    }

    /// The timeout that has passed, if one has.
    func overdue(_ now: NIODeadline) -> TransferError.Kind? {
        guard ended == nil else { return nil }
        let timeouts = request.timeouts
        if let total = timeouts.total, now >= startedAt + total { return .totalTimeout }
        if multi == nil { return now >= startedAt + timeouts.connect ? .overloaded : nil }
        if attempts == 0 { return now >= launchedAt + timeouts.connect ? .connectTimeout : nil }
        // The time that our own side takes, to send or to read, is not the upstream's.
        if hasLibcurlPausedSending || isReceivingPaused || hasLibcurlPausedReceiving { return nil }
        if !hasHead, let requestSentAt { return now >= requestSentAt + timeouts.firstByte ? .firstByteTimeout : nil }
        return now >= lastProgress + timeouts.idle ? .idleTimeout : nil
    }
}
