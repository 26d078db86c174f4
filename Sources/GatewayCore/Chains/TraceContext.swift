/// A W3C `traceparent` (Trace Context, section 3.2): which trace a request belongs to and whose child it is.
public struct TraceContext: Sendable, Equatable {
    public var traceID: UUIDBits
    public var parentID: UInt64
    public var flags: UInt8

    /// A new trace, sampled.
    public init(random: inout some RandomNumberGenerator) {
        (traceID, parentID, flags) = (UUIDBits(high: random.next(), low: random.next() | 1), random.next() | 1, 1)
    }

    /// Reads `00-<32 hex>-<16 hex>-<2 hex>`; a later version may say more after it. Nil for anything else, and for ids of zeros.
    public init?(_ text: String) {
        let bytes = Array(text.utf8)
        guard bytes.count >= 55, bytes[2] == dash, bytes[35] == dash, bytes[52] == dash,
            let version = Self.number(bytes[0..<2]), version != 0xff, bytes.count == 55 || version > 0 && bytes[55] == dash,
            let high = Self.number(bytes[3..<19]), let low = Self.number(bytes[19..<35]), high | low != 0,
            let parent = Self.number(bytes[36..<52]), parent != 0, let flags = Self.number(bytes[53..<55])
        else { return nil }
        (traceID, parentID, self.flags) = (UUIDBits(high: high, low: low), parent, UInt8(flags))
    }

    /// The same trace, with the gateway as the parent of what comes next.
    public func child(random: inout some RandomNumberGenerator) -> TraceContext {
        var child = self
        child.parentID = random.next() | 1
        return child
    }

    /// Appends the field's value, in version 00.
    public func append(to bytes: inout [UInt8]) {
        bytes.append(static: "00-")
        Self.append(traceID.high, digits: 16, to: &bytes)
        Self.append(traceID.low, digits: 16, to: &bytes)
        bytes.append(dash)
        Self.append(parentID, digits: 16, to: &bytes)
        bytes.append(dash)
        Self.append(UInt64(flags), digits: 2, to: &bytes)
    }

    private static func append(_ number: UInt64, digits: Int, to bytes: inout [UInt8]) {
        for position in stride(from: (digits - 1) * 4, through: 0, by: -4) {
            bytes.append(hex: UInt8(truncatingIfNeeded: number >> UInt64(position)) & 15)
        }
    }

    /// Lower-case hexadecimal digits only, as the specification has it.
    private static func number(_ digits: ArraySlice<UInt8>) -> UInt64? {
        var value: UInt64 = 0
        for digit in digits {
            guard let bits = digit.hexDigit, !(0x41...0x46).contains(digit) else { return nil }
            value = value << 4 | UInt64(bits)
        }
        return value
    }
}

private let dash = UInt8(ascii: "-")
