internal import GatewayCore

// What goes wrong, and the end, when all of it must have come right.
extension Simulation {
    func chaos() throws(Violation) {
        guard !isQuiet else { return }
        after(random.delay(options.chaosGap), .chaos)
        let node = Int(random.pick(0...Int64(nodes.count - 1)))
        if options.copies, random.chance(2) { return tamper(node) }
        switch random.pick(0...19) {
        case 0...4:
            cut(node)
        case 5...8:
            nodes[node].pausedUntil = now + random.delay(400_000)
        case 9:
            nodes[node].pausedUntil = now + (options.writeOffAfter ?? 10_000_000) * 2
        case 10...12:
            kill(node)
        case 13...14:
            storeDownUntil = now + random.delay(300_000)
            for node in nodes.indices { cut(node) }
        case 15...17:
            edit(rows[Int(random.pick(0...Int64(rows.count - 1)))])
        case 18:
            nodes[node].clockOffset += random.pick(0...5_000_000)
        default:
            if options.failovers { failOver() }
        }
    }

    private func edit(_ row: QuotaRow) {
        guard storeDownUntil <= now else { return }
        let before = store.quotas[row]?.limit
        switch random.pick(0...9) {
        case 0: store.setLimit(nil, of: row)
        case 1: store.unassign(row)
        case 2...4: store.setLimit(random.pick(0...60), of: row)
        default: store.setLimit(random.pick(0...100_000), of: row)
        }
        if let before, let limit = store.quotas[row]?.limit, limit < before { recall(row) }
        noteLimits()
    }

    /// The standby takes over without the commits it had not received yet.
    private func failOver() {
        let epochs = store.spools
        store = standby
        store.now = now
        for (spool, known) in epochs where store.spools[spool]?.epoch != known.epoch {
            store.restoreEpoch(of: spool, known.epoch)
        }
        lastConnectionLost = nextConnection
        for node in nodes.indices { cut(node) }
        storeDownUntil = now + random.delay(500_000)
        noteLimits()
    }

    /// Nothing goes wrong any more and nobody sends requests: then every unit must be explained.
    func comeToRest() throws(Violation) {
        isQuiet = true
        storeDownUntil = min(storeDownUntil, now)
        for node in nodes.indices {
            nodes[node].pausedUntil = min(nodes[node].pausedUntil, now)
            if !nodes[node].isAlive { events.add(.restart(node), at: now) }
        }
        // Waits end within two seconds, requests in flight within two minutes and some.
        try runUntil(now + 400_000_000)
        for node in nodes.indices {
            if let waiting = nodes[node].waiting.first { throw violation("node \(node): \(waiting) waits for ever") }
            if let stuck = nodes[node].inFlight.first { throw violation("node \(node): \(stuck) never ended") }
            if let stuck = nodes[node].flowTickets.first { throw violation("node \(node): \(stuck) waits for ever") }
            if !nodes[node].flows.isIdle { throw violation("node \(node): flows wait for ever") }
            nodes[node].book.close(now: local(node))
            try pump(node)
        }
        try runUntil(now + 20_000_000)
        for node in nodes.indices where !nodes[node].book.isClosed { throw violation("node \(node) does not close") }
        try checkBooks()
    }

    private func runUntil(_ end: Int64) throws(Violation) {
        while let next = events.nextTime, next <= end { try step() }
        now = end
    }

    private func checkBooks() throws(Violation) {
        for (key, lease) in store.leases where lease.open != 0 { throw violation("\(key) is held for ever: \(lease)") }
        for (row, quota) in store.quotas where quota.held != 0 { throw violation("\(row) is held for ever: \(quota)") }
        for row in rows {
            let booked = store.ledger.filter { $0.key.row == row }.reduce(0) { $0 + $1.value.hops + $1.value.overrun }
            let known = histories.map { spool, frames in Array(frames[..<store.spools[spool]!.shippedTo]) }
            let spooled = (nodes.map(\.spool) + known).joined().reduce(0) { $0 + ($1.row == row ? $1.units : 0) }
            if booked != spooled { throw violation("\(row): \(spooled) units were charged, \(booked) are booked") }
        }
        try checkEndOfFlows()
        guard !mayExceed else { return }
        for (id, booked) in store.ledger {
            if booked.overrun != 0 { throw violation("\(id): overrun of \(booked.overrun) without a failover") }
            if booked.hops - booked.refund < 0 { throw violation("\(id): \(booked)") }
        }
        for node in nodes.indices where nodes[node].book.counters.leasesLost > 0 {
            throw violation("node \(node) lost a lease without a failover")
        }
    }
}

extension ModelStore {
    /// A standby that missed the opening of a spool would fence the process that has it.
    mutating func restoreEpoch(of spool: Int, _ epoch: Int64) {
        spools[spool, default: Spool()].epoch = epoch
    }
}
