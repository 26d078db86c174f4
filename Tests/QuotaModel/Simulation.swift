internal import GatewayCore

/// N nodes and a store, driven by a seed: messages late, lost and repeated, nodes paused, killed and restarted,
/// clocks apart, resets, limit edits and (if allowed) failovers to a standby that lags.
///
/// After every step the books must add up, no node may have admitted beyond the limit, and every refusal must rest
/// on an answer that was asked for after the request came.  A seed replays exactly.
public final class Simulation {
    public struct Options: Sendable {
        public var nodes = 3
        public var limits: [Int64?] = [40, 1_000, 200_000, nil]
        public var periodLength: Int64? = 45_000_000
        /// Mean time between two requests of a node, microseconds.
        public var arrivalGap: Int64 = 4_000
        public var chaosGap: Int64 = 900_000
        /// Whether the store may lose commits. The units of a lease that it lost are sold again while their holder does not
        /// know yet: what is admitted beyond the limit so is booked as overrun.
        public var failovers = false
        /// Whether disks may be copied while their node runs, and set back while it does not. What a copy gives back is sold
        /// again, and so is what a disk has forgotten: then, too, there are admissions beyond the limit.
        public var copies = false
        /// How long a holder may be silent; nil: nobody is written off, so that a unit that leaks stays held and is found.
        public var writeOffAfter: Int64?
        /// Mean time between two flows; nil: there are none.
        public var flowGap: Int64? = 15_000
        public init() {}
    }

    public struct Violation: Error, CustomStringConvertible {
        public let seed: UInt64
        public let step: Int
        public let what: String
        public var description: String { "seed \(seed), step \(step): \(what)" }
    }

    public let seed: UInt64
    public let options: Options
    public internal(set) var steps = 0
    public internal(set) var admitted = 0
    public internal(set) var refused = 0
    public internal(set) var unavailable = 0
    /// Spools that another process found, those of them of which the store had more, and nodes that lost theirs so.
    public internal(set) var spoolsAdopted = 0
    public internal(set) var spoolsBehind = 0
    public internal(set) var nodesFenced = 0

    var random: SeededRandom
    var events = EventQueue<SimulationEvent>()
    var now: Int64 = 0
    /// Orders what happens at one time.
    var sequence: UInt64 = 0
    var nextRequest = 0
    var nextConnection = 0
    /// Connections up to this one were to a store that is gone: it carries out nothing any more.
    var lastConnectionLost = 0
    var isQuiet = false
    var storeDownUntil: Int64 = 0

    var store: ModelStore { didSet { mustCheck = true } }
    /// Whether the store was touched since it was last checked.
    private var mustCheck = false
    var standby: ModelStore
    /// Leases that the store dropped since the standby heard of it last.
    var droppedLeases: [ModelStore.LeaseKey: ModelStore.Lease] = [:]
    var rows: [QuotaRow] = []
    var nodes: [SimulatedNode]
    var nextSpool: Int
    /// All that was ever in the spools whose disks were set back. Nobody writes them any more.
    var histories: [Int: [ModelFrame]] = [:]

    // What the nodes did, as an observer of all of them sees it.
    // Of leased units by row and period, of others by row: those may belong to whichever period they are booked in.
    var inUse: [ModelStore.RowPeriod: Int64] = [:]
    var charged: [ModelStore.RowPeriod: Int64] = [:]
    var chargedUnleased: [QuotaRow: Int64] = [:]
    /// Units that outages let through.
    public internal(set) var unitsAllowed: Int64 = 0
    /// Units that left a lease without its holder's word: a failover lost their grant, or a copy of its disk gave them
    /// back. Only these can be admitted beyond a limit.
    var mayBeSoldTwice: [ModelStore.RowPeriod: Int64] = [:]
    var highestLimit: [ModelStore.RowPeriod: Int64] = [:]
    /// Rows that had no limit for a while.
    var unlimited: Set<ModelStore.RowPeriod> = []

    // Flows, as their clients see them.
    var nextFlow: UInt64 = 1
    var flows: [ReservationID: SimulatedFlow] = [:]
    public internal(set) var flowsStarted = 0
    public internal(set) var flowsCommitted = 0
    public internal(set) var flowsRefused = 0
    public internal(set) var flowsPending = 0
    public internal(set) var flowsLate = 0

