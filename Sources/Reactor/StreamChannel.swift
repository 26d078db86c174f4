internal import CLinux
internal import Glibc
public import NIOCore
internal import Synchronization

/// A TCP stream on a reactor, as a NIO `Channel`: the handlers of NIOHTTP1, NIOSSL and NIOHTTP2 run on it unchanged.
///
/// Sendable without the compiler's proof: like every NIO channel it is handed between threads, but all of its state is used
/// on its reactor's thread; the pipeline moves calls from other threads there. `isActive` and `isWritable`, which NIO lets
/// any thread ask, are atomic. The addresses never change once active.
public final class StreamChannel: Channel, ChannelCore, EventSink, @unchecked Sendable {
    private enum Phase {
        /// Not connected; legal exits: active, connecting, closed.
        case fresh
        /// connect(2) is under way; legal exits: active, closed.
        case connecting(EventLoopPromise<Void>, Reactor.Timer)
        case active
        case closed
    }

    let reactor: Reactor
    public let allocator = ByteBufferAllocator()
    public var eventLoop: any EventLoop { reactor }
    private let closePromise: EventLoopPromise<Void>
    private var pipelineStorage: ChannelPipeline!

    private var descriptor: CInt
    private var key: UInt64?
    private var registered: Interest = []
    private var phase = Phase.fresh
    private var inputOpen = true
    private var outputOpen = true
    private var readPending = false
    private var delivering = false
    private var flushing = false
    private var outputCloseWaits: EventLoopPromise<Void>?
    private var outputCloseRequested = false
    private var writes = PendingWrites()

    private var autoRead = true
    private var allowRemoteHalfClosure = false
    private var waterMark = ChannelOptions.Types.WriteBufferWaterMark(low: 32 * 1024, high: 64 * 1024)
    private var readsPerTurn = 4
    /// So that a writer whose reader keeps up cannot hold the loop.
    private static let writesPerTurn = 16

    public private(set) var localAddress: SocketAddress?
    public private(set) var remoteAddress: SocketAddress?
    public let parent: (any Channel)? = nil
    private let activity = Atomic(false)
    private let writability = Atomic(true)

    init(reactor: Reactor, descriptor: CInt, peer: SocketAddress?) {
        self.reactor = reactor
        self.descriptor = descriptor
        closePromise = reactor.makePromise(of: Void.self)
        remoteAddress = peer
        localAddress = try? socketAddress(descriptor, getsockname)
        _ = clinux_set_option(descriptor, CInt(IPPROTO_TCP), TCP_NODELAY, 1)
        pipelineStorage = ChannelPipeline(channel: self)
    }

    deinit {
        if descriptor >= 0 { Glibc.close(descriptor) }
    }

    public var closeFuture: EventLoopFuture<Void> { closePromise.futureResult }
    public var pipeline: ChannelPipeline { pipelineStorage }
    public var _channelCore: any ChannelCore { self }

    public var isActive: Bool { activity.load(ordering: .relaxed) }

    public private(set) var isWritable: Bool {
        get { writability.load(ordering: .relaxed) }
        set { writability.store(newValue, ordering: .relaxed) }
    }

    private var isClosed: Bool {
        if case .closed = phase { true } else { false }
    }

    /// Bytes written and not yet taken by the kernel.
    public var pendingBytes: Int { writes.bytes }

    // MARK: Birth

    /// Makes an accepted socket an active channel.
    func adopt(_ initializer: (any Channel) throws -> Void) {
        do {
            try initializer(self)
            key = try reactor.register(descriptor, [], self)
        } catch {
            return close0(error: error, mode: .all, promise: nil)
        }
        pipeline.fireChannelRegistered()
        becomeActive()
    }

    func connect(
        to address: SocketAddress, timeout: TimeAmount, _ initializer: (any Channel) throws -> Void, _ promise: EventLoopPromise<Void>
    ) {
        let timer = reactor.startTimer(in: timeout) { [weak self] in
            self?.close0(error: ChannelError.connectTimeout(timeout), mode: .all, promise: nil)
        }
        phase = .connecting(promise, timer)
        do {
            try initializer(self)
            key = try reactor.register(descriptor, [], self)
            pipeline.fireChannelRegistered()
            let status = address.withSockAddr { Glibc.connect(descriptor, $0, socklen_t($1)) }
            if status == 0 { return finishConnecting() }
            guard errno == EINPROGRESS else { throw IOError(errnoCode: errno, reason: "connect to \(address)") }
            try setInterest([.write])
        } catch {
            close0(error: error, mode: .all, promise: nil)
        }
    }

