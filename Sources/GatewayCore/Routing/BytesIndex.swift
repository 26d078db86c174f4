internal import Glibc

/// From byte strings of the configuration to small numbers, looked up without making a string or a hasher.
/// Open addressing over FNV-1a; the keys are the operator's, so nobody can aim at collisions.
struct BytesIndex: Sendable {
    private(set) var keys: [[UInt8]] = []
    /// Places in `keys`, -1 where free; a power of two, at most half full.
    private var slots: [Int32] = []

    init(_ keys: [[UInt8]]) {
        self.keys = keys
        var capacity = 4
        while capacity < keys.count * 2 { capacity *= 2 }
        slots = Array(repeating: -1, count: capacity)
        for (index, key) in keys.enumerated() {
            let hash = key.reduce(Self.seed) { Self.hash($0, $1) }
            var slot = Int(truncatingIfNeeded: hash) & (capacity - 1)
            while slots[slot] >= 0 { slot = (slot + 1) & (capacity - 1) }
            slots[slot] = Int32(index)
        }
    }

    var isEmpty: Bool { keys.isEmpty }

    static let seed: UInt64 = 0xcbf2_9ce4_8422_2325
    static func hash(_ hash: UInt64, _ byte: UInt8) -> UInt64 { (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }

    /// Where the first `count` bytes of `bytes` are, given their hash.
    func find(_ bytes: UnsafeRawBufferPointer, count: Int, hash: UInt64) -> Int? {
        if keys.isEmpty { return nil }
        let mask = slots.count - 1
        var slot = Int(truncatingIfNeeded: hash) & mask
        while slots[slot] >= 0 {
            let index = Int(slots[slot])
            if keys[index].count == count, keys[index].equals(bytes, count) { return index }
            slot = (slot + 1) & mask
        }
        return nil
    }

    /// Where `bytes`, taken in lower case, is.
    func findFolded(_ bytes: UnsafeRawBufferPointer) -> Int? {
        if keys.isEmpty { return nil }
        let mask = slots.count - 1
        var slot = Int(truncatingIfNeeded: bytes.reduce(Self.seed) { Self.hash($0, $1.folded) }) & mask
        while slots[slot] >= 0 {
            let index = Int(slots[slot])
            if keys[index].count == bytes.count, keys[index].elementsEqual(bytes, by: { $0 == $1.folded }) { return index }
            slot = (slot + 1) & mask
        }
        return nil
    }
}

extension [UInt8] {
    /// Whether these are the first `length` bytes of `other`, `length` being the count of both.
    func equals(_ other: UnsafeRawBufferPointer, _ length: Int) -> Bool {
        guard length > 0 else { return true }
        return withUnsafeBytes { memcmp($0.baseAddress!, other.baseAddress!, length) == 0 }
    }
}
