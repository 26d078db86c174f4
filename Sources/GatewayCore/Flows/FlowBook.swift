/// Names a request that waits for the store.
public struct FlowTicket: Hashable, Sendable {
    var number: UInt64
}

/// What the caller is to do for a ``FlowBook``.
public enum FlowAction: Sendable, Equatable {
    /// Carry the turn out in one transaction; report with ``FlowBook/answered(_:_:now:)`` or ``FlowBook/failed(_:now:)``
    /// and the same number.
    case turn(number: UInt64, FlowTurn)
    /// Ask the holders of leases to return idle units of the row.
    case recall(QuotaRow)
    /// Tell a waiting request its answer.
    case answerStart(FlowTicket, FlowStartAnswer)
    case answerHop(FlowTicket, FlowHopAnswer)
    case answerOrder(FlowTicket, FlowSettled)
}

/// The flows of one worker on their way to the store: a state machine without I/O.
///
/// The store's rows are the only state there is of a flow, so that every node can take its next hop; this book gathers
/// what waits into turns, one in flight, and sees to it that nothing a request left behind stays.  A claim is short, so
/// that the flow of a node that dies is soon free, and is renewed until its hop is settled, however long that takes.
///
/// A turn is one transaction: what flows cost is the wait for the disk at its end and the lock of a hot quota row until
/// then, so all kinds share them.  One that the store refuses takes all its requests with it; the next ones are then of one
/// kind each, so that a request that cannot be carried out holds up no other kind.
/// Everything is idempotent in the store: after a lost answer the same is said again, in order.  A request whose wait
/// ends while the store may have heard it takes it back: a start is rolled back, a claim is given up.
///
/// The caller calls an event, then ``advance(to:)``, then does what ``takeActions()`` says, and calls
/// ``advance(to:)`` again at ``deadline``.  Times are microseconds of a clock that does not stop while the machine
/// sleeps (CLOCK_BOOTTIME).
public struct FlowBook {
    /// What became of a request.
    public enum Decision<Answer: Sendable & Equatable>: Sendable, Equatable {
        case answered(Answer)
        /// The action with the answer and this ticket follows.
        case waits(FlowTicket)
    }

    /// Counts since the book was made.
    public struct Counters: Sendable, Equatable {
        public var turns = 0
        public var started = 0
        public var refusedUsedUp = 0
        public var refusedHeld = 0
        public var refusedLimit = 0
        public var unavailable = 0
        public var recalls = 0
        public var committed = 0
        public var rolledBack = 0
        public var reopened = 0
        /// Settlements that could not reach the store in time.
        public var pending = 0
        /// Flows charged after they had expired.
        public var late = 0
        /// Starts and claims taken back because their requests had given up.
        public var undone = 0
        /// Claims renewed, and those found to be void before they were settled.
        public var renewals = 0
        public var claimsLost = 0
    }

    enum Link: Equatable {
        /// Not connected yet: requests wait.
        case starting
        /// No connection: new requests are refused; settlements, and what was on its way, wait.
        case away
        case ready
    }

    public let limits: FlowLimits
    public internal(set) var counters = Counters()
    /// When ``advance(to:)`` is wanted next; nil: only after an event.
    public internal(set) var deadline: Int64?
    /// Whether ``advance(to:)`` has something to do before ``deadline``.
    public internal(set) var isDue = false

    var link = Link.starting
    var starts = FlowLane<FlowStart>()
    var hops = FlowLane<FlowHop>()
    var orders = FlowLane<FlowOrder>()
    var notes = FlowLane<FlowNote>()
    /// Renewals of the claims that stand until they are settled, by their hops; and when they are said.
    var claims: [RequestID: FlowHop] = [:]
    var renewAt: Int64 = .max
    var recalledAt: [QuotaRow: Int64] = [:]
    var actions: [FlowAction] = []
    /// The turn in flight, if there is one, and the last one.
    var inFlight: UInt64?
    var lastTurn: UInt64 = 0
    /// How many of the next turns are of one kind each.
    var turnsApart = 0
    var nextTicket: UInt64 = 1

    public init(limits: FlowLimits = FlowLimits()) { self.limits = limits }

