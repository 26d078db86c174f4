internal import CLibpq
internal import Glibc
internal import NIOCore
internal import Reactor

/// What a connection tells. Every call comes from the reactor, and never from inside libpq.
protocol ConnectionDelegate: AnyObject {
    func connectionEstablished()
    /// The connection is of no use any more. It is not finished yet.
    func connectionFailed(_ error: PostgresError)
    /// Bytes came: results may be ready.
    func connectionReceived()
    /// What the kernel had no room for is on its way now.
    func connectionDrained()
    func connectionNotified(_ notification: PostgresNotification)
}

/// One PGconn from PQconnectStartParams to PQfinish, in non-blocking mode, watched by the reactor. After `finish` nothing is
/// reported and nothing of libpq may be called: whoever loops over results looks at `isFinished` after each callback.
final class Connection {
    private enum Phase { case connecting, open, finished }

    let raw: OpaquePointer
    private let reactor: Reactor
    private unowned let delegate: any ConnectionDelegate
    private var phase = Phase.connecting
    private var watch: Watch?
    private var connectTimer: Reactor.Timer?
    private var needsFlush = false
    private var brokenMessage: String?
    private var tls: OpenSSLConnection?

    var isFinished: Bool { phase == .finished }

    /// Nil when there is no memory. Call `start` next.
    init?(parameters: [(name: String, value: String)], reactor: Reactor, delegate: any ConnectionDelegate) {
        // Both lists end with NULL (PostgreSQL manual, 34.1, PQconnectdbParams). libpq copies what it is given.
        let keys = parameters.map { strdup($0.name) } + [nil]
        let values = parameters.map { strdup($0.value) } + [nil]
        defer { for pointer in keys + values { free(pointer) } }
        let started = keys.map { UnsafePointer($0) }.withUnsafeBufferPointer { keys in
            values.map { UnsafePointer($0) }.withUnsafeBufferPointer { values in
                PQconnectStartParams(keys.baseAddress, values.baseAddress, 0)
            }
        }
        guard let started else { return nil }
        (raw, self.reactor, self.delegate) = (started, reactor, delegate)
        // libpq prints notices on standard error unless told otherwise.
        PQsetNoticeReceiver(raw, { _, _ in }, nil)
        // The SQLSTATE of a refused connection is to be had in the message only.
        PQsetErrorVerbosity(raw, PQERRORS_VERBOSE)
    }

    deinit {
        // Only when the reactor has ended with the connection open: its watch and timer ended with it.
        if phase != .finished { PQfinish(raw) }
    }

    // MARK: Connecting

    func start(timeout: TimeAmount) {
        guard PQstatus(raw) != CONNECTION_BAD else {
            // The caller has not stored us yet.
            breakLater(message)
            return
        }
        connectTimer = reactor.startTimer(in: timeout) { [unowned self] in
            fail("no connection within \(timeout.nanoseconds / 1_000_000) ms")
        }
        // "Behave as if PQconnectPoll had last returned PGRES_POLLING_WRITING."
        rewatch(.write)
    }

    private func pollConnect() {
        // libpq may have closed the socket and opened another with the same number: never keep a watch across the call.
        watch?.cancel()
        watch = nil
        switch PQconnectPoll(raw) {
        case PGRES_POLLING_READING: rewatch(.read)
        case PGRES_POLLING_WRITING: rewatch(.write)
        case PGRES_POLLING_OK: opened()
        default: fail(message)
        }
    }

    private func opened() {
        if let connectTimer { reactor.cancelTimer(connectTimer) }
        connectTimer = nil
        guard PQsetnonblocking(raw, 1) == 0 else { return fail(message) }
        PQsetErrorVerbosity(raw, PQERRORS_DEFAULT)
        tls = OpenSSLConnection(raw)
        phase = .open
        rewatch(.read)
        if phase == .open { delegate.connectionEstablished() }
    }

    private func rewatch(_ interest: Interest) {
        watch?.cancel()
        do {
            watch = try reactor.watch(PQsocket(raw), for: interest) { [unowned self] in ready($0) }
        } catch {
            breakLater("\(error)")
        }
    }

    // MARK: Open

    private func ready(_ readiness: Readiness) {
        guard phase == .open else { return pollConnect() }
        if readiness.contains(.write), flush() { delegate.connectionDrained() }
        guard phase == .open else { return }
        guard readiness != .write else { return collect() }
        repeat {
            let isAlive = PQconsumeInput(raw) == 1
            let reason = isAlive ? "" : message
            // Results that came before the end are worth having.
            collect()
            guard phase == .open else { return }
            if !isAlive { return fail(reason) }
        } while tls?.hasPending == true
    }

