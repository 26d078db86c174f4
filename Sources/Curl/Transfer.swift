internal import CLibcurl
public import NIOCore
internal import Reactor

/// One request on its way and its answer. Confined to its reactor; ends by `transferEnded` or by `cancel()`.
public final class Transfer {
    enum Event {
        case informational(TransferHead), head(TransferHead), body, trailers(TransferHead), needsBody
    }

    private unowned let client: CurlClient
    let handle: EasyHandle
    let multi: Multi
    let request: TransferRequest
    weak var delegate: (any TransferDelegate)?
    let startedAt: NIODeadline

    // What the callbacks note.
    var events: [Event] = []
    private var received: ByteBuffer
    private var outgoing = CircularBuffer<ByteBuffer>()
    private var outgoingBytes = 0
    private var sendingFinished = false
    private var receivingPaused = false
    private var curlPausedReceiving = false
    private var curlPausedSending = false
    private var needsBodyAsked = false
    private var head = TransferHead()
    private var headBytes = 0
    private var headSeen = false
    private var trailers: TransferHead?
    var lastProgress: NIODeadline
    private var requestSentAt: NIODeadline?
    private(set) var bytesReceived: Int64 = 0
    private(set) var bytesSent: Int64 = 0
    public private(set) var attempts = 0
    var queued = false
    var ended: CURLcode?
    var failure: TransferError.Kind?
    var isOver = false

    init(_ client: CurlClient, _ handle: EasyHandle, _ multi: Multi, _ request: TransferRequest, _ delegate: any TransferDelegate) {
        (self.client, self.handle, self.multi, self.request, self.delegate) = (client, handle, multi, request, delegate)
        startedAt = client.reactor.turnNow
        lastProgress = startedAt
        received = ByteBuffer()
        if request.body == .none || request.body == .length(0) { sendingFinished = true }
    }

    public var destination: Destination { request.destination }
    /// The final head has arrived.
    public var hasHead: Bool { headSeen }

    // MARK: What the owner does

    /// Queues a piece of the request's body. False: the window is full, wait for `transferNeedsBody` before the next one (this
    /// one is taken nevertheless).
    @discardableResult
    public func send(_ bytes: ByteBuffer) -> Bool {
        guard !isOver, !sendingFinished else { return true }
        if bytes.readableBytes > 0 {
            outgoing.append(bytes)
            outgoingBytes += bytes.readableBytes
            continueSending()
        }
        let hasRoom = outgoingBytes < client.configuration.windowBytes
        if !hasRoom { needsBodyAsked = true }
        return hasRoom
    }

    public func finishSending() {
        guard !isOver, !sendingFinished else { return }
        sendingFinished = true
        continueSending()
    }

    /// No body reaches the delegate until `resumeReceiving()`; the upstream is held back by TCP.
    public func pauseReceiving() { receivingPaused = true }

    public func resumeReceiving() {
        guard receivingPaused else { return }
        receivingPaused = false
        lastProgress = client.reactor.turnNow
        if received.readableBytes > 0 { note(.body) }
        continueReceiving()
    }

    /// Ends the transfer; its connection is closed unless the answer was complete. No call of the delegate follows.
    public func cancel() {
        guard !isOver else { return }
        client.drop(self)
    }

    private func continueSending() {
        guard curlPausedSending else { return }
        curlPausedSending = false
        unpause()
    }

    private func continueReceiving() {
        guard curlPausedReceiving, received.readableBytes < client.configuration.windowBytes else { return }
        curlPausedReceiving = false
        unpause()
    }

    private func unpause() {
        lastProgress = client.reactor.turnNow
        let bits = (curlPausedReceiving ? CURLPAUSE_RECV : 0) | (curlPausedSending ? CURLPAUSE_SEND : 0)
        // May call the callbacks below before it returns; nothing of ours is held here.
        _ = curl_easy_pause(handle.raw, bits)
        client.reactor.requestTurn()
    }

    // MARK: What libcurl does (from inside its calls: only notes)

    private func note(_ event: Event) {
        if case .body = event, case .body? = events.last {} else { events.append(event) }
        if !queued {
            queued = true
            client.ready.append(self)
        }
    }

