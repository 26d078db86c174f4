public import GatewayCore

/// What a hop of a spool charged, as a log batch says it.
public struct ModelFrame: Sendable, Equatable {
    public var row: QuotaRow
    /// 0: whichever period is current when it is booked.
    public var period: Int64
    public var units: Int64
    public var leased: Bool
    /// Instead of a hop: a flow that could not be settled when it was due.
    public var settlement: FlowSettlement?

    public init(row: QuotaRow, period: Int64, units: Int64, leased: Bool) {
        self.row = row
        self.period = period
        self.units = units
        self.leased = leased
    }

    public init(_ settlement: FlowSettlement) {
        self.init(row: settlement.row, period: settlement.period, units: 0, leased: false)
        self.settlement = settlement
    }
}

/// The quota tables in memory, with the operations of the SQL functions: a value, so that a copy of it is a
/// standby that lags behind.
public struct ModelStore: Sendable {
    public enum Failure: Error { case fenced }

    public struct Quota: Sendable, Equatable {
        public var limit: Int64?
        public var used: Int64 = 0
        public var held: Int64 = 0
        public var period: Int64
        public var available: Int64? { limit.map { $0 - used } }
        public var free: Int64 { (available ?? 0) - held }

        public init(limit: Int64?, used: Int64 = 0, held: Int64 = 0, period: Int64) {
            (self.limit, self.used, self.held, self.period) = (limit, used, held, period)
        }
    }

    public struct Lease: Sendable, Equatable {
        public var granted: Int64 = 0
        public var settled: Int64 = 0
        public var lost: Int64 = 0
        public var refunded: Int64 = 0
        public var returned: Int64 = 0
        public var overrun: Int64 = 0
        public var heardAt: Int64 = 0
        public var open: Int64 { granted - settled }
        var totals: LeaseTotals { LeaseTotals(granted: granted, returned: returned, overrun: overrun) }
    }

    public struct LeaseKey: Hashable, Sendable, Comparable {
        public var spool: Int
        public var row: QuotaRow
        public var period: Int64
        public var rowPeriod: RowPeriod { RowPeriod(row: row, period: period) }
        public static func < (a: LeaseKey, b: LeaseKey) -> Bool {
            (a.spool, a.row, a.period) < (b.spool, b.row, b.period)
        }
    }

    public struct RowPeriod: Hashable, Sendable {
        public var row: QuotaRow
        public var period: Int64
        public init(row: QuotaRow, period: Int64) {
            self.row = row
            self.period = period
        }
    }

    /// Sums of the ledger, by kind.
    public struct Booked: Sendable, Equatable {
        public var limit: Int64 = 0
        /// The part of `limit` with which the period opened.
        public var openedLimit: Int64 = 0
        public var hops: Int64 = 0
        /// The part of `hops` that needed no lease.
        public var unleased: Int64 = 0
        public var lost: Int64 = 0
        public var refund: Int64 = 0
        /// The part of `refund` that hops charged instead: their holder had been written off.
        public var usedAfterLoss: Int64 = 0
        public var overrun: Int64 = 0
        public var flows: Int64 = 0
        /// The part of `flows` that held nothing when it was charged: the store had lost the flow.
        public var unheldFlows: Int64 = 0
        /// Flows whose hop succeeded after they had expired; booked as overrun.
        public var late: Int64 = 0
        public var used: Int64 { hops + lost + refund + overrun + flows + late }
    }

    public struct Spool: Sendable, Equatable {
        public var epoch: Int64 = 1
        public var shippedTo = 0
        /// Nil: nothing was shipped yet.
        public var shippedAt: Int64?
    }

