/// SipHash-2-4 (Aumasson and Bernstein, 2012): a keyed 64-bit hash that cannot be forged without the key.
struct SipHash {
    private let k0: UInt64
    private let k1: UInt64

    init(k0: UInt64, k1: UInt64) {
        self.k0 = k0
        self.k1 = k1
    }

    /// The tag of a message of whole 64-bit words, read as little-endian bytes.
    func tag(of words: UInt64...) -> UInt64 { tag(words) }

    private func tag(_ words: [UInt64]) -> UInt64 {
        var state = State(k0, k1)
        for word in words { state.absorb(word) }
        // The last block holds the message's length in its top byte; no bytes are left over.
        state.absorb(UInt64(truncatingIfNeeded: words.count * 8) << 56)
        return state.finish()
    }

    /// As `tag(of:)`, for the three words that a start point has.
    func tag(_ a: UInt64, _ b: UInt64, _ c: UInt64) -> UInt64 {
        var state = State(k0, k1)
        state.absorb(a)
        state.absorb(b)
        state.absorb(c)
        state.absorb(24 << 56)
        return state.finish()
    }

    private struct State {
        var v0: UInt64, v1: UInt64, v2: UInt64, v3: UInt64

        init(_ k0: UInt64, _ k1: UInt64) {
            v0 = k0 ^ 0x736f_6d65_7073_6575
            v1 = k1 ^ 0x646f_7261_6e64_6f6d
            v2 = k0 ^ 0x6c79_6765_6e65_7261
            v3 = k1 ^ 0x7465_6462_7974_6573
        }

        @inline(__always)
        mutating func round() {
            v0 &+= v1; v1 = v1 << 13 | v1 >> 51; v1 ^= v0; v0 = v0 << 32 | v0 >> 32
            v2 &+= v3; v3 = v3 << 16 | v3 >> 48; v3 ^= v2
            v0 &+= v3; v3 = v3 << 21 | v3 >> 43; v3 ^= v0
            v2 &+= v1; v1 = v1 << 17 | v1 >> 47; v1 ^= v2; v2 = v2 << 32 | v2 >> 32
        }

        @inline(__always)
        mutating func absorb(_ word: UInt64) {
            v3 ^= word
            round()
            round()
            v0 ^= word
        }

        mutating func finish() -> UInt64 {
            v2 ^= 0xff
            for _ in 0..<4 { round() }
            return v0 ^ v1 ^ v2 ^ v3
        }
    }
}
