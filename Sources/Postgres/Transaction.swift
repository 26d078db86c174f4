public import NIOCore

/// Statements between BEGIN and COMMIT on a session connection, given by `PostgresClient.transaction`. Confined to the reactor.
///
/// Statements run in the order in which they are given; further ones may be given from the callbacks of earlier ones. End it
/// with `commit()` or `rollback()`. The first statement that fails ends it by itself: the callback of the statement hears why,
/// the transaction is rolled back and its own callback hears the same.
public final class Transaction {
    public enum Isolation: String, Sendable {
        case readCommitted = "READ COMMITTED"
        case repeatableRead = "REPEATABLE READ"
        case serializable = "SERIALIZABLE"
    }

    /// How a transaction that did not fail ended.
    public enum Outcome: Sendable { case committed, rolledBack }

    private enum State {
        case waiting, open
        /// A statement was refused; its callback is being told.
        case failing
        /// COMMIT or ROLLBACK is under way.
        case ending
        case ended
    }

    let deadline: NIODeadline
    private let isolation: Isolation
    private let body: (Transaction) -> Void
    private let done: (Result<Outcome, PostgresError>) -> Void
    private var state = State.waiting
    private var operations = CircularBuffer<Operation>()
    /// What ends it once the operations before are done.
    private var end: Outcome?
    private var failure: PostgresError?
    private unowned var session: Session!

    init(
        deadline: NIODeadline, isolation: Isolation, body: @escaping (Transaction) -> Void,
        done: @escaping (Result<Outcome, PostgresError>) -> Void
    ) {
        (self.deadline, self.isolation, self.body, self.done) = (deadline, isolation, body, done)
    }

    // MARK: What the body calls

    /// The callback is called once: with rows, with the server's refusal, or with the reason why the statement was not sent.
    public func execute(
        _ statement: Statement, _ parameters: Parameters = Parameters(), _ done: @escaping (Result<Rows, PostgresError>) -> Void
    ) {
        add(.statement(statement, parameters), statement.name, done)
    }

    /// Copies rows in the binary format (16-bit number of fields, then each with its 32-bit length, big-endian; without the
    /// header and trailer of a file) into a table. `Rows.affected` says how many.
    public func copyIn(
        into table: String, columns: [String], rows: ByteBuffer, _ done: @escaping (Result<Rows, PostgresError>) -> Void
    ) {
        add(.copyIn(copyCommand(table, columns), rows), "copy_\(table)", done)
    }

    /// After the statements given so far.
    public func commit() { finish(.committed) }

    /// After the statements given so far.
    public func rollback() { finish(.rolledBack) }

    private func finish(_ outcome: Outcome) {
        guard end == nil, state == .open else { return }
        end = outcome
        advance()
    }

    private func add(_ kind: Operation.Kind, _ name: String, _ done: @escaping Completion) {
        guard state == .open, end == nil else {
            let reason = failure ?? PostgresError(.unavailable, "the transaction has ended")
            return done(.failure(reason.of(name, mayHaveTakenEffect: false)))
        }
        operations.append(
            Operation(kind: kind, name: name, deadline: deadline, commits: false) { [self] result in
                guard case .failure(let error) = result else {
                    done(result)
                    return advance()
                }
                if state == .open { (state, failure) = (.failing, error) }
                done(result)
                failed(error)
            })
        advance()
    }

    // MARK: What the session calls

    func begin(on session: Session) {
        self.session = session
        run("BEGIN ISOLATION LEVEL \(isolation.rawValue)", commits: false) { [self] result in
            if case .failure(let error) = result { return failed(error) }
            state = .open
            body(self)
            advance()
        }
    }

    /// The session hears nothing from us any more.
    func connectionLost(_ error: PostgresError) {
        guard state != .ended else { return }
        let mayBeCommitted = state == .ending && end == .committed
        failure = error.of("", mayHaveTakenEffect: false)
        state = .ended
        let dropped = operations
        operations = CircularBuffer()
        for operation in dropped { operation.done(.failure(error.of(operation.name, mayHaveTakenEffect: false))) }
        done(.failure(error.of("commit", mayHaveTakenEffect: mayBeCommitted)))
    }

    private func advance() {
        guard state == .open, session.connection != nil, !session.isBusy else { return }
        if let operation = operations.popFirst() { return session.start(operation) }
        guard let end else { return }
        state = .ending
        run(end == .committed ? "COMMIT" : "ROLLBACK", commits: end == .committed) { [self] result in
            switch result {
            case .success: ended(.success(end))
            // Only a COMMIT fails this way (a deferred constraint, a serialization failure), and it has rolled back.
            case .failure(let error): ended(.failure(error))
            }
        }
    }

    /// A statement was refused, or the connection is gone: `connectionLost` follows then.
    private func failed(_ error: PostgresError) {
        guard session.connection != nil, state == .waiting || state == .failing else { return }
        failure = error
        guard state == .failing else { return ended(.failure(error)) }
        state = .ending
        end = .rolledBack
        let dropped = operations
        operations = CircularBuffer()
        for operation in dropped { operation.done(.failure(error.of(operation.name, mayHaveTakenEffect: false))) }
        run("ROLLBACK", commits: false) { [self] _ in ended(.failure(error)) }
    }

    private func run(_ command: String, commits: Bool, _ done: @escaping Completion) {
        session.start(
            Operation(kind: .script(command), name: command.lowercased(), deadline: deadline, commits: commits) { [self] result in
                // A connection that is gone tells the transaction by itself.
                if session.connection != nil { done(result) }
            })
    }

    private func ended(_ result: Result<Outcome, PostgresError>) {
        guard state != .ended else { return }
        state = .ended
        done(result)
        session.transactionEnded()
    }
}

@available(*, unavailable) extension Transaction: Sendable {}

/// The table as SQL writes it, maybe with its schema; the columns are quoted.
func copyCommand(_ table: String, _ columns: [String]) -> String {
    let names = columns.map(quoted).joined(separator: ", ")
    return "COPY \(table) (\(names)) FROM STDIN (FORMAT binary)"
}

func quoted(_ identifier: String) -> String {
    "\"" + identifier.replacing("\"", with: "\"\"") + "\""
}
