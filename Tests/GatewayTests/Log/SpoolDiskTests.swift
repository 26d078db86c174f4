import Foundation
import TestKit
import Testing

@testable import Gateway
@testable import GatewayCore

/// A disk that refuses: nothing new is admitted, no answer goes without its record, and it heals by itself.
@Suite struct SpoolDiskTests {
    /// What the flush phases of turns saw.
    private struct Answers {
        var waiting: [RequestID] = []
        var sent: [RequestID] = []
    }

    @Test func answersWaitUntilTheDiskTakesTheirRecords() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let answers = Locked(Answers())
        // As a worker does it: an answer is queued with its record and leaves in the flush phase.
        try await worker.onFlush { writer in
            guard writer.isWritten else { return }
            answers.withLock { answers in
                answers.sent += answers.waiting
                answers.waiting = []
            }
        }
        @Sendable func serve(_ hops: [HopRecord]) async throws {
            try await worker.on { writer in
                for hop in hops where writer.append(hop, reserved: false) { answers.withLock { $0.waiting.append(hop.id) } }
            }
            try await worker.turn()
        }
        var hops = Hops()
        let first = hops.plain(5)
        try await serve(first)
        #expect(answers.withLock { $0.sent } == first.map(\.id))

        // Requests in flight when the disk fails.
        #expect(try await worker.on { $0.reserve() && $0.reserve() })
        let disk = try RefusingDisk(of: worker.segment(0))
        let second = hops.plain(2)
        try await worker.on { writer in
            for hop in second {
                #expect(writer.append(hop))
                answers.withLock { $0.waiting.append(hop.id) }
            }
        }
        try await worker.turn()
        #expect(answers.withLock { $0.sent } == first.map(\.id))
        #expect(try await worker.on { !$0.isWritten && !$0.reserve() })
        #expect(worker.progress.failures > 0 && worker.progress.lost == 0)
        // It goes on trying without being asked.
        let failures = worker.progress.failures
        try await eventually("the write is tried again") { worker.progress.failures > failures }
        #expect(answers.withLock { $0.sent } == first.map(\.id))