    /// Requests, settlements and what is to be taken back that the store has not answered.
    public var waiting: Int { starts.count + hops.count + orders.count + notes.count }

    /// Whether nothing waits and nothing is in flight.
    public var isIdle: Bool { starts.isEmpty && hops.isEmpty && orders.isEmpty && notes.isEmpty }

    // MARK: - Requests

    /// Asks for a flow's units.
    public mutating func start(_ start: FlowStart, now: Int64) -> Decision<FlowStartAnswer> {
        guard 0...limits.unitsMax ~= start.units, takesRequests(starts.count) else { return .answered(unavailable()) }
        let ticket = makeTicket()
        starts.add(.init(ticket: ticket, request: start, until: now + limits.waitMax))
        isDue = true
        return .waits(ticket)
    }

    /// Asks whether a step may be taken, or claims the finish.
    public mutating func take(_ hop: FlowHop, now: Int64) -> Decision<FlowHopAnswer> {
        guard takesRequests(hops.count) else {
            counters.unavailable += 1
            return .answered(.unavailable(retryAfter: limits.retryAfterOutage))
        }
        let ticket = makeTicket()
        hops.add(.init(ticket: ticket, request: hop, until: now + limits.waitMax))
        isDue = true
        return .waits(ticket)
    }

    /// Says what became of a flow.  Once per claim, and at most once per start or step.
    public mutating func settle(_ settlement: FlowSettlement, now: Int64) -> Decision<FlowSettled> {
        claims[settlement.hop] = nil
        guard orders.count < limits.waitingMax else {
            counters.pending += 1
            return .answered(.pending(settlement))
        }
        let ticket = makeTicket()
        orders.add(.init(ticket: ticket, request: .settle(settlement), until: now + limits.settleMax))
        isDue = true
        return .waits(ticket)
    }

    /// Ends an open flow on the word of a client or an operator.
    public mutating func resolve(_ resolution: FlowResolution, now: Int64) -> Decision<FlowSettled> {
        guard takesRequests(orders.count) else {
            counters.unavailable += 1
            return .answered(.unavailable(retryAfter: limits.retryAfterOutage))
        }
        let ticket = makeTicket()
        orders.add(.init(ticket: ticket, request: .resolve(resolution), until: now + limits.waitMax))
        isDue = true
        return .waits(ticket)
    }

    /// Remembers what a step with a key was answered; may be lost without harm.
    public mutating func note(_ note: FlowNote, now: Int64) {
        guard link == .ready, notes.count < limits.waitingMax else { return }
        notes.add(.init(ticket: nil, request: note, until: now + limits.waitMax))
        isDue = true
    }

    private func takesRequests(_ count: Int) -> Bool { link != .away && count < limits.waitingMax }

    private mutating func makeTicket() -> FlowTicket {
        defer { nextTicket += 1 }
        return FlowTicket(number: nextTicket)
    }

    mutating func unavailable() -> FlowStartAnswer {
        counters.unavailable += 1
        return .unavailable(retryAfter: limits.retryAfterOutage)
    }

    /// Whole seconds, rounded up, at least 0.
    static func seconds(_ microseconds: Int64) -> Int64 { max(0, (microseconds + 999_999) / 1_000_000) }

    /// The actions since the last call, in order.
    public mutating func takeActions() -> [FlowAction] {
        guard !actions.isEmpty else { return [] }
        defer { actions = [] }
        return actions
    }

    // MARK: - The connection

    /// The connection stands (again): what was on its way is said again.
    public mutating func connected(now: Int64) {
        forgetTurn(retryAt: now)
        link = .ready
        // Nobody renewed them while it was away.
        if !claims.isEmpty { renewAt = now }
        isDue = true
    }

    /// The connection is lost.  A turn on its way may have been heard or not.
    public mutating func disconnected(now: Int64) {
        forgetTurn(retryAt: now)
        link = .away
        isDue = true
    }

    private mutating func forgetTurn(retryAt: Int64) {
        inFlight = nil
        starts.failed(retryAt: retryAt)
        hops.failed(retryAt: retryAt)
        orders.failed(retryAt: retryAt)
        notes.failed(retryAt: retryAt)
    }