    /// Takes what libpq has read. It reads by itself, too, whenever the kernel has no room for what it sends; no descriptor
    /// tells of those bytes, so this follows every flush.
    private func collect() {
        takeNotifications()
        if phase == .open { delegate.connectionReceived() }
    }

    private func takeNotifications() {
        while phase == .open, let notify = PQnotifies(raw) {
            let notification = PostgresNotification(
                channel: String(cString: notify.pointee.relname), payload: String(cString: notify.pointee.extra),
                backendPID: notify.pointee.be_pid)
            PQfreemem(notify)
            delegate.connectionNotified(notification)
        }
    }

    /// Something was queued: it is sent at the end of the turn.
    func flushLater() {
        needsFlush = true
        reactor.requestTurn()
    }

    /// libpq refused a call: the connection fails at the end of the turn, when nobody is in the midst of anything.
    func breakLater(_ message: String? = nil) {
        brokenMessage = brokenMessage ?? message ?? self.message
        reactor.requestTurn()
    }

    func endOfTurn() {
        if let brokenMessage { return fail(brokenMessage) }
        guard needsFlush, phase == .open else { return }
        flush()
        collect()
    }

    /// Hands to the kernel what it takes; the rest follows when the socket is writable. True if nothing is left.
    @discardableResult
    func flush() -> Bool {
        needsFlush = false
        let result = PQflush(raw)
        guard result >= 0 else {
            breakLater()
            return false
        }
        do { try watch?.update(result == 0 ? .read : [.read, .write]) } catch { breakLater("\(error)") }
        return result == 0
    }

    // MARK: The end

    private func fail(_ message: String) {
        guard phase != .finished else { return }
        var error = PostgresError(phase == .open ? .connectionLost : .unavailable, tidy(message))
        if let state = Connection.sqlState(in: message) {
            error.sqlState = state
            error.message = error.message.replacing("  \(state): ", with: " ", maxReplacements: 1)
        }
        delegate.connectionFailed(error)
    }

    /// Closes the connection. Nothing is called back from here.
    func finish() {
        guard phase != .finished else { return }
        phase = .finished
        watch?.cancel()
        watch = nil
        if let connectTimer { reactor.cancelTimer(connectTimer) }
        connectTimer = nil
        PQfinish(raw)
    }

    /// Asks the server to stop what it is doing. PQcancel blocks, so it is done on a thread of its own; if none is to be had,
    /// the server notices by itself that nobody waits any more (client_connection_check_interval).
    func cancelStatement() {
        guard phase == .open, let cancel = PQgetCancel(raw) else { return }
        let lent = CancelHandle(raw: cancel)
        if !HelperThread.run({ lent.cancelAndFree() }) { PQfreeCancel(cancel) }
    }

    /// Sendable because it is handed over once: "safe to be called from another thread" (PostgreSQL manual, 34.7).
    private struct CancelHandle: @unchecked Sendable {
        let raw: OpaquePointer
        func cancelAndFree() {
            var error = [CChar](repeating: 0, count: 256)
            _ = PQcancel(raw, &error, CInt(error.count))
            PQfreeCancel(raw)
        }
    }

    private var message: String { String(cString: PQerrorMessage(raw)) }

    /// The state in a verbose message: severity, colon, two spaces, five characters, colon (libpq, pqBuildErrorMessage3).
    static func sqlState(in message: String) -> SQLState? {
        let bytes = Array(message.utf8)
        for start in bytes.indices where bytes[start...].starts(with: ":  ".utf8) {
            let state = bytes[(start + 3)...].prefix(5)
            let isState = state.count == 5 && state.allSatisfy { (0x30...0x39).contains($0) || (0x41...0x5a).contains($0) }
            if isState, bytes[(start + 8)...].starts(with: ": ".utf8) { return SQLState(String(decoding: state, as: UTF8.self)) }
        }
        return nil
    }
}

@available(*, unavailable) extension Connection: Sendable {}

/// Asks OpenSSL for bytes that it has decrypted and libpq has not taken: no descriptor tells of them.
struct OpenSSLConnection {
    private typealias Pending = @convention(c) (UnsafeMutableRawPointer) -> CInt
    /// libpq brings OpenSSL along; we do not link it.
    private static let pending = dlsym(nil, "SSL_pending").map { unsafeBitCast($0, to: Pending.self) }

    private let handle: UnsafeMutableRawPointer
    private let pending: Pending

    /// Nil for a connection without TLS.
    init?(_ connection: OpaquePointer) {
        guard PQsslInUse(connection) == 1, let handle = PQsslStruct(connection, "OpenSSL"),
            let pending = OpenSSLConnection.pending
        else { return nil }
        (self.handle, self.pending) = (handle, pending)
    }

    var hasPending: Bool { pending(handle) > 0 }
}