    /// Microseconds of the store's clock; set by whoever drives it.
    public var now: Int64 = 0
    public internal(set) var quotas: [QuotaRow: Quota] = [:]
    public internal(set) var leases: [LeaseKey: Lease] = [:]
    public internal(set) var ledger: [RowPeriod: Booked] = [:]
    public internal(set) var spools: [Int: Spool] = [:]
    public internal(set) var reservations: [ReservationID: Reservation] = [:]
    /// What the ledger says of flows that are over.
    public internal(set) var ended: [ReservationID: EndedFlow] = [:]
    /// Length of the rows' periods and when the current one ends; all rows belong to one project.
    public var periodLength: Int64?
    public internal(set) var nextReset: Int64?

    public init(periodLength: Int64? = nil) {
        self.periodLength = periodLength
        nextReset = periodLength
    }

    // MARK: - Rows

    /// Assigns the row, or edits its limit (nil: unlimited).
    public mutating func setLimit(_ limit: Int64?, of row: QuotaRow) {
        guard var quota = quotas[row] else {
            let period = 1 + lastPeriod(of: row)
            quotas[row] = Quota(limit: limit, period: period)
            open(RowPeriod(row: row, period: period), limit)
            return
        }
        ledger[RowPeriod(row: row, period: quota.period), default: Booked()].limit += (limit ?? 0) - (quota.limit ?? 0)
        quota.limit = limit
        quotas[row] = quota
    }

    /// Takes the row away; its ledger and leases stay.
    public mutating func unassign(_ row: QuotaRow) { quotas[row] = nil }

    public mutating func resetIfDue() {
        guard let due = nextReset, let length = periodLength, due <= now else { return }
        for row in quotas.keys.sorted() {
            var quota = quotas[row]!
            quota.used = 0
            quota.held = 0
            quota.period = 1 + max(quota.period, lastPeriod(of: row))
            quotas[row] = quota
            open(RowPeriod(row: row, period: quota.period), quota.limit)
        }
        nextReset = due + length * ((now - due) / length + 1)
    }

    /// The last period of the row that the ledger knows; 0: none.
    func lastPeriod(of row: QuotaRow) -> Int64 { ledger.keys.lazy.filter { $0.row == row }.map(\.period).max() ?? 0 }

    private mutating func open(_ id: RowPeriod, _ limit: Int64?) {
        ledger[id, default: Booked()].limit += limit ?? 0
        ledger[id]!.openedLimit += limit ?? 0
    }

    /// Moves the end of the period to now, as an operator may.
    public mutating func makeResetDue() { nextReset = now }

    // MARK: - Spools

    /// Opens a spool for a process: the epoch goes up, whoever had it before is fenced.
    public mutating func open(_ spool: Int) -> Spool {
        if spools[spool] == nil { spools[spool] = Spool() } else { spools[spool]!.epoch += 1 }
        return spools[spool]!
    }

    func require(_ spool: Int, _ epoch: Int64) throws(Failure) {
        guard spools[spool]?.epoch == epoch else { throw .fenced }
    }

    // MARK: - Checks

    /// What is wrong with the books; nil: nothing.
    public func defect() -> String? {
        var open: [QuotaRow: Int64] = [:]
        for (key, lease) in leases {
            if lease.settled > lease.granted || lease.lost > lease.settled || lease.refunded > lease.lost
                || lease.returned < 0
            {
                return "lease \(key): \(lease)"
            }
            if quotas[key.row]?.period == key.period { open[key.row, default: 0] += lease.open }
        }
        for (_, flow) in reservations where quotas[flow.row]?.period == flow.period {
            open[flow.row, default: 0] += flow.units
        }
        for (row, quota) in quotas {
            let booked = ledger[RowPeriod(row: row, period: quota.period)] ?? Booked()
            if quota.used != booked.used { return "row \(row): used \(quota.used), ledger \(booked)" }
            if (quota.limit ?? 0) != booked.limit { return "row \(row): limit \(quota), ledger \(booked)" }
            if quota.held != open[row] ?? 0 { return "row \(row): held \(quota.held), open \(open[row] ?? 0)" }
            if quota.used < 0 || quota.held < 0 { return "row \(row): \(quota)" }
        }
        return nil
    }
}
