/// Crockford's base32 as the TypeID specification (0.3) uses it: lower case, 128 bits in 26 characters, two zero bits in
/// front, no aliases for look-alike characters.
enum Base32 {
    static let characters = 26

    private static let alphabet: StaticString = "0123456789abcdefghjkmnpqrstvwxyz"

    /// The character for the lowest five bits.
    @inline(__always)
    static func character(_ bits: UInt64) -> UInt8 { alphabet.utf8Start[Int(bits & 31)] }

    /// The value of a character, or nil for what is not in the alphabet.
    @inline(__always)
    static func value(_ character: UInt8) -> UInt64? {
        switch character {
        case 0x30...0x39: UInt64(character - 0x30)
        case 0x61...0x68: UInt64(character - 0x61 + 10)  // a…h
        case 0x6a...0x6b: UInt64(character - 0x6a + 18)  // j k
        case 0x6d...0x6e: UInt64(character - 0x6d + 20)  // m n
        case 0x70...0x74: UInt64(character - 0x70 + 22)  // p…t
        case 0x76...0x7a: UInt64(character - 0x76 + 27)  // v…z
        default: nil
        }
    }

    /// Writes 26 characters.
    static func write(_ uuid: UUIDBits, to out: UnsafeMutablePointer<UInt8>) {
        var (high, low) = (uuid.high, uuid.low)
        for position in stride(from: characters - 1, through: 0, by: -1) {
            out[position] = character(low)
            low = low >> 5 | high << 59
            high >>= 5
        }
    }

    /// Reads the prefix, an underscore and 26 characters; nil for any other byte, length, or a value of more than 128 bits.
    static func read(_ text: UnsafeBufferPointer<UInt8>, after prefix: StaticString) -> UUIDBits? {
        let start = prefix.utf8CodeUnitCount + 1
        guard text.count == start + characters, text[start - 1] == UInt8(ascii: "_"), text[start] <= 0x37 else { return nil }
        for index in 0..<start - 1 where text[index] != prefix.utf8Start[index] { return nil }
        var (high, low): (UInt64, UInt64) = (0, 0)
        for index in start..<text.count {
            guard let bits = value(text[index]) else { return nil }
            high = high << 5 | low >> 59
            low = low << 5 | bits
        }
        return UUIDBits(high: high, low: low)
    }
}