    func libcurlWrites(_ bytes: UnsafeRawBufferPointer) -> Int {
        guard received.readableBytes < client.configuration.windowBytes, !receivingPaused else {
            curlPausedReceiving = true
            return Int(CURL_WRITEFUNC_PAUSE)
        }
        received.writeBytes(bytes)
        bytesReceived += Int64(bytes.count)
        lastProgress = client.reactor.turnNow
        note(.body)
        return bytes.count
    }

    func libcurlReads(into buffer: UnsafeMutableRawBufferPointer) -> Int {
        guard outgoingBytes > 0 else {
            if sendingFinished {
                requestSentAt = client.reactor.turnNow
                return 0
            }
            curlPausedSending = true
            return Int(CURL_READFUNC_PAUSE)
        }
        var filled = 0
        while filled < buffer.count, !outgoing.isEmpty {
            let count = min(buffer.count - filled, outgoing[outgoing.startIndex].readableBytes)
            outgoing[outgoing.startIndex].readWithUnsafeReadableBytes {
                (buffer.baseAddress! + filled).copyMemory(from: $0.baseAddress!, byteCount: count)
                return count
            }
            if outgoing[outgoing.startIndex].readableBytes == 0 { outgoing.removeFirst() }
            filled += count
        }
        outgoingBytes -= filled
        bytesSent += Int64(filled)
        lastProgress = client.reactor.turnNow
        if needsBodyAsked, outgoingBytes < client.configuration.windowBytes / 2 {
            needsBodyAsked = false
            note(.needsBody)
        }
        return filled
    }

    /// One line of a head or of the trailers, with its line end. False ends the transfer.
    func libcurlHeads(_ line: UnsafeRawBufferPointer) -> Bool {
        headBytes += line.count
        lastProgress = client.reactor.turnNow
        guard headBytes <= client.configuration.headBytesMax else {
            failure = .headTooLarge
            return false
        }
        var content = line
        while let last = content.last, last == 10 || last == 13 { content = UnsafeRawBufferPointer(rebasing: content.dropLast()) }
        if headSeen {
            addTrailer(content)
        } else if content.isEmpty {
            headComplete()
        } else if head.bytes.isEmpty {
            head.takeStatusLine(content)
        } else {
            head.takeField(content)
        }
        return true
    }

    private func headComplete() {
        let complete = head
        head = TransferHead()
        if complete.status == 100 { return }
        if complete.status < 200, complete.status != 101 { return note(.informational(complete)) }
        headSeen = true
        note(.head(complete))
    }

    private func addTrailer(_ content: UnsafeRawBufferPointer) {
        guard !content.isEmpty else { return }
        var fields = trailers ?? TransferHead()
        fields.takeField(content)
        trailers = fields
    }

    /// Whether this attempt may go out (CURLOPT_PREREQFUNCTION: before every one, also those that libcurl repeats by itself).
    func libcurlAttempts() -> Bool {
        attempts += 1
        if request.body == .none { requestSentAt = client.reactor.turnNow }
        return attempts == 1 || request.resend == .allowed
    }

    // MARK: Delivery, at the end of the turn

    func deliver() {
        queued = false
        while !isOver, !events.isEmpty {
            guard let delegate else { return cancel() }
            let event = events.removeFirst()
            switch event {
            case .informational(let head): delegate.transferInformational(self, head)
            case .head(let head): delegate.transferHead(self, head)
            case .needsBody: delegate.transferNeedsBody(self)
            case .trailers(let fields): delegate.transferTrailers(self, fields)
            case .body: deliverBody(to: delegate)
            }
            // A paused owner gets nothing more until it resumes, the end included.
            if receivingPaused, received.readableBytes > 0 { return }
        }
        deliverEnd()
    }

    private func deliverBody(to delegate: any TransferDelegate) {
        guard received.readableBytes > 0, !receivingPaused else { return }
        let bytes = received
        received = ByteBuffer()
        delegate.transferBody(self, bytes)
        if !isOver { continueReceiving() }
    }

    private func deliverEnd() {
        guard !isOver, let code = ended else { return }
        if let fields = trailers, code == CURLE_OK {
            trailers = nil
            delegate?.transferTrailers(self, fields)
            guard !isOver else { return }
        }
        let delegate = delegate
        let result = result(code)
        isOver = true
        client.release(self)
        delegate?.transferEnded(self, result)
    }

