import Foundation
import QuotaModel
import TestKit
import Testing

@testable import Gateway
@testable import GatewayCore

/// Frames survive torn writes and damage, as far as that is possible, and what does not survive is counted.
@Suite struct SpoolReaderTests {
    /// A spool that was left in good order.
    private struct Left {
        let root: TemporaryFolder
        let path: String
        var ids: [RequestID]
        /// Where each frame begins, and where the last one ends.
        var borders: [Int64]
        var end: Int64 { borders.last! }
    }

    private func leave(_ count: Int, segmentBytes: Int64 = 64 << 10) async throws -> Left {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root) { $0.segmentBytes = segmentBytes }
        var hops = Hops()
        var borders: [Int64] = [0]
        let records = hops.plain(count)
        for record in records {
            let length = [UInt8](unsafeUninitializedCapacity: Frame.maximumLength) { buffer, count in
                count = record.encode(into: UnsafeMutableRawBufferPointer(buffer), at: 0)
            }.count
            borders.append(borders.last! + Int64(length))
        }
        try await worker.append(records)
        try await worker.close()
        #expect(worker.progress.writtenTo == borders.last)
        let copy = try root.copy()
        return Left(root: copy, path: "\(copy.path)/\(worker.id)", ids: records.map(\.id), borders: borders)
    }

    private func segments(_ left: Left) throws -> [(start: Int64, path: String)] {
        let directory = try SpoolDirectory.free(left.path)
        return try directory.segmentStarts().map { ($0, directory.segmentPath($0)) }
    }

    private func change(_ path: String, _ body: (inout [UInt8]) -> Void) throws {
        var bytes = Array(try Data(contentsOf: URL(fileURLWithPath: path)))
        body(&bytes)
        try Data(bytes).write(to: URL(fileURLWithPath: path))
    }

    @Test func aTornTailIsCutAtEveryByte() async throws {
        let left = try await leave(3)
        let segment = try #require(try segments(left).first)
        let whole = Array(try Data(contentsOf: URL(fileURLWithPath: segment.path)))
        for cut in Int(left.borders[2])..<Int(left.end) {
            // As a short file, and in space that was allocated ahead.
            for zeros in cut % 5 == 0 ? [0, 10_000] : [10_000] {
                try Data(whole[..<cut] + [UInt8](repeating: 0, count: zeros)).write(to: URL(fileURLWithPath: segment.path))
                let found = try SpoolContents(adopting: left.path)
                #expect(found.ids == Array(left.ids[..<2]) && found.damaged == 0, "cut at \(cut), \(zeros) zeros")
                #expect(try Data(contentsOf: URL(fileURLWithPath: segment.path)).count == Int(left.borders[2]))
            }
        }
        try Data(whole + [UInt8](repeating: 0, count: 10_000)).write(to: URL(fileURLWithPath: segment.path))
        #expect(try SpoolContents(adopting: left.path).ids == left.ids)
    }

    @Test func damageInAFinishedSegmentCostsTheRestOfIt() async throws {
        let left = try await leave(1_000)
        let all = try segments(left)
        #expect(all.count > 3)
        let victim = all[1]
        let bad = left.borders.firstIndex { $0 > victim.start + 20_000 }!
        try change(victim.path) { $0[Int(left.borders[bad] - victim.start) + 50] ^= 1 }
        let found = try SpoolContents(adopting: left.path)
        let next = left.borders.firstIndex(of: all[2].start)!
        #expect(found.ids == Array(left.ids[..<bad] + left.ids[next...]))
        #expect(found.damaged == left.borders[next] - left.borders[bad])
    }

    @Test func damageInTheLastSegmentIsNotTakenForATornTail() async throws {
        let left = try await leave(1_000)
        let last = try #require(try segments(left).last)
        let bad = left.borders.firstIndex { $0 >= last.start }! + 2
        try change(last.path) { $0[Int(left.borders[bad] - last.start) + 50] ^= 1 }
        for _ in 0..<2 {
            // The second time finds what the first one left.
            let found = try SpoolContents(adopting: left.path)
            #expect(found.ids == Array(left.ids[..<bad]))
            #expect(found.damaged == left.end - left.borders[bad])
        }
    }

    @Test func aMissingOrEmptySegmentIsPassedOver() async throws {
        let left = try await leave(1_500)
        let all = try segments(left)
        let borders = left.borders
        func index(_ start: Int64) -> Int { borders.firstIndex(of: start)! }
        try FileManager.default.removeItem(atPath: all[1].path)
        try change(all[3].path) { $0 = [] }
        let found = try SpoolContents(adopting: left.path)
        let kept = Array(0..<index(all[1].start)) + Array(index(all[2].start)..<index(all[3].start))
            + Array(index(all[4].start)..<left.ids.count)
        #expect(found.ids == kept.map { left.ids[$0] })
        #expect(found.damaged == all[2].start - all[1].start + all[4].start - all[3].start)
    }

    @Test func readingBeginsAtAnyFrameAndKeepsToItsBounds() async throws {
        let left = try await leave(700)
        let directory = try SpoolDirectory.free(left.path)
        let reader = try SpoolReader(directory)
        for (index, border) in left.borders.dropLast().enumerated() where index % 7 == 0 || index > 690 {
            let piece = try reader.read(from: border, to: left.end, bytesMax: 1 << 20, framesMax: 5)
            #expect((1...5).contains(piece.frames.count) && piece.start == border && piece.damaged == 0)
            #expect(piece.end == left.borders[index + piece.frames.count])
            let small = try reader.read(from: border, to: left.end, bytesMax: 1, framesMax: .max)
            #expect(small.frames.count == 1)
            #expect(try SpoolContents(reader, from: border, to: left.end).ids == Array(left.ids[index...]))
        }
        // Nothing is read that is not known to be written.
        #expect(try SpoolContents(reader, to: left.borders[10]).ids == Array(left.ids[..<10]))
        #expect(try reader.read(from: left.end, to: left.end, bytesMax: 100, framesMax: 1).frames.isEmpty)
    }

    @Test(arguments: 1...12 as ClosedRange<UInt64>)
    func randomDamageIsCountedToTheByte(_ seed: UInt64) async throws {
        var random = SeededRandom(seed: seed)
        let left = try await leave(Int(random.pick(1...600)), segmentBytes: 16 << 10)
        let all = try segments(left)
        for _ in 0..<random.pick(1...6) {
            let victim = all[Int(random.next() % UInt64(all.count))]
            try change(victim.path) { bytes in
                guard !bytes.isEmpty else { return }
                let at = Int(random.next() % UInt64(bytes.count))
                switch random.pick(0...3) {
                case 0: bytes[at] ^= 1 << UInt8(random.pick(0...7))
                case 1: bytes.removeSubrange(at...)
                case 2: for index in at..<min(at + 5_000, bytes.count) { bytes[index] = 0 }
                default: for index in at..<min(at + 300, bytes.count) { bytes[index] = UInt8(truncatingIfNeeded: random.next()) }
                }
            }
        }
        let spool = try ShippedSpool(adopting: .free(left.path))
        let end = spool.end
        let found = try SpoolContents(spool.reader, to: end)
        // Every frame is one that was written, in order and once; every byte is accounted for.
        let places = Dictionary(uniqueKeysWithValues: zip(left.ids, 0...))
        let order = try found.ids.map { try #require(places[$0]) }
        #expect(zip(order, order.dropFirst()).allSatisfy { $0 < $1 })
        #expect(found.frameBytes + found.damaged == end && end <= left.end)
    }

    @Test func theLockGoesWithTheSpoolThatWasAdopted() async throws {
        let left = try await leave(1)
        var spool: ShippedSpool? = try ShippedSpool(adopting: .free(left.path))
        #expect(spool?.end == left.end)
        #expect(try SpoolDirectory(opening: left.path) == nil)
        spool = nil
        _ = try SpoolDirectory.free(left.path)
    }
}

