public import GatewayCore
internal import Glibc
public import NIOCore
public import Reactor

/// How a spool keeps its frames.
public struct SpoolSettings: Sendable {
    /// What the death of the host may cost; the death of the process costs nothing in any case.
    public enum Sync: String, Sendable, CaseIterable {
        /// What the kernel had not written yet.
        case none
        /// At most the last second.
        case interval
        /// Nothing: a turn's answers wait for the disk.
        case always
    }

    /// Directory that holds the spools of the node.
    public var root: String
    /// The node's label.
    public var node: String
    public var sync = Sync.interval
    /// Bytes that may wait to be shipped.
    public var bound: Int64 = 1 << 30
    public var segmentBytes: Int64 = 16 << 20
    /// Refusals that are logged one by one; shared by the workers of a node.
    public var refusals = RefusalRows(perSecond: Limits.refusalRowsPerSecond)

    public init(root: String, node: String) {
        self.root = root
        self.node = node
    }
}

/// A worker's spool, for the shipper.
public struct SpoolHandle: Sendable {
    let directory: SpoolDirectory
    let progress: SpoolProgress
}

/// A worker's write-ahead log of hops. Confined to its reactor.
///
/// What a turn appends goes out in one write in the turn's persist phase, before the flush phase lets the answers go; so no
/// answered request can be missing after the death of the process. Every process writes spools of its own; what an earlier
/// one left is the shipper's.
public final class SpoolWriter: TurnHook {
    public let progress: SpoolProgress
    public var id: UUIDBits { progress.id }
    /// What `Shipper.attach` takes.
    public var handle: SpoolHandle { SpoolHandle(directory: directory, progress: progress) }

    private let settings: SpoolSettings
    private let directory: SpoolDirectory
    private let reactor: Reactor
    private var compressor: RefusalCompressor
    private let syncer: SpoolSyncer?

    private let buffer: UnsafeMutableRawBufferPointer
    /// Bytes and frames in the buffer, not written yet.
    private var buffered = 0
    private var bufferedFrames: Int64 = 0
    /// Offset in the spool of the beginning of the buffer.
    private var position: Int64 = 0
    private var segment: FileDescriptor
    private var segmentStart: Int64 = 0
    /// The buffer is to begin the next segment.
    private var beginsSegment = false
    private var ahead: [FileDescriptor] = []
    private var aheadCount = 0
    private var reserved = 0
    /// When what the disk refused is tried again: a write, and space ahead.
    private var retryAt: NIODeadline?
    private var allocateAt: NIODeadline?

    static let bufferBytes = 256 << 10
    static let retryInterval = TimeAmount.milliseconds(100)

    /// Makes a new spool and hooks it into the reactor's turns. Throws `FileError`.
    public init(_ settings: SpoolSettings, on reactor: Reactor) throws {
        precondition(settings.segmentBytes >= 2 * Int64(Frame.maximumLength))
        var random = SystemRandomNumberGenerator()
        directory = try SpoolDirectory(creating: .random(&random), node: settings.node, in: settings.root)
        progress = SpoolProgress(id: directory.id, path: directory.path, node: directory.node)
        segment = try FileDescriptor(directory.segmentPath(0), flags: O_RDWR | O_CREAT | O_EXCL)
        try segment.allocate(settings.segmentBytes)
        if settings.sync == .always { try Directory.sync(directory.path) }
        self.settings = settings
        self.reactor = reactor
        compressor = RefusalCompressor(settings.refusals)
        buffer = .allocate(byteCount: Self.bufferBytes, alignment: 16)
        syncer = settings.sync == .interval ? SpoolSyncer(directory.path, progress) : nil
        syncer?.watch(segment.path)
        reactor.addTurnHook(.persist, self)
    }

    deinit {
        syncer?.stop()
        buffer.deallocate()
    }

    // MARK: - Place

