import Foundation
import Reactor
import TestKit
import Testing

@testable import Gateway
@testable import GatewayCore

/// What a turn appends is written before its answers go, and there is place for it.
@Suite struct SpoolWriterTests {
    @Test func whatATurnAppendsIsInTheFileBeforeItsAnswersGo() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let taken = Locked(0)
        let seen = Locked<[(taken: Int, inFile: Int, isWritten: Bool)]>([])
        try await worker.onFlush { writer in
            let contents = try? SpoolContents(SpoolReader(writer.handle.directory), to: writer.progress.writtenTo)
            seen.withLock { $0.append((taken.withLock { $0 }, contents?.ids.count ?? -1, writer.isWritten)) }
        }
        var hops = Hops()
        // The last ones are more than the buffer and several segments hold.
        for count in [1, 2, 50, 3_000] {
            try await worker.on { [records = hops.plain(count)] writer in
                for record in records where writer.append(record, reserved: false) { taken.withLock { $0 += 1 } }
            }
        }
        try await worker.turn()
        #expect(taken.withLock { $0 } == 3_053)
        #expect(seen.withLock { $0 }.allSatisfy { $0.taken == $0.inFile && $0.isWritten })
        #expect(seen.withLock { $0 }.last?.inFile == 3_053)
        try await worker.close()
    }

    @Test func segmentsFollowEachOtherAndSpaceIsThereAhead() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        var hops = Hops()
        let records = hops.plain(2_000, path: String(repeating: "x", count: 500))
        for start in stride(from: 0, to: 2_000, by: 40) { try await worker.append(Array(records[start..<(start + 40)])) }
        let starts = try worker.handle.directory.segmentStarts()
        #expect(starts.count > 10)
        // A finished segment ends exactly where the next one begins; the last one has all its blocks.
        for (start, next) in zip(starts, starts.dropFirst()) { #expect(size(worker.segment(start)) == next - start) }
        let last = try #require(starts.last)
        #expect(size(worker.segment(last)) == 64 << 10)
        var status = stat()
        #expect(stat(worker.segment(last), &status) == 0 && status.st_blocks * 512 >= 64 << 10)
        let contents = try await worker.contents()
        #expect(contents.ids == records.map(\.id) && contents.damaged == 0)
        try await worker.close()
        #expect(size(worker.segment(last)) == worker.progress.writtenTo - last)
        #expect(!root.names(worker.id).contains { $0.hasPrefix("ahead") })
    }

    @Test func theNextSegmentIsAllocatedBeforeItIsNeeded() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        var hops = Hops()
        while worker.progress.writtenTo < 50 << 10 { try await worker.append(hops.plain(10)) }
        #expect(root.names(worker.id).contains { $0.hasPrefix("ahead") })
        try await worker.close()
    }

    @Test func placeIsRefusedAtTheBoundAndThereAgainAfterShipping() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root) { $0.bound = 10 * Int64(Frame.maximumLength) }
        let reserved = try await worker.on { writer in (0..<20).filter { _ in writer.reserve() }.count }
        #expect(reserved == 10)
        // A reservation that is given back is somebody else's.
        #expect(try await worker.on { writer in
            writer.cancelReservation()
            return writer.reserve() && !writer.reserve()
        })
        var hops = Hops()
        #expect(try await worker.append(hops.plain(10), reserved: true) == 10)
        // What they really took is less than was kept for them.
        let again = try await worker.on { writer in (0..<20).filter { _ in writer.reserve() }.count }
        #expect(again > 0 && again < 10)
        try await worker.append(hops.plain(again), reserved: true)
        while try await worker.append(hops.plain(1)) == 1 {}
        #expect(worker.progress.lost == 1)
        worker.progress.shipped(to: worker.progress.writtenTo, frames: 0)
        #expect(try await worker.on { $0.reserve() })
        try await worker.close()
    }

    @Test func placeForEveryRequestInFlightIsAllocated() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        #expect(try await worker.on { writer in (0..<200).allSatisfy { _ in writer.reserve() } })
        let segments = root.names(worker.id).filter { $0.hasPrefix("ahead") || $0.hasSuffix(".segment") }
        #expect(segments.count * (64 << 10) >= 200 * Frame.maximumLength)
        // The largest records there are fit into what was kept.
        var hops = Hops()
        let long = String(repeating: "x", count: 5_000)
        let records = hops.plain(200, path: long).map { hop in
            var hop = hop
            hop.setHost(long)
            hop.setRoute(long)
            hop.setTarget(long)
            return hop
        }
        #expect(try await worker.append(records, reserved: true) == 200)
        #expect(root.names(worker.id).filter { $0.hasPrefix("ahead") || $0.hasSuffix(".segment") } .count <= segments.count + 1)
        #expect(try await worker.contents().ids == records.map(\.id))
        try await worker.close()
    }

    @Test func aClosedSpoolCanBeTakenAndALivingOneCannot() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        var hops = Hops()
        let records = hops.plain(20)
        try await worker.append(records)
        let path = "\(root.path)/\(worker.id)"
        #expect(try SpoolDirectory(opening: path) == nil)
        // Nor by another process.
        #expect(try await locks(path) == false)
        try await worker.close()
        // This test still holds the lock by its handle.
        let copy = try root.copy()
        #expect(try SpoolContents(adopting: "\(copy.path)/\(worker.id)").ids == records.map(\.id))
        try await eventually("another process gets the lock") { try await locks("\(copy.path)/\(worker.id)") }
    }

    @Test func anotherProcesssLockIsRespected() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        try await worker.close()
        let copy = try root.copy()
        let path = "\(copy.path)/\(worker.id)"
        let holder = Process()
        holder.executableURL = URL(fileURLWithPath: "/usr/bin/flock")
        // In its own place, so that the end of the one process is the end of the lock.
        holder.arguments = ["-n", "-F", "\(path)/spool", "sh", "-c", "echo locked; exec sleep 600"]
        let output = Pipe()
        holder.standardOutput = output
        try holder.run()
        _ = try await offTheCooperativePool { output.fileHandleForReading.availableData }
        #expect(try SpoolDirectory(opening: path) == nil)
        // Not SIGTERM, which a child of this process may have inherited as blocked.
        kill(holder.processIdentifier, SIGKILL)
        try await offTheCooperativePool { holder.waitUntilExit() }
        try await eventually("the lock is free") { try SpoolDirectory(opening: path) != nil }
    }

    @Test func whatIsNoSpoolIsNotTaken() throws {
        let root = TemporaryFolder()
        let path = "\(root.path)/x"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        #expect(throws: FileError.self) { try SpoolDirectory(opening: path) }
        for text in ["", "pandora spool 2\n", "pandora spool 1\nnonsense\nnode\n", "pandora spool 1\n"] {
            try text.write(toFile: "\(path)/spool", atomically: true, encoding: .utf8)
            #expect(throws: FileError.self) { try SpoolDirectory(opening: path) }
        }
    }

    // MARK: - Refusals

    @Test func aFloodOfRefusalsIsCountedInFewRows() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let handle = worker.handle
        var hops = Hops()
        // A second of the clock may end between any two of them.
        for _ in 0..<5 {
            try await worker.append((0..<400).map { hops.refused(from: UInt32($0 % 4) << 8 | UInt32($0)) })
        }
        // What is counted together comes out when its second is over, without another request.
        try await eventually("all refusals are in the spool") { try repeats(handle) == 2_000 }
        let rows = try await worker.contents().ids.count
        #expect(rows >= 104 && rows <= 5 * (100 + 4))
        #expect(worker.progress.lost == 0)
        try await worker.close()
    }

    @Test func theEndOfTheSpoolLeavesNoRefusalUncounted() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root) { $0.refusals = RefusalRows(perSecond: 1) }
        var hops = Hops()
        try await worker.append((0..<100).map { _ in hops.refused(from: 1) })
        try await worker.close()
        #expect(try repeats(worker.handle) == 100)
    }

    @Test func aRequestThatWasForwardedIsNeverCompressed() async throws {
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root) { $0.refusals = RefusalRows(perSecond: 1) }
        var hops = Hops()
        let records = (0..<50).map { _ in
            var hop = hops.plain()
            hop.refusal = .upstreamTimeout
            return hop
        }
        try await worker.append(records)
        #expect(try await worker.contents().ids == records.map(\.id))
        try await worker.close()
    }

    // MARK: - Help

    private func size(_ path: String) -> Int64 {
        var status = stat()
        return stat(path, &status) == 0 ? Int64(status.st_size) : -1
    }

    /// Whether another process gets the lock of a spool.
    private func locks(_ path: String) async throws -> Bool {
        try await run("/usr/bin/flock", ["-n", "\(path)/spool", "true"]) == 0
    }

    private func run(_ command: String, _ arguments: [String]) async throws -> Int32 {
        try await offTheCooperativePool {
            let process = Process()
            process.executableURL = URL(fileURLWithPath: command)
            process.arguments = arguments
            try process.run()
            process.waitUntilExit()
            return process.terminationStatus
        }
    }

    /// How many requests the records stand for.
    private func repeats(_ handle: SpoolHandle) throws -> Int {
        let reader = try SpoolReader(handle.directory)
        var (at, sum) = (Int64(0), 0)
        while at < handle.progress.writtenTo {
            let piece = try reader.read(from: at, to: handle.progress.writtenTo, bytesMax: 1 << 20, framesMax: .max)
            guard piece.end > at else { break }
            piece.bytes.withUnsafeBytes { bytes in
                for range in piece.frames { sum += Int(HopFrame(UnsafeRawBufferPointer(rebasing: bytes[range]))!.repeats) }
            }
            at = piece.end
        }
        return sum
    }
}
