public import GatewayCore

/// A flow book at a model store, with every message in the test's hands.  A class, so that expectations can call it.
public final class FlowDesk {
    public var book: FlowBook
    /// Microseconds; moved by the test.
    public var now: Int64
    /// What the book wants done and nobody did yet.
    public var outbox: [FlowAction] = []
    public var recalls: [QuotaRow] = []
    /// Answers to requests, by their tickets.
    public var starts: [FlowTicket: FlowStartAnswer] = [:]
    public var hops: [FlowTicket: FlowHopAnswer] = [:]
    public var orders: [FlowTicket: FlowSettled] = [:]

    /// Connected to the store.
    public init(_ store: ModelStore, limits: FlowLimits = FlowLimits()) {
        book = FlowBook(limits: limits)
        now = store.now
        connect()
    }

    public func connect() {
        book.connected(now: now)
        collect()
    }

    /// Statements that nobody delivered yet are lost with it.
    public func loseConnection() {
        outbox = []
        book.disconnected(now: now)
        collect()
    }

    // MARK: - Requests, without the store's answer

    /// nil: refused at once.
    @discardableResult
    public func start(_ start: FlowStart) -> FlowTicket? {
        defer { collect() }
        if case .waits(let ticket) = book.start(start, now: now) { return ticket }
        return nil
    }

    @discardableResult
    public func take(_ hop: FlowHop) -> FlowTicket? {
        defer { collect() }
        if case .waits(let ticket) = book.take(hop, now: now) { return ticket }
        return nil
    }

    @discardableResult
    public func settle(_ settlement: FlowSettlement) -> FlowTicket? {
        defer { collect() }
        if case .waits(let ticket) = book.settle(settlement, now: now) { return ticket }
        return nil
    }

    @discardableResult
    public func resolve(_ resolution: FlowResolution) -> FlowTicket? {
        defer { collect() }
        if case .waits(let ticket) = book.resolve(resolution, now: now) { return ticket }
        return nil
    }

    // MARK: - Requests with their answers

    public func start(_ start: FlowStart, at store: inout ModelStore) -> FlowStartAnswer? {
        let ticket = self.start(start)
        talk(to: &store)
        return ticket.flatMap { starts[$0] }
    }

    public func take(_ hop: FlowHop, at store: inout ModelStore) -> FlowHopAnswer? {
        let ticket = take(hop)
        talk(to: &store)
        return ticket.flatMap { hops[$0] }
    }

    public func settle(_ settlement: FlowSettlement, at store: inout ModelStore) -> FlowSettled? {
        let ticket = settle(settlement)
        talk(to: &store)
        return ticket.flatMap { orders[$0] }
    }

    public func resolve(_ resolution: FlowResolution, at store: inout ModelStore) -> FlowSettled? {
        let ticket = resolve(resolution)
        talk(to: &store)
        return ticket.flatMap { orders[$0] }
    }

    // MARK: - Messages

    /// Lets time pass and the book act.
    public func wait(_ microseconds: Int64) {
        now += microseconds
        collect()
    }

    /// Carries messages both ways until the book is content.
    public func talk(to store: inout ModelStore) {
        while !outbox.isEmpty { deliver(outbox.removeFirst(), to: &store) }
    }

    /// The store does what `action` says; the answer reaches the book unless it is `lost`.
    public func deliver(_ action: FlowAction, to store: inout ModelStore, losingAnswer lost: Bool = false) {
        store.now = max(store.now, now)
        switch action {
        case .turn(let number, let turn):
            let answers = store.take(turn)
            if !lost { book.answered(number, answers, now: now) }
        case .recall(let row): recalls.append(row)
        case .answerStart(let ticket, let answer): starts[ticket] = answer
        case .answerHop(let ticket, let answer): hops[ticket] = answer
        case .answerOrder(let ticket, let answer): orders[ticket] = answer
        }
        collect()
    }

    private func collect() {
        repeat {
            book.advance(to: now)
            for action in book.takeActions() {
                switch action {
                case .answerStart(let ticket, let answer): starts[ticket] = answer
                case .answerHop(let ticket, let answer): hops[ticket] = answer
                case .answerOrder(let ticket, let answer): orders[ticket] = answer
                default: outbox.append(action)
                }
            }
        } while book.isDue
    }
}
