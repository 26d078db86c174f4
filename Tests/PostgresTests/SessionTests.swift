import NIOCore
import Testing
import TestKit

@testable import Postgres

@Suite struct SessionTests {
    private static let insert = Statement(name: "insert", sql: "INSERT INTO t VALUES ($1, $2)", parameterTypes: [.int8, .text])
    private static let count = Statement(name: "count", sql: "SELECT count(*) FROM t")
    private static let schema = "CREATE TABLE t (id bigint PRIMARY KEY, name text)"

    /// Rows (id, name) in the binary format of COPY.
    private static func rows(_ ids: some Sequence<Int64>, name: String = "row ü") -> ByteBuffer {
        var buffer = ByteBuffer()
        for id in ids {
            buffer.writeInteger(Int16(2))
            buffer.writeInteger(Int32(8))
            buffer.writeInteger(id)
            buffer.writeInteger(Int32(name.utf8.count))
            buffer.writeString(name)
        }
        return buffer
    }

    @Test func copyOfAHundredThousandRows() async throws {
        try await withClient { client, _ in
            try await client.script(Self.schema)
            let rows = Self.rows(1...100_000)
            #expect(try await client.copyIn(into: "t", columns: ["id", "name"], rows: rows).affected == 100_000)
            let row = try await client.value("SELECT count(*), sum(id)::bigint, min(name) FROM t")
            #expect(row.int64(0) == Int64(100_000) && row.int64(1) == Int64(5_000_050_000) && row.string(2) == "row ü")
            #expect(try await client.copyIn(into: "t", columns: ["id", "name"], rows: ByteBuffer()).affected == 0)
        }
    }

    @Test func aCopyThatFailsLeavesTheConnection() async throws {
        try await withClient { client, _ in
            try await client.script(Self.schema)
            let pid = try await client.onLoop { $0.backendPID }
            // A duplicate near the start: megabytes come after it.
            let duplicate = Self.rows([1, 2, 2]) + Self.rows(3...100_000)
            let error = try await postgresError { try await client.copyIn(into: "t", columns: ["id", "name"], rows: duplicate) }
            #expect(error.kind == .server(.uniqueViolation) && error.statement == "copy_t")
            var cut = Self.rows([1])
            cut.moveWriterIndex(to: cut.writerIndex - 3)
            let broken = try await postgresError { try await client.copyIn(into: "t", columns: ["id", "name"], rows: cut) }
            #expect(broken.sqlState == "22P04")
            let missing = try await postgresError { try await client.copyIn(into: "nowhere", columns: ["id"], rows: cut) }
            #expect(missing.sqlState == "42P01")
            #expect(try await client.query(Self.count)[0].int64(0) == Int64(0))
            #expect(try await client.onLoop { $0.backendPID } == pid)
        }
    }

    /// What stops a stream of log rows: each takes the whole COPY with it, and the connection survives.
    @Test func oneBadRowRefusesTheWholeCopy() async throws {
        try await withClient { client, _ in
            try await client.script(
                """
                CREATE TABLE t (id bigint, name text) PARTITION BY RANGE (id);
                CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (100)
                """)
            let pid = try await client.onLoop { $0.backendPID }
            var invalid = Self.rows([5], name: "abc")
            invalid.setInteger(UInt8(0xff), at: invalid.writerIndex - 2)
            // Outside all partitions; text with a NUL; text that is not UTF-8.
            for (row, state) in [(Self.rows([100]), "23514"), (Self.rows([5], name: "a\u{0}c"), "22021"), (invalid, "22021")] {
                let rows = Self.rows(1...4) + row + Self.rows(6...9)
                let error = try await postgresError { try await client.copyIn(into: "t", columns: ["id", "name"], rows: rows) }
                #expect(error.sqlState?.code == state && !error.isConnectionLoss, "\(error)")
            }
            #expect(try await client.query(Self.count)[0].int64(0) == Int64(0))
            #expect(try await client.copyIn(into: "t", columns: ["id", "name"], rows: Self.rows(1...4)).affected == 4)
            #expect(try await client.onLoop { $0.backendPID } == pid)
        }
    }

