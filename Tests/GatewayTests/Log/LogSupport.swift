import Foundation
import NIOCore
import QuotaModel
import Reactor
import TestKit

@testable import Gateway
@testable import GatewayCore

/// A folder for one test, removed with it.
final class TemporaryFolder: Sendable {
    let path: String

    init() {
        let parent = URL(fileURLWithPath: NSTemporaryDirectory()).resolvingSymlinksInPath()
        path = parent.appendingPathComponent("pandora-test-" + UUID().uuidString.lowercased()).path
        try! FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    /// A copy of what lies here at this moment, as a disk has it whose host died; files that go meanwhile are left out.
    func copy(of spool: UUIDBits? = nil) throws -> TemporaryFolder {
        let other = TemporaryFolder()
        for folder in try FileManager.default.contentsOfDirectory(atPath: path) where spool.map({ "\($0)" == folder }) ?? true {
            let (from, to) = ("\(path)/\(folder)", "\(other.path)/\(folder)")
            try FileManager.default.createDirectory(atPath: to, withIntermediateDirectories: true)
            for name in try FileManager.default.contentsOfDirectory(atPath: from) {
                // FileManager's copying never ends where a file is cut meanwhile.
                guard let file = try? FileDescriptor("\(from)/\(name)", flags: O_RDONLY) else { continue }
                var bytes = [UInt8](repeating: 0, count: Int(file.size))
                let count = try bytes.withUnsafeMutableBytes { try file.read(into: $0, at: 0) }
                try Data(bytes[..<count]).write(to: URL(fileURLWithPath: "\(to)/\(name)"))
            }
        }
        return other
    }

    /// Names in a spool's folder.
    func names(_ spool: UUIDBits) -> [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: "\(path)/\(spool)")) ?? []).sorted()
    }
}

/// A worker's spool alone, on a reactor of its own.
///
/// Sendable: the writer is used on the reactor only.
final class SpoolWorker: @unchecked Sendable {
    let reactor: Reactor
    let id: UUIDBits
    let handle: SpoolHandle
    private var writer: SpoolWriter?

    init(
        _ root: TemporaryFolder, node: String = "node", on given: Reactor? = nil,
        _ adjust: @Sendable (inout Gateway.SpoolSettings) -> Void = { _ in }
    ) async throws {
        let reactor = try given ?? Reactor.start(name: "spool")
        self.reactor = reactor
        var settings = Gateway.SpoolSettings(root: root.path, node: node)
        settings.sync = .none
        settings.segmentBytes = 64 << 10
        adjust(&settings)
        let made = Locked<SpoolWriter?>(nil)
        handle = try await reactor.submit { [settings] in
            let writer = try SpoolWriter(settings, on: reactor)
            made.withLock { $0 = writer }
            return writer.handle
        }.get()
        id = handle.progress.id
        writer = made.withLock { $0 }
    }

    var progress: SpoolProgress { handle.progress }

    func on<Value: Sendable>(_ body: @escaping @Sendable (SpoolWriter) throws -> Value) async throws -> Value {
        try await reactor.submit { [self] in try body(writer!) }.get()
    }

    /// Returns once the present turn is over, its flush phase too.
    func turn() async throws {
        for _ in 0..<2 { try await reactor.submit {}.get() }
    }

    /// Appends records within one turn and waits for its end.
    ///
    /// - Returns: how many were taken.
    @discardableResult
    func append(_ hops: [HopRecord], reserved: Bool = false) async throws -> Int {
        let taken = try await on { writer in hops.filter { writer.append($0, reserved: reserved) }.count }
        try await turn()
        return taken
    }

    /// Calls the body in the flush phase of every turn from now on.
    func onFlush(_ body: @escaping @Sendable (SpoolWriter) -> Void) async throws {
        try await reactor.submit { [self] in
            reactor.addTurnHook(.flush, FlushProbe { [unowned self] in body(writer!) })
        }.get()
    }

    func contents() async throws -> SpoolContents {
        try SpoolContents(SpoolReader(handle.directory), to: progress.writtenTo)
    }

    /// The orderly end.
    func close() async throws {
        try await on { $0.close() }
        await end()
    }

    /// The end of a process that was killed.
    func end() async {
        reactor.stop()
        try? await offTheCooperativePool { [reactor] in reactor.join() }
        writer = nil
    }
}

private final class FlushProbe: TurnHook {
    private let body: () -> Void
    init(_ body: @escaping () -> Void) { self.body = body }
    func endOfTurn() { body() }
    var nextDeadline: NIODeadline? { nil }
}

/// What lies in a spool, found as the shipper goes through it.
struct SpoolContents {
    var ids: [RequestID] = []
    var units: Int64 = 0
    /// Bytes of frames, and bytes passed over.
    var frameBytes: Int64 = 0
    var damaged: Int64 = 0

    init(_ reader: SpoolReader, from start: Int64 = 0, to end: Int64, bytesMax: Int = 10_000, framesMax: Int = .max) throws {
        var at = start
        while at < end {
            let piece = try reader.read(from: at, to: end, bytesMax: bytesMax, framesMax: framesMax)
            piece.bytes.withUnsafeBytes { bytes in
                for range in piece.frames {
                    guard let hop = HopFrame(UnsafeRawBufferPointer(rebasing: bytes[range])) else { continue }
                    ids.append(hop.id)
                    units += hop.units
                    frameBytes += Int64(range.count)
                }
            }
            damaged += piece.damaged
            if piece.end == at {
                reader.refresh()
                let next = reader.segments.first { $0 > at } ?? end
                damaged += next - at
                at = next
            } else {
                at = piece.end
            }
        }
    }