    private func finishConnecting() {
        guard case .connecting(let promise, let timer) = phase else { return }
        var status: CInt = 0
        _ = clinux_get_option(descriptor, SOL_SOCKET, SO_ERROR, &status)
        guard status == 0 else {
            return close0(error: IOError(errnoCode: status, reason: "connect"), mode: .all, promise: nil)
        }
        reactor.cancelTimer(timer)
        remoteAddress = try? socketAddress(descriptor, getpeername)
        localAddress = try? socketAddress(descriptor, getsockname)
        becomeActive()
        promise.succeed(())
    }

    private func becomeActive() {
        guard !isClosed else { return }
        phase = .active
        activity.store(true, ordering: .relaxed)
        updateInterest()
        pipeline.fireChannelActive()
        if autoRead, isActive { pipeline.read() }
    }

    // MARK: Events

    func descriptorReady(_ readiness: Readiness) {
        if case .connecting = phase { return finishConnecting() }
        if readiness.contains(.write), isActive { flushNow() }
        guard isActive else { return }
        if !readiness.isDisjoint(with: [.read, .error, .hangup, .readHangup]) {
            let isBroken = !readiness.isDisjoint(with: [.error, .hangup])
            if isBroken, !inputOpen {
                // No read will tell, and the kernel says it again every turn.
                closeBroken()
            } else if readPending || isBroken {
                readNow()
            } else {
                // Nobody wants to read: stop asking until somebody does. Done here and not when reading stops, so that a
                // handler that pauses and resumes within a turn costs no system call.
                updateInterest()
            }
        }
    }

    func reactorStopped() {
        key = nil
        close0(error: EventLoopError.shutdown, mode: .all, promise: nil)
    }

    private func readNow() {
        delivering = true
        var received = false
        var ended = false
        var failure: (any Error)?
        for _ in 0..<readsPerTurn where isActive && inputOpen {
            let count = Glibc.read(descriptor, reactor.readBuffer.baseAddress!, reactor.readBuffer.count)
            if count > 0 {
                received = true
                readPending = false
                var buffer = allocator.buffer(capacity: count)
                buffer.writeBytes(UnsafeRawBufferPointer(rebasing: reactor.readBuffer[..<count]))
                pipeline.fireChannelRead(buffer)
                if count < reactor.readBuffer.count || !autoRead { break }
            } else if count == 0 {
                ended = true
                break
            } else if errno == EAGAIN {
                break
            } else if errno != EINTR {
                failure = IOError(errnoCode: errno, reason: "read")
                break
            }
        }
        delivering = false
        guard isActive else { return }
        if received || ended { pipeline.fireChannelReadComplete() }
        guard isActive else { return }
        if let failure {
            pipeline.fireErrorCaught(failure)
            return close0(error: failure, mode: .all, promise: nil)
        }
        if ended { return inputEnded() }
        if autoRead { pipeline.read() }
        updateInterest()
    }

    /// The peer reset a connection whose input had ended before.
    private func closeBroken() {
        var status: CInt = 0
        _ = clinux_get_option(descriptor, SOL_SOCKET, SO_ERROR, &status)
        let failure = IOError(errnoCode: status == 0 ? ECONNRESET : status, reason: "connection")
        pipeline.fireErrorCaught(failure)
        close0(error: failure, mode: .all, promise: nil)
    }

    private func inputEnded() {
        guard inputOpen else { return }
        inputOpen = false
        readPending = false
        guard allowRemoteHalfClosure, outputOpen else { return close0(error: ChannelError.eof, mode: .all, promise: nil) }
        updateInterest()
        pipeline.fireUserInboundEventTriggered(ChannelEvent.inputClosed)
    }

    // MARK: Outbound

    public func localAddress0() throws -> SocketAddress {
        guard let localAddress else { throw ChannelError.ioOnClosedChannel }
        return localAddress
    }

    public func remoteAddress0() throws -> SocketAddress {
        guard let remoteAddress else { throw ChannelError.ioOnClosedChannel }
        return remoteAddress
    }

    public func register0(promise: EventLoopPromise<Void>?) { promise?.succeed(()) }
    public func registerAlreadyConfigured0(promise: EventLoopPromise<Void>?) { promise?.succeed(()) }
    public func bind0(to: SocketAddress, promise: EventLoopPromise<Void>?) { promise?.fail(ChannelError.operationUnsupported) }
    public func connect0(to: SocketAddress, promise: EventLoopPromise<Void>?) { promise?.fail(ChannelError.operationUnsupported) }
    public func triggerUserOutboundEvent0(_ event: Any, promise: EventLoopPromise<Void>?) {
        promise?.fail(ChannelError.operationUnsupported)
    }
    public func channelRead0(_ data: NIOAny) {}
    public func errorCaught0(error: any Error) {}

