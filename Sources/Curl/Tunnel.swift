internal import CLibcurl
internal import Glibc
public import NIOCore
internal import Reactor

/// A connection to an upstream that changes its protocol (RFC 9110, 7.8). Confined to its reactor; ends by `tunnelEnded` or by
/// `cancel()`.
///
/// libcurl makes the connection, TLS included, and is done then (CURLOPT_CONNECT_ONLY): it watches the socket no more, so we do,
/// and move the bytes with curl_easy_send(3) and curl_easy_recv(3). Its easy handle stays in the multi until the end, because
/// the connection is found by it there; libcurl gives it to nobody else. What TLS has decrypted already is invisible to epoll,
/// so both directions go on until libcurl says CURLE_AGAIN.
public final class Tunnel: Errand {
    /// What the bytes from the upstream are.
    enum Stage {
        case head
        case raw
        /// Of an answer that declined: so many bytes, chunks, or all until the end.
        case length(Int64)
        case chunks(ChunkParser)
        case untilEnd
    }

    let request: TransferRequest
    let client: CurlClient
    /// May be changed at any time; kept weakly: one that is gone cancels the tunnel.
    public weak var delegate: (any TunnelDelegate)?

    var handle: EasyHandle?
    var multi: Multi?

    var descriptor: CInt = -1
    private var watch: Watch?
    /// epoll has said so, and libcurl not CURLE_AGAIN since.
    var mayRead = false
    var mayWrite = false

    // To the upstream. The first piece stays as it is until all of it has left: TLS wants the same bytes at the same place
    // again after CURLE_AGAIN (SSL_write(3)).
    var outgoing = CircularBuffer<ByteBuffer>()
    var outgoingBytes = 0
    var owesRoom = false
    var isSendingFinished = false
    var hasSentEnd = false
    /// The upstream takes no more; what it has still sent is read before the end is told.
    var sendFailure: CURLcode?

    // From the upstream.
    var stage = Stage.head
    var heads: HeadParser
    var line: [UInt8] = []
    /// Received, and not yet understood or handed on.
    var received = ByteBuffer()
    var isReceivingPaused = false
    var isReceivingEnded = false

    private let startedAt: NIODeadline
    /// When the phase began in which it is: waiting, connecting, asking.
    private var phaseAt: NIODeadline
    var lastProgress: NIODeadline

    /// 1 once the request may have gone out.
    public private(set) var attempts = 0
    public internal(set) var bytesReceived: Int64 = 0
    public internal(set) var bytesSent: Int64 = 0

    private(set) var ended: CURLcode?
    /// What we know better than libcurl's code.
    private var failure: (kind: TransferError.Kind, detail: String?)?
    private var isQueued = false
    /// Nothing more will happen.
    private(set) var isOver = false

    /// nil where the request has a body or its target would not arrive as one.
    init?(_ client: CurlClient, _ request: TransferRequest, _ upgrade: StaticString, _ delegate: any TunnelDelegate) {
        guard request.body == .none, let head = Tunnel.head(of: request, upgrade) else { return nil }
        (self.client, self.request, self.delegate) = (client, request, delegate)
        heads = HeadParser(bytesMax: client.configuration.headBytesMax, upgrade: upgrade)
        startedAt = client.reactor.turnNow
        (phaseAt, lastProgress) = (startedAt, startedAt)
        outgoing.append(head)
        outgoingBytes = head.readableBytes
    }

    public var destination: Destination { request.destination }
    /// The final head has arrived.
    public var hasHead: Bool { heads.isFinished }

    private var isRaw: Bool { if case .raw = stage { true } else { false } }
    var now: NIODeadline { client.reactor.turnNow }
    var window: Int { client.configuration.windowBytes }

    private static func head(of request: TransferRequest, _ upgrade: StaticString) -> ByteBuffer? {
        guard !request.target.isEmpty, request.target.allSatisfy({ $0 > 0x20 && $0 != 0x7f }), request.method.utf8.allSatisfy(isTokenByte)
        else { return nil }
        var bytes = ByteBufferAllocator().buffer(capacity: 1_024)
        bytes.writeString(request.method)
        bytes.writeStaticString(" ")
        bytes.writeBytes(request.target)
        bytes.writeStaticString(" HTTP/1.1\r\n")
        request.headers.write(to: &bytes)
        bytes.writeStaticString("Connection: Upgrade\r\nUpgrade: ")
        bytes.writeStaticString(upgrade)
        bytes.writeStaticString("\r\n\r\n")
        return bytes
    }

    // MARK: What the owner does

    /// Queues bytes for the upstream. False: the window is full, wait for `tunnelHasRoom` before the next ones (these are taken
    /// nevertheless).
    @discardableResult
    public func send(_ bytes: ByteBuffer) -> Bool {
        guard ended == nil, !isOver, !isSendingFinished, sendFailure == nil, bytes.readableBytes > 0 else { return true }
        outgoing.append(bytes)
        outgoingBytes += bytes.readableBytes
        if mayWrite { enqueue() }
        owesRoom = outgoingBytes >= window
        return !owesRoom
    }

