internal import Crypto

/// SHA-256 of a key's secret: what keys are known by in the database and in memory.
public struct KeyDigest: Hashable, Sendable {
    public let words: (UInt64, UInt64, UInt64, UInt64)

    /// - Parameter bytes: the 32 bytes of a digest.
    public init?(bytes: some Collection<UInt8>) {
        guard bytes.count == 32 else { return nil }
        var words: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
        withUnsafeMutableBytes(of: &words) { $0.copyBytes(from: bytes) }
        self.words = words
    }

    public init(hashing secret: UnsafeRawBufferPointer) {
        var digest = SHA256()
        digest.update(bufferPointer: secret)
        words = digest.finalize().withUnsafeBytes { $0.loadUnaligned(as: (UInt64, UInt64, UInt64, UInt64).self) }
    }

    public var bytes: [UInt8] { withUnsafeBytes(of: words) { Array($0) } }

    public static func == (a: KeyDigest, b: KeyDigest) -> Bool { a.words == b.words }

    /// The digest is uniform already: one word of it spreads as well as four, and the hasher's own key defends the table.
    public func hash(into hasher: inout Hasher) { hasher.combine(words.0) }
}

/// What a client sent as its key.
public enum KeyCandidate: Hashable, Sendable {
    /// Has the shape and the checksum of a key.
    case candidate(KeyDigest)
    /// Cannot be a key: refused without a hash or a lookup.
    case junk

    public static func parse(_ bytes: UnsafeRawBufferPointer) -> KeyCandidate {
        KeyFormat.isValid(bytes) ? .candidate(KeyDigest(hashing: bytes)) : .junk
    }

    public static func parse(_ text: some Sequence<UInt8>) -> KeyCandidate {
        if let result = text.withContiguousStorageIfAvailable({ parse(UnsafeRawBufferPointer($0)) }) { return result }
        return Array(text).withUnsafeBytes { parse($0) }
    }
}
