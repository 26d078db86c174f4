/// Text that PostgreSQL takes as it is: valid UTF-8 without NUL, no longer than its column is meant to hold.
///
/// Whatever came from a client passes through here once, when its record is made, so that no later step can fail on it.
public struct HopText: Sendable, Hashable {
    public let text: String

    /// NUL becomes U+FFFD; what is longer than `limit` bytes is cut between two characters.
    public init(_ text: String, limit: Int) {
        var text = text
        // Most texts are fine, and then nothing is copied.
        let isFine = text.withUTF8 { $0.count <= limit && !$0.contains(0) }
        self.text = isFine ? text : text.withUTF8 { Self.repair($0, limit: limit) }
    }

    /// Bytes of any kind: what is not UTF-8 becomes U+FFFD.
    public init(bytes: UnsafeBufferPointer<UInt8>, limit: Int) {
        // Repairing may make a text three times as long: no more than this can matter.
        let piece = UnsafeBufferPointer(rebasing: bytes.prefix(limit + 4))
        self.init(String(decoding: piece, as: UTF8.self), limit: limit)
    }

    private static func repair(_ bytes: UnsafeBufferPointer<UInt8>, limit: Int) -> String {
        var clean: [UInt8] = []
        clean.reserveCapacity(min(bytes.count, limit) + 2)
        for byte in bytes {
            guard clean.count < limit + 1 else { break }
            if byte == 0 { clean.append(contentsOf: [0xef, 0xbf, 0xbd]) } else { clean.append(byte) }
        }
        if clean.count > limit {
            // Back to where a character begins: continuation bytes are 10xxxxxx.
            var end = limit
            while end > 0, clean[end] & 0xc0 == 0x80 { end -= 1 }
            clean.removeSubrange(end...)
        }
        return String(decoding: clean, as: UTF8.self)
    }
}
