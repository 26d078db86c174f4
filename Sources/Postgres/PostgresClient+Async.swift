public import NIOCore
public import Reactor

/// For cold paths: commands, migrations, tests. Everything may be called from any task; what is not ready is waited for, as
/// long as the deadline lets.
extension PostgresClient {
    /// A started client that is ready.
    public static func connect(
        _ configuration: PostgresConfiguration, role: Role = .session, on reactor: Reactor,
        within limit: TimeAmount = .seconds(10)
    ) async throws(PostgresError) -> PostgresClient {
        let client = PostgresClient(configuration, role: role, on: reactor)
        do {
            try await client.ready(within: limit)
        } catch {
            await client.shutdown()
            throw error
        }
        return client
    }

    /// Starts the client unless it is, and waits until it is ready.
    public func ready(within limit: TimeAmount = .seconds(10)) async throws(PostgresError) {
        try await hop { (done: @escaping (Result<Void, PostgresError>) -> Void) in
            self.start()
            self.whenReady(within: limit, done)
        }
    }

    /// Executes one statement, which commits by itself.
    @discardableResult
    public func query(
        _ statement: Statement, _ parameters: Parameters = Parameters(), deadline: TimeAmount? = nil
    ) async throws(PostgresError) -> Rows {
        try await whenReady(deadline) { left, done in self.execute(statement, parameters, deadline: left, done) }
    }

    /// Executes any number of commands in one message and one implicit transaction (session role only).
    @discardableResult
    public func script(_ sql: String, name: String = "script", deadline: TimeAmount? = nil) async throws(PostgresError) -> Rows {
        try await whenReady(deadline) { left, done in self.script(sql, name: name, deadline: left, done) }
    }

    /// Copies rows into a table and commits (session role only); see `Transaction.copyIn`.
    @discardableResult
    public func copyIn(
        into table: String, columns: [String], rows: ByteBuffer, deadline: TimeAmount? = nil
    ) async throws(PostgresError) -> Rows {
        try await whenReady(deadline) { left, done in
            self.copyIn(into: table, columns: columns, rows: rows, deadline: left, done)
        }
    }

    /// Executes statements one after the other in one transaction and commits it (session role only).
    ///
    /// - Returns: the rows of each statement.
    public func transaction(
        _ statements: [(statement: Statement, parameters: Parameters)], isolation: Transaction.Isolation = .readCommitted,
        deadline: TimeAmount? = nil
    ) async throws(PostgresError) -> [Rows] {
        let until = NIODeadline.now() + (deadline ?? configuration.transactionDeadline)
        return try await hop { (done: @escaping (Result<[Rows], PostgresError>) -> Void) in
            self.whenReady(within: until - .now()) { ready in
                if case .failure(let error) = ready { return done(.failure(error)) }
                var rows: [Rows] = []
                self.transaction(isolation: isolation, deadline: until - .now()) { transaction in
                    for (statement, parameters) in statements {
                        transaction.execute(statement, parameters) { if case .success(let found) = $0 { rows.append(found) } }
                    }
                    transaction.commit()
                } _: { outcome in
                    done(outcome.map { _ in rows })
                }
            }
        }
    }

    /// Closes the client.
    public func shutdown() async {
        _ = try? await hop { (done: @escaping (Result<Void, PostgresError>) -> Void) in
            self.close()
            done(.success(()))
        }
    }

    private func whenReady(
        _ deadline: TimeAmount?, _ body: @escaping @Sendable (TimeAmount, @escaping (Result<Rows, PostgresError>) -> Void) -> Void
    ) async throws(PostgresError) -> Rows {
        let until = NIODeadline.now() + (deadline ?? configuration.statementDeadline)
        return try await hop { done in
            self.whenReady(within: until - .now()) { result in
                if case .failure(let error) = result { return done(.failure(error)) }
                body(until - .now(), done)
            }
        }
    }

    private func hop<Value: Sendable>(
        _ body: @escaping @Sendable (@escaping (Result<Value, PostgresError>) -> Void) -> Void
    ) async throws(PostgresError) -> Value {
        let result = await withCheckedContinuation { (continuation: CheckedContinuation<Result<Value, PostgresError>, Never>) in
            let answer = Answer(continuation)
            reactor.execute { body { answer.give($0) } }
        }
        return try result.get()
    }

    /// Resumes a task once, also when whoever should have answered is gone: a reactor that has ended drops what it is given.
    ///
    /// Sendable because it is handed to the reactor at once and used there, and its end comes after its last use.
    private final class Answer<Value: Sendable>: @unchecked Sendable {
        private var continuation: CheckedContinuation<Result<Value, PostgresError>, Never>?

        init(_ continuation: CheckedContinuation<Result<Value, PostgresError>, Never>) { self.continuation = continuation }

        deinit { give(.failure(PostgresError(.unavailable, "the reactor has ended"))) }

        func give(_ result: Result<Value, PostgresError>) {
            continuation.take()?.resume(returning: result)
        }
    }
}
