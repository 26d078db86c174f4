import Foundation
import PrivateCluster
import Testing
import TestKit

@Suite struct PrivateClusterTests {
    @Test func databasesAreSeparateAndTemplatesAreMadeOnce() async throws {
        let made = Locked(0)
        let template = TestDatabase.Template("counted") { database in
            made.withLock { $0 += 1 }
            try await database.psql("CREATE TABLE t (n int); INSERT INTO t VALUES (7)")
        }
        let first = try await TestDatabase.create(from: template)
        let second = try await TestDatabase.create(from: template)
        try await first.psql("DELETE FROM t")
        #expect(try await first.psql("SELECT n FROM t") == [])
        #expect(try await second.psql("SELECT n FROM t") == ["7"])
        #expect(made.withLock { $0 } == 1)
    }

    @Test func dataSurvivesStopAndKill() async throws {
        try await offTheCooperativePool {
            var options = PrivateCluster.Options()
            options.isDurable = false
            let cluster = try PrivateCluster.temporary(options: options)
            #expect(cluster.isRunning)
            let first = try #require(cluster.processID)
            try cluster.restart()
            let second = try #require(cluster.processID)
            #expect(first != second)
            try cluster.kill()
            #expect(cluster.processID == nil)
            try cluster.start()
            #expect(cluster.processID != nil)
            try cluster.stop()
            #expect(cluster.processID == nil && !cluster.isRunning)
            #expect(FileManager.default.fileExists(atPath: cluster.dataDirectory))
        }
    }

    @Test func aDeepFolderGetsAShortSocket() async throws {
        try await offTheCooperativePool {
            let top = "/tmp/pandora-deep-\(getpid())"
            let deep = top + "/" + String(repeating: "d", count: 90)
            mkdir(top, 0o755)
            defer { try? FileManager.default.removeItem(atPath: top) }
            var options = PrivateCluster.Options()
            options.isDurable = false
            options.isTemporary = true
            let cluster = try PrivateCluster.create(in: deep, options: options)
            try cluster.start()
            #expect(cluster.socketDirectory.utf8.count < 60)
            try cluster.stop()
        }
    }

    /// A connection that a server inherited would end for its peer only when the server does.
    @Test func aServerInheritsNoDescriptor() async throws {
        var ends: [Int32] = [0, 0]
        // Not close-on-exec, as with a library that forgot it.
        try #require(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
        defer { ends.forEach { close($0) } }
        var status = stat()
        try #require(fstat(ends[1], &status) == 0)
        var options = PrivateCluster.Options()
        options.isDurable = false
        let cluster = try await offTheCooperativePool { [options] in try PrivateCluster.temporary(options: options) }
        let server = try #require(cluster.processID)
        let watchdog = try #require(Self.parent(of: server))
        for process in [server, watchdog] {
            let held = try Self.descriptors(of: process)
            #expect(!held.isEmpty && !held.contains("socket:[\(status.st_ino)]"))
        }
        try await offTheCooperativePool { try cluster.stop() }
    }

    private static func parent(of process: Int32) -> Int32? {
        let lines = (try? String(contentsOfFile: "/proc/\(process)/status", encoding: .utf8))?.split(separator: "\n") ?? []
        return lines.first { $0.hasPrefix("PPid:") }.flatMap { Int32($0.dropFirst(5).trimmingCharacters(in: .whitespaces)) }
    }

    /// What the process has open; what it closes meanwhile is left out.
    private static func descriptors(of process: Int32) throws -> [String] {
        let folder = "/proc/\(process)/fd"
        let names = try FileManager.default.contentsOfDirectory(atPath: folder)
        return names.compactMap { try? FileManager.default.destinationOfSymbolicLink(atPath: "\(folder)/\($0)") }
    }

    @Test func aRelativeFolderIsRefused() {
        #expect(throws: PrivateClusterError.self) { try PrivateCluster.create(in: "relative") }
    }
}
