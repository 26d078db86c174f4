internal import GatewayCore

// Disks that are copied while their node runs, and disks that are set back while it does not.
extension Simulation {
    func tamper(_ node: Int) {
        let (spool, frames) = (nodes[node].holder.spool, nodes[node].spool)
        guard random.chance(3) else {
            return after(random.delay(300_000), .adopt(spool: spool, frames))
        }
        // What it forgot may be in the store, or on a copy, or nowhere. The next process writes a spool of its own.
        kill(node)
        histories[spool] = frames
        after(random.delay(300_000), .adopt(spool: spool, frames.dropLast(Int(random.pick(0...200)))))
        nodes[node].holder.spool = nextSpool
        nodes[node].spool = []
        nodes[node].inherited = 0
        nextSpool += 1
    }

    /// A process finds a spool that another one wrote: it opens it, ships it, and gives its leases back.
    func adopt(_ spool: Int, _ frames: [ModelFrame]) {
        guard storeDownUntil <= now else { return after(random.delay(200_000), .adopt(spool: spool, frames)) }
        spoolsAdopted += 1
        let opened = store.open(spool)
        guard opened.shippedTo <= frames.count else {
            spoolsBehind += 1
            return
        }
        _ = try? store.ship(spool, epoch: opened.epoch, from: opened.shippedTo, frames[opened.shippedTo...])
        let returns = store.leases.filter { $0.key.spool == spool && $0.value.open > 0 }.map { key, lease -> LeaseReturn in
            mayBeSoldTwice[key.rowPeriod, default: 0] += lease.open
            return LeaseReturn(row: key.row, period: key.period, totalReturned: lease.returned + lease.open)
        }
        _ = try? store.giveBack(spool, epoch: opened.epoch, returns)
    }

    /// Another process has the node's spool: it ends, and starts again with what is on its disk.
    func fenced(_ node: Int) throws(Violation) {
        guard options.copies else { throw violation("node \(node) was fenced") }
        nodesFenced += 1
        kill(node)
    }
}
