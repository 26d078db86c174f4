import Foundation
import NIOCore
import Postgres
import PrivateCluster
import Reactor
import TestKit
import Testing

@testable import GatewayStore

/// How the server is set up, as far as promises depend on it.
@Suite struct DatabaseSettingsTests {
    @Test func whatLosesCommitsIsSaid() {
        func faults(_ edit: (inout DatabaseSettings) -> Void) -> [String] {
            var settings = DatabaseSettings(
                synchronousCommit: "on", fsync: true, fullPageWrites: true, isStandby: false, standbys: 0,
                hasSynchronousStandby: false, connectionsMax: 97, connectionsUsed: 40)
            edit(&settings)
            return settings.durabilityFaults
        }
        #expect(faults { _ in } == [])
        #expect(faults { $0.synchronousCommit = "off" }.count == 1)
        #expect(faults { $0.fsync = false }.count == 1)
        #expect(faults { $0.fullPageWrites = false }.count == 1)
        #expect(faults { $0.isStandby = true }.count == 1)
        #expect(faults { $0.standbys = 2 } == ["none of 2 standbys is synchronous: a failover loses commits that were acknowledged"])
        #expect(faults { ($0.standbys, $0.hasSynchronousStandby) = (2, true) } == [])
        #expect(faults { ($0.standbys, $0.hasSynchronousStandby, $0.synchronousCommit) = (2, true, "local") }.count == 1)
        // Without standbys there is nobody to wait for.
        #expect(faults { $0.synchronousCommit = "local" } == [])
    }

    @Test func theServerOfTheTestsLosesCommitsAndHasRoom() async throws {
        try await withStore { store in
            let settings = try await DatabaseSettings.read(store.client)
            #expect(!settings.fsync && !settings.fullPageWrites && settings.synchronousCommit == "off" && settings.standbys == 0)
            #expect(settings.connectionsMax == 297 && settings.connectionsUsed > 0)
            #expect(settings.connectionFault(needed: 1000)?.hasPrefix("1000 connections are needed, but of 297") == true)
            let found = try await Doctor(store.client, actor: "test").examine(log: false)
            #expect(found.map(\.check) == [.durability, .durability, .durability])
            // A limit of the database counts, too.
            try await store.run("ALTER DATABASE \(store.database.name) CONNECTION LIMIT 5")
            #expect(try await DatabaseSettings.read(store.client).connectionsMax == 5)
            #expect(try await Doctor(store.client, actor: "test").examine(log: false).map(\.check).contains(.connections))
        }
    }

    /// What streams from the server is a standby to it, whatever it does with what it gets.
    @Test func standbysAreSeenAndWhetherACommitWaitsForThem() async throws {
        let cluster = try await offTheCooperativePool { try PrivateCluster.temporary() }
        let directory = FileManager.default.temporaryDirectory.appendingPathComponent("pandora-standby-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        let standby = Process()
        standby.executableURL = URL(fileURLWithPath: try PostgresBinaries.find().path("pg_receivewal"))
        standby.arguments = ["-D", directory.path, "-h", cluster.socketDirectory, "-U", cluster.user, "--synchronous"]
        standby.standardError = FileHandle.nullDevice
        let reactor = try Reactor.start(name: "settings")
        let client = try await PostgresClient.connect(to: cluster.url(), on: reactor)
        #expect(try await DatabaseSettings.read(client).durabilityFaults == [])
        try standby.run()
        try await eventually("it is seen") { try await DatabaseSettings.read(client).standbys == 1 }
        #expect(try await DatabaseSettings.read(client).durabilityFaults.map { $0.prefix(15) } == ["none of 1 stand"])
        try await client.query(Statement(name: "names", sql: "ALTER SYSTEM SET synchronous_standby_names = '*'", isPrepared: false))
        try await client.script("SELECT pg_reload_conf()")
        try await eventually("it is synchronous") { try await DatabaseSettings.read(client).durabilityFaults == [] }
        kill(standby.processIdentifier, SIGKILL)
        try await eventually("it is gone") { try await DatabaseSettings.read(client).standbys == 0 }
        await client.shutdown()
        reactor.stop()
        try await offTheCooperativePool {
            reactor.join()
            try cluster.stop()
        }
        try FileManager.default.removeItem(at: directory)
    }
}
