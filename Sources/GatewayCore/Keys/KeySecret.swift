/// A key as its owner holds it: `pk_`, 32 random characters, an underscore, 6 characters of checksum.
///
/// 190 random bits. The checksum (CRC-32 of all before it) lets a gateway refuse mistyped keys and junk without a hash or a
/// lookup, and lets scanners recognise a leaked key. Prints as nothing.
public struct KeySecret: Sendable, CustomStringConvertible, CustomDebugStringConvertible, CustomReflectable {
    /// The key itself, to be shown once.
    public let text: String

    /// A new secret.
    public init(random: inout some RandomNumberGenerator) {
        var bytes = Array("pk_".utf8)
        bytes.reserveCapacity(KeyFormat.length)
        while bytes.count < KeyFormat.checksumAt - 1 {
            var word = random.next() as UInt64
            for _ in 0..<8 where bytes.count < KeyFormat.checksumAt - 1 {
                // 248 = 4 × 62: the few values above would favour some characters.
                let value = UInt8(truncatingIfNeeded: word)
                if value < 248 { bytes.append(KeyFormat.digits.utf8Start[Int(value % 62)]) }
                word >>= 8
            }
        }
        var checksum = bytes.withUnsafeBytes { CRC32.checksum($0) }
        bytes.append(UInt8(ascii: "_"))
        var digits: [UInt8] = []
        for _ in 0..<KeyFormat.checksumDigits {
            digits.append(KeyFormat.digits.utf8Start[Int(checksum % 62)])
            checksum /= 62
        }
        text = String(decoding: bytes + digits.reversed(), as: UTF8.self)
    }

    /// The public part: enough for people to tell keys apart, too little to guess the rest.
    public var prefix: String { String(text.dropFirst(3).prefix(8)) }

    /// What the database stores of the secret.
    public var digest: KeyDigest {
        let bytes = Array(text.utf8)
        return bytes.withUnsafeBytes { KeyDigest(hashing: $0) }
    }

    public var description: String { "(hidden)" }
    public var debugDescription: String { "(hidden)" }
    public var customMirror: Mirror { Mirror(self, children: [:]) }
}

/// The shape of a key's text.
enum KeyFormat {
    static let digits: StaticString = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    static let length = 42
    /// Where the checksum begins; the underscore is before it.
    static let checksumAt = 36
    static let checksumDigits = 6

    @inline(__always)
    static func value(_ digit: UInt8) -> UInt64? {
        switch digit {
        case 0x30...0x39: UInt64(digit - 0x30)
        case 0x41...0x5a: UInt64(digit - 0x41 + 10)
        case 0x61...0x7a: UInt64(digit - 0x61 + 36)
        default: nil
        }
    }

    static func isValid(_ bytes: UnsafeRawBufferPointer) -> Bool {
        guard bytes.count == length, bytes[0] == 0x70, bytes[1] == 0x6b, bytes[2] == 0x5f, bytes[checksumAt - 1] == 0x5f
        else { return false }
        for index in 3..<(checksumAt - 1) where value(bytes[index]) == nil { return false }
        var checksum: UInt64 = 0
        for index in checksumAt..<length {
            guard let digit = value(bytes[index]) else { return false }
            checksum = checksum * 62 + digit
        }
        return checksum == UInt64(CRC32.checksum(UnsafeRawBufferPointer(rebasing: bytes[0..<(checksumAt - 1)])))
    }
}

/// CRC-32 of ISO-HDLC (RFC 1952, section 8), four bits at a time: keys are short.
enum CRC32 {
    private static let table: [UInt32] = (0..<16).map { index in
        (0..<4).reduce(UInt32(index)) { crc, _ in crc & 1 == 1 ? crc >> 1 ^ 0xedb8_8320 : crc >> 1 }
    }

    static func checksum(_ bytes: UnsafeRawBufferPointer) -> UInt32 {
        var crc = UInt32.max
        for byte in bytes {
            crc ^= UInt32(byte)
            crc = crc >> 4 ^ table[Int(crc & 15)]
            crc = crc >> 4 ^ table[Int(crc & 15)]
        }
        return ~crc
    }
}
