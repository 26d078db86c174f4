internal import NIOCore

/// Takes a chunked body apart (RFC 9112, 7.1): of the answer to an upgrade that was declined, which no libcurl decodes. Strict:
/// what two parsers could read in two ways is refused.
struct ChunkParser {
    enum Step {
        case data(ByteBuffer)
        /// All of the bytes are taken.
        case more
        /// The last chunk and its trailers, which are dropped, are complete.
        case end
        case refused
    }

    private enum Place { case size, data(Int), afterData, trailers }

    /// Bytes of the line with a chunk's size and extensions, and of all trailers.
    let lineMax: Int

    private var place = Place.size
    private var line: [UInt8] = []
    private var trailerBytes = 0

    init(lineMax: Int) { self.lineMax = lineMax }

    mutating func take(_ bytes: inout ByteBuffer) -> Step {
        while bytes.readableBytes > 0 {
            if case .data(let left) = place {
                let data = bytes.readSlice(length: min(left, bytes.readableBytes))!
                place = data.readableBytes == left ? .afterData : .data(left - data.readableBytes)
                return .data(data)
            }
            guard let isWhole = takeLine(&bytes) else { return .refused }
            guard isWhole else { return .more }
            defer { line.removeAll(keepingCapacity: true) }
            switch place {
            case .size:
                guard let size = ChunkParser.size(line) else { return .refused }
                place = size == 0 ? .trailers : .data(size)
            case .afterData:
                guard line.isEmpty else { return .refused }
                place = .size
            case .trailers: if line.isEmpty { return .end }
            case .data: break
            }
        }
        return .more
    }

    /// Whether the line, without its CR LF, is whole; nil where it is none.
    private mutating func takeLine(_ bytes: inout ByteBuffer) -> Bool? {
        let view = bytes.readableBytesView
        let end = view.firstIndex(of: UInt8(ascii: "\n"))
        line += view[..<(end ?? view.endIndex)]
        if case .trailers = place { trailerBytes += end.map { $0 - view.startIndex + 1 } ?? view.count }
        bytes.moveReaderIndex(to: end.map { $0 + 1 } ?? view.endIndex)
        guard max(line.count, trailerBytes) <= lineMax else { return nil }
        guard end != nil else { return false }
        return line.popLast() == UInt8(ascii: "\r") ? true : nil
    }

    /// Hexadecimal digits, then nothing or extensions.
    private static func size(_ line: [UInt8]) -> Int? {
        let digits = line.prefix { $0 != UInt8(ascii: ";") }
        guard !digits.isEmpty, digits.count <= 15 else { return nil }
        var size = 0
        for digit in digits {
            switch digit {
            case UInt8(ascii: "0")...UInt8(ascii: "9"): size = size << 4 | Int(digit - UInt8(ascii: "0"))
            case UInt8(ascii: "a")...UInt8(ascii: "f"), UInt8(ascii: "A")...UInt8(ascii: "F"):
                size = size << 4 | Int((digit | 0x20) - UInt8(ascii: "a") + 10)
            default: return nil
            }
        }
        return size
    }
}
