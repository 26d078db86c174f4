internal import GatewayCore
internal import Glibc

/// Reads the frames of a spool from any offset that a frame begins at. Not for two threads at once.
final class SpoolReader {
    /// Whole frames that lie one after the other.
    struct Piece {
        var bytes: [UInt8] = []
        /// Each frame in `bytes`.
        var frames: [Range<Int>] = []
        /// Offset in the spool of the first byte, and after the last frame or the damage behind it.
        var start: Int64 = 0
        var end: Int64 = 0
        /// Bytes at the end of the piece that are no frames and were passed over.
        var damaged: Int64 = 0
    }

    private let directory: SpoolDirectory
    private var starts: [Int64] = []
    private var open: (start: Int64, file: FileDescriptor)?

    init(_ directory: SpoolDirectory) throws(FileError) {
        self.directory = directory
        starts = try directory.segmentStarts()
    }

    /// Where the oldest segment begins; nil where there is none.
    var earliest: Int64? { starts.first }

    /// Finds the end of the last segment, which a torn write may have left ragged, and cuts off what is no frame.
    ///
    /// A process that dies in mid-write leaves the beginning of one frame, and nothing behind it. If more lies there it is
    /// damage: it stays, to be passed over and counted like damage anywhere else.
    ///
    /// - Returns: the offset after the last thing that was written.
    func recover() throws(FileError) -> Int64 {
        guard let start = starts.last else { return 0 }
        var end = start
        while true {
            let piece = try read(from: end, to: .max, bytesMax: 1 << 20, framesMax: .max)
            guard piece.end > end else { break }
            end = piece.end
        }
        let file = try FileDescriptor(directory.segmentPath(start), flags: O_RDWR)
        let rest = try Self.bytes(of: file, at: end - start, count: Int(max(file.size - (end - start), 0)))
        let used = (rest.lastIndex { $0 != 0 } ?? -1) + 1
        if used > Frame.maximumLength { end += Int64(used) }
        if file.size > end - start { try file.truncate(to: end - start) }
        return end
    }

    /// Frames from an offset on, at most up to the end of its segment.
    ///
    /// - Parameters:
    ///   - end: offset that is known to be written.
    ///   - bytesMax: no further frame begins after so many bytes.
    /// - Returns: an empty piece where there is nothing between the offsets, or what is there cannot be passed over.
    func read(from start: Int64, to end: Int64, bytesMax: Int, framesMax: Int) throws(FileError) -> Piece {
        var piece = Piece()
        (piece.start, piece.end) = (start, start)
        if starts.last.map({ $0 <= start }) ?? true { starts = try directory.segmentStarts() }
        guard start < end, let index = starts.lastIndex(where: { $0 <= start }) else { return piece }
        let segment = starts[index]
        // A later segment says where this one ends; the last one ends with what is written.
        let next = index + 1 < starts.count ? starts[index + 1] : nil
        let limit = min(end, next ?? end)
        if start == next { return piece }
        let file = try file(of: segment)
        let wanted = Int(min(limit - start, Int64(bytesMax + Frame.maximumLength)))
        piece.bytes = try Self.bytes(of: file, at: start - segment, count: wanted)
        let broken = take(framesMax: framesMax, bytesMax: bytesMax, into: &piece)
        if broken, let next, piece.frames.isEmpty {
            // Damage in a segment that is complete: what follows it there cannot be found again.
            piece.damaged = next - start
            piece.end = next
        }
        return piece
    }

    /// - Returns: whether the piece ended at bytes that are no frame.
    private func take(framesMax: Int, bytesMax: Int, into piece: inout Piece) -> Bool {
        var frames: [Range<Int>] = []
        var at = 0
        var broken = false
        piece.bytes.withUnsafeBytes { bytes in
            while at < min(bytes.count, bytesMax), frames.count < framesMax {
                let rest = UnsafeRawBufferPointer(rebasing: bytes[at...])
                guard case .frame(let length) = Frame.read(rest, at: piece.start + Int64(at)) else {
                    broken = true
                    return
                }
                frames.append(at..<(at + length))
                at += length
            }
        }
        piece.frames = frames
        piece.end = piece.start + Int64(at)
        return broken
    }

    private func file(of segment: Int64) throws(FileError) -> FileDescriptor {
        if let open, open.start == segment { return open.file }
        let file = try FileDescriptor(directory.segmentPath(segment), flags: O_RDONLY)
        open = (segment, file)
        return file
    }

    private static func bytes(of file: FileDescriptor, at offset: Int64, count: Int) throws(FileError) -> [UInt8] {
        // Of none the initializer would write to the storage that all empty arrays of the process share.
        guard count > 0 else { return [] }
        var failure: FileError?
        let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
            do throws(FileError) {
                initialized = try file.read(into: UnsafeMutableRawBufferPointer(buffer), at: offset)
            } catch {
                failure = error
            }
        }
        if let failure { throw failure }
        return bytes
    }

    /// Removes segments that end at or before an offset, the last one never.
    ///
    /// - Parameter removable: asked for each, oldest first, until it says no.
    func removeSegments(before offset: Int64, where removable: (_ start: Int64) -> Bool) {
        while starts.count > 1, starts[1] <= offset, removable(starts[0]) {
            Directory.remove(directory.segmentPath(starts[0]))
            if open?.start == starts[0] { open = nil }
            starts.removeFirst()
        }
    }

    /// Looks for new segments.
    func refresh() { starts = (try? directory.segmentStarts()) ?? starts }
    var segments: [Int64] { starts }
}