    /// A turn failed although the connection stands: it is sent again, each kind by itself.
    public mutating func failed(_ number: UInt64, now: Int64) {
        guard inFlight == number else { return }
        turnsApart = FlowTurn.kinds
        forgetTurn(retryAt: now + limits.retryInterval)
        isDue = true
    }

    // MARK: - Time

    /// Does what is due at `now` and sets ``deadline``.
    public mutating func advance(to now: Int64) {
        isDue = false
        endLongWaits(now)
        if now >= renewAt { renewClaims(now) }
        if link == .ready, inFlight == nil { sendTurn(now) }
        let maySend = link == .ready && inFlight == nil
        let next = min(
            starts.deadline(maySend: maySend), hops.deadline(maySend: maySend), orders.deadline(maySend: maySend),
            notes.deadline(maySend: maySend), renewAt)
        deadline = next == .max ? nil : next
    }

    /// Says every claim again that is not settled: the store lets it live longer.  In an order that does not differ from
    /// run to run.
    private mutating func renewClaims(_ now: Int64) {
        renewAt = claims.isEmpty ? .max : now + limits.renewInterval
        guard link == .ready else { return }
        for renewal in claims.values.sorted(by: { $0.id < $1.id }) where hops.count < 2 * limits.waitingMax {
            hops.add(.init(ticket: nil, request: renewal, until: now + limits.waitMax))
            counters.renewals += 1
        }
    }

    /// Everything that waits; where kinds go apart, the next one that waits.
    private mutating func sendTurn(_ now: Int64) {
        var turn = FlowTurn()
        for kind in turnsApart..<turnsApart + FlowTurn.kinds where turnsApart == 0 || turn.isEmpty {
            switch kind % FlowTurn.kinds {
            case 0: turn.hops = hops.send(at: limits.rowsPerTurn, now: now)
            case 1: turn.orders = orders.send(at: limits.rowsPerTurn, now: now)
            case 2: turn.starts = starts.send(at: limits.rowsPerTurn, now: now)
            default: turn.notes = notes.send(at: limits.rowsPerTurn, now: now)
            }
        }
        guard !turn.isEmpty else { return }
        lastTurn += 1
        inFlight = lastTurn
        counters.turns += 1
        actions.append(.turn(number: lastTurn, turn))
    }

    private mutating func endLongWaits(_ now: Int64) {
        for waiter in starts.giveUp(now) {
            if let ticket = waiter.ticket { actions.append(.answerStart(ticket, unavailable())) }
            if waiter.sentAt != nil { undo(waiter.request, now) }
        }
        for waiter in hops.giveUp(now) {
            // A renewal is followed by the next one.
            guard let ticket = waiter.ticket else { continue }
            counters.unavailable += 1
            actions.append(.answerHop(ticket, .unavailable(retryAfter: limits.retryAfterOutage)))
            if waiter.sentAt != nil, waiter.request.isFinish { undo(waiter.request, now) }
        }
        for waiter in orders.giveUp(now) {
            guard let ticket = waiter.ticket else { continue }
            switch waiter.request {
            case .settle(let settlement):
                counters.pending += 1
                actions.append(.answerOrder(ticket, .pending(settlement)))
            case .resolve:
                counters.unavailable += 1
                actions.append(.answerOrder(ticket, .unavailable(retryAfter: limits.retryAfterOutage)))
            }
        }
        _ = notes.giveUp(now)
    }

    // MARK: - Taking back

    private mutating func undo(_ start: FlowStart, _ now: Int64) {
        undo(FlowSettlement(id: start.id, hop: start.requestID, row: start.row, period: 0, action: .rollback), now)
    }

    private mutating func undo(_ claim: FlowHop, _ now: Int64) {
        let row = QuotaRow(environmentID: claim.environmentID, serviceID: 0)
        undo(
            FlowSettlement(
                id: claim.id, hop: claim.requestID, row: row, period: 0, action: .reopen(timeToLive: claim.timeToLive)),
            now)
    }

    private mutating func undo(_ settlement: FlowSettlement, _ now: Int64) {
        guard orders.count < 2 * limits.waitingMax else { return }
        counters.undone += 1
        orders.add(.init(ticket: nil, request: .settle(settlement), until: now + limits.undoMax))
        isDue = true
    }
}
