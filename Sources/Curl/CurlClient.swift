internal import CLibcurl
internal import CLinux
internal import Glibc
public import NIOCore
public import Reactor

/// HTTP transfers to upstreams, by libcurl's multi-socket interface on a reactor. One per reactor, confined to it.
public final class CurlClient: TurnHook {
    static let outOfMemory = IOError(errnoCode: ENOMEM, reason: "libcurl gave no handle")

    let reactor: Reactor
    let configuration: CurlConfiguration
    private var multis: [Multi] = []
    private var pool: [EasyHandle] = []
    private var errands: [ObjectIdentifier: any Errand] = [:]
    /// Those with something to deliver at the end of the turn.
    var ready: [any Errand] = []
    /// Takes turns with `ready`, so that neither gives up its memory.
    private var delivering: [any Errand] = []
    /// What tunnels receive is copied out of it, so that none of them owns a buffer.
    let scratch: UnsafeMutableRawBufferPointer
    private var nextTick: NIODeadline?
    private var isShutDown = false

    /// On the reactor.
    public init(on reactor: Reactor, configuration: CurlConfiguration = CurlConfiguration()) throws {
        _ = CurlClient.library
        (self.reactor, self.configuration) = (reactor, configuration)
        scratch = .allocate(byteCount: configuration.receiveBufferBytes, alignment: 16)
        reactor.addTurnHook(.collect, self)
    }

    deinit { scratch.deallocate() }

    /// Once per process: curl_global_init(3), and no SIGPIPE, which OpenSSL's writes raise when a peer is gone and which
    /// CURLOPT_NOSIGNAL(3) leaves to the application.
    private static let library: CURLcode = {
        signal(SIGPIPE, SIG_IGN)
        return curl_global_init(Int(CURL_GLOBAL_DEFAULT))
    }()

    /// Transfers and tunnels.
    public var activeTransfers: Int { errands.count }

    // MARK: Starts

    /// Starts a transfer. Whatever happens, the delegate hears of it at the end of a turn, never before this returns. The
    /// client keeps the transfer, and that its delegate, until it has ended or is cancelled.
    ///
    /// Throws when nothing was begun: `overloaded`, `shutdown`, or `other` when the process is out of memory.
    public func start(_ request: TransferRequest, delegate: any TransferDelegate) throws(TransferError) -> Transfer {
        try checkRoom()
        let transfer = Transfer(self, request, delegate)
        try begin(transfer)
        return transfer
    }

    /// Sends a request to change to `upgrade` (a token in lower case), on a connection of its own. As with `start`, the
    /// delegate hears of everything at the end of a turn, and the same is thrown. A tunnel counts as a transfer to its
    /// destination, for as long as it lasts.
    public func open(_ request: TransferRequest, upgrade: StaticString, delegate: any TunnelDelegate) throws(TransferError) -> Tunnel {
        try checkRoom()
        guard let tunnel = Tunnel(self, request, upgrade, delegate) else {
            throw localError(.other, "a request target with white space or controls, or a body")
        }
        try begin(tunnel)
        return tunnel
    }

    private func checkRoom() throws(TransferError) {
        guard !isShutDown else { throw localError(.shutdown, "the client is shut down") }
        guard errands.count < configuration.maxTransfers else {
            throw localError(.overloaded, "\(configuration.maxTransfers) transfers are running")
        }
    }

    private func begin(_ errand: any Errand) throws(TransferError) {
        let destination = errand.destination
        if destination.active < destination.transfersMax {
            do { try launch(errand) } catch { throw localError(.other, "\(error)") }
        } else {
            guard destination.waiting.count < destination.waitingMax else {
                throw localError(.overloaded, "\(destination.waiting.count) transfers wait for \(destination.address):\(destination.port)")
            }
            destination.waiting.append(errand)
        }
        errands[ObjectIdentifier(errand)] = errand
        if nextTick == nil { nextTick = reactor.turnNow + configuration.deadlineTick }
        reactor.requestTurn()
    }

    private func localError(_ kind: TransferError.Kind, _ detail: String) -> TransferError {
        TransferError(kind: kind, isRetrySafe: true, detail: detail, attempts: 0)
    }

