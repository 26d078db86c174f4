import Foundation
import NIOCore
import PrivateCluster
import Reactor
import Testing
import TestKit

@testable import Postgres

/// The server goes away, hangs, refuses or is the wrong one.
@Suite struct FailureTests {
    private static let one = Statement(name: "one", sql: "SELECT 1")
    private static let sleep = Statement(name: "sleep", sql: "SELECT pg_sleep(600)")

    /// A cluster of one's own, to be ill-treated.
    private func withCluster(
        _ adjust: @Sendable (inout PrivateCluster.Options) -> Void = { _ in }, _ body: (PrivateCluster) async throws -> Void
    ) async throws {
        var options = PrivateCluster.Options()
        options.isDurable = false
        adjust(&options)
        let cluster = try await offTheCooperativePool { [options] in try PrivateCluster.temporary(options: options) }
        try await body(cluster)
        try await offTheCooperativePool { try cluster.stop() }
    }

    @Test(arguments: [PostgresClient.Role.pipeline, .session])
    func aKilledServerIsNoticedAndFoundAgain(_ role: PostgresClient.Role) async throws {
        try await withCluster { cluster in
            try await withReactor { reactor in
                let client = try await PostgresClient.connect(to: cluster.url(), role: role, on: reactor)
                let states = Locked<[String]>([])
                try await client.onLoop { client in
                    client.onStateChange = { state in states.withLock { $0.append("\(state)".prefix(4).description) } }
                }
                #expect(try await client.query(Self.one)[0].int32(0) == Int32(1))
                async let pending = postgresError { try await client.query(Self.sleep, deadline: .seconds(300)) }
                try await eventually("the statement is under way") { try await client.onLoop { $0.waiting } == 1 }
                try await offTheCooperativePool { try cluster.kill() }
                let error = try await pending
                #expect(error.kind == .connectionLost && error.isConnectionLoss && error.mayHaveTakenEffect, "\(error)")
                #expect(error.statement == "sleep" && !"\(error)".contains("pg_sleep"))
                // Refused at once while the server is away.
                let refused: Result<Rows, PostgresError> = await client.calling { client, done in client.execute(Self.one) { done($0) } }
                guard case .failure(let reason) = refused else { Issue.record("no server, yet an answer"); return }
                #expect(reason.kind == .unavailable && !reason.mayHaveTakenEffect, "\(reason)")
                try await offTheCooperativePool { try cluster.start() }
                try await client.ready(within: patience)
                // The statement that the old connection knew is prepared anew.
                #expect(try await client.query(Self.one)[0].int32(0) == Int32(1))
                try await offTheCooperativePool { try cluster.restart() }
                try await client.ready(within: patience)
                try await eventually("an answer after the restart") { (try? await client.query(Self.one)) != nil }
                #expect(states.withLock { $0.first } == "lost" && states.withLock { $0.last } == "read")
                await client.shutdown()
            }
        }
    }

    @Test func aTransactionLearnsWhetherItMayBeCommitted() async throws {
        try await withClient { client, database in
            let outcome: Result<Transaction.Outcome, PostgresError> = await client.calling { client, done in
                client.transaction { transaction in
                    transaction.execute(Statement(name: "die", sql: "SELECT pg_terminate_backend(pg_backend_pid())")) { result in
                        guard case .failure(let error) = result else { Issue.record("survived"); return }
                        #expect(error.kind == .connectionLost && !error.mayHaveTakenEffect)
                    }
                    transaction.commit()
                } _: { done($0) }
            }
            guard case .failure(let error) = outcome else { Issue.record("committed"); return }
            #expect(error.kind == .connectionLost && !error.mayHaveTakenEffect && error.sqlState == "57P01")
            try await client.ready(within: patience)
            #expect(try await client.query(Self.one)[0].int32(0) == Int32(1))
        }
    }

    @Test(arguments: [PostgresClient.Role.pipeline, .session])
    func aStoppedBackendIsGivenUpAtTheDeadline(_ role: PostgresClient.Role) async throws {
        try await withClient(role: role) { client, _ in
            let pid = try #require(try await client.onLoop { $0.backendPID })
            #expect(kill(pid, SIGSTOP) == 0)
            defer { kill(pid, SIGCONT) }
            let errors: [PostgresError] = await client.calling { client, done in
                let errors = Locked<[PostgresError]>([])
                for deadline in [TimeAmount.milliseconds(200), .seconds(120)] {
                    client.execute(Self.one, deadline: deadline) { result in
                        guard case .failure(let error) = result else { Issue.record("a stopped server answered"); return }
                        errors.withLock { $0.append(error) }
                        if errors.withLock({ $0.count }) == 2 { done(errors.withLock { $0 }) }
                    }
                }
            }
            #expect(errors[0].kind == .deadline && errors[0].isConnectionLoss && errors[0].mayHaveTakenEffect)
            // In a session the second was never sent.
            #expect(errors[1].kind == .connectionLost && errors[1].mayHaveTakenEffect == (role == .pipeline))
            try await client.ready(within: patience)
            #expect(try await client.onLoop { $0.backendPID } != pid)
            #expect(try await client.query(Self.one)[0].int32(0) == Int32(1))
        }
    }

