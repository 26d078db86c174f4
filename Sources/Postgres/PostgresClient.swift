internal import CLibpq
public import NIOCore
public import Reactor

/// One connection to PostgreSQL that heals itself, driven by a reactor.
///
/// Sendable without the compiler's proof: all state is used on the reactor's thread only, which the entry points check; the
/// `async` functions and `shutdown` hop there by themselves and may be called from anywhere.
public final class PostgresClient: @unchecked Sendable {
    public enum Role: Sendable {
        /// Statements go out as they come, in libpq's pipeline mode; each, or several together, commits by itself, and one that
        /// fails takes nobody with it. For many short statements. COPY, scripts, LISTEN and transactions that look at an answer
        /// before they go on are not to be had.
        case pipeline
        /// One thing after the other: statements, transactions, COPY, scripts, LISTEN.
        case session
    }

    public enum State: Sendable {
        case idle
        /// For the first time since `start`.
        case connecting
        case ready
        /// The connection broke or could not be made; the client keeps trying.
        case lost(PostgresError)
        case closed
    }

    public let configuration: PostgresConfiguration
    public let role: Role
    let reactor: Reactor

    public internal(set) var state = State.idle
    /// Called on the reactor after each change of `state`; a repeated failure to connect is a change.
    public var onStateChange: ((State) -> Void)?
    /// Called on the reactor. Whenever the state becomes `ready` notifications may have been missed.
    public var onNotification: ((PostgresNotification) -> Void)?

    // The rest of the life of the connection is in PostgresClient+Connecting.
    var connection: Connection?
    lazy var engine: any Engine = role == .pipeline ? pipeline : session
    private lazy var pipeline = Pipeline(host: self)
    private lazy var session = Session(host: self)
    var channels: [String] = []
    var round = ConnectionRound()
    var readyWaiters: [ReadyWaiter] = []
    private var deadlineTimer: Reactor.Timer?
    private var armedFor = NIODeadline.distantFuture

    /// Any thread. Nothing happens before `start`.
    public init(_ configuration: PostgresConfiguration, role: Role, on reactor: Reactor) {
        (self.configuration, self.role, self.reactor) = (configuration, role, reactor)
    }

    public var isReady: Bool { if case .ready = state { true } else { false } }

    /// Statements that wait for their answer.
    public var waiting: Int { engine.waiting }

    /// The server's process of this connection, while it is open.
    public var backendPID: Int32? { connection.map { PQbackendPID($0.raw) } }

    // MARK: Statements

    /// Executes one statement, which commits by itself.
    ///
    /// - Parameters:
    ///   - deadline: from now to the answer; the configuration's if nil. When it passes with the statement under way, the
    ///     connection is given up and made anew, since whatever comes after would have to wait, too.
    ///   - done: called once, on the reactor; before this returns if there is no connection or no room in the queue.
    public func execute(
        _ statement: Statement, _ parameters: Parameters = Parameters(), deadline: TimeAmount? = nil,
        _ done: @escaping (Result<Rows, PostgresError>) -> Void
    ) {
        if let refusal = refusal(statement.name) { return done(.failure(refusal)) }
        let until = NIODeadline.now() + (deadline ?? configuration.statementDeadline)
        if role == .pipeline { return pipeline.execute([(statement, parameters)], until) { rows in done(rows.map { $0[0] }) } }
        session.submit(Operation(kind: .statement(statement, parameters), name: statement.name, deadline: until, done: done))
    }

    /// Executes statements one after the other in one implicit transaction (pipeline role only; PostgreSQL manual, 34.5.1).
    ///
    /// - Parameters:
    ///   - statements: at least one.
    ///   - deadline: as of a statement, for all of them.
    ///   - done: the rows of each statement; where one fails, its error, and none has taken effect.
    public func execute(
        together statements: [(statement: Statement, parameters: Parameters)], deadline: TimeAmount? = nil,
        _ done: @escaping (Result<[Rows], PostgresError>) -> Void
    ) {
        precondition(role == .pipeline && !statements.isEmpty, "statements together need a client of role pipeline")
        if let refusal = refusal(statements[0].statement.name) { return done(.failure(refusal)) }
        pipeline.execute(statements, NIODeadline.now() + (deadline ?? configuration.statementDeadline), done)
    }

    /// Executes any number of commands in one message and one implicit transaction (session role only). The rows of the last
    /// are given, as text.
    public func script(
        _ sql: String, name: String = "script", deadline: TimeAmount? = nil,
        _ done: @escaping (Result<Rows, PostgresError>) -> Void
    ) {
        submit(.script(sql), name, deadline, done)
    }