    /// Gives it to libcurl.
    private func launch(_ errand: any Errand) throws {
        let isTunnel = errand is Tunnel
        let handle = try (isTunnel ? nil : pool.popLast()) ?? EasyHandle(self, isConnectOnly: isTunnel)
        let multi = try roomyMulti()
        errand.prepare(handle)
        guard curl_multi_add_handle(multi.raw, handle.raw) == CURLM_OK else { throw CurlClient.outOfMemory }
        multi.active += 1
        errand.destination.active += 1
        errand.launched(handle, multi)
    }

    /// The first multi handle with room: the busy ones stay dense, so that idle connections are found again.
    private func roomyMulti() throws -> Multi {
        if let roomy = multis.first(where: { $0.active < configuration.transfersPerMulti }) { return roomy }
        let made = try Multi(self, reactor, configuration)
        multis.append(made)
        return made
    }

    private func launchNext(_ destination: Destination) {
        guard !isShutDown, let next = destination.waiting.popFirst() else { return }
        do { try launch(next) } catch { next.abort(.other, "\(error)") }
    }

    /// Cancels every transfer and tunnel and closes every connection.
    public func shutdown() {
        guard !isShutDown else { return }
        isShutDown = true
        for errand in Array(errands.values) { errand.cancel() }
        reactor.removeTurnHook(self)
        pool.removeAll()
        for multi in multis { multi.shutdown() }
        multis.removeAll()
    }

    // MARK: End of turn

    public var nextDeadline: NIODeadline? {
        var earliest = nextTick
        for multi in multis {
            if let deadline = multi.deadline { earliest = min(earliest ?? deadline, deadline) }
        }
        return earliest
    }

    public func endOfTurn() {
        checkDeadlines()
        // What the delegates do may complete at once: an upstream can answer within the turn that asked it.
        for _ in 0..<4 {
            for multi in multis { multi.collect() }
            guard !ready.isEmpty else { return }
            swap(&ready, &delivering)
            for errand in delivering { errand.deliver() }
            delivering.removeAll(keepingCapacity: true)
        }
        reactor.requestTurn()
    }

    private func checkDeadlines() {
        guard let tick = nextTick, tick <= reactor.turnNow else { return }
        for errand in Array(errands.values) {
            guard let kind = errand.overdue(reactor.turnNow) else { continue }
            errand.abort(kind, kind == .overloaded ? "no room at the destination" : nil)
        }
        nextTick = errands.isEmpty ? nil : reactor.turnNow + configuration.deadlineTick
    }

    // MARK: Ends

    func finished(_ easy: UnsafeMutableRawPointer, _ code: CURLcode) {
        var context: UnsafeMutableRawPointer?
        _ = pcurl_get_private(easy, &context)
        guard let context else { return }
        Unmanaged<EasyHandle>.fromOpaque(context).takeUnretainedValue().errand?.libcurlIsDone(code)
    }

    /// Ends what libcurl does for it; its end is delivered at the end of the turn.
    func abort(_ errand: any Errand, _ code: CURLcode) {
        detach(errand)
        errand.finished(code)
    }

    /// Takes it out of libcurl, after which no callback of it comes, or out of the queue.
    private func detach(_ errand: any Errand) {
        let destination = errand.destination
        guard let multi = errand.multi, let handle = errand.handle else {
            destination.waiting.removeAll { $0 === errand }
            return
        }
        _ = curl_multi_remove_handle(multi.raw, handle.raw)
        errand.multi = nil
        multi.active -= 1
        destination.active -= 1
        launchNext(destination)
    }

    /// It is over for its owner too.
    func release(_ errand: any Errand) {
        if errand.ended == nil { detach(errand) }
        errands.removeValue(forKey: ObjectIdentifier(errand))
        guard let handle = errand.handle else { return }
        errand.handle = nil
        // A kept handle would keep the memory of what is dead.
        handle.errand = nil
        if pool.count < configuration.pooledHandles, !handle.isConnectOnly, !isShutDown { pool.append(handle) }
    }

    // MARK: Sockets

    func openSocket(_ address: UnsafeMutablePointer<curl_sockaddr>) -> curl_socket_t {
        let descriptor = clinux_tcp_socket(address.pointee.family)
        guard descriptor >= 0 else { return curl_socket_t(-1) }
        // A descriptor that libcurl closed without a word may have left its watch behind.
        for multi in multis { multi.opened(descriptor) }
        return descriptor
    }

    func closeSocket(_ descriptor: curl_socket_t) {
        for multi in multis { multi.forget(descriptor) }
        Glibc.close(descriptor)
    }
}
