public import GatewayCore

extension ModelStore {
    /// `lease_acquire`.
    public mutating func acquire(
        _ spool: Int, epoch: Int64, _ questions: [LeaseQuestion]
    ) throws(Failure) -> [LeaseAnswer] {
        try require(spool, epoch)
        resetIfDue()
        var answers = [LeaseAnswer?](repeating: nil, count: questions.count)
        for index in questions.indices.sorted(by: { questions[$0].row < questions[$1].row }) {
            answers[index] = acquire(spool, questions[index])
        }
        return answers.map { $0! }
    }

    private mutating func acquire(_ spool: Int, _ question: LeaseQuestion) -> LeaseAnswer {
        guard var quota = quotas[question.row] else { return .notAssigned }
        guard let limit = quota.limit else { return .unlimited(period: quota.period) }
        let wish = max(question.need, question.wish)
        let spare = max(quota.free, 0)
        let key = LeaseKey(spool: spool, row: question.row, period: quota.period)
        if spare > 0, wish > 0 {
            let others = leases.filter {
                $0.key.row == key.row && $0.key.period == key.period && $0.key.spool != spool
                    && $0.value.heardAt > now - 10_000_000
            }.count
            let granted = min(spare, max(question.need, min(wish, spare / Int64(2 * (others + 1)))))
            if granted > 0 {
                leases[key, default: Lease()].granted += granted
                leases[key]!.heardAt = now
                quota.held += granted
                quotas[question.row] = quota
            }
        }
        let lease = leases[key] ?? Lease()
        return .limited(
            LeaseNumbers(
                period: quota.period, totals: lease.totals, ownOpen: lease.open, free: quota.free, held: quota.held,
                limit: limit, resetIn: nextReset.map { $0 - now }, flowDeadlineIn: nil))
    }

    /// `lease_return`.  Returns the units taken back.
    @discardableResult
    public mutating func giveBack(
        _ spool: Int, epoch: Int64, _ returns: [LeaseReturn]
    ) throws(Failure) -> Int64 {
        try require(spool, epoch)
        var taken: Int64 = 0
        for back in returns.sorted(by: { ($0.row, $0.period) < ($1.row, $1.period) }) {
            let key = LeaseKey(spool: spool, row: back.row, period: back.period)
            guard var lease = leases[key], back.totalReturned > lease.returned else { continue }
            let units = back.totalReturned - lease.returned
            let idle = min(units, lease.open)
            var refund: Int64 = 0
            if quotas[back.row]?.period == back.period {
                refund = min(units - idle, lease.lost - lease.refunded)
                quotas[back.row]!.held -= idle
                quotas[back.row]!.used -= refund
                ledger[RowPeriod(row: back.row, period: back.period), default: Booked()].refund -= refund
            }
            lease.settled += idle
            lease.refunded += refund
            lease.returned = back.totalReturned
            lease.heardAt = now
            leases[key] = lease
            taken += idle + refund
        }
        return taken
    }

    /// The leases of a spool.
    public func readLeases(_ spool: Int, epoch: Int64) throws(Failure) -> [LeaseRecord] {
        try require(spool, epoch)
        return leases.filter { $0.key.spool == spool }.sorted { $0.key < $1.key }.map { key, lease in
            LeaseRecord(row: key.row, period: key.period, totals: lease.totals, open: lease.open)
        }
    }

    /// A log batch: the mark moves from `start` by the frames, and `settle_hops` books them.  Returns the mark as it
    /// is afterwards: elsewhere than expected, nothing was booked.
    public mutating func ship(
        _ spool: Int, epoch: Int64, from start: Int, _ frames: ArraySlice<ModelFrame>
    ) throws(Failure) -> Int {
        try require(spool, epoch)
        guard spools[spool]!.shippedTo == start else { return spools[spool]!.shippedTo }
        spools[spool]!.shippedTo += frames.count
        spools[spool]!.shippedAt = now
        var sums: [RowPeriod: (units: Int64, leased: Int64)] = [:]
        for frame in frames where frame.units > 0 {
            let sum = sums[RowPeriod(row: frame.row, period: frame.period)] ?? (0, 0)
            sums[RowPeriod(row: frame.row, period: frame.period)] =
                (sum.units + frame.units, sum.leased + (frame.leased ? frame.units : 0))
        }
        for (id, sum) in sums { settle(spool, id, units: sum.units, leased: sum.leased) }
        for settlement in frames.compactMap(\.settlement) { _ = settle([.settle(settlement)]) }
        return spools[spool]!.shippedTo
    }

    /// `settle_hops` for one row and period.  Rows do not depend on each other, so their order does not matter.
    private mutating func settle(_ spool: Int, _ id: RowPeriod, units: Int64, leased: Int64) {
        var id = id
        if id.period == 0 {
            id.period = quotas[id.row]?.period ?? lastPeriod(of: id.row)
        }
        let key = LeaseKey(spool: spool, row: id.row, period: id.period)
        var lease = leases[key] ?? Lease()
        let settled = min(leased, lease.open)
        let refund = min(leased - settled, lease.lost - lease.refunded)
        let excess = leased - settled - refund
        if leased > 0, leases[key] != nil || excess > 0 {
            lease.settled += settled
            lease.refunded += refund
            lease.overrun += excess
            lease.heardAt = now
            leases[key] = lease
        }
        ledger[id, default: Booked()].hops += units - excess
        ledger[id]!.unleased += units - leased
        ledger[id]!.refund -= refund
        ledger[id]!.usedAfterLoss -= refund
        ledger[id]!.overrun += excess
        if quotas[id.row]?.period == id.period {
            quotas[id.row]!.used += units - refund
            quotas[id.row]!.held -= settled
        }
    }

    /// `write_off_silent`: charges what holders have open of whom nothing was heard for longer than `silence`, of no lease and
    /// of no log either.
    public mutating func writeOff(silence: Int64) {
        let heard = leases.filter { $0.value.heardAt >= now - silence }.map(\.key.spool)
        let shipped = spools.filter { $0.value.shippedAt.map { $0 >= now - silence } ?? false }.keys
        for (key, lease) in leases where lease.open > 0 && !heard.contains(key.spool) && !shipped.contains(key.spool) {
            closeLease(key, charge: true)
        }
    }

    /// `drop_settled_leases`: those of past periods that were not heard of for longer than `age`.  Returns how many.
    @discardableResult
    public mutating func dropSettledLeases(olderThan age: Int64) -> Int {
        let before = leases.count
        leases = leases.filter { key, lease in
            lease.open > 0 || lease.lost != lease.refunded || lease.heardAt >= now - age
                || quotas[key.row].map { $0.period <= key.period } ?? false
        }
        return before - leases.count
    }

    /// A holder is heard of now.
    public mutating func hear(_ spool: Int) {
        for key in leases.keys where key.spool == spool { leases[key]!.heardAt = now }
    }

    /// An operator's word that a node is gone.
    public mutating func forget(_ spool: Int, refund: Bool) {
        spools[spool]?.epoch += 1
        for (key, lease) in leases where key.spool == spool && lease.open > 0 { closeLease(key, charge: !refund) }
    }

    private mutating func closeLease(_ key: LeaseKey, charge: Bool) {
        let open = leases[key]!.open
        leases[key]!.settled += open
        if charge {
            leases[key]!.lost += open
            ledger[RowPeriod(row: key.row, period: key.period), default: Booked()].lost += open
        }
        guard quotas[key.row]?.period == key.period else { return }
        quotas[key.row]!.held -= open
        if charge { quotas[key.row]!.used += open }
    }
}