    /// Copies rows into a table and commits (session role only); see `Transaction.copyIn`.
    public func copyIn(
        into table: String, columns: [String], rows: ByteBuffer, deadline: TimeAmount? = nil,
        _ done: @escaping (Result<Rows, PostgresError>) -> Void
    ) {
        submit(.copyIn(copyCommand(table, columns), rows), "copy_\(table)", deadline, done)
    }

    private func submit(
        _ kind: Operation.Kind, _ name: String, _ deadline: TimeAmount?, _ done: @escaping (Result<Rows, PostgresError>) -> Void
    ) {
        precondition(role == .session, "\(name) needs a client of role session")
        if let refusal = refusal(name) { return done(.failure(refusal)) }
        let until = NIODeadline.now() + (deadline ?? configuration.statementDeadline)
        session.submit(Operation(kind: kind, name: name, deadline: until, done: done))
    }

    /// Runs statements in one transaction (session role only): BEGIN, then the body, which gives statements to the transaction
    /// and ends it with `commit()` or `rollback()`, at once or from a callback.
    ///
    /// - Parameters:
    ///   - deadline: from now to the answer to COMMIT; the configuration's if nil. A body that forgets to end the transaction
    ///     runs into it.
    ///   - done: called once, on the reactor, when the transaction has ended. `isRetryable` says whether to do it all again;
    ///     `mayHaveTakenEffect` is true only if the connection was lost over COMMIT.
    public func transaction(
        isolation: Transaction.Isolation = .readCommitted, deadline: TimeAmount? = nil, _ body: @escaping (Transaction) -> Void,
        _ done: @escaping (Result<Transaction.Outcome, PostgresError>) -> Void
    ) {
        precondition(role == .session, "a transaction needs a client of role session")
        if let refusal = refusal("begin") { return done(.failure(refusal)) }
        let until = NIODeadline.now() + (deadline ?? configuration.transactionDeadline)
        session.submit(Transaction(deadline: until, isolation: isolation, body: body, done: done))
    }

    /// Listens to these channels from now on and after every reconnection (session role only). Before `start`, the client is
    /// ready only when it listens.
    public func listen(to channels: [String]) {
        precondition(role == .session, "LISTEN needs a client of role session")
        let new = channels.filter { !self.channels.contains($0) }
        self.channels += new
        guard isReady, !new.isEmpty else { return }
        script(listenCommand(new), name: "listen") { [weak self] result in
            // Without its channels the connection would be silent for ever.
            if case .failure(let error) = result, !error.isConnectionLoss { self?.connection?.breakLater(error.description) }
        }
    }

    func listenCommand(_ channels: [String]) -> String {
        channels.map { "LISTEN \(quoted($0))" }.joined(separator: "; ")
    }

    /// Why nothing can be sent now.
    private func refusal(_ name: String) -> PostgresError? {
        reactor.assertInEventLoop()
        switch state {
        case .ready:
            guard engine.waiting >= configuration.waitingMax else { return nil }
            return PostgresError(.overloaded, "\(configuration.waitingMax) statements", statement: name)
        case .lost(var error):
            error.kind = .unavailable
            return error.of(name, mayHaveTakenEffect: false)
        case .idle, .connecting: return PostgresError(.unavailable, "not connected yet", statement: name)
        case .closed: return PostgresError(.unavailable, "the client is closed", statement: name)
        }
    }
}

/// What another session said with NOTIFY.
public struct PostgresNotification: Sendable, Equatable {
    public var channel: String
    public var payload: String
    /// The server's process of the session that said it.
    public var backendPID: Int32
}

// MARK: - Deadlines

extension PostgresClient: EngineHost {
    /// One timer serves all statements: it is moved only for a deadline before its own.
    func arm(_ deadline: NIODeadline) {
        guard deadline < armedFor else { return }
        disarm()
        armedFor = deadline
        deadlineTimer = reactor.startTimer(at: deadline) { [unowned self] in
            deadlineTimer = nil
            armedFor = .distantFuture
            expire()
        }
    }

    func disarm() {
        if let deadlineTimer { reactor.cancelTimer(deadlineTimer) }
        deadlineTimer = nil
        armedFor = .distantFuture
    }

    private func expire() {
        if engine.expire(.now()) {
            connection?.cancelStatement()
            lose(PostgresError(.connectionLost, "a statement missed its deadline, the connection was given up"))
        }
        if let next = engine.earliestDeadline { arm(next) }
    }
}
