/// Chooses targets in proportion to their weights and as evenly spread as that allows: nginx's smooth weighted
/// round-robin.  Each turn every target gains its weight; the one with most is taken and pays what all gained.
public struct WeightedRoundRobin: Sendable {
    private let weights: [Int]
    private var current: [Int]

    /// `weights` are ≥ 1.  `seed` begins the same sequence at another place.
    public init(weights: [Int], seed: Int = 0) {
        precondition(!weights.isEmpty && weights.allSatisfy { $0 > 0 }, "weights are positive")
        self.weights = weights
        current = Array(repeating: 0, count: weights.count)
        // The sequence repeats after the sum of the weights; a bounded walk is enough to tell workers apart.
        let period = min(weights.reduce(0, +), 4_096)
        for _ in 0..<(Int(seed.magnitude % UInt(period))) { _ = next() }
    }

    /// The next target's place.
    public mutating func next() -> Int {
        if weights.count == 1 { return 0 }
        return next { _ in true }!
    }

    /// The next among the targets that `isUsable`; nil where none is.
    public mutating func next(where isUsable: (Int) -> Bool) -> Int? {
        var total = 0
        var best: Int?
        for index in weights.indices where isUsable(index) {
            current[index] += weights[index]
            total += weights[index]
            if best.map({ current[index] > current[$0] }) ?? true { best = index }
        }
        if let best { current[best] -= total }
        return best
    }
}