    public func read0() {
        guard isActive, inputOpen else { return }
        readPending = true
        if !delivering { updateInterest() }
    }

    public func write0(_ data: NIOAny, promise: EventLoopPromise<Void>?) {
        guard !isClosed else { return fail(promise, ChannelError.ioOnClosedChannel) }
        guard outputOpen, !outputCloseRequested else { return fail(promise, ChannelError.outputClosed) }
        let buffer: ByteBuffer
        if let bytes = tryUnwrapData(data, as: ByteBuffer.self) {
            buffer = bytes
        } else if case .byteBuffer(let bytes)? = tryUnwrapData(data, as: IOData.self) {
            buffer = bytes
        } else {
            return fail(promise, ChannelError.operationUnsupported)
        }
        writes.append(buffer, promise)
        if isWritable, writes.bytes > waterMark.high {
            isWritable = false
            pipeline.fireChannelWritabilityChanged()
        }
    }

    private func fail(_ promise: EventLoopPromise<Void>?, _ error: any Error) { promise?.fail(error) }

    public func flush0() {
        guard !isClosed else { return }
        writes.markFlushed()
        if isActive { flushNow() }
    }

    /// Gives the kernel what is flushed, until it takes no more or others are due. Promises and events that it fulfils may
    /// write, flush and close again: those calls only add to the queue that this loop works off.
    private func flushNow() {
        guard !flushing else { return }
        flushing = true
        var failure: (any Error)?
        for _ in 0..<StreamChannel.writesPerTurn where isActive && writes.hasFlushed {
            let written = writes.writeOnce(to: descriptor)
            if written < 0 {
                let code = errno
                if code == EINTR { continue }
                if code != EAGAIN { failure = IOError(errnoCode: code, reason: "write") }
                break
            }
            for promise in writes.consume(written) { promise.succeed(()) }
            if !isWritable, writes.bytes < waterMark.low, isActive {
                isWritable = true
                pipeline.fireChannelWritabilityChanged()
            }
        }
        flushing = false
        if let failure { return close0(error: failure, mode: .all, promise: nil) }
        guard isActive else { return }
        if outputCloseRequested, writes.isEmpty { return finishOutputClose() }
        updateInterest()
    }

    public func close0(error: any Error, mode: CloseMode, promise: EventLoopPromise<Void>?) {
        switch mode {
        case .output: closeOutput(promise)
        case .input: closeInput(promise)
        case .all: closeAll(error, promise)
        }
    }

    private func closeOutput(_ promise: EventLoopPromise<Void>?) {
        guard isActive else { return fail(promise, ChannelError.ioOnClosedChannel) }
        guard outputOpen, !outputCloseRequested else { return fail(promise, ChannelError.outputClosed) }
        outputCloseRequested = true
        outputCloseWaits = promise
        writes.markFlushed()
        if writes.isEmpty { finishOutputClose() } else { flushNow() }
    }

    private func finishOutputClose() {
        guard outputOpen else { return }
        outputOpen = false
        shutdown(descriptor, CInt(SHUT_WR))
        let promise = outputCloseWaits
        outputCloseWaits = nil
        promise?.succeed(())
        guard isActive else { return }
        pipeline.fireUserInboundEventTriggered(ChannelEvent.outputClosed)
        if !inputOpen { closeAll(ChannelError.eof, nil) } else { updateInterest() }
    }

    private func closeInput(_ promise: EventLoopPromise<Void>?) {
        guard isActive else { return fail(promise, ChannelError.ioOnClosedChannel) }
        guard inputOpen else { return fail(promise, ChannelError.inputClosed) }
        inputOpen = false
        readPending = false
        shutdown(descriptor, CInt(SHUT_RD))
        updateInterest()
        promise?.succeed(())
        pipeline.fireUserInboundEventTriggered(ChannelEvent.inputClosed)
        if !outputOpen, isActive { closeAll(ChannelError.eof, nil) }
    }

    /// Closes at once, and the peer gets a reset instead of an orderly end (SO_LINGER of no time, socket(7)). On the loop.
    public func closeWithReset() {
        guard !isClosed else { return }
        _ = clinux_set_no_linger(descriptor)
        closeAll(ChannelError.alreadyClosed, nil)
    }

