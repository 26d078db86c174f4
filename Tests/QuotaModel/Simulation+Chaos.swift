internal import GatewayCore

// What goes wrong, and the end, when all of it must have come right.
extension Simulation {
    func chaos() throws(Violation) {
        guard !isQuiet else { return }
        after(random.delay(options.chaosGap), .chaos)
        let node = Int(random.pick(0...Int64(nodes.count - 1)))
        if options.copies, random.chance(2) { return tamper(node) }
        if options.failovers, random.chance(4) { return random.chance(2) ? failOver() : updateStandby() }
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
        default: break
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

    func updateStandby() {
        standby = store
        droppedLeases = [:]
    }

    /// The standby takes over without the commits it had not received yet.
    private func failOver() {
        noteLostUnits()
        let epochs = store.spools
        store = standby
        droppedLeases = [:]
        store.now = now
        for (spool, known) in epochs where store.spools[spool]?.epoch != known.epoch {
            store.restoreEpoch(of: spool, known.epoch)
        }
        lastConnectionLost = nextConnection
        for node in nodes.indices { cut(node) }
        storeDownUntil = now + random.delay(500_000)
        noteLimits()
    }

    private func noteLostUnits() {
        for (key, lease) in store.leases.merging(droppedLeases, uniquingKeysWith: { kept, _ in kept }) {
            mayBeSoldTwice[key.rowPeriod, default: 0] += max(0, lease.granted - (standby.leases[key]?.granted ?? 0))
        }
        // What an earlier life charged is open again until it is shipped again. This life knows nothing of it, takes it for
        // a grant whose answer was lost, and may give it back before.
        for node in nodes.indices {
            let mark = standby.spools[nodes[node].holder.spool]?.shippedTo ?? 0
            for frame in nodes[node].spool[..<nodes[node].inherited].dropFirst(mark) where frame.leased {
                let id = ModelStore.RowPeriod(row: frame.row, period: frame.period)
                mayBeSoldTwice[id, default: 0] += frame.units
                nodes[node].reopened[id, default: 0] += frame.units
            }
        }
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
        try checkOverrun()
        if !options.copies { try checkCharges() }
        guard !mayForget else { return }
        for node in nodes.indices where nodes[node].book.counters.leasesLost > 0 {
            throw violation("node \(node) lost a lease without a failover")
        }
    }

    /// Overrun comes only of units that were sold twice.
    private func checkOverrun() throws(Violation) {
        for (id, booked) in store.ledger where booked.overrun > mayBeSoldTwice[id] ?? 0 {
            throw violation("\(id): \(booked), sold twice \(mayBeSoldTwice[id] ?? 0)")
        }
    }

    /// What the nodes charged is booked, and what of it is beyond a limit is booked as overrun. A disk that is set back
    /// forgets charges.
    private func checkCharges() throws(Violation) {
        for (id, units) in charged where units > (highestLimit[id] ?? 0) + (store.ledger[id]?.overrun ?? 0) {
            throw violation("\(id): \(units) units charged, limit \(highestLimit[id] ?? 0), \(store.ledger[id] ?? .init())")
        }
        for row in rows {
            let booked = store.ledger.filter { $0.key.row == row }.map(\.value)
            let leased = charged.reduce(0) { $0 + ($1.key.row == row ? $1.value : 0) }
            let (bookedLeased, bookedUnleased) = (
                booked.reduce(0) { $0 + $1.hops - $1.unleased + $1.overrun }, booked.reduce(0) { $0 + $1.unleased }
            )
            let unleased = chargedUnleased[row] ?? 0
            if bookedLeased != leased || bookedUnleased != unleased {
                throw violation("\(row): \(leased) + \(unleased) units charged, \(bookedLeased) + \(bookedUnleased) booked")
            }
        }
    }
}

extension ModelStore {
    /// A standby that missed the opening of a spool would fence the process that has it.
    mutating func restoreEpoch(of spool: Int, _ epoch: Int64) {
        spools[spool, default: Spool()].epoch = epoch
    }
}
