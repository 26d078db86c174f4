import Foundation
import GatewayCore
import NIOCore
import PrivateCluster
import TestKit
import Testing

@testable import Gateway

/// Whatever goes wrong between the spool and the log: nothing twice, nothing lost, and nothing stops for ever.
@Suite struct ShipperFaultTests {
    // MARK: - Contents

    @Test func aFrameThatTheLogRefusesIsSetAsideAndItsUnitsAreSettled() async throws {
        let database = try await TestDatabase.withQuota(nil)
        try await database.psql("ALTER TABLE pandora.request_logs ADD CONSTRAINT mean CHECK (path <> 'bad')")
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let node = try await LogNode(database.url) { $0.batchFrames = 64 }
        var hops = Hops()
        var records = hops.plain(200, units: 1)
        let bad = [0, 17, 18, 99, 199]
        for index in bad { records[index].setPath("bad") }
        try await worker.append(records)
        try await node.attach(worker)
        try await node.drain()
        let good = records.indices.filter { !bad.contains($0) }.map { records[$0].id }
        #expect(try await database.loggedIDs() == good.sorted())
        #expect(try await database.number("SELECT used_request FROM pandora.environment_service") == 200)
        #expect(try await database.number("SELECT sum(frames) FROM pandora.quota_ledger") == 200)
        #expect(try await database.number("SELECT sum(frames) FROM pandora.quota_ledger WHERE rowless") == 5)
        #expect(try await node.counters().rejected == 5)
        #expect(node.events.filter { if case .rejected(_, frames: 1) = $0 { true } else { false } }.count == 5)
        let rejected = try Data(contentsOf: URL(fileURLWithPath: worker.handle.directory.rejectedPath))
        let frames = records.indices.filter { bad.contains($0) }
        #expect(rejected.count > frames.count * 200)
        for index in frames {
            let id = withUnsafeBytes(of: (records[index].id.uuid.high.littleEndian, records[index].id.uuid.low.littleEndian)) { Data($0) }
            #expect(rejected.range(of: id) != nil)
        }
        // Batches become large again.
        for most in [256, 6] {
            let before = try await node.counters().batches
            try await worker.append(hops.plain(256))
            try await node.drain()
            #expect(try await node.counters().batches - before <= most)
        }
        try await node.end()
        try await worker.close()
    }

