import Foundation
import GatewayCore
import NIOCore
import TestKit
import Testing

@testable import Gateway

/// Other processes on the same spool, disks that went back in time, and databases that did.
@Suite struct ShipperFailoverTests {
    @Test func whoeverOpenedTheSpoolLaterFencesUs() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let node = try await LogNode(database.url)
        try await node.attach(worker)
        var hops = Hops()
        try await worker.append(hops.plain(10))
        try await node.drain()
        // The disk is cloned, and a second node starts from it.
        let clone = try root.copy()
        let other = try await LogNode(database.url)
        try await other.adopt(clone)
        try await eventually("adopted") { other.events == [.adopted(worker.id)] }
        try await worker.append(hops.plain(10, units: 1))
        try await eventually("fenced") { node.events == [.fenced(worker.id)] }
        #expect(try await database.loggedIDs().count == 10)
        #expect(try await database.number("SELECT used_request FROM pandora.environment_service") == 0)
        // Nothing waits for it for ever.
        try await node.drain()
        try await node.end()
        try await other.end()
        try await worker.close()
    }

    @Test func aDiskThatWasRolledBackIsReported() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let node = try await LogNode(database.url)
        try await node.attach(worker)
        var hops = Hops()
        try await worker.append(hops.plain(10))
        let old = try root.copy()
        let end = worker.progress.writtenTo
        try await worker.append(hops.plain(10))
        try await node.drain()
        let mark = worker.progress.writtenTo
        try await node.end()
        let second = try await LogNode(database.url)
        try await second.adopt(old)
        try await second.drain()
        #expect(second.events == [.rolledBack(worker.id, mark: mark, end: end)])
        #expect(try await database.loggedIDs().count == 20)
        #expect(!old.names(worker.id).isEmpty)
        try await second.end()
        try await worker.close()
    }

    /// A backup, for instance, put back long after the spool was shipped and removed: only its mark knows what is in it.
    @Test func aDiskThatComesBackWhenItsSpoolIsGoneChargesNothingAgain() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        var hops = Hops()
        try await worker.append(hops.plain(100, units: 1))
        try await worker.close()
        let (disk, backup) = (try root.copy(), try root.copy())
        let node = try await LogNode(database.url) { $0.keep = .milliseconds(30) }
        try await node.adopt(disk)
        try await eventually("removed") { disk.names(worker.id) == [] }
        try await node.end()
        let later = try await LogNode(database.url)
        try await later.adopt(backup)
        try await eventually("adopted") { later.events == [.adopted(worker.id)] }
        #expect(try await database.numbers() == "100||0|100")
        #expect(try await later.counters().frames == 0)
        #expect(try await database.number("SELECT epoch FROM pandora.log_spool") == 2)
        try await later.end()
    }

    /// What a failover to a standby that lagged behind does to what was shipped lately.
    private func lose(_ database: TestDatabase, after mark: Int64, _ ids: some Sequence<RequestID>) async throws {
        try await database.psql(
            """
            BEGIN;
            UPDATE pandora.log_spool SET shipped_to = \(mark);
            DELETE FROM pandora.request_logs WHERE id IN (\(ids.map { "'\($0)'" }.joined(separator: ",")));
            COMMIT;
            """)
    }

    @Test func whatAFailoverLostIsShippedAgainThoughNothingNewComes() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let node = try await LogNode(database.url)
        try await node.attach(worker)
        var hops = Hops()
        let early = hops.plain(300)
        try await worker.append(early)
        let mark = worker.progress.writtenTo
        let late = hops.plain(600)
        try await worker.append(late)
        try await node.drain()
        try await lose(database, after: mark, late.map(\.id))
        try await node.cutOff(database)
        try await eventually("all are there again") { try await database.loggedIDs() == (early + late).map(\.id).sorted() }
        try await eventually("the worker knows") { worker.progress.pendingBytes == 0 }
        #expect(node.events.isEmpty)
        try await node.end()
        try await worker.close()
    }

    @Test func whatAFailoverLostOfAnAdoptedSpoolIsShippedAgain() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        var hops = Hops()
        let records = hops.plain(100)
        try await worker.append(records)
        try await worker.close()
        let copy = try root.copy()
        let node = try await LogNode(database.url)
        try await node.adopt(copy)
        try await eventually("adopted") { node.events == [.adopted(worker.id)] }
        try await lose(database, after: 0, records.map(\.id))
        try await node.cutOff(database)
        try await eventually("all are there again") { try await database.loggedIDs() == records.map(\.id).sorted() }
        try await node.drain()
        #expect(node.events == [.adopted(worker.id)])
        try await node.end()
    }

    @Test func aDatabaseThatForgotTheSpoolOrItsOpeningIsToldAgain() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        try await database.psql("INSERT INTO pandora.log_spool (id, epoch, node) VALUES ('\(worker.id)', 5, 'node')")
        let node = try await LogNode(database.url)
        try await node.attach(worker)
        var hops = Hops()
        let records = hops.plain(100)
        try await worker.append(records)
        try await node.drain()
        for forget in ["UPDATE pandora.log_spool SET epoch = 5, shipped_to = 0", "DELETE FROM pandora.log_spool"] {
            try await database.psql("DELETE FROM pandora.request_logs; \(forget)")
            try await node.cutOff(database)
            try await eventually("all are there again") { try await database.loggedIDs() == records.map(\.id).sorted() }
            try await node.drain()
        }
        #expect(node.events.isEmpty && node.opened.map(\.epoch) == [6, 6, 1])
        try await node.end()
        try await worker.close()
    }
}
