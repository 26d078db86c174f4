internal import Glibc
internal import NIOCore

/// The part of a request's body that libcurl has not taken yet.
struct OutgoingBody {
    private let framing: BodyFraming
    /// Nil until there is one: most requests have no body.
    private var pieces: CircularBuffer<ByteBuffer>?
    /// Bytes that wait here.
    private(set) var waiting = 0
    /// Bytes that libcurl has taken.
    private(set) var taken: Int64 = 0
    /// Nothing more will be added.
    private(set) var isFinished: Bool

    init(_ framing: BodyFraming) {
        self.framing = framing
        isFinished = framing == .none || framing == .length(0)
    }

    /// libcurl has everything.
    var isTaken: Bool { isFinished && waiting == 0 }

    /// False when there is more of it than was announced: on the wire the rest would be the next request.
    mutating func append(_ bytes: ByteBuffer) -> Bool {
        guard bytes.readableBytes > 0 else { return true }
        guard !isFinished else { return false }
        if case .length(let announced) = framing, taken + Int64(waiting + bytes.readableBytes) > announced { return false }
        pieces = pieces ?? CircularBuffer()
        pieces!.append(bytes)
        waiting += bytes.readableBytes
        // libcurl does not ask again after the last byte of an announced length.
        if case .length(let announced) = framing, taken + Int64(waiting) == announced { isFinished = true }
        return true
    }

    /// False when there was less of it than announced: the upstream would wait for the rest.
    mutating func finish() -> Bool {
        defer { isFinished = true }
        guard case .length(let announced) = framing else { return true }
        return taken + Int64(waiting) == announced
    }

    mutating func fill(_ buffer: UnsafeMutableRawBufferPointer) -> Int {
        var filled = 0
        while filled < buffer.count, let first = pieces?.first {
            let count = min(buffer.count - filled, first.readableBytes)
            first.withUnsafeReadableBytes {
                UnsafeMutableRawBufferPointer(rebasing: buffer[filled...]).copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[..<count]))
            }
            if first.readableBytes == count { pieces!.removeFirst() } else { pieces![pieces!.startIndex].moveReaderIndex(forwardBy: count) }
            filled += count
        }
        waiting -= filled
        taken += Int64(filled)
        return filled
    }

    mutating func discard() {
        pieces = nil
        waiting = 0
    }
}
