/// The 128 bits of a UUID, most significant first.
public struct UUIDBits: Hashable, Sendable, Comparable {
    public var high: UInt64
    public var low: UInt64

    @inlinable
    public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }

    public static let zero = UUIDBits(high: 0, low: 0)

    @inlinable
    public static func < (a: UUIDBits, b: UUIDBits) -> Bool {
        a.high != b.high ? a.high < b.high : a.low < b.low
    }

    /// Milliseconds since 1970 in a version 7 UUID (RFC 9562, section 5.7).
    public var milliseconds: UInt64 { high >> 16 }
}

/// Makes version 7 UUIDs (RFC 9562, section 5.7), each larger than the one before, unless the clock goes back far.
///
/// Within a millisecond, and while the clock stands still or is a little behind the last id, the 74 random bits count up by a
/// random step (section 6.2, method 2), so a neighbour cannot be guessed and order is kept. Confined to one worker.
public struct IdentifierGenerator: Sendable {
    /// Milliseconds that the clock may be behind the last id. Further behind, it was set right: ids begin again at its time,
    /// smaller than those before but no less random, as those of a time that is wrong end up in the log of a wrong day.
    public static let stepBackMax: UInt64 = 10_000

    private var last = UUIDBits.zero

    public init() {}

    /// - Parameters:
    ///   - milliseconds: since 1970, by the caller's clock.
    ///   - random: where the random bits come from.
    public mutating func next(milliseconds: UInt64, random: inout some RandomNumberGenerator) -> UUIDBits {
        let milliseconds = milliseconds & 0xffff_ffff_ffff
        if milliseconds > last.milliseconds || last.milliseconds - milliseconds > Self.stepBackMax {
            last = Self.assemble(milliseconds, top: random.next() & 0xfff, bottom: random.next())
            return last
        }
        // One more than a random number of 32 bits: 2^42 steps fit a millisecond.
        let step = (random.next() & 0xffff_ffff) + 1
        let (bottom, overflow) = (last.low & Self.bottomMask).addingReportingOverflow(step)
        var (stamp, top) = (last.milliseconds, last.high & 0xfff)
        if overflow || bottom > Self.bottomMask { top += 1 }
        if top > 0xfff { (stamp, top) = (stamp + 1, 0) }
        last = Self.assemble(stamp, top: top, bottom: bottom)
        return last
    }

    private static let bottomMask: UInt64 = 0x3fff_ffff_ffff_ffff

    private static func assemble(_ milliseconds: UInt64, top: UInt64, bottom: UInt64) -> UUIDBits {
        UUIDBits(high: milliseconds << 16 | 0x7000 | top, low: 0x8000_0000_0000_0000 | bottom & bottomMask)
    }
}

extension UUIDBits: CustomStringConvertible {
    /// RFC 9562, section 4: 8-4-4-4-12 lower-case hexadecimal digits.
    public var description: String {
        var text: [UInt8] = []
        for position in 0..<32 {
            if position == 8 || position == 12 || position == 16 || position == 20 { text.append(UInt8(ascii: "-")) }
            let word = position < 16 ? high : low
            text.append(hex: UInt8(truncatingIfNeeded: word >> UInt64(60 - 4 * (position % 16))) & 15)
        }
        return String(decoding: text, as: UTF8.self)
    }

    /// A random UUID, version 4.
    public static func random(_ generator: inout some RandomNumberGenerator) -> UUIDBits {
        UUIDBits(
            high: generator.next() & 0xffff_ffff_ffff_0fff | 0x4000,
            low: generator.next() & 0x3fff_ffff_ffff_ffff | 0x8000_0000_0000_0000)
    }

    /// The text that `description` gives.
    public init?(_ text: String) {
        let characters = Array(text.utf8)
        guard characters.count == 36 else { return nil }
        var words: (UInt64, UInt64) = (0, 0)
        var digits = 0
        for (index, character) in characters.enumerated() {
            if index == 8 || index == 13 || index == 18 || index == 23 {
                guard character == UInt8(ascii: "-") else { return nil }
                continue
            }
            let value: UInt64
            switch character {
            case 0x30...0x39: value = UInt64(character - 0x30)
            case 0x61...0x66: value = UInt64(character - 0x57)
            default: return nil
            }
            if digits < 16 { words.0 = words.0 << 4 | value } else { words.1 = words.1 << 4 | value }
            digits += 1
        }
        self.init(high: words.0, low: words.1)
    }
}
