public import NIOCore
public import Reactor

/// One round of attempts: every address of every host once.
struct ConnectionRound {
    /// Rounds that failed since the last connection that held.
    var failures = 0
    /// Tells the answer of a resolution that was given up from the current one.
    var generation = 0
    var targets: ArraySlice<Target> = []
    var isResolving = false
    var lastError: PostgresError?
    var readySince: NIODeadline?
    var timer: Reactor.Timer?
}

/// Somebody who waits for the connection.
struct ReadyWaiter {
    let number: Int
    let timer: Reactor.Timer
    let done: (Result<Void, PostgresError>) -> Void
}

extension PostgresClient: TurnHook, ConnectionDelegate {
    /// Begins to connect, and keeps the connection from then on. On the reactor.
    public func start() {
        reactor.preconditionInEventLoop()
        guard case .idle = state else { return }
        reactor.addTurnHook(.flush, self)
        change(to: .connecting)
        beginRound()
    }

    /// Ends the connection; whatever waits fails. On the reactor; harmless when repeated.
    public func close() {
        reactor.preconditionInEventLoop()
        if case .closed = state { return }
        let reason = PostgresError(.unavailable, "the client was closed")
        round.generation += 1
        if let timer = round.timer { reactor.cancelTimer(timer) }
        reactor.removeTurnHook(self)
        drop()
        change(to: .closed)
        engine.fail(reason, now: .now())
        wake(.failure(reason))
    }

    private func change(to next: State) {
        state = next
        onStateChange?(next)
    }

    private func drop() {
        let old = connection
        connection = nil
        disarm()
        old?.finish()
    }

    // MARK: Rounds

    private func beginRound() {
        round.timer = nil
        guard connection == nil, !round.isResolving else { return }
        if let targets = Resolver.literalTargets(configuration.hosts) {
            round.targets = targets[...]
            return tryNext()
        }
        round.generation += 1
        resolve(round.generation)
    }

    private func resolve(_ generation: Int) {
        let reactor = reactor
        round.isResolving = Resolver.resolve(configuration.hosts) { targets, failure in
            reactor.execute { self.resolved(generation, targets, failure) }
        }
        guard round.isResolving else { return roundFailed(PostgresError(.unavailable, "no thread to resolve names with")) }
        // A resolver that hangs is not asked again while it hangs, but those who wait hear of it.
        round.timer = reactor.startTimer(in: configuration.connectTimeout) { [weak self] in
            guard let self, round.isResolving else { return }
            round.timer = nil
            report(PostgresError(.unavailable, "the names of the hosts were not resolved in time"))
        }
    }

    private func resolved(_ generation: Int, _ targets: [Target], _ failure: String?) {
        round.isResolving = false
        guard generation == round.generation else { return }
        if let timer = round.timer { reactor.cancelTimer(timer) }
        round.timer = nil
        if let failure { round.lastError = PostgresError(.unavailable, failure) }
        round.targets = targets[...]
        tryNext()
    }

    private func tryNext() {
        guard let target = round.targets.popFirst() else {
            return roundFailed(round.lastError ?? PostgresError(.unavailable, "there is no host"))
        }
        guard let next = Connection(parameters: configuration.parameters(for: target), reactor: reactor, delegate: self) else {
            return roundFailed(PostgresError(.unavailable, "out of memory"))
        }
        connection = next
        next.start(timeout: configuration.connectTimeout)
    }

    private func roundFailed(_ error: PostgresError) {
        round.failures += 1
        round.timer = reactor.startTimer(in: delay()) { [weak self] in self?.beginRound() }
        report(error)
    }

    /// Between half of the doubled backoff and all of it, so that the workers of a node do not come all at once.
    private func delay() -> TimeAmount {
        let doublings = min(round.failures - 1, 30)
        let longest = min(configuration.backoff.nanoseconds << Int64(max(doublings, 0)), configuration.backoffMax.nanoseconds)
        let most = longest > 0 ? longest : configuration.backoffMax.nanoseconds
        return .nanoseconds(Int64.random(in: most / 2...most))
    }

