/// The envelope of a record in a spool: length of the content (4 bytes), CRC-32C (4 bytes), content; little-endian.
///
/// The checksum covers the frame's place in the spool (8 bytes), the length and the content, so that neither a torn
/// write nor bytes that belong elsewhere pass for a frame. Length 0 is what a file allocated ahead holds: the end.
public enum Frame {
    public static let headerLength = 8
    /// Header and content of the largest frame.
    public static let maximumLength = 3072

    public enum Reading: Equatable, Sendable {
        /// A whole frame; `length` includes the header.
        case frame(length: Int)
        /// Nothing was written here.
        case end
        /// Bytes that are no whole frame: a torn write, or damage.
        case broken
    }

    /// Looks at what lies at the beginning of `bytes`.
    ///
    /// - Parameter position: offset of these bytes in the spool.
    public static func read(_ bytes: UnsafeRawBufferPointer, at position: Int64) -> Reading {
        guard bytes.count >= headerLength else { return bytes.contains { $0 != 0 } ? .broken : .end }
        let length = Int(UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 0, as: UInt32.self)))
        let checksum = UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 4, as: UInt32.self))
        if length == 0 { return checksum == 0 ? .end : .broken }
        guard length <= maximumLength - headerLength, headerLength + length <= bytes.count else { return .broken }
        let content = UnsafeRawBufferPointer(rebasing: bytes[headerLength..<(headerLength + length)])
        return checksum == Self.checksum(content, at: position) ? .frame(length: headerLength + length) : .broken
    }

    /// Writes the header of a frame whose content is in place already, `headerLength` bytes in.
    ///
    /// - Returns: the frame's length.
    public static func seal(_ frame: UnsafeMutableRawBufferPointer, contentLength: Int, at position: Int64) -> Int {
        precondition(contentLength > 0 && headerLength + contentLength <= min(maximumLength, frame.count))
        let content = UnsafeRawBufferPointer(rebasing: frame[headerLength..<(headerLength + contentLength)])
        frame.storeBytes(of: UInt32(contentLength).littleEndian, toByteOffset: 0, as: UInt32.self)
        frame.storeBytes(of: checksum(content, at: position).littleEndian, toByteOffset: 4, as: UInt32.self)
        return headerLength + contentLength
    }

    private static func checksum(_ content: UnsafeRawBufferPointer, at position: Int64) -> UInt32 {
        var prefix = (UInt64(bitPattern: position).littleEndian, UInt64(content.count).littleEndian)
        let seed = withUnsafeBytes(of: &prefix) { CRC32C.checksum($0) }
        return CRC32C.checksum(content, seed: seed)
    }
}