    @Test func aStatementGivenUpIsCancelledOnTheServer() async throws {
        try await withClient(role: .pipeline) { client, database in
            let error = try await postgresError { try await client.query(Self.sleep, deadline: .milliseconds(100)) }
            #expect(error.kind == .deadline)
            try await eventually("nobody sleeps") {
                try await database.psql(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'") == ["0"]
            }
        }
    }

    @Test func aStatementThatWaitedTooLongLeavesTheConnection() async throws {
        try await withClient { client, database in
            let pid = try await client.onLoop { $0.backendPID }
            // The first statement lasts until the second one is given up.
            let holder = try await PostgresClient.connect(to: database.url, on: client.reactor)
            try await holder.query(Statement(name: "hold", sql: "SELECT pg_advisory_lock(1)"))
            let wait = Statement(name: "wait", sql: "SELECT pg_advisory_lock(1)")
            let results: [PostgresError?] = await client.calling { client, done in
                let late = Locked<PostgresError?>(nil)
                client.execute(wait, deadline: patience) { result in
                    if case .failure(let error) = result { done([error]) } else { done([nil, late.withLock { $0 }]) }
                }
                client.execute(Self.one, deadline: .milliseconds(30)) { result in
                    if case .failure(let error) = result { late.withLock { $0 = error } }
                    holder.execute(Statement(name: "release", sql: "SELECT pg_advisory_unlock(1)")) { _ in }
                }
            }
            await holder.shutdown()
            #expect(results.count == 2 && results[0] == nil)
            #expect(results[1]?.kind == .deadline && results[1]?.mayHaveTakenEffect == false)
            #expect(try await client.onLoop { $0.backendPID } == pid)
        }
    }

    @Test func aTransactionThatNobodyEndsRunsIntoItsDeadline() async throws {
        try await withClient { client, _ in
            let outcome: Result<Transaction.Outcome, PostgresError> = await client.calling { client, done in
                client.transaction(deadline: .milliseconds(100)) { _ in } _: { done($0) }
            }
            guard case .failure(let error) = outcome else { Issue.record("ended"); return }
            #expect(error.kind == .deadline && !error.mayHaveTakenEffect)
            let after = try await client.query(Self.one)
            #expect(after[0].int32(0) == Int32(1))
        }
    }

    @Test func listeningGoesOnAfterALoss() async throws {
        try await withClient { sender, database in
            let listener = PostgresClient(try .patient(database.url), role: .session, on: sender.reactor)
            let heard = Locked(0)
            try await listener.onLoop { listener in
                listener.listen(to: ["news"])
                listener.onNotification = { _ in heard.withLock { $0 += 1 } }
            }
            try await listener.ready(within: patience)
            let pid = try #require(try await listener.onLoop { $0.backendPID })
            try await sender.script("SELECT pg_terminate_backend(\(pid))")
            try await eventually("another connection") {
                try await listener.onLoop { $0.isReady && $0.backendPID != pid }
            }
            try await sender.script("NOTIFY news")
            try await eventually("the news") { heard.withLock { $0 } == 1 }
            await listener.shutdown()
        }
    }

    @Test func refusalsOfTheServerAreTyped() async throws {
        try await withCluster { options in
            options.authenticationRules = ["local all guest scram-sha-256"]
        } _: { cluster in
            try await cluster.psql("CREATE ROLE guest LOGIN PASSWORD 'right'", database: "postgres")
            try await withReactor { reactor in
                let password = try await refusal(of: .patient(cluster.url(user: "guest", password: "wr0ng-secret")), on: reactor)
                #expect(password.sqlState == .invalidPassword && password.kind == .unavailable)
                #expect(!"\(password) \(String(reflecting: password))".contains("wr0ng-secret"))
                #expect(!password.message.contains("LOCATION") && !password.message.contains("28P01"))
                let database = try await refusal(of: .patient(cluster.url(database: "nowhere")), on: reactor)
                #expect(database.sqlState == .invalidDatabase)
                let right = cluster.url(user: "guest", password: "right")
                let client = try await PostgresClient.connect(to: right, role: .pipeline, on: reactor)
                #expect(try await client.value("SELECT current_user::text").string(0) == "guest")
                await client.shutdown()
            }
        }
    }

    @Test func theFirstServerThatTakesWritesIsChosen() async throws {
        try await withCluster { $0.settings["default_transaction_read_only"] = "on" } _: { readOnly in
            let writable = try await TestDatabase.sharedCluster()
            try await withReactor { reactor in
                var configuration = PostgresConfiguration()
                (configuration.user, configuration.database) = ("postgres", "postgres")
                configuration.connectTimeout = .seconds(30)
                configuration.hosts = ["/nowhere", readOnly.socketDirectory, writable.socketDirectory].map { .init(name: $0) }
                let client = try await PostgresClient.connect(configuration, role: .pipeline, on: reactor, within: patience)
                let row = try await client.value("SELECT current_setting('unix_socket_directories')")
                #expect(row.string(0) == writable.socketDirectory)
                await client.shutdown()
                configuration.hosts.removeLast()
                let error = try await refusal(of: configuration, on: reactor)
                #expect(error.kind == .unavailable && error.message.contains("read-only"))
                configuration.needsWritable = false
                let reader = try await PostgresClient.connect(configuration, on: reactor, within: patience)
                await reader.shutdown()
            }
        }
    }

    @Test func aServerThatBecameReadOnlyIsLeft() async throws {
        try await withClient(role: .pipeline) { client, database in
            try await database.psql("CREATE TABLE t (n int)")
            let pid = try await client.onLoop { $0.backendPID }
            try await client.query(Statement(name: "demote", sql: "SET default_transaction_read_only = on"))
            let insert = Statement(name: "insert", sql: "INSERT INTO t VALUES (1)")
            let error = try await postgresError { try await client.query(insert) }
            #expect(error.kind == .server(.readOnlyTransaction) && error.isConnectionLoss)
            try await eventually("another connection") { try await client.onLoop { $0.isReady && $0.backendPID != pid } }
            try await client.query(insert)
        }
    }

    /// The peer takes the connection and never says a word; the name is resolved off the loop.
    @Test(arguments: ["127.0.0.1", "localhost"])
    func aSilentServerRunsIntoTheConnectDeadline(_ host: String) async throws {
        let silent = ScriptedUpstream { try $0.waitForEnd() }
        defer { silent.close() }
        try await withReactor { reactor in
            var configuration = PostgresConfiguration()
            configuration.hosts = [.init(name: host, port: silent.port)]
            configuration.connectTimeout = .milliseconds(150)
            let client = PostgresClient(configuration, role: .pipeline, on: reactor)
            let error = try await postgresError { try await client.ready(within: .milliseconds(600)) }
            #expect(error.kind == .unavailable)
            try await eventually("it tried again") { silent.connections >= 2 }
            await client.shutdown()
        }
    }

    @Test func aPortThatNobodyListensOnIsRetriedWithBackoff() async throws {
        try await withReactor { reactor in
            var configuration = PostgresConfiguration()
            configuration.hosts = [.init(name: "/nowhere")]
            (configuration.backoff, configuration.backoffMax) = (.milliseconds(10), .milliseconds(40))
            let failures = Locked(0)
            let client = PostgresClient(configuration, role: .session, on: reactor)
            try await client.onLoop { client in
                client.onStateChange = { state in if case .lost = state { failures.withLock { $0 += 1 } } }
                client.start()
            }
            try await eventually("five rounds") { failures.withLock { $0 } >= 5 }
            await client.shutdown()
            let after = failures.withLock { $0 }
            try await Task.sleep(for: .milliseconds(100))
            #expect(failures.withLock { $0 } == after)
        }
    }

    @Test func aReactorMayEndWithAnOpenConnection() async throws {
        let database = try await TestDatabase.create()
        try await withReactor { reactor in
            let client = try await PostgresClient.connect(to: database.url, role: .pipeline, on: reactor)
            _ = try await client.query(Self.one)
        }
    }
}

/// What a task is told when its reactor ends before the answer comes.
@Suite struct EndedReactorTests {
    @Test func nobodyWaitsForEver() async throws {
        let database = try await TestDatabase.create()
        let reactor = try Reactor.start(name: "postgres-test")
        let client = try await PostgresClient.connect(to: database.url, role: .pipeline, on: reactor)
        try await reactor.end()
        let error = try await postgresError { try await client.query(Statement(name: "one", sql: "SELECT 1")) }
        #expect(error.kind == .unavailable)
        await client.shutdown()
    }
}
