internal import CLinux
public import Dispatch
internal import Glibc
internal import NIOConcurrencyHelpers
public import NIOCore
internal import Synchronization

/// A single-threaded epoll loop that is a SwiftNIO `EventLoop` and also watches foreign descriptors.
///
/// One turn: wait, dispatch ready descriptors, run due timers, run tasks, then the end-of-turn hooks in the order of
/// `TurnPhase`. Everything but `execute`, `scheduleTask`, `stop`, `join` and `inEventLoop` must be called on its thread.
///
/// Sendable without the compiler's proof: other threads touch only `inbox` (a mutex), the eventfd (the kernel's) and
/// `owner` (atomic); every other property is used on the loop's own thread alone, which `preconditionInEventLoop` checks
/// where a caller could get it wrong.
public final class Reactor: EventLoop, NIOSerialEventLoopExecutor, @unchecked Sendable {
    private struct Inbox {
        var tasks: [() -> Void] = []
        var isAwake = false
        var isStopping = false
        var isClosed = false
    }

    public let name: String
    let epoll: CInt
    private let wakeup: CInt
    private let owner = Atomic<UInt>(0)
    // Not a Synchronization.Mutex: where that is contended the kernel hands it over (FUTEX_LOCK_PI), out of the thread
    // sanitizer's sight, and everything that passes through here would look like a race.
    private let inbox = NIOLockedValueBox(Inbox())
    private var thread: pthread_t?

    private var registrations = Registrations()
    private var timers = Timers()
    private var localTasks: [() -> Void] = []
    private var collectHooks: [any TurnHook] = []
    private var persistHooks: [any TurnHook] = []
    private var flushHooks: [any TurnHook] = []
    private var anotherTurn = false
    private var cachedVoidFuture: EventLoopFuture<Void>?

