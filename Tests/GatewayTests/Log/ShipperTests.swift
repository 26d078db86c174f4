import Foundation
import GatewayCore
import NIOCore
import TestKit
import Testing

@testable import Gateway

/// What is written to spools is in the log once, with everything it says.
@Suite struct ShipperTests {
    @Test func everyRecordArrivesOnceWithEveryColumn() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root, node: "node \u{0}é")
        let node = try await LogNode(database.url) { $0.batchFrames = 100 }
        try await node.attach(worker)
        var hops = Hops(seed: 5)
        let records = (0..<700).map { _ in hops.any() }
        for start in stride(from: 0, to: 700, by: 70) { try await worker.append(Array(records[start..<(start + 70)])) }
        try await node.drain()
        let expected = records.sorted { $0.id < $1.id }.map { LogRow($0, node: "node \u{fffd}é", spool: worker.id) }
        let rows = try await LogRow.all(in: database)
        #expect(rows.count == expected.count)
        for (row, expected) in zip(rows, expected) { #expect(row == expected) }
        let counters = try await node.counters()
        #expect(counters.frames == 700 && counters.rejected == 0 && counters.batches >= 7 && counters.damagedBytes == 0)
        #expect(worker.progress.pendingBytes == 0 && worker.progress.pendingFrames == 0)
        #expect(try await database.number("SELECT shipped_to FROM pandora.log_spool") == worker.progress.writtenTo)
        #expect(node.events.isEmpty)
        try await node.end()
        try await worker.close()
    }

    @Test func fewFramesGoOutAfterTheDelayAndManyAtOnce() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root) { $0.segmentBytes = 4 << 20 }
        // Nobody asks for them: only the delay, or a full batch, sends them.
        let quick = try await LogNode(database.url) { $0.delay = .milliseconds(1) }
        try await quick.attach(worker)
        var hops = Hops()
        for _ in 0..<3 {
            try await worker.append(hops.plain(1))
            try await eventually("shipped") { worker.progress.pendingBytes == 0 }
        }
        try await quick.end()
        let other = try await SpoolWorker(root) { $0.segmentBytes = 4 << 20 }
        let patient = try await LogNode(database.url) { $0.delay = .hours(1) }
        try await patient.attach(other)
        try await eventually("opened") { !patient.opened.isEmpty }
        let long = String(repeating: "x", count: 1_500)
        while other.progress.writtenTo < 1 << 20 { try await other.append(hops.plain(100, path: long)) }
        try await eventually("a full batch was shipped") { other.progress.shippedTo > 0 }
        try await patient.end()
        try await worker.close()
        try await other.close()
    }

    @Test func manySpoolsShareOneStream() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let node = try await LogNode(database.url) { $0.batchFrames = 37 }
        var workers: [SpoolWorker] = []
        for _ in 0..<3 {
            workers.append(try await SpoolWorker(root))
            try await node.attach(workers.last!)
        }
        let ids = try await withThrowingTaskGroup(of: [RequestID].self) { group in
            for (index, worker) in workers.enumerated() {
                group.addTask {
                    var hops = Hops(seed: UInt64(index + 1))
                    var ids: [RequestID] = []
                    for _ in 0..<20 {
                        let records = hops.plain(40)
                        try await worker.append(records)
                        ids += records.map(\.id)
                    }
                    return ids
                }
            }
            return try await group.reduce(into: []) { $0 += $1 }
        }
        try await node.drain()
        #expect(try await database.loggedIDs() == ids.sorted())
        #expect(node.opened.map(\.epoch) == [1, 1, 1])
        // Each batch says which of its spool's ids came with it; see the follower of the log.
        #expect(try await database.number("SELECT count(DISTINCT spool_id) FROM pandora.request_logs") == 3)
        try await node.end()
        for worker in workers { try await worker.close() }
    }

    @Test func aDrainOfNothingEndsAtOnceAndOneWithoutTheStoreNever() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let node = try await LogNode(database.url)
        try await node.drain()
        let worker = try await SpoolWorker(root)
        try await node.attach(worker)
        try await node.drain()
        try await database.cutEverybodyOff()
        var hops = Hops()
        try await worker.append(hops.plain(10))
        let isDrained = Locked(false)
        try await node.on { shipper in shipper.drain { isDrained.withLock { $0 = true } } }
        try await Task.sleep(for: .milliseconds(200))
        #expect(!isDrained.withLock { $0 })
        try await database.allowConnections()
        try await eventually("drained") { isDrained.withLock { $0 } }
        #expect(try await database.loggedIDs().count == 10)
        try await node.end()
        try await worker.close()
    }

    // MARK: - Spools of earlier processes

    @Test func whatAnEarlierProcessLeftIsShippedAndItsLeasesReturned() async throws {
        let database = try await TestDatabase.withQuota(1_000)
        let root = TemporaryFolder()
        let first = try await LogNode(database.url) { $0.batchFrames = 10 }
        let worker = try await SpoolWorker(root, node: "old")
        try await first.attach(worker)
        var hops = Hops()
        var records = hops.plain(30, units: 0)
        try await worker.append(records)
        try await first.drain()
        // It holds units when it dies, some of them used; its last hops are not shipped.
        try await database.psql("SELECT pandora.lease_acquire('\(worker.id)', 1, '{1}', '{1}', '{100}', '{100}')")
        try await first.end()
        let late = hops.plain(25, units: 2).map { hop in
            var hop = hop
            (hop.period, hop.leased) = (1, true)
            return hop
        }
        records += late
        try await worker.append(late)
        let copy = try root.copy()
        await worker.end()
        let second = try await LogNode(database.url) { $0.keep = .hours(1) }
        try await second.adopt(copy)
        try await eventually("adopted") { second.events.contains(.adopted(worker.id)) }
        #expect(try await database.loggedIDs() == records.map(\.id).sorted())
        #expect(try await database.numbers() == "50|950|0|50")
        #expect(try await database.unexplained() == [])
        #expect(try await database.psql("SELECT epoch, node FROM pandora.log_spool") == ["2|old"])
        // A second look at the folder finds nothing new, nor does a second process.
        try await second.adopt(copy)
        let third = try await LogNode(database.url)
        try await third.adopt(copy)
        try await third.drain()
        #expect(second.events == [.adopted(worker.id)] && third.events.isEmpty)
        try await second.end()
        try await third.end()
    }

    @Test func aSpoolThatWasShippedIsRemovedAfterAWhile() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        var hops = Hops()
        try await worker.append(hops.plain(10))
        try await worker.close()
        // One that died before it wrote anything, and one whose making was not finished.
        let empty = "\(root.path)/\(UUIDBits(high: 1, low: 1))"
        try FileManager.default.createDirectory(atPath: empty, withIntermediateDirectories: true)
        try "pandora spool 1\n\(UUIDBits(high: 1, low: 1))\nnode\n".write(toFile: "\(empty)/spool", atomically: true, encoding: .utf8)
        let begun = "\(root.path)/\(UUIDBits(high: 1, low: 2))"
        try FileManager.default.createDirectory(atPath: begun, withIntermediateDirectories: true)
        let copy = try root.copy()
        let node = try await LogNode(database.url) { $0.keep = .milliseconds(50) }
        try await node.adopt(copy)
        try await eventually("removed") { !FileManager.default.fileExists(atPath: "\(copy.path)/\(worker.id)") }
        #expect(!FileManager.default.fileExists(atPath: empty.replacingOccurrences(of: root.path, with: copy.path)))
        #expect(node.events == [.adopted(worker.id)])
        #expect(try await database.loggedIDs().count == 10)
        try await node.end()
    }

    @Test func shippedSegmentsStayForAWhileAndGoSoonerBeyondTheBound() async throws {
        let database = try await TestDatabase.withQuota(nil)
        for (keep, bound, goes) in [(60, 1 << 30, false), (0, 1 << 30, true), (60, 70 << 10, true)] {
            let root = TemporaryFolder()
            let worker = try await SpoolWorker(root)
            let node = try await LogNode(database.url) {
                ($0.keep, $0.bound, $0.housekeeping) = (.minutes(Int64(keep)), Int64(bound), .milliseconds(20))
            }
            try await node.attach(worker)
            var hops = Hops()
            for _ in 0..<15 { try await worker.append(hops.plain(100)) }
            let count = try worker.handle.directory.segmentStarts().count
            #expect(count > 4 || goes)
            try await node.drain()
            if goes {
                try await eventually("segments go") { try worker.handle.directory.segmentStarts().count <= 2 }
            } else {
                try await Task.sleep(for: .milliseconds(100))
                #expect(try worker.handle.directory.segmentStarts().count == count)
            }
            // The spool goes on.
            try await worker.append(hops.plain(300))
            try await node.drain()
            #expect(try await node.counters().frames == 1_800)
            try await node.end()
            try await worker.close()
        }
        #expect(try await database.loggedIDs().count == 3 * 1_800)
    }
}

extension TestDatabase {
    /// Nobody gets in any more, and nobody stays.
    func cutEverybodyOff() async throws {
        try await cluster.psql(
            """
            ALTER DATABASE \(name) ALLOW_CONNECTIONS false;
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '\(name)';
            """, database: "postgres")
    }

    func allowConnections() async throws {
        try await cluster.psql("ALTER DATABASE \(name) ALLOW_CONNECTIONS true", database: "postgres")
    }
}