    private func closeAll(_ error: any Error, _ promise: EventLoopPromise<Void>?) {
        guard !isClosed else { return fail(promise, ChannelError.alreadyClosed) }
        let before = phase
        phase = .closed
        activity.store(false, ordering: .relaxed)
        isWritable = false
        if let key { reactor.deregister(descriptor, key) }
        key = nil
        Glibc.close(descriptor)
        descriptor = -1
        if case .connecting(let waiting, let timer) = before {
            reactor.cancelTimer(timer)
            waiting.fail(error)
        }
        outputCloseWaits?.fail(error)
        outputCloseWaits = nil
        for waiting in writes.removeAll() { waiting.fail(error) }
        promise?.succeed(())
        if case .active = before { pipeline.fireChannelInactive() }
        pipeline.fireChannelUnregistered()
        closePromise.succeed(())
        // One turn later: whoever is on the stack below may still use its handler's context.
        reactor._executeIsolatedUnsafeUnchecked { [self] in
            removeHandlers(pipeline: pipeline)
        }
    }

    // MARK: epoll

    private func updateInterest() {
        var wanted: Interest = []
        if inputOpen, readPending { wanted.insert(.read) }
        if writes.hasFlushed { wanted.insert(.write) }
        guard wanted != registered else { return }
        do { try setInterest(wanted) } catch { close0(error: error, mode: .all, promise: nil) }
    }

    private func setInterest(_ wanted: Interest) throws {
        guard let key else { return }
        try reactor.reregister(descriptor, wanted, key)
        registered = wanted
    }
}

// MARK: Options

extension StreamChannel: NIOSynchronousChannelOptions {
    public var syncOptions: (any NIOSynchronousChannelOptions)? { self }

    public func setOption<Option: ChannelOption>(_ option: Option, value: Option.Value) -> EventLoopFuture<Void> {
        if reactor.inEventLoop {
            return reactor.makeCompletedFuture { try setSync(option, value) }
        }
        return reactor.submit { try self.setSync(option, value) }
    }

    public func getOption<Option: ChannelOption>(_ option: Option) -> EventLoopFuture<Option.Value> {
        if reactor.inEventLoop {
            return reactor.makeCompletedFuture { try getSync(option) }
        }
        return reactor.submit { try self.getSync(option) }
    }

    public func setOption<Option: ChannelOption>(_ option: Option, value: Option.Value) throws { try setSync(option, value) }
    public func getOption<Option: ChannelOption>(_ option: Option) throws -> Option.Value { try getSync(option) }

    private func setSync<Option: ChannelOption>(_ option: Option, _ value: Option.Value) throws {
        guard !isClosed else { throw ChannelError.ioOnClosedChannel }
        switch option {
        case _ as ChannelOptions.Types.AutoReadOption:
            let wanted = value as! Bool
            let was = autoRead
            autoRead = wanted
            if wanted, !was, isActive { pipeline.read() }
            if !wanted { readPending = false }
        case _ as ChannelOptions.Types.AllowRemoteHalfClosureOption: allowRemoteHalfClosure = value as! Bool
        case _ as ChannelOptions.Types.WriteBufferWaterMarkOption:
            waterMark = value as! ChannelOptions.Types.WriteBufferWaterMark
        case _ as ChannelOptions.Types.MaxMessagesPerReadOption: readsPerTurn = Int(value as! UInt)
        case let option as ChannelOptions.Types.SocketOption:
            let number = value as! ChannelOptions.Types.SocketOption.Value
            try check(
                clinux_set_option(descriptor, CInt(option.optionLevel.rawValue), CInt(option.optionName.rawValue), CInt(number)),
                "setsockopt")
        default: throw ChannelError.operationUnsupported
        }
    }

    private func getSync<Option: ChannelOption>(_ option: Option) throws -> Option.Value {
        guard !isClosed else { throw ChannelError.ioOnClosedChannel }
        switch option {
        case _ as ChannelOptions.Types.AutoReadOption: return autoRead as! Option.Value
        case _ as ChannelOptions.Types.AllowRemoteHalfClosureOption: return allowRemoteHalfClosure as! Option.Value
        case _ as ChannelOptions.Types.WriteBufferWaterMarkOption: return waterMark as! Option.Value
        case _ as ChannelOptions.Types.MaxMessagesPerReadOption: return UInt(readsPerTurn) as! Option.Value
        case _ as ChannelOptions.Types.BufferedWritableBytesOption: return writes.bytes as! Option.Value
        case let option as ChannelOptions.Types.SocketOption:
            var number: CInt = 0
            try check(
                clinux_get_option(descriptor, CInt(option.optionLevel.rawValue), CInt(option.optionName.rawValue), &number), "getsockopt")
            return ChannelOptions.Types.SocketOption.Value(number) as! Option.Value
        default: throw ChannelError.operationUnsupported
        }
    }
}