    public init(seed: UInt64, options: Options = Options()) {
        self.seed = seed
        self.options = options
        random = SeededRandom(seed: seed)
        store = ModelStore(periodLength: options.periodLength)
        standby = store
        nodes = []
        nextSpool = options.nodes
        for (index, limit) in options.limits.enumerated() {
            let row = QuotaRow(environmentID: Int64(index + 1), serviceID: 1)
            rows.append(row)
            store.setLimit(limit, of: row)
        }
        noteLimits()
        for index in 0..<options.nodes {
            var node = SimulatedNode(spool: index)
            node.clockOffset = random.pick(0...1_000_000_000_000)
            nodes.append(node)
            events.add(.restart(index), at: random.pick(0...100_000))
            events.add(.arrive(index), at: random.pick(0...1_000_000))
        }
        events.add(.sweep, at: 1_000_000)
        events.add(.chaos, at: min(3_000_000, 3 * options.chaosGap))
        if options.flowGap != nil { events.add(.flowArrive, at: 200_000) }
    }

    /// Runs so many steps, then heals everything and checks that nothing is left held or uncharged.
    public func run(steps wanted: Int) throws(Violation) {
        while steps < wanted, try step() {}
        try comeToRest()
    }

    @discardableResult
    func step() throws(Violation) -> Bool {
        guard let (time, event) = events.pop() else { return false }
        now = time
        steps += 1
        store.now = now
        mustCheck = false
        try handle(event)
        guard mustCheck else { return true }
        if let defect = store.defect() { throw violation(defect) }
        try checkFlows()
        return true
    }

    func violation(_ what: String) -> Violation { Violation(seed: seed, step: steps, what: what) }

    func after(_ delay: Int64, _ event: SimulationEvent) { events.add(event, at: now + delay) }

    private func handle(_ event: SimulationEvent) throws(Violation) {
        switch event {
        case .arrive(let node):
            try arrive(node)
        case .report(let node, let life, let request):
            guard isAwake(node, life, event) else { return }
            try report(node, request)
        case .finish(let node, let life, let request):
            guard isAwake(node, life, event) else { return }
            try finish(node, request)
        case .timer(let node, let life):
            guard isAwake(node, life, event) else { return }
            nodes[node].timerAt = .max
            try pump(node)
        case .request(let node, let life, let holder, let connection, let request):
            execute(node, life, holder, connection, request)
        case .reply(let node, let life, let connection, let reply):
            guard isAwake(node, life, event), nodes[node].connection == connection else { return }
            try receive(node, reply)
        case .connect(let node, let life):
            guard isAwake(node, life, event) else { return }
            try connect(node)
        case .noticeLoss(let node, let life):
            guard isAwake(node, life, event), nodes[node].connection == nil else { return }
            nodes[node].book.disconnected(now: local(node))
            nodes[node].flows.disconnected(now: local(node))
            try pump(node)
            after(random.delay(100_000), .connect(node, life: life))
        case .recall(let node, let life, let row):
            guard isAwake(node, life, event) else { return }
            nodes[node].book.recalled(row, now: local(node))
            try pump(node)
        case .flowArrive:
            flowArrive()
        case .flowWork(let node, let work):
            // A client whose node is away gets no answer, and gives up.
            guard nodes[node].isAlive else { return }
            guard isAwake(node, nodes[node].life, event) else { return }
            try begin(node, work)
        case .flowAnswer(let node, let life, let work):
            guard isAwake(node, life, event) else { return }
            try begin(node, work)
        case .ship(let node, let life):
            guard isAwake(node, life, event) else { return }
            ship(node)
        case .shipped(let node, let life, let holder, let from, let frames):
            try deliverBatch(node, life, holder, from, frames)
        case .restart(let node):
            try restart(node)
        case .adopt(let spool, let frames):
            adopt(spool, frames)
        case .sweep:
            sweep()
        case .chaos:
            try chaos()
        }
    }

    /// Whether what was acknowledged may be lost.
    var mayForget: Bool { options.failovers || options.copies }

    func local(_ node: Int) -> Int64 { now + nodes[node].clockOffset }

    /// Whether the node can take an event now; a paused one takes it when it wakes.
    private func isAwake(_ node: Int, _ life: Int, _ event: SimulationEvent) -> Bool {
        guard nodes[node].isAlive, nodes[node].life == life else { return false }
        guard nodes[node].pausedUntil <= now else {
            events.add(event, at: nodes[node].pausedUntil)
            return false
        }
        return true
    }

    func noteLimits() {
        for (row, quota) in store.quotas {
            let id = ModelStore.RowPeriod(row: row, period: quota.period)
            highestLimit[id] = max(highestLimit[id] ?? 0, quota.limit ?? 0)
            if quota.limit == nil { unlimited.insert(id) }
        }
    }
}