    @Test func aFrameOfALaterVersionIsSetAside() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let id = UUIDBits(high: 7, low: 7)
        let path = "\(root.path)/\(id)"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        try "pandora spool 1\n\(id)\nnode\n".write(toFile: "\(path)/spool", atomically: true, encoding: .utf8)
        var hops = Hops()
        let records = hops.plain(3)
        var segment: [UInt8] = []
        for (index, record) in records.enumerated() {
            segment += [UInt8](unsafeUninitializedCapacity: Frame.maximumLength) { buffer, count in
                let frame = UnsafeMutableRawBufferPointer(buffer)
                count = record.encode(into: frame, at: Int64(segment.count))
                guard index == 1 else { return }
                frame[Frame.headerLength] = 99
                count = Frame.seal(frame, contentLength: count - Frame.headerLength, at: Int64(segment.count))
            }
        }
        try Data(segment).write(to: URL(fileURLWithPath: "\(path)/0000000000000000.segment"))
        let node = try await LogNode(database.url)
        try await node.adopt(root)
        try await eventually("adopted") { node.events.last == .adopted(id) }
        #expect(node.events == [.rejected(id, frames: 1), .adopted(id)])
        #expect(try await database.loggedIDs() == [records[0].id, records[2].id])
        #expect(root.names(id).contains("rejected"))
        try await node.end()
    }

    @Test func aSettlementThatIsRefusedIsSetAside() async throws {
        let database = try await TestDatabase.withQuota(nil)
        try await database.psql("ALTER TABLE pandora.quota_ledger ADD CONSTRAINT mean CHECK (kind <> 'flow' OR used_delta <> 13)")
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let node = try await LogNode(database.url)
        var hops = Hops()
        let records = hops.plain(30, units: 1)
        let isTaken = try await worker.on { writer in
            for (index, record) in records.enumerated() {
                writer.append(record, reserved: false)
                guard index == 10 || index == 20 else { continue }
                let settlement = FlowSettlement(
                    id: ReservationID(UUIDBits(high: 1, low: UInt64(index))), hop: record.id,
                    row: QuotaRow(environmentID: 1, serviceID: 1), period: 1, action: .commit(units: index == 10 ? 13 : 7))
                guard writer.append(settlement, reserved: false) else { return false }
            }
            return true
        }
        #expect(isTaken)
        try await worker.turn()
        try await node.attach(worker)
        try await node.drain()
        #expect(try await database.loggedIDs() == records.map(\.id).sorted())
        #expect(try await node.counters().rejected == 1)
        #expect(
            try await database.psql(
                "SELECT kind, sum(used_delta) FROM pandora.quota_ledger GROUP BY 1 HAVING sum(used_delta) > 0 ORDER BY 1")
                == ["flow|7", "hops|30"])
        try await node.end()
        try await worker.close()
    }

    @Test func theSameIdTwiceIsSetAside() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let node = try await LogNode(database.url)
        var hops = Hops()
        let records = hops.plain(20)
        try await worker.append(records + [records[3]])
        try await node.attach(worker)
        try await node.drain()
        #expect(try await database.loggedIDs() == records.map(\.id).sorted())
        #expect(try await node.counters().rejected == 1)
        try await node.end()
        try await worker.close()
    }

    @Test func rejectedFramesOutliveTheirSpool() async throws {
        let database = try await TestDatabase.withQuota(nil)
        try await database.psql("ALTER TABLE pandora.request_logs ADD CONSTRAINT mean CHECK (path <> 'bad')")
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        var hops = Hops()
        try await worker.append(hops.plain(3) + hops.plain(1, path: "bad"))
        try await worker.close()
        let copy = try root.copy()
        let node = try await LogNode(database.url) { $0.keep = .milliseconds(30) }
        try await node.adopt(copy)
        try await eventually("only the frame is left") { copy.names(worker.id) == ["rejected"] }
        // What is left is no spool: the housekeeping that comes by does not take it for one.
        try await Task.sleep(for: .milliseconds(150))
        #expect(node.events.filter { $0 == .adopted(worker.id) }.count == 1)
        #expect(try await database.number("SELECT epoch FROM pandora.log_spool") == 1)
        try await node.end()
    }

    @Test func whatIsNotTheFramesFaultSetsNothingAside() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let node = try await LogNode(database.url)
        try await node.attach(worker)
        try await node.drain()
        try await database.psql("ALTER TABLE pandora.request_logs RENAME TO elsewhere")
        var hops = Hops()
        let records = hops.plain(50, units: 1)
        try await worker.append(records)
        try await eventually("the store said no, again and again") { try await node.counters().retries > 5 }
        #expect(try await database.number("SELECT used_request FROM pandora.environment_service") == 0)
        try await database.psql("ALTER TABLE pandora.elsewhere RENAME TO request_logs")
        try await node.drain()
        #expect(try await database.loggedIDs() == records.map(\.id).sorted())
        #expect(try await node.counters().rejected == 0)
        #expect(try await database.number("SELECT used_request FROM pandora.environment_service") == 50)
        try await node.end()
        try await worker.close()
    }

    @Test func damageIsPassedOverAndTold() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        var hops = Hops()
        let records = hops.plain(600)
        try await worker.append(records)
        // A few bytes of the first segment change under the living worker.
        let file = try FileDescriptor(worker.segment(0), flags: O_RDWR)
        try [UInt8](repeating: 0x55, count: 3).withUnsafeBytes { try file.write($0, at: 5_000) }
        let node = try await LogNode(database.url)
        try await node.attach(worker)
        try await node.drain()
        let logged = Set(try await database.loggedIDs())
        #expect(logged.isSubset(of: records.map(\.id)) && logged.count < 600 && logged.contains(records[599].id))
        let damaged = try await node.counters().damagedBytes
        #expect(damaged > 0 && damaged < 64 << 10)
        #expect(node.events == [.damaged(worker.id, bytes: damaged)])
        try await node.end()
        try await worker.close()
    }

    // MARK: - Connections

    @Test func aLostAnswerToCommitBooksNothingTwice() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let node = try await LogNode(database.url) { $0.batchFrames = 20 }
        var hops = Hops()
        var records = hops.plain(100, units: 1)
        try await worker.append(records)
        try await node.tamper { $0.lostAnswers = 3 }
        try await node.attach(worker)
        try await node.drain()
        #expect(try await database.number("SELECT used_request FROM pandora.environment_service") == 100)
        // More comes between the lost answer and the next look at the mark.
        try await node.tamper { $0.lostAnswers = 1 }
        for _ in 0..<10 {
            let more = hops.plain(7, units: 1)
            try await worker.append(more)
            records += more
        }
        try await node.drain()
        #expect(try await database.loggedIDs() == records.map(\.id).sorted())
        #expect(try await database.number("SELECT used_request FROM pandora.environment_service") == 170)
        #expect(try await node.counters().rejected == 0)
        #expect(worker.progress.pendingFrames == 0)
        try await node.end()
        try await worker.close()
    }

    /// The frame that the log refuses is kept before its units are booked, so that it is not lost with the answer to that.
    @Test func aLostAnswerLosesNoRejectedFrame() async throws {
        let database = try await TestDatabase.withQuota(nil)
        try await database.psql("ALTER TABLE pandora.request_logs ADD CONSTRAINT mean CHECK (path <> 'bad')")
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let node = try await LogNode(database.url)
        try await node.attach(worker)
        try await node.drain()
        try await node.tamper { $0.lostAnswers = 1 }
        var hops = Hops()
        let bad = hops.plain(path: "bad", units: 1)
        try await worker.append([bad])
        try await node.drain()
        #expect(try await database.number("SELECT sum(frames) FROM pandora.quota_ledger WHERE rowless") == 1)
        var frame = [UInt8](repeating: 0, count: Frame.maximumLength)
        let length = frame.withUnsafeMutableBytes { bad.encode(into: $0, at: 0) }
        #expect(try Data(contentsOf: URL(fileURLWithPath: worker.handle.directory.rejectedPath)) == Data(frame[..<length]))
        #expect(try await node.counters().rejected == 1)
        #expect(node.events.filter { $0 == .rejected(worker.id, frames: 1) }.count == 1)
        try await node.end()
        try await worker.close()
    }

    @Test func aDeadlockIsTriedAgain() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let node = try await LogNode(database.url)
        try await node.tamper { $0.deadlocks = 4 }
        try await node.attach(worker)
        var hops = Hops()
        let records = hops.plain(50, units: 1)
        try await worker.append(records)
        try await node.drain()
        #expect(try await database.loggedIDs() == records.map(\.id).sorted())
        #expect(try await node.counters().rejected == 0 && node.events.isEmpty)
        try await node.end()
        try await worker.close()
    }

    @Test func connectionsThatAreCutAtAnyMomentLoseAndDoubleNothing() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let node = try await LogNode(database.url) { $0.batchFrames = 50 }
        try await node.attach(worker)
        async let traffic: [HopRecord] = {
            var hops = Hops()
            var records: [HopRecord] = []
            for _ in 0..<100 {
                let more = hops.plain(20, units: 1)
                try await worker.append(more)
                records += more
                try await Task.sleep(for: .milliseconds(5))
            }
            return records
        }()
        for _ in 0..<12 { try await node.cutOff(database) }
        let records = try await traffic
        try await node.drain()
        #expect(try await database.loggedIDs() == records.map(\.id).sorted())
        #expect(try await database.number("SELECT used_request FROM pandora.environment_service") == Int64(records.count))
        #expect(try await node.counters().rejected == 0)
        #expect(try await database.unexplained() == [])
        try await node.end()
        try await worker.close()
    }

    @Test func aServerThatIsKilledAndComesBackHasEverything() async throws {
        let cluster = try await offTheCooperativePool {
            var options = PrivateCluster.Options()
            // Commits are acknowledged before they are on disk: what the server said may be lost, as in a failover.
            options.isDurable = false
            return try PrivateCluster.temporary(options: options)
        }
        try await cluster.psql(TestDatabase.schemaScript(), database: "postgres")
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let node = try await LogNode(cluster.url()) { $0.batchFrames = 20 }
        try await node.attach(worker)
        var hops = Hops()
        var records = hops.plain(300)
        try await worker.append(records)
        try await offTheCooperativePool { try cluster.kill() }
        for _ in 0..<5 {
            let more = hops.plain(20)
            records += more
            try await worker.append(more)
        }
        try await offTheCooperativePool { try cluster.start() }
        try await node.drain()
        let ids = try await cluster.psql("SELECT id FROM pandora.request_logs ORDER BY id", database: "postgres")
        #expect(ids.map { RequestID($0)! } == records.map(\.id).sorted())
        try await node.end()
        try await worker.close()
        try await offTheCooperativePool { try cluster.stop() }
    }
}