/// The worker and the shipper miss no word of each other.
@Suite struct SpoolProgressTests {
    @Test func nobodySleepsOverWhatIsWritten() async throws {
        let progress = SpoolProgress(id: .zero, path: "", node: "")
        let wakes = DispatchSemaphore(value: 0)
        progress.onWake { wakes.signal() }
        let last: Int64 = 20_000
        try await offTheCooperativePool {
            Thread.detachNewThread { for offset in 1...last { progress.wrote(to: offset, frames: 1) } }
            while progress.shippedTo < last {
                progress.shipped(to: progress.writtenTo, frames: 0)
                if progress.shippedTo < last, progress.await(.anything), wakes.wait(timeout: .now() + 60) == .timedOut {
                    throw NeverHappened(description: "never: woken at \(progress.shippedTo)")
                }
            }
        }
        #expect(progress.pendingBytes == 0 && progress.pendingFrames == 0)
    }

    @Test func aFullBatchWakesAndLessDoesNot() {
        let progress = SpoolProgress(id: .zero, path: "", node: "")
        let wakes = Locked(0)
        progress.onWake { wakes.withLock { $0 += 1 } }
        #expect(progress.await(.fullBatch))
        progress.wrote(to: SpoolProgress.batchBytes - 1, frames: 10)
        #expect(wakes.withLock { $0 } == 0)
        progress.wrote(to: SpoolProgress.batchBytes, frames: 1)
        progress.wrote(to: SpoolProgress.batchBytes + 1, frames: 1)
        #expect(wakes.withLock { $0 } == 1)
        #expect(!progress.await(.fullBatch) && !progress.await(.anything))
        progress.shipped(to: SpoolProgress.batchBytes + 1, frames: 12)
        #expect(progress.await(.anything) && progress.pendingFrames == 0)
    }

    @Test func framesThatNobodyCountedDoNotMakeBatchesFullForEver() {
        let progress = SpoolProgress(id: .zero, path: "", node: "")
        progress.wrote(to: 1_000, frames: SpoolProgress.batchFrames)
        // The answer to the batch was lost; its mark was read later.
        progress.shipped(to: 1_000, frames: 0)
        #expect(!progress.isBatchFull && progress.pendingFrames == 0)
        progress.wrote(to: 1_100, frames: 1)
        #expect(progress.pendingFrames == 1)
    }
}
