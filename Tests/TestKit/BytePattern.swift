import Foundation

/// An endless run of bytes that shows any loss, doubling or swap of a piece of it, and is quick to make and to check.
public struct BytePattern: Sendable {
    /// A prime, so that no buffer size divides it.
    private static let period = 65_521
    private static let doubled: [UInt8] = {
        var state: UInt64 = 0x9e37_79b9_7f4a_7c15
        let once = (0..<period).map { _ in
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return UInt8(truncatingIfNeeded: state >> 56)
        }
        return once + once
    }()

    /// How far the run was made or checked.
    public private(set) var position = 0

    public init() {}

    /// The next bytes, at most 65,521 of them.
    public mutating func next(_ count: Int) -> ArraySlice<UInt8> {
        precondition(count <= BytePattern.period)
        let start = position % BytePattern.period
        position += count
        return BytePattern.doubled[start..<(start + count)]
    }

    /// Whether these are the next bytes.
    public mutating func matches(_ bytes: UnsafeRawBufferPointer) -> Bool {
        var offset = 0
        while offset < bytes.count {
            let count = min(bytes.count - offset, BytePattern.period)
            let isSame = next(count).withUnsafeBytes { memcmp($0.baseAddress!, bytes.baseAddress! + offset, count) == 0 }
            guard isSame else { return false }
            offset += count
        }
        return true
    }
}
