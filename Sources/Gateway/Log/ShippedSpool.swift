internal import GatewayCore
internal import GatewayStore
internal import Glibc
internal import NIOCore

/// What the shipper knows of one spool.
final class ShippedSpool {
    enum State: Equatable {
        /// The database was not asked yet, or does not know the spool any more.
        case closed
        case open(epoch: Int64)
        /// An earlier process's spool, all of it shipped; its leases are to be returned.
        case returning(epoch: Int64)
        /// Nothing is left to do. What an earlier process left is kept for a while yet, under this epoch.
        case finished(epoch: Int64)
        /// Nothing is left to be done by us.
        case abandoned
    }

    let id: UUIDBits
    let path: String
    let node: String
    let reader: SpoolReader
    let cutter: ShipmentCutter
    /// Of a worker of this process; nil for what an earlier one left.
    let progress: SpoolProgress?
    /// The lock of an adopted spool.
    private let directory: SpoolDirectory
    private let recoveredEnd: Int64

    var state = State.closed
    var mark: Int64 = 0
    /// The connection is a new one, and what was committed over an earlier one may be lost: the mark is to be read.
    var mustReread = false
    /// Operators know that all of it is shipped, and when it is removed is settled.
    var isAnnounced = false
    /// The batch at the mark was refused so often.
    var refusals = 0
    /// Frames of the next batch at most, while the one that is refused is being found.
    var framesMax: Int?
    var retryAt: NIODeadline?
    /// When its few frames have waited long enough for more.
    var dueAt: NIODeadline?
    /// Frames that were set aside of the piece at an offset, and the size of the file before that.
    private var aside: (start: Int64, frames: Int, sizeBefore: Int64?)?
    /// When segments were first seen shipped, by their beginning.
    private var shippedAt: [Int64: NIODeadline] = [:]

    /// A worker's spool.
    init(_ writer: SpoolDirectory, _ progress: SpoolProgress) throws(FileError) {
        (id, path, node) = (writer.id, writer.path, writer.node)
        (directory, self.progress, recoveredEnd) = (writer, progress, 0)
        reader = try SpoolReader(writer)
        cutter = ShipmentCutter(spool: id, node: node)
    }

    /// A spool that an earlier process left; its torn tail is cut off.
    init(adopting directory: SpoolDirectory) throws(FileError) {
        (id, path, node) = (directory.id, directory.path, directory.node)
        (self.directory, progress) = (directory, nil)
        reader = try SpoolReader(directory)
        recoveredEnd = try reader.recover()
        directory.removeSpaceAhead()
        cutter = ShipmentCutter(spool: id, node: node)
    }

    var end: Int64 { progress?.writtenTo ?? recoveredEnd }

    /// Keeps frames that nobody takes for people to look at: before their piece is shipped without them, since the answer to
    /// that may be lost, and the process may die over it.
    func setAside(_ frames: [Range<Int>], of piece: SpoolReader.Piece) {
        if aside?.start == piece.start { takeBack() }
        guard !frames.isEmpty else { return }
        let file = try? FileDescriptor(directory.rejectedPath, flags: O_RDWR | O_CREAT)
        aside = (piece.start, frames.count, file?.size)
        guard let file, var end = aside?.sizeBefore else { return }
        for range in frames where end < SpoolDirectory.rejectedMax {
            Array(piece.bytes[range]).withUnsafeBytes { try? file.write($0, at: end) }
            end += Int64(range.count)
        }
    }

    /// The piece was not shipped.
    func takeBack() {
        if let size = aside?.sizeBefore { try? FileDescriptor(directory.rejectedPath, flags: O_RDWR).truncate(to: size) }
        aside = nil
    }

    /// How many frames were set aside of what is shipped now; tells it once.
    func takeRejected() -> Int {
        guard let aside, aside.start < mark else { return 0 }
        self.aside = nil
        return aside.frames
    }

    /// The mark is where the database says.
    func move(to mark: Int64) {
        self.mark = mark
        progress?.shipped(to: mark, frames: 0)
        // Moved back: these are to be shipped, and then kept, once more.
        for (start, next) in zip(reader.segments, reader.segments.dropFirst()) where next > mark { shippedAt[start] = nil }
    }

    /// Removes what was shipped long enough ago, and sooner what exceeds the bound.
    func removeShipped(now: NIODeadline, keep: TimeAmount, bound: Int64) {
        reader.refresh()
        let segments = reader.segments
        for (start, next) in zip(segments, segments.dropFirst()) where next <= mark && shippedAt[start] == nil {
            shippedAt[start] = now
        }
        reader.removeSegments(before: mark) { start in
            let isOld = shippedAt[start].map { now - $0 >= keep } ?? false
            let isTooMuch = end - start > bound
            if isOld || isTooMuch { shippedAt[start] = nil }
            return isOld || isTooMuch
        }
    }

    /// Removes the spool of an earlier process.
    func removeAll() { directory.remove() }
}
