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
    private var transfers: [ObjectIdentifier: Transfer] = [:]
    /// Transfers with something to deliver at the end of the turn.
    var ready: [Transfer] = []
    private var nextTick: NIODeadline?
    private var isShutDown = false

    /// On the reactor.
    public init(on reactor: Reactor, configuration: CurlConfiguration = CurlConfiguration()) throws {
        _ = CurlClient.library
        (self.reactor, self.configuration) = (reactor, configuration)
        reactor.addTurnHook(.collect, self)
    }

    /// curl_global_init(3), once per process and before any thread could race it.
    private static let library: CURLcode = curl_global_init(Int(CURL_GLOBAL_DEFAULT))

    public var activeTransfers: Int { transfers.count }

    /// Starts a transfer. Whatever happens, the delegate hears of it at the end of a turn, never before this returns.
    public func start(_ request: TransferRequest, delegate: any TransferDelegate) throws(TransferError) -> Transfer {
        guard !isShutDown else { throw localError(.shutdown, "the client is shut down") }
        guard transfers.count < configuration.maxTransfers else {
            throw localError(.overloaded, "\(configuration.maxTransfers) transfers are running")
        }
        let handle: EasyHandle
        let multi: Multi
        do {
            handle = try pool.popLast() ?? EasyHandle(self)
            multi = try roomyMulti()
        } catch { throw localError(.other, "\(error)") }
        let transfer = Transfer(self, handle, multi, request, delegate)
        handle.prepare(transfer)
        transfers[ObjectIdentifier(transfer)] = transfer
        multi.active += 1
        _ = curl_multi_add_handle(multi.raw, handle.raw)
        if nextTick == nil { nextTick = reactor.turnNow + configuration.deadlineTick }
        reactor.requestTurn()
        return transfer
    }

    private func localError(_ kind: TransferError.Kind, _ detail: String) -> TransferError {
        TransferError(kind: kind, source: .local, isRetrySafe: true, detail: detail, attempts: 0)
    }

    /// The first multi handle with room: the busy ones stay dense, so that idle connections are found again.
    private func roomyMulti() throws -> Multi {
        if let roomy = multis.first(where: { $0.active < configuration.transfersPerMulti }) { return roomy }
        let made = try Multi(self, reactor, configuration)
        multis.append(made)
        return made
    }

    /// Cancels every transfer and closes every connection.
    public func shutdown() {
        guard !isShutDown else { return }
        isShutDown = true
        for transfer in transfers.values { drop(transfer) }
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
            let batch = ready
            ready.removeAll(keepingCapacity: true)
            for transfer in batch { transfer.deliver() }
        }
        reactor.requestTurn()
    }

    private func checkDeadlines() {
        guard let tick = nextTick, tick <= reactor.turnNow else { return }
        for transfer in transfers.values {
            guard transfer.ended == nil, let kind = transfer.overdue(reactor.turnNow) else { continue }
            transfer.failure = kind
            detach(transfer)
            transfer.finished(CURLE_OPERATION_TIMEDOUT)
        }
        nextTick = transfers.isEmpty ? nil : reactor.turnNow + configuration.deadlineTick
    }

    // MARK: Ends

    func finished(_ easy: UnsafeMutableRawPointer, _ code: CURLcode) {
        var context: UnsafeMutableRawPointer?
        _ = pcurl_get_private(easy, &context)
        guard let context else { return }
        let transfer = Unmanaged<Transfer>.fromOpaque(context).takeUnretainedValue()
        detach(transfer)
        transfer.finished(code)
    }

    /// Takes the handle out of libcurl; after this no callback of the transfer comes.
    private func detach(_ transfer: Transfer) {
        _ = curl_multi_remove_handle(transfer.multi.raw, transfer.handle.raw)
        transfer.multi.active -= 1
    }

    /// The owner gave up.
    func drop(_ transfer: Transfer) {
        if transfer.ended == nil { detach(transfer) }
        transfer.isOver = true
        release(transfer)
    }

    func release(_ transfer: Transfer) {
        transfers.removeValue(forKey: ObjectIdentifier(transfer))
        if pool.count < configuration.pooledHandles, !isShutDown { pool.append(transfer.handle) }
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
