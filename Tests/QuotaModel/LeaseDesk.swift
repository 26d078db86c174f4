public import GatewayCore

/// A lease book at a model store, with every message in the test's hands.
public struct LeaseDesk {
    public let spool: Int
    public var epoch: Int64
    public var book: LeaseBook
    /// Microseconds; moved by the test.
    public var now: Int64
    /// What the book wants done and nobody did yet.
    public var outbox: [LeaseAction] = []
    /// Recalls it asked for.
    public var recalls: [QuotaRow] = []
    /// Answers to requests that waited, in the order in which they came.
    public var answers: [(ticket: QuotaTicket, admission: Admission)] = []

    /// Opens the spool and connects; the store has answered the first read.
    public init(_ store: inout ModelStore, spool: Int = 1, limits: LeaseLimits = LeaseLimits()) {
        self.spool = spool
        epoch = store.open(spool).epoch
        book = LeaseBook(limits: limits)
        now = store.now
        connect()
        talk(to: &store)
    }

    public mutating func connect() {
        book.connected(now: now)
        collect()
    }

    public mutating func loseConnection() {
        outbox = []
        book.disconnected(now: now)
        collect()
    }

    /// nil: the request waits.
    @discardableResult
    public mutating func admit(_ want: QuotaWant) -> Admission? {
        let decision = book.admit(want, now: now)
        collect()
        if case .answered(let admission) = decision { return admission }
        return nil
    }

    public mutating func reduce(_ hold: QuotaHold, to units: Int64) {
        book.reduce(hold, to: units, now: now)
        collect()
    }

    public mutating func settle(_ hold: QuotaHold, charge: Int64) {
        book.settle(hold, charge: charge, now: now)
        collect()
    }

    public mutating func recalled(_ row: QuotaRow) {
        book.recalled(row, now: now)
        collect()
    }

    /// Lets time pass and the book act.
    public mutating func wait(_ microseconds: Int64) {
        now += microseconds
        collect()
    }

    /// Carries messages both ways until the book is content.
    public mutating func talk(to store: inout ModelStore) {
        while !outbox.isEmpty { deliver(outbox.removeFirst(), to: &store) }
    }

    /// The store does what `action` says; the answer reaches the book unless it is `lost`.
    public mutating func deliver(_ action: LeaseAction, to store: inout ModelStore, losingAnswer lost: Bool = false) {
        store.now = max(store.now, now)
        switch action {
        case .ask(let number, let questions):
            guard let answers = try? store.acquire(spool, epoch: epoch, questions) else { return fence() }
            if !lost { book.answered(number, answers, now: now) }
        case .giveBack(let number, let returns):
            guard (try? store.giveBack(spool, epoch: epoch, returns)) != nil else { return fence() }
            if !lost { book.gaveBack(number, ok: true, now: now) }
        case .readLeases(let number):
            guard let records = try? store.readLeases(spool, epoch: epoch) else { return fence() }
            if !lost { book.leasesRead(number, records, now: now) }
        case .recall(let row):
            recalls.append(row)
        case .answer(let ticket, let admission):
            answers.append((ticket, admission))
        }
        collect()
    }

    /// Ships what holds charged, as one batch of the spool.
    public mutating func ship(_ frames: [ModelFrame], to store: inout ModelStore) {
        store.now = max(store.now, now)
        _ = try? store.ship(spool, epoch: epoch, from: store.spools[spool]!.shippedTo, frames[...])
    }

    private mutating func fence() {
        book.fenced(now: now)
        collect()
    }

    private mutating func collect() {
        repeat {
            book.advance(to: now)
            for action in book.takeActions() {
                if case .answer(let ticket, let admission) = action {
                    answers.append((ticket, admission))
                } else {
                    outbox.append(action)
                }
            }
        } while book.isDue
    }
}