    @Test func aTransactionWithCopyAndConditionals() async throws {
        try await withClient { client, _ in
            try await client.script(Self.schema)
            let outcome: Result<Transaction.Outcome, PostgresError> = await client.calling { client, done in
                client.transaction(isolation: .repeatableRead) { transaction in
                    transaction.execute(Self.insert, parameters { $0.append(Int64(1)); $0.append("one") }) { _ in }
                    transaction.execute(Self.count) { result in
                        guard case .success(let rows) = result, rows[0].int64(0) == Int64(1) else { return transaction.rollback() }
                        transaction.copyIn(into: "t", columns: ["id", "name"], rows: Self.rows(2...500)) { result in
                            guard case .success(let rows) = result, rows.affected == 499 else { return transaction.rollback() }
                            transaction.commit()
                        }
                    }
                } _: { done($0) }
            }
            #expect(try outcome.get() == .committed)
            #expect(try await client.query(Self.count)[0].int64(0) == Int64(500))
        }
    }

    @Test func rollbackLeavesNothing() async throws {
        try await withClient { client, _ in
            try await client.script(Self.schema)
            let outcome: Result<Transaction.Outcome, PostgresError> = await client.calling { client, done in
                client.transaction { transaction in
                    transaction.execute(Self.insert, parameters { $0.append(Int64(1)); $0.append("one") }) { _ in }
                    transaction.rollback()
                    transaction.execute(Self.count) { result in
                        guard case .failure(let error) = result else { Issue.record("ran after the end"); return }
                        #expect(error.kind == .unavailable)
                    }
                } _: { done($0) }
            }
            #expect(try outcome.get() == .rolledBack)
            #expect(try await client.query(Self.count)[0].int64(0) == Int64(0))
        }
    }

    @Test func aFailureRollsBackAndIsHeardByAll() async throws {
        try await withClient { client, _ in
            try await client.script(Self.schema)
            let heard: [String] = await client.calling { client, done in
                let heard = Locked<[String]>([])
                @Sendable func hear(_ who: String) -> (Result<Rows, PostgresError>) -> Void {
                    { result in
                        let what: String
                        switch result {
                        case .success: what = "ok"
                        case .failure(let error): what = error.sqlState?.code ?? "?"
                        }
                        heard.withLock { $0.append("\(who) \(what)") }
                    }
                }
                client.transaction { transaction in
                    let one = parameters { $0.append(Int64(1)); $0.append("one") }
                    transaction.execute(Self.insert, one, hear("first"))
                    transaction.execute(Self.insert, one) { result in
                        hear("second")(result)
                        // Too late for both.
                        transaction.execute(Self.count, Parameters(), hear("late"))
                        transaction.commit()
                    }
                    transaction.execute(Self.count, Parameters(), hear("third"))
                    transaction.commit()
                } _: { result in
                    if case .failure(let error) = result {
                        #expect(!error.mayHaveTakenEffect)
                        heard.withLock { $0.append("end \(error.sqlState?.code ?? "?")") }
                    }
                    done(heard.withLock { $0 })
                }
            }
            #expect(heard == ["first ok", "second 23505", "late 23505", "third 23505", "end 23505"])
            #expect(try await client.query(Self.count)[0].int64(0) == Int64(0))
        }
    }

    @Test func aCommitThatFailsIsAFailure() async throws {
        let insert = Statement(name: "insert_b", sql: "INSERT INTO b VALUES (7)")
        try await withClient { client, _ in
            try await client.script(
                "CREATE TABLE a (n int PRIMARY KEY); CREATE TABLE b (n int REFERENCES a DEFERRABLE INITIALLY DEFERRED)")
            let outcome: Result<Transaction.Outcome, PostgresError> = await client.calling { client, done in
                client.transaction { transaction in
                    transaction.execute(insert) { _ in }
                    transaction.commit()
                } _: { done($0) }
            }
            guard case .failure(let error) = outcome else { Issue.record("committed"); return }
            #expect(error.kind == .server(.foreignKeyViolation))
        }
    }