    /// Keeps place for the record of a request, before it is forwarded. False: the log is full, the route's outage rule applies.
    public func reserve() -> Bool {
        guard hasPlace(for: reserved + 1) else { return false }
        reserved += 1
        return true
    }

    /// Instead of `append`.
    public func cancelReservation() { reserved = max(reserved - 1, 0) }

    private func hasPlace(for records: Int) -> Bool {
        let wanted = Int64(records) * Int64(Frame.maximumLength)
        let used = position + Int64(buffered)
        guard retryAt == nil, used - progress.shippedTo + wanted <= settings.bound else { return false }
        while wanted > allocated(used) {
            guard allocateAhead() else { return false }
        }
        return true
    }

    /// Bytes allocated for frames to come; every segment may waste the length of a frame at its end.
    private func allocated(_ used: Int64) -> Int64 {
        let waste = Int64(Frame.maximumLength)
        let left = beginsSegment ? -Int64(buffered) : max(segmentStart + settings.segmentBytes - used - waste, 0)
        return left + Int64(ahead.count) * (settings.segmentBytes - waste)
    }

    private func allocateAhead() -> Bool {
        // A disk without room is not asked by every request.
        if let allocateAt, reactor.turnNow < allocateAt { return false }
        do throws(FileError) {
            ahead.append(try allocate())
            allocateAt = nil
            return true
        } catch {
            progress.failedToWrite()
            allocateAt = reactor.turnNow + Self.retryInterval
            return false
        }
    }

    private func allocate() throws(FileError) -> FileDescriptor {
        let file = try FileDescriptor(directory.aheadPath(aheadCount), flags: O_RDWR | O_CREAT | O_TRUNC)
        aheadCount += 1
        do throws(FileError) {
            try file.allocate(settings.segmentBytes)
        } catch {
            Directory.remove(file.path)
            throw error
        }
        return file
    }

    // MARK: - Records

    /// Takes a record; it is on its way to the disk before the flush phase of this turn.
    ///
    /// A refused request (`refusal` set, nothing forwarded) may be counted in a row with others instead: see
    /// ``RefusalCompressor``.
    ///
    /// - Parameter reserved: whether `reserve` kept place for it. Without, it may find none.
    /// - Returns: false where the record was lost and counted: it found no place, or the disk refuses writes for so long that
    ///   no more can be kept. The answer of a request that was forwarded must not be completed then.
    @discardableResult
    public func append(_ record: HopRecord, reserved isReserved: Bool = true) -> Bool {
        if let reason = record.refusal, record.attempts == 0, record.units == 0 {
            flushGroups(all: false)
            switch compressor.judge(record, reason: reason, now: now) {
            case .log: break
            case .opened, .counted:
                if isReserved { cancelReservation() }
                return true
            }
        }
        if isReserved {
            cancelReservation()
        } else if !hasPlace(for: reserved + 1) {
            progress.lostRecords(1)
            return false
        }
        return write(record)
    }

    /// Takes the settlement of a flow that could not reach the database; it is on its way to the disk before the flush
    /// phase of this turn.
    ///
    /// - Parameter reserved: whether `reserve` kept place for it.
    /// - Returns: false where it was not taken: there is no place, or the disk refuses writes for so long that no more can be
    ///   kept. Then nothing was counted and a reserved place is still kept: it is to be said again.
    public func append(_ settlement: FlowSettlement, reserved isReserved: Bool) -> Bool {
        guard isReserved || hasPlace(for: reserved + 1) else { return false }
        guard write(orLose: 0, { settlement.encode(into: $0, at: $1) }) else { return false }
        if isReserved { cancelReservation() }
        return true
    }

    /// Whether every record taken so far is with the kernel; with `sync: always`, on the disk.
    ///
    /// To be asked in the flush phase before answers go. While it is false, the answers of all records taken since it was last
    /// true wait: the disk refused the write, which is repeated in the persist phase of turns that come by themselves, and
    /// the flush phase of the turn that succeeds finds this true.
    public var isWritten: Bool { buffered == 0 }

