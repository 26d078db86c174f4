internal import Synchronization

/// Rows that refused requests of each reason may still have to themselves in a second: the workers of a node share them, so
/// that neither one that gets all of a client's requests is short of them nor many together have more.
///
/// Any thread; no lock.
public final class RefusalRows: Sendable {
    private final class Cell: Sendable {
        /// The second in the upper bits, the rows taken in it in the lower 16.
        let word = Atomic<UInt64>(0)
    }

    private let perSecond: UInt64
    private let cells = (0..<256).map { _ in Cell() }

    public init(perSecond: Int) {
        precondition(0...0xffff ~= perSecond)
        self.perSecond = UInt64(perSecond)
    }

    /// Takes a row.
    ///
    /// - Parameter second: by a clock that all workers read.
    /// - Returns: false where the second has none left.
    func take(_ reason: Refusal, second: Int64) -> Bool {
        let cell = cells[Int(reason.rawValue)]
        var word = cell.word.load(ordering: .relaxed)
        while true {
            // Whose turn began a moment ago counts in the second that the others are in.
            let current = max(UInt64(max(second, 0)), word >> 16)
            let taken = word >> 16 == current ? word & 0xffff : 0
            guard taken < perSecond else { return false }
            let (isTaken, seen) = cell.word.weakCompareExchange(
                expected: word, desired: current << 16 | (taken + 1), ordering: .relaxed)
            if isTaken { return true }
            word = seen
        }
    }
}