    @Test func serializationFailuresAreRetryable() async throws {
        let raise = Statement(name: "raise", sql: "SELECT fail()")
        try await withClient { client, _ in
            for (state, isRetryable) in [("40001", true), ("40P01", true), ("55P03", true), ("23505", false)] {
                try await client.script(
                    "CREATE OR REPLACE FUNCTION fail() RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE SQLSTATE '\(state)'; END$$")
                let error = try await postgresError { try await client.query(raise) }
                #expect(error.isRetryable == isRetryable && error.sqlState?.code == state)
            }
        }
    }

    @Test func unitsRunInOrder() async throws {
        try await withClient { client, _ in
            try await client.script(Self.schema)
            let order: [String] = await client.calling { client, done in
                let order = Locked<[String]>([])
                client.transaction { transaction in
                    transaction.execute(Self.insert, parameters { $0.append(Int64(1)); $0.append("one") }) { _ in
                        order.withLock { $0.append("insert") }
                        transaction.commit()
                    }
                } _: { _ in order.withLock { $0.append("commit") } }
                client.execute(Self.count) { result in
                    #expect((try? result.get())?[0].int64(0) == Int64(1))
                    order.withLock { $0.append("count") }
                }
                client.script("SELECT 1; SELECT 2 AS two") { result in
                    #expect((try? result.get())?[0].string(0) == "2")
                    order.withLock { $0.append("script") }
                    done(order.withLock { $0 })
                }
            }
            #expect(order == ["insert", "commit", "count", "script"])
        }
    }

    @Test func aScriptIsOneTransaction() async throws {
        try await withClient { client, _ in
            let error = try await postgresError {
                try await client.script("CREATE TABLE gone (n int); SELECT 1 / 0; CREATE TABLE never (n int)", name: "setup")
            }
            #expect(error.sqlState == "22012" && error.statement == "setup")
            #expect(try await client.value("SELECT to_regclass('gone') IS NULL").bool(0) == true)
        }
    }

    @Test func aScriptThatWantsRowsIsAnError() async throws {
        try await withClient { client, _ in
            try await client.script(Self.schema)
            let error = try await postgresError { try await client.script("COPY t FROM STDIN") }
            #expect(error.sqlState == "57014")
            #expect(try await client.query(Self.count)[0].int64(0) == Int64(0))
        }
    }

    @Test func notificationsReachWhoListens() async throws {
        try await withClient { sender, database in
            let listener = PostgresClient(try .patient(database.url), role: .session, on: sender.reactor)
            let heard = Locked<[PostgresNotification]>([])
            try await listener.onLoop { listener in
                listener.onNotification = { notification in heard.withLock { $0.append(notification) } }
                listener.listen(to: ["plain", "Odd \"name\""])
            }
            try await listener.ready(within: patience)
            let notify = Statement(name: "notify", sql: "SELECT pg_notify($1, $2)", parameterTypes: [.text, .text])
            for channel in ["plain", "Odd \"name\"", "other"] {
                try await sender.query(notify, parameters { $0.append(channel); $0.append("påyload") })
            }
            try await eventually("two notifications") { heard.withLock { $0.count } == 2 }
            let pid = try #require(try await sender.onLoop { $0.backendPID })
            #expect(
                heard.withLock { $0 }
                    == ["plain", "Odd \"name\""].map { PostgresNotification(channel: $0, payload: "påyload", backendPID: pid) })
            // To a channel that comes later, and to oneself.
            try await listener.onLoop { $0.listen(to: ["later"]) }
            try await listener.query(notify, parameters { $0.append("later"); $0.append("") })
            try await eventually("the third") { heard.withLock { $0.count } == 3 }
            await listener.shutdown()
        }
    }
}

private func + (left: ByteBuffer, right: ByteBuffer) -> ByteBuffer {
    var sum = left
    sum.writeImmutableBuffer(right)
    return sum
}