        disk.mend()
        try await eventually("the answers went") { answers.withLock { $0.sent } == (first + second).map(\.id) }
        #expect(try await worker.on { $0.isWritten && $0.reserve() })
        #expect(try await worker.contents().ids == (first + second).map(\.id))
        try await worker.close()
    }

    @Test func whatIsTooMuchToKeepWhileTheDiskRefusesIsCountedAsLost() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root) { $0.segmentBytes = 1 << 20 }
        #expect(try await worker.on { writer in (0..<2_000).allSatisfy { _ in writer.reserve() } })
        let disk = try RefusingDisk(of: worker.segment(0))
        var hops = Hops()
        let records = hops.plain(2_000)
        let kept = try await worker.append(records, reserved: true)
        #expect(kept > 100 && kept < 2_000)
        #expect(worker.progress.lost == Int64(2_000 - kept))
        disk.mend()
        try await eventually("what was kept is written") { try await worker.contents().ids.count == kept }
        #expect(try await worker.contents().ids == records.prefix(kept).map(\.id))
        try await worker.close()
    }

    /// A settlement that is not taken is neither lost nor counted, and its place stays: it is said again.
    @Test func aSettlementThatADiskRefusesForTooLongIsSaidAgain() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root) { $0.segmentBytes = 1 << 20 }
        let settlement = FlowSettlement(
            id: ReservationID(UUIDBits(high: 1, low: 1)), hop: RequestID(UUIDBits(high: 2, low: 2)),
            row: QuotaRow(environmentID: 1, serviceID: 1), period: 1, action: .commit(units: 3))
        #expect(try await worker.on { $0.reserve() })
        let disk = try RefusingDisk(of: worker.segment(0))
        // What is kept until the disk is mended has an end.
        let kept = try await worker.on { writer in
            var kept = 0
            while kept < 10_000, writer.append(settlement, reserved: true) { kept += writer.reserve() ? 1 : 0 }
            return kept
        }
        #expect(kept < 10_000)
        let again = try await worker.on { !$0.append(settlement, reserved: true) && !$0.append(settlement, reserved: false) }
        #expect(again && worker.progress.lost == 0)
        disk.mend()
        try await eventually("the disk is mended") { try await worker.on { $0.isWritten } }
        #expect(try await worker.on { $0.append(settlement, reserved: true) })
        try await eventually("it is written") { try await worker.on { $0.isWritten } }
        #expect(worker.progress.lost == 0)
        try await worker.close()
    }

    @Test func refusalsThatFindNoPlaceAreAllCounted() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root) { $0.refusals = RefusalRows(perSecond: 1) }
        var hops = Hops()
        try await worker.append(hops.plain(1))
        let disk = try RefusingDisk(of: worker.segment(0))
        // One record that is refused, so that the disk is known to refuse.
        try await worker.append(hops.plain(1))
        // These find no place, alone or together.
        try await worker.append((0..<300).map { _ in hops.refused(from: 7) })
        try await eventually("the refusals are counted") { worker.progress.lost == 300 }
        disk.mend()
        try await eventually("the record is written") { try await worker.contents().ids.count == 2 }
        try await worker.close()
    }

    @Test func aSegmentThatCannotBeBegunLosesNothing() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        var hops = Hops()
        // Names of space ahead are taken by folders, which no file can be made over.
        let folder = "\(root.path)/\(worker.id)"
        for number in 0..<3 {
            try FileManager.default.createDirectory(atPath: "\(folder)/ahead-\(number)", withIntermediateDirectories: true)
        }
        var records: [HopRecord] = []
        // Until there is no place any more.
        while true {
            let hop = hops.plain()
            guard try await worker.append([hop]) == 1 else { break }
            records.append(hop)
        }
        #expect(worker.progress.lost == 1 && worker.progress.failures > 0)
        #expect(worker.progress.writtenTo > 57 << 10)
        #expect(try await !worker.on { $0.reserve() })
        for number in 0..<3 { try FileManager.default.removeItem(atPath: "\(folder)/ahead-\(number)") }
        try await eventually("there is place again") {
            try await worker.on { writer in
                defer { writer.cancelReservation() }
                return writer.reserve()
            }
        }
        let more = hops.plain(300)
        #expect(try await worker.append(more) == 300)
        #expect(try await worker.contents().ids == (records + more).map(\.id))
        try await worker.close()
    }

    @Test func spaceAheadThatWasTakenAwayIsMadeAnew() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        #expect(try await worker.on { writer in (0..<300).allSatisfy { _ in writer.reserve() } })
        for name in root.names(worker.id) where name.hasPrefix("ahead") {
            try FileManager.default.removeItem(atPath: "\(root.path)/\(worker.id)/\(name)")
        }
        var hops = Hops()
        let records = hops.plain(300, path: String(repeating: "x", count: 1_000))
        #expect(try await worker.append(records, reserved: true) <= 300)
        // What met a border while another segment could not be begun may be lost, but only that, and it is counted.
        try await eventually("the rest is written") { try await worker.on { $0.isWritten } }
        #expect(try await worker.contents().ids.count + Int(worker.progress.lost) == 300)
        let more = hops.plain(100)
        #expect(try await worker.append(more) == 100)
        #expect(try await worker.contents().ids.suffix(100) == more.map(\.id)[...])
        try await worker.close()
    }

    @Test func aSpoolWithoutRoomIsNotOpened() async throws {
        let root = TemporaryFolder()
        await #expect(throws: FileError.self) { _ = try await SpoolWorker(root) { $0.segmentBytes = 1 << 60 } }
        await #expect(throws: FileError.self) { _ = try await SpoolWorker(root) { $0.root = "/proc/nothing" } }
    }

    @Test func withSyncAlwaysTheDiskHasItFirst() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root) { $0.sync = .always }
        var hops = Hops()
        let records = hops.plain(500)
        try await worker.append(records)
        #expect(try await worker.on { $0.isWritten })
        #expect(try await worker.contents().ids == records.map(\.id))
        try await worker.close()
    }

    /// /dev/null takes every byte and cannot sync.
    @Test(arguments: [Gateway.SpoolSettings.Sync.none, .always]) func answersWaitForASyncThatFails(
        _ sync: Gateway.SpoolSettings.Sync
    ) async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root) { $0.sync = sync }
        var hops = Hops()
        let records = hops.plain(3)
        try await worker.append([records[0]])
        #expect(try await worker.on { $0.isWritten })
        let disk = try RefusingDisk(of: worker.segment(0), device: "/dev/null")
        try await worker.append([records[1]])
        let waits = sync == .always
        #expect(try await worker.on { $0.isWritten } == !waits)
        #expect((worker.progress.failures > 0) == waits)
        disk.mend()
        guard waits else { return try await worker.close() }
        // The kernel may have dropped what it could not write: all of it is written again.
        try await eventually("it is on the disk") { try await worker.on { $0.isWritten } }
        try await worker.append([records[2]])
        #expect(try await worker.contents().ids == records.map(\.id))
        try await worker.close()
    }

    @Test func withSyncIntervalTheDiskIsAskedForItByAndBy() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root) { $0.sync = .interval }
        var hops = Hops()
        try await worker.append(hops.plain(1))
        let segment = worker.segment(0)
        try FileManager.default.moveItem(atPath: segment, toPath: segment + ".aside")
        try FileManager.default.createSymbolicLink(atPath: segment, withDestinationPath: "/dev/null")
        try await eventually("it was asked, and could not") { worker.progress.failures > 0 }
        #expect(try await worker.on { $0.isWritten && $0.reserve() })
        try await worker.close()
    }

    @Test func aDeathAtAnyMomentKeepsWhatWasAnswered() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let answered = Locked<[RequestID]>([])
        let waiting = Locked<[RequestID]>([])
        // Turns that are still to come while the copy is made.
        let turns = Locked(0)
        let hops = Locked(Hops())
        try await worker.onFlush { writer in
            answered.withLock { answered in
                answered += waiting.withLock { $0 }
                waiting.withLock { $0 = [] }
            }
            guard turns.withLock({ $0 > 0 }) else { return }
            turns.withLock { $0 -= 1 }
            // Of the next turn, which comes at once.
            for hop in hops.withLock({ $0.plain(10) }) where writer.append(hop, reserved: false) {
                waiting.withLock { $0.append(hop.id) }
            }
        }
        for round in 1...10 {
            turns.withLock { $0 = 100 }
            try await worker.turn()
            let before = answered.withLock { Set($0) }
            let copy = try root.copy()
            let found = try SpoolContents(adopting: "\(copy.path)/\(worker.id)")
            #expect(before.isSubset(of: found.ids) && found.damaged == 0)
            #expect(Set(found.ids).count == found.ids.count)
            try await eventually("the turns are over") { answered.withLock { $0.count } == round * 1_000 }
        }
        await worker.end()
    }
}
