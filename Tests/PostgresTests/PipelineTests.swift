import NIOCore
import Testing
import TestKit

@testable import Postgres

@Suite struct PipelineTests {
    private static let divide = Statement(name: "divide", sql: "SELECT 1000 / $1", parameterTypes: [.int4])

    @Test func oneOfAThousandFails() async throws {
        try await withClient(role: .pipeline) { client, _ in
            let results: [Result<Int32, PostgresError>] = await client.calling { client, done in
                let results = Locked<[Result<Int32, PostgresError>]>([])
                for number in 0..<1000 {
                    client.execute(Self.divide, parameters { $0.append(Int32(number - 500)) }) { result in
                        results.withLock { $0.append(result.map { $0[0].int32(0) }) }
                        if number == 999 { done(results.withLock { $0 }) }
                    }
                }
            }
            #expect(results.count == 1000)
            for (number, result) in results.enumerated() {
                switch result {
                case .success(let value): #expect(number != 500 && value == Int32(1000 / (number - 500)))
                case .failure(let error):
                    #expect(number == 500 && error.sqlState == "22012" && error.statement == "divide")
                    #expect(!error.mayHaveTakenEffect && !error.isConnectionLoss && !error.isRetryable)
                }
            }
        }
    }

    /// Every statement commits by itself, also when the next one fails.
    @Test func neighboursOfAFailureAreCommitted() async throws {
        let insert = Statement(name: "insert", sql: "INSERT INTO t VALUES ($1)", parameterTypes: [.int4])
        try await withClient(role: .pipeline) { client, database in
            try await database.psql("CREATE TABLE t (n int UNIQUE)")
            let failures: Int = await client.calling { client, done in
                let failures = Locked(0)
                for number in [1, 1, 2, 2, 3] as [Int32] {
                    client.execute(insert, parameters { $0.append(number) }) { result in
                        if case .failure(let error) = result {
                            #expect(error.sqlState == .uniqueViolation && error.constraint == "t_n_key")
                            failures.withLock { $0 += 1 }
                        }
                        if number == 3 { done(failures.withLock { $0 }) }
                    }
                }
            }
            #expect(failures == 2)
            #expect(try await database.psql("SELECT n FROM t ORDER BY n") == ["1", "2", "3"])
        }
    }

    /// The commit happens at the sync, after the statement's own result.
    @Test func aCommitThatFailsFailsItsStatement() async throws {
        try await withClient(role: .pipeline) { client, database in
            try await database.psql(
                "CREATE TABLE a (n int PRIMARY KEY); CREATE TABLE b (n int REFERENCES a DEFERRABLE INITIALLY DEFERRED)")
            let insert = Statement(name: "insert", sql: "INSERT INTO b VALUES (7)")
            let error = try await postgresError { try await client.query(insert) }
            #expect(error.kind == .server(.foreignKeyViolation))
            #expect(try await client.value("SELECT 1").int32(0) == Int32(1))
        }
    }

    @Test func aStatementThatCannotBePreparedFailsAllItsUsersAndNobodyElse() async throws {
        let broken = Statement(name: "broken", sql: "SELECT n FROM missing")
        try await withClient(role: .pipeline) { client, database in
            let states: [String] = await client.calling { client, done in
                let states = Locked<[String]>([])
                for number in 0..<6 {
                    client.execute(number % 2 == 0 ? broken : Self.divide, parameters { if number % 2 == 1 { $0.append(Int32(1)) } }) {
                        result in
                        let state: String
                        switch result {
                        case .success: state = "ok"
                        case .failure(let error): state = error.sqlState?.code ?? "none"
                        }
                        states.withLock { $0.append(state) }
                        if number == 5 { done(states.withLock { $0 }) }
                    }
                }
            }
            #expect(states == ["42P01", "ok", "42P01", "ok", "42P01", "ok"])
            // Once the table is there the same statement works.
            try await database.psql("CREATE TABLE missing (n int); INSERT INTO missing VALUES (5)")
            #expect(try await client.query(broken)[0].int32(0) == Int32(5))
        }
    }

