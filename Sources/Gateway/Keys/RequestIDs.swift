public import GatewayCore
internal import Glibc

/// Makes the ids of a worker's requests. Confined to it.
public struct RequestIDs {
    private var generator = IdentifierGenerator()
    private var random = BufferedRandom()

    public init() {}

    /// The next id, by the wall clock; later ones are larger, unless that goes back by more than
    /// ``IdentifierGenerator/stepBackMax``.
    public mutating func next() -> RequestID {
        RequestID(generator.next(milliseconds: UInt64(max(WallClock.microseconds, 0) / 1_000), random: &random))
    }
}

/// The wall clock, as the log tells time.
public enum WallClock {
    /// Microseconds since 1970.
    public static var microseconds: Int64 {
        var now = timespec()
        clock_gettime(CLOCK_REALTIME, &now)
        return Int64(now.tv_sec) * 1_000_000 + Int64(now.tv_nsec) / 1_000
    }
}

/// The kernel's random bytes, fetched for 32 numbers at a time.
struct BufferedRandom: RandomNumberGenerator {
    /// As much as getentropy(3) gives at once.
    private var words = [UInt64](repeating: 0, count: 32)
    private var used = 32

    mutating func next() -> UInt64 {
        if used == words.count { refill() }
        defer { used += 1 }
        return words[used]
    }

    private mutating func refill() {
        let status = words.withUnsafeMutableBytes { getentropy($0.baseAddress!, $0.count) }
        precondition(status == 0, "the kernel gives no random bytes")
        used = 0
    }
}