    /// Nothing more will be sent: the upstream gets FIN once everything has left. TLS has no such half (libcurl cannot send its
    /// close_notify alone): there the tunnel ends then.
    public func finishSending() {
        guard !isSendingFinished, !isOver else { return }
        isSendingFinished = true
        enqueue()
    }

    /// No bytes, and no end of them, reach the delegate until `resumeReceiving()`; the upstream is held back by TCP. A failure
    /// does: that the upstream is gone, or our own end.
    public func pauseReceiving() { isReceivingPaused = true }

    public func resumeReceiving() {
        guard isReceivingPaused, !isOver else { return }
        isReceivingPaused = false
        lastProgress = now
        enqueue()
    }

    /// Closes the connection. No call of the delegate follows.
    public func cancel() {
        guard !isOver else { return }
        isOver = true
        discard()
        client.release(self)
    }

    // MARK: Life

    func prepare(_ handle: EasyHandle) { handle.prepare(self) }

    func launched(_ handle: EasyHandle, _ multi: Multi) {
        (self.handle, self.multi) = (handle, multi)
        phaseAt = now
    }

    func libcurlIsDone(_ code: CURLcode) {
        guard code == CURLE_OK, let handle, let multi else { return client.abort(self, code) }
        _ = pcurl_get_active_socket(handle.raw, &descriptor)
        guard descriptor >= 0 else { return client.abort(self, CURLE_COULDNT_CONNECT) }
        // libcurl has left it (CURL_POLL_REMOVE), but the multi's registration may still stand.
        multi.forget(descriptor)
        attempts = 1
        (phaseAt, lastProgress) = (now, now)
        (mayRead, mayWrite) = (true, true)
        enqueue()
    }

    func abort(_ kind: TransferError.Kind, _ detail: String?) {
        guard ended == nil, !isOver else { return }
        failure = (kind, detail)
        end(CURLE_ABORTED_BY_CALLBACK)
    }

    /// Closes the connection; the delegate hears of it in the next round.
    func end(_ code: CURLcode) {
        guard ended == nil, !isOver else { return }
        discard()
        client.abort(self, code)
    }

    func finished(_ code: CURLcode) {
        ended = code
        enqueue()
    }

    /// Before libcurl closes the descriptor.
    private func discard() {
        watch?.cancel()
        watch = nil
        outgoing.removeAll()
        outgoingBytes = 0
    }

    func overdue(_ now: NIODeadline) -> TransferError.Kind? {
        guard ended == nil else { return nil }
        let timeouts = request.timeouts
        // A change of protocol has no end by the clock but idleness.
        if let total = timeouts.total, !isRaw, now >= startedAt + total { return .totalTimeout }
        if multi == nil { return now >= phaseAt + timeouts.connect ? .overloaded : nil }
        if attempts == 0 { return now >= phaseAt + timeouts.connect ? .connectTimeout : nil }
        if !hasHead { return now >= phaseAt + timeouts.firstByte ? .firstByteTimeout : nil }
        // The time that our own side takes is not the upstream's.
        if isReceivingPaused { return nil }
        return now >= lastProgress + timeouts.idle ? .idleTimeout : nil
    }

    // MARK: The end of a turn

    func enqueue() {
        guard !isQueued else { return }
        isQueued = true
        client.ready.append(self)
        client.reactor.requestTurn()
    }

    func deliver() {
        isQueued = false
        guard !isOver else { return }
        guard delegate != nil else { return cancel() }
        if ended == nil, attempts > 0 {
            sendWaiting()
            receiveWaiting()
            updateWatch()
        }
        if ended != nil { deliverEnd() }
    }

    /// Asks for what libcurl waits for, and for nothing else: who is not registered cannot spin on a hang-up.
    private func updateWatch() {
        guard ended == nil, !isOver else { return }
        var wanted: Interest = []
        if !mayRead, !isReceivingPaused, !isReceivingEnded { wanted.insert(.read) }
        if !mayWrite, outgoingBytes > 0 { wanted.insert(.write) }
        do {
            if wanted.isEmpty {
                watch?.cancel()
                watch = nil
            } else if let watch {
                try watch.update(wanted)
            } else {
                watch = try client.reactor.watch(descriptor, for: wanted) { [unowned self] in ready($0) }
            }
        } catch { abort(.other, "\(error)") }
    }

    private func ready(_ readiness: Readiness) {
        let isBroken = !readiness.isDisjoint(with: [.error, .hangup])
        if isBroken || readiness.contains(.read) { mayRead = true }
        if isBroken || readiness.contains(.write) { mayWrite = true }
        enqueue()
    }

    private func deliverEnd() {
        guard !isOver, let code = ended else { return }
        isOver = true
        let error = code == CURLE_OK ? nil : error(code)
        client.release(self)
        delegate?.tunnelEnded(self, error)
    }

    private func error(_ code: CURLcode) -> TransferError {
        let reason = failure?.detail ?? handle?.message ?? String(cString: curl_easy_strerror(code))
        return TransferError(
            kind: failure?.kind ?? TransferError.Kind(code, hasHead: hasHead), isRetrySafe: attempts == 0,
            detail: "\(destination.address):\(destination.port): \(reason)", attempts: attempts)
    }
}
