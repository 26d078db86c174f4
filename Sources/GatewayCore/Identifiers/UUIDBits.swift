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

/// Makes version 7 UUIDs (RFC 9562, section 5.7), each larger than the one before, whatever the clock does.
///
/// Within a millisecond, and while the clock stands still or goes back, the 74 random bits count up by a random step
/// (section 6.2, method 2), so a neighbour cannot be guessed and order is kept. Confined to one worker.
public struct IdentifierGenerator: Sendable {
    private var last = UUIDBits.zero

    public init() {}

    /// - Parameters:
    ///   - milliseconds: since 1970, by the caller's clock.
    ///   - random: where the random bits come from.
    public mutating func next(milliseconds: UInt64, random: inout some RandomNumberGenerator) -> UUIDBits {
        let milliseconds = milliseconds & 0xffff_ffff_ffff
        if milliseconds > last.milliseconds {
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