    @Test func aPlanThatNoLongerFitsIsPreparedAnew() async throws {
        let all = Statement(name: "all", sql: "SELECT * FROM t")
        for role in [PostgresClient.Role.pipeline, .session] {
            try await withClient(role: role) { client, database in
                try await database.psql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)")
                #expect(try await client.query(all)[0].columns == 1)
                try await database.psql("ALTER TABLE t ADD m int")
                let error = try await postgresError { try await client.query(all) }
                #expect(error.sqlState == .featureNotSupported)
                #expect(try await client.query(all)[0].columns == 2)
            }
        }
    }

    // MARK: - Together

    private static let insertOne = Statement(name: "insert_one", sql: "INSERT INTO t VALUES ($1)", parameterTypes: [.int4])
    private static let countAll = Statement(name: "count_all", sql: "SELECT count(*) FROM t")

    private func together(
        _ client: PostgresClient, _ statements: @escaping @Sendable () -> [(statement: Statement, parameters: Parameters)]
    ) async -> Result<[Rows], PostgresError> {
        await client.calling { client, done in client.execute(together: statements()) { done($0) } }
    }

    @Test func statementsTogetherAreOneTransaction() async throws {
        try await withClient(role: .pipeline) { client, database in
            try await database.psql("CREATE TABLE t (n int CHECK (n < 10))")
            func insert(_ numbers: Int32...) async -> Result<[Rows], PostgresError> {
                await together(client) {
                    numbers.map { number in (Self.insertOne, parameters { $0.append(number) }) } + [(Self.countAll, Parameters())]
                }
            }
            let rows = try await insert(1, 2).get()
            #expect(rows.map(\.count) == [0, 0, 1] && rows[2][0].int64(0) == Int64(2))
            let error = try await postgresError { _ = try await insert(3, 40, 5).get() }
            #expect(error.sqlState == .checkViolation && error.statement == "insert_one" && !error.mayHaveTakenEffect)
            #expect(try await database.psql("SELECT n FROM t ORDER BY n") == ["1", "2"])
            #expect(try await insert(6).get()[1][0].int64(0) == Int64(3))
        }
    }

    @Test func aCommitThatFailsFailsAllThatWereTogether() async throws {
        try await withClient(role: .pipeline) { client, database in
            try await database.psql("CREATE TABLE t (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
            let result = await together(client) {
                [(Self.insertOne, parameters { $0.append(Int32(1)) }), (Self.insertOne, parameters { $0.append(Int32(1)) })]
            }
            let error = try await postgresError { _ = try result.get() }
            #expect(error.sqlState == .uniqueViolation)
            #expect(try await client.value("SELECT 1").int32(0) == Int32(1))
            #expect(try await database.psql("SELECT count(*) FROM t") == ["0"])
        }
    }

    /// What comes after the one that failed was not prepared: it is the next time.
    @Test func whatCannotBePreparedSpoilsNothingForGood() async throws {
        let broken = Statement(name: "broken_too", sql: "SELECT n FROM missing_too")
        try await withClient(role: .pipeline) { client, database in
            try await database.psql("CREATE TABLE t (n int)")
            let all = { @Sendable () -> [(statement: Statement, parameters: Parameters)] in
                [(Self.insertOne, parameters { $0.append(Int32(1)) }), (broken, Parameters()), (Self.countAll, Parameters())]
            }
            for _ in 0..<2 {
                let result = await together(client, all)
                let error = try await postgresError { _ = try result.get() }
                #expect(error.sqlState == "42P01" && error.statement == "broken_too")
            }
            #expect(try await client.query(Self.countAll)[0].int64(0) == Int64(0))
            try await database.psql("CREATE TABLE missing_too (n int)")
            #expect(try await together(client, all).get()[2][0].int64(0) == Int64(1))
        }
    }

    @Test func theQueueHasABound() async throws {
        try await withClient(role: .pipeline, { $0.waitingMax = 10 }) { client, _ in
            let refused: [Bool] = await client.calling { client, done in
                let refused = Locked<[Bool]>([])
                for number in 0..<11 {
                    client.execute(Self.divide, parameters { $0.append(Int32(1)) }) { result in
                        // The eleventh hears before the first.
                        if case .failure(let error) = result {
                            #expect(number == 10 && error.kind == .overloaded && !error.mayHaveTakenEffect)
                        }
                        refused.withLock { $0.append(number == 10) }
                        if number == 9 { done(refused.withLock { $0 }) }
                    }
                }
            }
            #expect(refused == [true] + Array(repeating: false, count: 10))
            let waiting = try await client.onLoop { $0.waiting }
            #expect(waiting == 0)
        }
    }

    @Test func statementsMayBeGivenFromCallbacks() async throws {
        try await withClient(role: .pipeline) { client, _ in
            let sum: Int32 = await client.calling { client, done in
                nonisolated(unsafe) let done = done
                @Sendable func step(_ left: Int32, _ sum: Int32) {
                    guard left > 0 else { return done(sum) }
                    client.execute(Self.divide, parameters { $0.append(left) }) { result in
                        guard case .success(let rows) = result else { return done(-1) }
                        step(left - 1, sum + rows[0].int32(0))
                    }
                }
                step(50, 0)
            }
            #expect(sum == (1...50).reduce(0) { $0 + 1000 / Int32($1) })
        }
    }

    @Test func closingFromACallbackFailsTheRest() async throws {
        try await withClient(role: .pipeline) { client, _ in
            let outcomes: [Bool] = await client.calling { client, done in
                let outcomes = Locked<[Bool]>([])
                for number in 0..<3 {
                    client.execute(Self.divide, parameters { $0.append(Int32(1)) }) { result in
                        if number == 0 { client.close() }
                        outcomes.withLock { $0.append((try? result.get()) != nil) }
                        if outcomes.withLock({ $0.count }) == 3 { done(outcomes.withLock { $0 }) }
                    }
                }
            }
            // The others fail from within the first one's call of close.
            #expect(outcomes == [false, false, true])
            let error = try await postgresError { try await client.query(Self.divide, parameters { $0.append(Int32(1)) }) }
            #expect(error.kind == .unavailable)
        }
    }

    @Test func copyIsRefusedAndTheClientRecovers() async throws {
        try await withClient(role: .pipeline) { client, database in
            try await database.psql("CREATE TABLE t (n int)")
            let copy = Statement(name: "copy", sql: "COPY t FROM STDIN", isPrepared: false)
            let error = try await postgresError { try await client.query(copy) }
            #expect(error.isConnectionLoss || error.sqlState != nil)
            try await eventually("ready again") { (try? await client.value("SELECT 1")) != nil }
        }
    }
}
