import GatewayCore
import GatewayStore
import NIOCore
import Postgres
import Reactor
import Testing
import TestKit

@testable import Gateway

/// What a node asks before it serves. Connections that break over it are the end-to-end suite's.
@Suite struct ControlStartTests {
    @Test func aQuestionThatGetsNoAnswerInTimeIsAskedAgain() async throws {
        let database = try await TestDatabase.create()
        try await withReactor { reactor in
            let other = try await PostgresClient.connect(to: database.url, on: reactor)
            try await Migrator(other).migrate()
            let release = try await lock("pandora.cluster_settings", other, on: reactor)

            var impatient = try PostgresConfiguration.patient(database.url)
            impatient.statementDeadline = .milliseconds(500)
            let reports = Locked<[String]>([])
            let control = try Control(BootSettings(listen: []), database: impatient, nodeName: "n") { event in
                if case .waitingForDatabase(let reason) = event { reports.withLock { $0.append(reason) } }
            }
            async let secret = control.prepare()
            try await eventually("it was asked twice") {
                reports.withLock { $0.filter { $0.hasPrefix("cluster_settings: no answer in time") }.count } >= 2
            }
            try await release()
            #expect(try await secret.count == 32)
            await control.close()
            await other.shutdown()
        }
    }

    /// Returns how to give it free again.
    private func lock(_ table: String, _ client: PostgresClient, on reactor: Reactor) async throws -> () async throws -> Void {
        let (locked, ended) = (reactor.makePromise(of: Void.self), reactor.makePromise(of: Void.self))
        let holder = Locked<Transaction?>(nil)
        reactor.execute {
            client.transaction(deadline: .minutes(5)) { transaction in
                holder.withLock { $0 = transaction }
                transaction.execute(Statement(name: "lock", sql: "LOCK TABLE \(table)", isPrepared: false)) { result in
                    locked.completeWith(result.map { _ in }.mapError { $0 })
                }
            } _: { result in
                ended.completeWith(result.map { _ in }.mapError { $0 })
            }
        }
        try await locked.futureResult.get()
        return {
            reactor.execute { holder.withLock { $0 }?.commit() }
            try await ended.futureResult.get()
        }
    }
}