    private var now: Int64 { Int64(reactor.turnNow.uptimeNanoseconds / 1_000) }

    private func flushGroups(all: Bool) {
        for record in compressor.takeDue(now: now, all: all) {
            if hasPlace(for: reserved + 1) { write(record) } else { progress.lostRecords(Int64(record.repeats)) }
        }
    }

    @discardableResult
    private func write(_ record: HopRecord) -> Bool {
        write(orLose: Int64(record.repeats)) { record.encode(into: $0, at: $1) }
    }

    /// - Parameter count: of records that are lost where it is.
    private func write(orLose count: Int64, _ encode: (UnsafeMutableRawBufferPointer, Int64) -> Int) -> Bool {
        if buffered + Frame.maximumLength > buffer.count { flush() }
        guard buffered + Frame.maximumLength <= buffer.count else {
            // The disk refuses writes and the buffer is full of what it refused.
            progress.lostRecords(count)
            return false
        }
        let offset = position + Int64(buffered)
        let room = UnsafeMutableRawBufferPointer(rebasing: buffer[buffered...])
        let length = encode(room, offset)
        let end = (beginsSegment ? position : segmentStart) + settings.segmentBytes
        if offset + Int64(length) > end {
            flush()
            guard buffered == 0 else {
                progress.lostRecords(count)
                return false
            }
            beginsSegment = true
            // The frame carries its offset, which is the same in the new segment; its place in the buffer is not.
            _ = encode(buffer, position)
        }
        buffered += length
        bufferedFrames += 1
        reactor.requestTurn()
        return true
    }

    // MARK: - Disk

    public func endOfTurn() {
        flushGroups(all: false)
        if retryAt.map({ reactor.turnNow >= $0 }) ?? true { flush() }
        let left = segmentStart + settings.segmentBytes - position
        if ahead.isEmpty, left < settings.segmentBytes / 4 { _ = allocateAhead() }
    }

    public var nextDeadline: NIODeadline? {
        let due = compressor.due.map { NIODeadline.uptimeNanoseconds(UInt64($0) * 1_000) }
        guard let retryAt else { return due }
        return due.map { min($0, retryAt) } ?? retryAt
    }

    private func flush() {
        guard buffered > 0 else { return }
        let bytes = UnsafeRawBufferPointer(rebasing: buffer[..<buffered])
        do throws(FileError) {
            if beginsSegment { try openSegment() }
            try segment.write(bytes, at: position - segmentStart)
            if settings.sync == .always { try segment.syncData() }
            position += Int64(buffered)
            progress.wrote(to: position, frames: bufferedFrames)
            (buffered, bufferedFrames, retryAt) = (0, 0, nil)
        } catch {
            // Kept and written again; until then nothing new is admitted.
            progress.failedToWrite()
            retryAt = reactor.turnNow + Self.retryInterval
        }
    }

    private func openSegment() throws(FileError) {
        let file = ahead.isEmpty ? try allocate() : ahead.removeFirst()
        do throws(FileError) {
            // What was allocated and not used goes back; a segment ends where its last frame does.
            try segment.truncate(to: position - segmentStart)
            try Directory.rename(file.path, directory.segmentPath(position))
            if settings.sync == .always { try Directory.sync(directory.path) }
        } catch {
            Directory.remove(file.path)
            throw error
        }
        (segment, segmentStart, beginsSegment) = (file, position, false)
        syncer?.watch(directory.segmentPath(position))
    }

    /// The orderly end: what is pending is written, and the spool can be adopted. What the disk refuses even now is lost and
    /// counted.
    public func close() {
        flushGroups(all: true)
        flush()
        if buffered > 0 { progress.lostRecords(bufferedFrames) }
        reactor.removeTurnHook(self)
        try? segment.truncate(to: position - segmentStart)
        try? segment.syncData()
        syncer?.stop()
        for file in ahead { Directory.remove(file.path) }
        ahead.removeAll()
    }
}
