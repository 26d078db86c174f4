/// SplitMix64: the same seed gives the same run on every machine.
public struct SeededRandom: RandomNumberGenerator {
    private var state: UInt64

    public init(seed: UInt64) { state = seed }

    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    public mutating func chance(_ oneIn: Int) -> Bool { next() % UInt64(oneIn) == 0 }

    public mutating func pick(_ range: ClosedRange<Int64>) -> Int64 {
        range.lowerBound + Int64(next() % UInt64(range.upperBound - range.lowerBound + 1))
    }

    /// Short most of the time, now and then up to a thousand times longer.
    public mutating func delay(_ typical: Int64) -> Int64 {
        let stretch: Int64 = chance(50) ? 100 : (chance(8) ? 10 : 1)
        return pick(typical / 4...typical * 2) * stretch
    }
}
