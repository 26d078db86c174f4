// What a run met, for tests that are about it.
extension Simulation {
    public var unitsOverrun: Int64 { store.ledger.values.reduce(0) { $0 + $1.overrun } }
    public var unitsWrittenOff: Int64 { store.ledger.values.reduce(0) { $0 + $1.lost } }
    /// Units of written-off holders that returned: some turned out to be used, the rest was given back.
    public var unitsUsedAfterLoss: Int64 { store.ledger.values.reduce(0) { $0 - $1.usedAfterLoss } }
    public var unitsRefunded: Int64 { store.ledger.values.reduce(0) { $0 - ($1.refund - $1.usedAfterLoss) } }
    /// Rows of which every unit is used, and none more.
    public var rowsUsedUp: Int {
        store.quotas.values.count { quota in quota.limit.map { $0 > 0 && $0 == quota.used } ?? false }
    }
}
