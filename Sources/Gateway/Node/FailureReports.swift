/// Keeps a failing upstream from flooding the process's own log: each kind of failure is told once a second.
struct FailureReports {
    private var second: UInt64 = 0
    private var told: Set<String> = []

    /// Kinds told apart in one second; those beyond are not told.
    private static let kindsMax = 256

    mutating func mayTell(_ kind: String, second: UInt64) -> Bool {
        if second != self.second {
            self.second = second
            told.removeAll(keepingCapacity: true)
        }
        guard told.count < Self.kindsMax else { return false }
        return told.insert(kind).inserted
    }
}