    private func report(_ error: PostgresError) {
        round.lastError = nil
        change(to: .lost(error))
        // What will not mend by itself is said at once: a wrong password, no such database, no right to connect.
        if let state = error.sqlState, ["28", "3D", "42"].contains(state.errorClass) { wake(.failure(error)) }
    }

    // MARK: The connection's calls

    func connectionEstablished() {
        guard let connection else { return }
        engine.attach(connection)
        guard !channels.isEmpty, let session = engine as? Session else { return becomeReady() }
        let deadline = NIODeadline.now() + configuration.statementDeadline
        session.submit(
            Operation(kind: .script(listenCommand(channels)), name: "listen", deadline: deadline) { [weak self] result in
                guard let self, self.connection === connection else { return }
                switch result {
                case .success: becomeReady()
                case .failure(let error): connectionFailed(error)
                }
            })
    }

    private func becomeReady() {
        round.lastError = nil
        round.targets = []
        round.readySince = .now()
        change(to: .ready)
        wake(.success(()))
    }

    func connectionFailed(_ error: PostgresError) {
        if isReady { return lose(error) }
        drop()
        engine.fail(error, now: .now())
        guard connection == nil, !isClosed else { return }
        round.lastError = error
        tryNext()
    }

    private var isClosed: Bool { if case .closed = state { true } else { false } }

    /// A connection that was ready, or about to be, is gone. The first round after it begins at once, unless the connection
    /// did not hold for long.
    func lose(_ error: PostgresError) {
        guard isReady else { return connectionFailed(error) }
        drop()
        if let since = round.readySince, .now() - since > configuration.backoffMax { round.failures = 0 }
        round.readySince = nil
        round.failures += 1
        let wait = round.failures == 1 ? TimeAmount.nanoseconds(0) : delay()
        round.timer = reactor.startTimer(in: wait) { [weak self] in self?.beginRound() }
        change(to: .lost(error))
        engine.fail(error, now: .now())
    }

    func refused(_ error: PostgresError) {
        // The server was demoted under us: the next round looks for the one that takes writes.
        if configuration.needsWritable, error.sqlState == .readOnlyTransaction { connection?.breakLater(error.message) }
    }

    func connectionReceived() { engine.received() }
    func connectionDrained() { engine.drained() }
    func connectionNotified(_ notification: PostgresNotification) { onNotification?(notification) }

    // MARK: End of turn

    public func endOfTurn() { connection?.endOfTurn() }
    public var nextDeadline: NIODeadline? { nil }

    // MARK: Waiting for the connection

    /// Calls back when the client is ready, at once if it is; or when the time is over, with what hindered it, and at once
    /// when that is something that time does not mend. On the reactor.
    public func whenReady(within limit: TimeAmount, _ done: @escaping (Result<Void, PostgresError>) -> Void) {
        reactor.preconditionInEventLoop()
        if isReady { return done(.success(())) }
        if isClosed { return done(.failure(PostgresError(.unavailable, "the client is closed"))) }
        let number = (readyWaiters.last?.number ?? 0) + 1
        let timer = reactor.startTimer(in: limit) { [weak self] in self?.giveUpWaiting(number) }
        readyWaiters.append(ReadyWaiter(number: number, timer: timer, done: done))
    }

    private func giveUpWaiting(_ number: Int) {
        guard let index = readyWaiters.firstIndex(where: { $0.number == number }) else { return }
        let waiter = readyWaiters.remove(at: index)
        var reason = PostgresError(.unavailable, "not connected in time")
        if case .lost(let error) = state { reason = error }
        reason.kind = .unavailable
        waiter.done(.failure(reason))
    }

    private func wake(_ result: Result<Void, PostgresError>) {
        let woken = readyWaiters
        readyWaiters = []
        for waiter in woken {
            reactor.cancelTimer(waiter.timer)
            waiter.done(result)
        }
    }
}
