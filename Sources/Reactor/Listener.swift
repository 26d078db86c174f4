internal import CLinux
internal import Glibc
public import NIOCore

/// How a listener's socket is made.
public struct ListenOptions: Sendable {
    /// listen(2): connections that wait to be accepted. The kernel caps it at net.core.somaxconn.
    public var backlog: CInt = 4096
    /// Several listeners on one address, each with its own queue: one per worker.
    public var reusePort = true
    /// Connections accepted in one turn before others get theirs.
    public var acceptsPerTurn = 64
    /// A pause after accept(2) found no descriptor left (EMFILE and its like), instead of a busy loop.
    public var pauseWhenExhausted: TimeAmount = .milliseconds(100)

    public init() {}
}

/// A TCP listener on a reactor. Confined to it.
public final class Listener: EventSink {
    private let reactor: Reactor
    private let options: ListenOptions
    private let initializer: (any Channel) throws -> Void
    private var descriptor: CInt
    private var key: UInt64?
    private(set) var isPaused = false

    /// The bound address, with the port that the kernel chose where 0 was asked for.
    public let localAddress: SocketAddress
    /// Asked before each look at the kernel's queue, also where nothing waits there: takes no place yet. False leaves
    /// connections in the queue until `resumeAccepting()`.
    public var mayAccept: (() -> Bool)?
    public private(set) var accepted = 0

    init(
        _ reactor: Reactor, _ address: SocketAddress, _ options: ListenOptions, _ initializer: @escaping (any Channel) throws -> Void
    ) throws {
        self.reactor = reactor
        self.options = options
        self.initializer = initializer
        let descriptor = try check(clinux_tcp_socket(CInt(address.protocol.rawValue)), "socket")
        self.descriptor = descriptor
        do {
            try check(clinux_set_option(descriptor, SOL_SOCKET, SO_REUSEADDR, 1), "setsockopt SO_REUSEADDR")
            if options.reusePort {
                try check(clinux_set_option(descriptor, SOL_SOCKET, SO_REUSEPORT, 1), "setsockopt SO_REUSEPORT")
            }
            let status = address.withSockAddr { Glibc.bind(descriptor, $0, socklen_t($1)) }
            guard status == 0 else { throw IOError(errnoCode: errno, reason: "bind to \(address)") }
            guard Glibc.listen(descriptor, options.backlog) == 0 else { throw IOError(errnoCode: errno, reason: "listen") }
            localAddress = try socketAddress(descriptor, getsockname)
            key = nil
        } catch {
            Glibc.close(descriptor)
            throw error
        }
        key = try reactor.register(descriptor, .read, self)
    }

    deinit {
        if descriptor >= 0 { Glibc.close(descriptor) }
    }

    /// Takes what waits in the kernel's queue, then closes: connections that were complete are served, not reset.
    public func stopAccepting() {
        mayAccept = nil
        while descriptor >= 0, acceptOne() {}
        close()
    }

    public func close() {
        guard descriptor >= 0 else { return }
        if let key { reactor.deregister(descriptor, key) }
        key = nil
        Glibc.close(descriptor)
        descriptor = -1
    }

    /// After `mayAccept` said no: looks at the queue again.
    public func resumeAccepting() {
        guard isPaused, let key else { return }
        isPaused = false
        // Fails only for a descriptor that is not registered.
        try? reactor.reregister(descriptor, .read, key)
    }

    func descriptorReady(_ readiness: Readiness) {
        for _ in 0..<options.acceptsPerTurn where descriptor >= 0 && !isPaused {
            if let mayAccept, !mayAccept() { return pause(nil) }
            guard acceptOne() else { return }
        }
    }

    func reactorStopped() {
        key = nil
        close()
    }

    /// False when nothing waits.
    private func acceptOne() -> Bool {
        var storage = sockaddr_storage()
        var length = UInt32(MemoryLayout<sockaddr_storage>.size)
        let result = clinux_accept(descriptor, &storage, &length)
        guard result >= 0 else {
            switch -result {
            case EAGAIN: return false
            case EMFILE, ENFILE, ENOBUFS, ENOMEM:
                pause(options.pauseWhenExhausted)
                return false
            default: return true  // accept(2): an error of a connection that died in the queue; the next one may be well
            }
        }
        accepted += 1
        let channel = StreamChannel(reactor: reactor, descriptor: result, peer: socketAddress(storage))
        channel.adopt(initializer)
        return true
    }

    private func pause(_ amount: TimeAmount?) {
        guard let key, !isPaused else { return }
        isPaused = true
        try? reactor.reregister(descriptor, [], key)
        guard let amount else { return }
        _ = reactor.startTimer(in: amount) { [weak self] in self?.resumeAccepting() }
    }
}

extension Reactor {
    /// Listens on the address; every accepted connection becomes a channel that the initializer furnishes before it is
    /// active. Throws `IOError`. On the loop.
    public func listen(
        on address: SocketAddress, options: ListenOptions = ListenOptions(), _ initializer: @escaping (any Channel) throws -> Void
    ) throws -> Listener {
        assertInEventLoop()
        return try Listener(self, address, options, initializer)
    }

    /// Connects to the address and furnishes the channel before it is active. The future fails with `IOError` or
    /// `ChannelError.connectTimeout`. On the loop.
    public func connect(
        to address: SocketAddress, timeout: TimeAmount = .seconds(10), _ initializer: @escaping (any Channel) throws -> Void
    ) -> EventLoopFuture<any Channel> {
        assertInEventLoop()
        let promise = makePromise(of: Void.self)
        do {
            let descriptor = try check(clinux_tcp_socket(CInt(address.protocol.rawValue)), "socket")
            let channel = StreamChannel(reactor: self, descriptor: descriptor, peer: nil)
            channel.connect(to: address, timeout: timeout, initializer, promise)
            return promise.futureResult.map { channel }
        } catch {
            return makeFailedFuture(error)
        }
    }
}

func socketAddress(_ storage: sockaddr_storage) -> SocketAddress? {
    withUnsafeBytes(of: storage) { bytes in
        switch CInt(storage.ss_family) {
        case AF_INET: SocketAddress(bytes.loadUnaligned(as: sockaddr_in.self))
        case AF_INET6: SocketAddress(bytes.loadUnaligned(as: sockaddr_in6.self))
        default: nil
        }
    }
}

func socketAddress(
    _ descriptor: CInt, _ call: (CInt, UnsafeMutablePointer<sockaddr>, UnsafeMutablePointer<socklen_t>) -> CInt
) throws -> SocketAddress {
    var storage = sockaddr_storage()
    var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    let status = withUnsafeMutableBytes(of: &storage) {
        call(descriptor, $0.assumingMemoryBound(to: sockaddr.self).baseAddress!, &length)
    }
    guard status == 0, let address = socketAddress(storage) else { throw IOError(errnoCode: errno, reason: "getsockname") }
    return address
}
