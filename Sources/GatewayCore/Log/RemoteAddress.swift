/// An IP address and how many of its bits count, as a PostgreSQL `inet` has it.
public struct RemoteAddress: Hashable, Sendable {
    /// Network order from the most significant byte; an IPv4 address is the top 32 bits of `high`.
    public var high: UInt64
    public var low: UInt64
    public var isIPv6: Bool
    public var prefixLength: UInt8

    /// - Parameter ipv4: in host byte order, 127.0.0.1 = 0x7f000001.
    public init(ipv4: UInt32) {
        self.init(high: UInt64(ipv4) << 32, low: 0, isIPv6: false, prefixLength: 32)
    }

    /// - Parameters: the address in host byte order; an IPv4-mapped one (::ffff:a.b.c.d) counts as IPv4.
    public init(ipv6High high: UInt64, low: UInt64) {
        if high == 0, low >> 32 == 0xffff {
            self.init(ipv4: UInt32(truncatingIfNeeded: low))
        } else {
            self.init(high: high, low: low, isIPv6: true, prefixLength: 128)
        }
    }

    init(high: UInt64, low: UInt64, isIPv6: Bool, prefixLength: UInt8) {
        (self.high, self.low, self.isIPv6, self.prefixLength) = (high, low, isIPv6, prefixLength)
    }

    /// The network that refusals are counted by: /24 or /64.
    public var network: RemoteAddress {
        isIPv6
            ? RemoteAddress(high: high, low: 0, isIPv6: true, prefixLength: 64)
            : RemoteAddress(high: high & 0xffff_ff00_0000_0000, low: 0, isIPv6: false, prefixLength: 24)
    }
}
