/// CRC-32C (Castagnoli; RFC 3720, appendix B.4), eight bytes a step with eight tables.
struct CRC32C {
    private static let tables: [UInt32] = {
        var tables = [UInt32](repeating: 0, count: 8 * 256)
        for index in 0..<256 {
            tables[index] = (0..<8).reduce(UInt32(index)) { crc, _ in crc & 1 == 1 ? crc >> 1 ^ 0x82f6_3b78 : crc >> 1 }
        }
        for index in 256..<(8 * 256) {
            let previous = tables[index - 256]
            tables[index] = previous >> 8 ^ tables[Int(previous & 0xff)]
        }
        return tables
    }()

    /// Continues `seed`, the result of an earlier call, over more bytes; 0 begins.
    static func checksum(_ bytes: UnsafeRawBufferPointer, seed: UInt32 = 0) -> UInt32 {
        tables.withUnsafeBufferPointer { table in
            var crc = ~seed
            var at = 0
            while bytes.count - at >= 8 {
                let word = UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: at, as: UInt64.self)) ^ UInt64(crc)
                crc = table[0x700 + Int(word & 0xff)] ^ table[0x600 + Int(word >> 8 & 0xff)]
                crc ^= table[0x500 + Int(word >> 16 & 0xff)] ^ table[0x400 + Int(word >> 24 & 0xff)]
                crc ^= table[0x300 + Int(word >> 32 & 0xff)] ^ table[0x200 + Int(word >> 40 & 0xff)]
                crc ^= table[0x100 + Int(word >> 48 & 0xff)] ^ table[Int(word >> 56)]
                at += 8
            }
            while at < bytes.count {
                crc = crc >> 8 ^ table[Int((crc ^ UInt32(bytes[at])) & 0xff)]
                at += 1
            }
            return ~crc
        }
    }
}