    /// The monotonic clock, read once per turn: right for deadlines, a few microseconds late for measurements.
    public private(set) var turnNow = NIODeadline.now()
    /// One read buffer for every channel of the loop: what a channel received is copied out of it, so that an idle
    /// connection owns no buffer at all.
    let readBuffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Reactor.readBufferBytes, alignment: 16)

    /// Also what one read may put before a handler that takes no more: part of every connection's memory.
    static let readBufferBytes = 16_384
    static let eventsPerTurn = 256
    private static let lastRounds = 1_000
    private static let wakeupKey = UInt64.max
    /// No thread's number: `owner` when the loop has ended.
    private static let ended = UInt.max

    /// Throws `IOError` when the kernel gives no descriptor.
    public init(name: String) throws {
        self.name = name
        epoll = try check(clinux_epoll_create(), "epoll_create1")
        wakeup = try check(clinux_eventfd(), "eventfd")
        try check(clinux_epoll_add(epoll, wakeup, UInt32(CLINUX_READ), Reactor.wakeupKey), "epoll_ctl")
    }

    deinit {
        Glibc.close(epoll)
        Glibc.close(wakeup)
        readBuffer.deallocate()
    }

    // MARK: Running

    /// Starts a thread that runs a new reactor.
    public static func start(name: String) throws -> Reactor {
        let reactor = try Reactor(name: name)
        var thread = pthread_t()
        let status = pthread_create(
            &thread, nil,
            { argument in
                let reactor = Unmanaged<Reactor>.fromOpaque(argument!).takeRetainedValue()
                clinux_name_thread(reactor.name)
                reactor.run()
                return nil
            }, Unmanaged.passRetained(reactor).toOpaque())
        guard status == 0 else { throw IOError(errnoCode: status, reason: "pthread_create") }
        reactor.thread = thread
        return reactor
    }

    /// Waits for the end of the thread that `start(name:)` made. Call it once, from another thread, after `stop()`.
    public func join() {
        if let thread { pthread_join(thread, nil) }
    }

    /// Runs the loop on the calling thread until `stop()`.
    public func run() {
        precondition(owner.exchange(UInt(pthread_self()), ordering: .acquiringAndReleasing) == 0, "already running")
        var events = [clinux_event](repeating: clinux_event(), count: Reactor.eventsPerTurn)
        while !isStopping {
            turn(&events)
        }
        shutDown()
    }

    /// Ends `run()` after the current turn: open channels, listeners and watches are closed, pending timers are dropped,
    /// scheduled tasks fail with `EventLoopError.shutdown`, tasks that were given before are run. What is given to the loop
    /// later is dropped: a future made from it never ends (NIO's debug builds stop the process then). Any thread.
    public func stop() {
        inbox.withLockedValue { $0.isStopping = true }
        clinux_eventfd_signal(wakeup)
    }

    private var isStopping: Bool { inbox.withLockedValue { $0.isStopping } }

    private func turn(_ events: inout [clinux_event]) {
        let count = clinux_epoll_wait(epoll, &events, CInt(events.count), waitNanoseconds())
        turnNow = .now()
        if count > 0 {
            for index in 0..<Int(count) { dispatch(events[index]) }
        }
        registrations.endOfDispatch()
        let limit = timers.started
        while let handler = timers.popDue(turnNow.uptimeNanoseconds, limit: limit) { handler() }
        runTasks()
        anotherTurn = false
        for hook in collectHooks { hook.endOfTurn() }
        for hook in persistHooks { hook.endOfTurn() }
        for hook in flushHooks { hook.endOfTurn() }
    }

    private func dispatch(_ event: clinux_event) {
        if event.key == Reactor.wakeupKey {
            clinux_eventfd_drain(wakeup)
        } else if let sink = registrations.sink(for: event.key) {
            sink.descriptorReady(Readiness(event.events))
        }
    }

    private func waitNanoseconds() -> Int64 {
        if anotherTurn || !localTasks.isEmpty { return 0 }
        var deadline = timers.earliest() ?? UInt64.max
        for hooks in [collectHooks, persistHooks, flushHooks] {
            for hook in hooks {
                if let next = hook.nextDeadline { deadline = min(deadline, next.uptimeNanoseconds) }
            }
        }
        guard deadline < UInt64.max else { return -1 }
        let now = NIODeadline.now().uptimeNanoseconds
        return deadline <= now ? 0 : Int64(deadline - now)
    }

    private func runTasks() {
        let fromOthers = inbox.withLockedValue { inbox in
            inbox.isAwake = false
            let tasks = inbox.tasks
            inbox.tasks = []
            return tasks
        }
        for task in fromOthers { task() }
        // What these tasks add runs in the next turn, so that a task that repeats itself cannot starve the sockets.
        let own = localTasks
        localTasks = []
        for task in own { task() }
    }

    private func shutDown() {
        for sink in registrations.removeAll() { sink.reactorStopped() }
        runLastTasks()
        inbox.withLockedValue { $0.tasks.removeAll() }
        localTasks.removeAll()
        collectHooks.removeAll()
        persistHooks.removeAll()
        flushHooks.removeAll()
        cachedVoidFuture = nil
        // A later thread may get this one's number.
        owner.store(Reactor.ended, ordering: .releasing)
    }

    /// Runs what the loop was given before it closed, and what that leads to: a future whose task was dropped would never end.
    /// Only tasks that repeat themselves are cut off.
    private func runLastTasks() {
        var isClosed = false
        var rounds = 0
        while !isClosed {
            for abandon in timers.removeAll() { abandon() }
            runTasks()
            rounds += 1
            let isDone = timers.count == 0 && localTasks.isEmpty || rounds == Reactor.lastRounds
            isClosed = inbox.withLockedValue { inbox in
                inbox.isClosed = isDone && inbox.tasks.isEmpty || rounds == Reactor.lastRounds
                return inbox.isClosed
            }
        }
    }

    // MARK: Tasks

    public var inEventLoop: Bool { owner.load(ordering: .relaxed) == UInt(pthread_self()) }

    public func execute(_ task: @escaping @Sendable () -> Void) { enqueue(task) }

    public func _executeIsolatedUnsafeUnchecked(_ task: @escaping () -> Void) { enqueue(task) }

    private func enqueue(_ task: @escaping () -> Void) {
        if inEventLoop {
            localTasks.append(task)
            return
        }
        let mustWake = inbox.withLockedValue { inbox in
            guard !inbox.isClosed else { return false }
            inbox.tasks.append(task)
            defer { inbox.isAwake = true }
            return !inbox.isAwake
        }
        if mustWake { clinux_eventfd_signal(wakeup) }
    }

    /// Makes the next wait return at once. On the loop.
    public func requestTurn() { anotherTurn = true }

    // MARK: Timers

    /// A pending timer; `cancelTimer` takes it back.
    public struct Timer: Sendable {
        fileprivate let token: Timers.Token
    }

    /// Runs the handler once, on the loop, after at least this time. On the loop.
    public func startTimer(in amount: TimeAmount, _ handler: @escaping () -> Void) -> Timer {
        startTimer(at: .now() + amount, handler)
    }

    public func startTimer(at deadline: NIODeadline, _ handler: @escaping () -> Void) -> Timer {
        assertInEventLoop()
        return Timer(token: timers.start(at: deadline.uptimeNanoseconds, handler))
    }

    /// Nothing happens when it has fired already.
    public func cancelTimer(_ timer: Timer) {
        assertInEventLoop()
        timers.cancel(timer.token)
    }

    /// Timers that wait.
    public var pendingTimers: Int { timers.count }

    public func scheduleTask<T>(deadline: NIODeadline, _ task: @escaping @Sendable () throws -> T) -> Scheduled<T> {
        let promise = makePromise(of: T.self)
        let pending = PendingTask()
        let scheduled = Scheduled(promise: promise) { [weak self] in
            guard let self else { return }
            self.onLoop { self.cancel(pending) }
        }
        onLoop { [self] in
            guard !pending.isCancelled else { return }
            let abandoned = { promise.fail(EventLoopError.shutdown) }
            let token = timers.start(at: deadline.uptimeNanoseconds, abandoned: abandoned) {
                pending.timer = nil
                do { promise.assumeIsolated().succeed(try task()) } catch { promise.fail(error) }
            }
            pending.timer = Timer(token: token)
        }
        return scheduled
    }

    public func scheduleTask<T>(in amount: TimeAmount, _ task: @escaping @Sendable () throws -> T) -> Scheduled<T> {
        scheduleTask(deadline: .now() + amount, task)
    }

    /// Sendable because only the loop's thread reads or writes it.
    private final class PendingTask: @unchecked Sendable {
        var timer: Timer?
        var isCancelled = false
    }

    private func cancel(_ pending: PendingTask) {
        pending.isCancelled = true
        if let timer = pending.timer { cancelTimer(timer) }
        pending.timer = nil
    }

    private func onLoop(_ body: @escaping @Sendable () -> Void) {
        if inEventLoop { body() } else { execute(body) }
    }

    // MARK: End of turn

    /// Adds a hook for the life of the reactor. Hooks of one phase run in the order of their adding.
    public func addTurnHook(_ phase: TurnPhase, _ hook: any TurnHook) {
        assertInEventLoop()
        switch phase {
        case .collect: collectHooks.append(hook)
        case .persist: persistHooks.append(hook)
        case .flush: flushHooks.append(hook)
        }
    }

    public func removeTurnHook(_ hook: any TurnHook) {
        collectHooks.removeAll { $0 === hook }
        persistHooks.removeAll { $0 === hook }
        flushHooks.removeAll { $0 === hook }
    }

    // MARK: Descriptors

    /// Calls the handler on the loop whenever the descriptor is ready (level-triggered) until the watch is cancelled. The
    /// descriptor stays its owner's: cancel before closing it.
    public func watch(_ descriptor: CInt, for interest: Interest, _ handler: @escaping (Readiness) -> Void) throws -> Watch {
        assertInEventLoop()
        return try Watch(reactor: self, descriptor: descriptor, interest: interest, handler: handler)
    }

    func register(_ descriptor: CInt, _ interest: Interest, _ sink: any EventSink) throws -> UInt64 {
        let key = registrations.add(sink)
        do {
            try check(clinux_epoll_add(epoll, descriptor, interest.kernelEvents, key), "epoll_ctl")
        } catch {
            registrations.remove(key)
            throw error
        }
        return key
    }

    func reregister(_ descriptor: CInt, _ interest: Interest, _ key: UInt64) throws {
        try check(clinux_epoll_modify(epoll, descriptor, interest.kernelEvents, key), "epoll_ctl")
    }

    /// After this no event of the registration reaches its sink, not even one that this turn has already fetched.
    func deregister(_ descriptor: CInt, _ key: UInt64) {
        // The owner may have closed the descriptor before: the kernel has then forgotten it by itself.
        _ = clinux_epoll_remove(epoll, descriptor)
        registrations.remove(key)
    }

    // MARK: The rest of EventLoop

    public var now: NIODeadline { .now() }

    public func makeSucceededVoidFuture() -> EventLoopFuture<Void> {
        // The default makes a future with makeSucceededFuture, which calls this: a promise is the way out.
        guard inEventLoop else { return voidFuture() }
        if let cachedVoidFuture { return cachedVoidFuture }
        let future = voidFuture()
        cachedVoidFuture = future
        return future
    }

    private func voidFuture() -> EventLoopFuture<Void> {
        let promise = makePromise(of: Void.self)
        promise.succeed(())
        return promise.futureResult
    }

    public func next() -> any EventLoop { self }
    public func any() -> any EventLoop { self }
    public func makeIterator() -> EventLoopIterator { EventLoopIterator([self]) }
    public func _preconditionSafeToWait(file: StaticString, line: UInt) {
        precondition(!inEventLoop, "waiting on the loop would wait for ever", file: file, line: line)
    }

    public func shutdownGracefully(queue: DispatchQueue, _ callback: @escaping @Sendable ((any Error)?) -> Void) {
        stop()
        queue.async { callback(nil) }
    }
}