    /// Of a spool that nobody has open.
    init(adopting path: String) throws {
        let spool = try ShippedSpool(adopting: .free(path))
        try self.init(spool.reader, to: spool.end)
    }
}

extension SpoolDirectory {
    /// A spool that nobody has open. A process that another test starts just now holds every lock until it becomes a program
    /// of its own.
    static func free(_ path: String) throws -> SpoolDirectory {
        for _ in 0..<120_000 {
            if let directory = try SpoolDirectory(opening: path) { return directory }
            usleep(1_000)
        }
        throw NeverHappened(description: "never: \(path) is free")
    }
}

/// Puts a device in the place of a file that this process has open: to /dev/full the kernel refuses every write, as on a full
/// disk.
struct RefusingDisk {
    private let path: String
    private let descriptors: [CInt]

    init(of path: String, device: String = "/dev/full") throws {
        self.path = path
        descriptors = try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").compactMap { name in
            let target = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/fd/\(name)")
            return target == path ? CInt(name) : nil
        }
        guard !descriptors.isEmpty else { throw NeverHappened(description: "never: \(path) is open") }
        replace(by: device)
    }

    func mend() { replace(by: path) }

    private func replace(by other: String) {
        let file = open(other, O_RDWR | O_CLOEXEC)
        precondition(file >= 0)
        for descriptor in descriptors { precondition(dup2(file, descriptor) == descriptor) }
        close(file)
    }
}

extension SpoolWorker {
    /// Where the segment lies that begins at an offset.
    func segment(_ start: Int64) -> String { handle.directory.segmentPath(start) }
}

/// Records to log, all different.
struct Hops {
    private var ids = RequestIDs()
    private var random: SeededRandom

    init(seed: UInt64 = 1) { random = SeededRandom(seed: seed) }

    /// A request that passed.
    mutating func plain(path: String = "/orders", units: Int64 = 0) -> HopRecord {
        var hop = HopRecord(id: ids.next(), requestTime: WallClock.microseconds, executionStatus: .success)
        hop.statusCode = 200
        hop.attempts = 1
        hop.environmentID = 1
        hop.serviceID = 1
        hop.units = units
        hop.setMethod("GET")
        hop.setPath(path)
        return hop
    }

    mutating func plain(_ count: Int, path: String = "/orders", units: Int64 = 0) -> [HopRecord] {
        (0..<count).map { _ in plain(path: path, units: units) }
    }

    /// A request that was refused for its key.
    mutating func refused(from address: UInt32, _ reason: Refusal = .keyInvalid) -> HopRecord {
        var hop = HopRecord(id: ids.next(), requestTime: WallClock.microseconds, executionStatus: ExecutionStatus(reason))
        hop.refusal = reason
        hop.statusCode = 401
        hop.remoteAddress = RemoteAddress(ipv4: address)
        return hop
    }

    /// Every field as it comes, texts as a hostile client sends them.
    mutating func any() -> HopRecord {
        var hop = HopRecord(
            id: random.chance(3) ? RequestID(uuid()) : ids.next(), requestTime: random.pick(0...4_000_000_000_000_000),
            executionStatus: ExecutionStatus.allCases[Int(random.pick(0...5))])
        hop.startPoint = maybe { RequestID($0.uuid()) }
        hop.refusal = maybe { Refusal.allCases[Int($0.random.next() % UInt64(Refusal.allCases.count))] }
        hop.statusCode = maybe { UInt16($0.random.pick(100...599)) }
        hop.environmentID = maybe { $0.random.pick(1...Int64.max) }
        hop.serviceID = maybe { $0.random.pick(1...Int64.max) }
        hop.keyID = maybe { KeyID($0.uuid()) }
        hop.reservationID = maybe { ReservationID($0.uuid()) }
        hop.units = random.pick(0...1_000_000_000_000)
        hop.period = random.pick(0...3)
        hop.outage = random.chance(2)
        hop.attempts = UInt16(random.pick(0...32_767))
        hop.repeats = UInt32(random.pick(1...2_147_483_647))
        hop.duration = maybe { $0.random.pick(0...Int64.max - 1) }
        hop.firstByte = maybe { $0.random.pick(0...Int64.max - 1) }
        hop.bytesIn = maybe { $0.random.pick(0...Int64.max - 1) }
        hop.bytesOut = maybe { $0.random.pick(0...Int64.max - 1) }
        hop.remoteAddress = maybe { hops in
            let address = RemoteAddress(ipv6High: hops.random.next(), low: hops.random.next())
            let four = RemoteAddress(ipv4: UInt32(truncatingIfNeeded: hops.random.next()))
            let one = hops.random.chance(2) ? address : four
            return hops.random.chance(2) ? one.network : one
        }
        hop.traceID = maybe { $0.uuid() }
        if random.chance(2) { hop.setRoute(text()) }
        if random.chance(2) { hop.setTarget(text()) }
        if random.chance(2) { hop.setMethod(text()) }
        if random.chance(2) { hop.setHost(text()) }
        if random.chance(2) { hop.setPath(text()) }
        return hop
    }

    private mutating func uuid() -> UUIDBits { UUIDBits(high: random.next() >> 1, low: random.next()) }

    private mutating func maybe<Value>(_ make: (inout Hops) -> Value) -> Value? { random.chance(4) ? nil : make(&self) }

    private mutating func text() -> String {
        let pieces = ["a", "/", "\u{0}", "é", "€", "😀", "\n", "\t", "\\", "\"", "|", "'", "%00", "\\N", "\u{7f}", "x"]
        let count = random.chance(10) ? 3_000 : Int(random.pick(0...30))
        return (0..<count).map { _ in pieces[Int(random.next() % UInt64(pieces.count))] }.joined()
    }
}