    /// libcurl is done with the handle; the end is delivered after what was received.
    func finished(_ code: CURLcode) {
        ended = code
        if !queued {
            queued = true
            client.ready.append(self)
        }
    }

    private func result(_ code: CURLcode) -> TransferResult {
        if code == CURLE_OK, headSeen, failure == nil {
            return .success(TransferTimings(attempts: attempts, bytesReceived: bytesReceived, bytesSent: bytesSent))
        }
        return .failure(error(for: code))
    }

    private func error(for code: CURLcode) -> TransferError {
        let kind = failure ?? TransferError.Kind(code, headSeen: headSeen, attempts: attempts)
        let detail = "\(destination.address):\(destination.port): \(handle.message ?? String(cString: curl_easy_strerror(code)))"
        return TransferError(
            kind: kind, source: kind == .overloaded || kind == .shutdown ? .local : .upstream, isRetrySafe: attempts == 0, detail: detail,
            attempts: attempts)
    }

    // MARK: Deadlines

    /// The timeout that has passed, if one has.
    func overdue(_ now: NIODeadline) -> TransferError.Kind? {
        let timeouts = request.timeouts
        if let total = timeouts.total, now >= startedAt + total { return .totalTimeout }
        if attempts == 0 { return now >= startedAt + timeouts.connect ? .connectTimeout : nil }
        if !headSeen {
            if let requestSentAt { return now >= requestSentAt + timeouts.firstByte ? .firstByteTimeout : nil }
            // Waiting for our own side's body is not the upstream's fault.
            if curlPausedSending { return nil }
            return now >= lastProgress + timeouts.idle ? .idleTimeout : nil
        }
        if receivingPaused || curlPausedReceiving { return nil }
        return now >= lastProgress + timeouts.idle ? .idleTimeout : nil
    }
}

extension TransferError.Kind {
    init(_ code: CURLcode, headSeen: Bool, attempts: Int) {
        switch code {
        case CURLE_COULDNT_CONNECT: self = .refused
        case CURLE_COULDNT_RESOLVE_HOST, CURLE_COULDNT_RESOLVE_PROXY: self = .unreachable
        case CURLE_OPERATION_TIMEDOUT: self = attempts == 0 ? .connectTimeout : .totalTimeout
        case CURLE_SSL_CONNECT_ERROR, CURLE_PEER_FAILED_VERIFICATION, CURLE_SSL_CERTPROBLEM, CURLE_SSL_CACERT_BADFILE, CURLE_SSL_ISSUER_ERROR:
            self = .tls
        // 42 is our refusal to send again, 65 libcurl's inability to: both mean that the connection died under the request.
        case CURLE_ABORTED_BY_CALLBACK, CURLE_SEND_FAIL_REWIND, CURLE_GOT_NOTHING, CURLE_SEND_ERROR, CURLE_RECV_ERROR, CURLE_PARTIAL_FILE:
            self = headSeen ? .diedMidBody : .closedBeforeHead
        case CURLE_WEIRD_SERVER_REPLY, CURLE_UNSUPPORTED_PROTOCOL, CURLE_BAD_CONTENT_ENCODING, CURLE_HTTP2:
            self = headSeen ? .diedMidBody : .protocolError
        default: self = headSeen ? .diedMidBody : .other
        }
    }
}

extension TransferHead {
    /// `HTTP/1.1 200 OK`
    mutating func takeStatusLine(_ line: UnsafeRawBufferPointer) {
        bytes.append(contentsOf: line)
        guard let space = line.firstIndex(of: 32) else { return }
        var index = space + 1
        while index < line.count, line[index] >= 48, line[index] <= 57, status < 1000 {
            status = status * 10 + Int(line[index] - 48)
            index += 1
        }
        if index < line.count { reason = min(index + 1, line.count)..<line.count }
    }

    mutating func takeField(_ line: UnsafeRawBufferPointer) {
        guard let colon = line.firstIndex(of: UInt8(ascii: ":")), colon > 0 else { return }
        var from = colon + 1
        var to = line.count
        while from < to, line[from] == 32 || line[from] == 9 { from += 1 }
        while to > from, line[to - 1] == 32 || line[to - 1] == 9 { to -= 1 }
        let base = bytes.count
        bytes.append(contentsOf: line)
        fields.append(HeaderField(name: base..<(base + colon), value: (base + from)..<(base + to)))
    }
}
