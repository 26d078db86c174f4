public import GatewayCore
public import GatewayStore
internal import Glibc
public import NIOCore
public import Postgres
public import Reactor

/// The flows of one worker: drives a ``FlowBook`` over the worker's connection to the store.
///
/// Confined to its reactor.  Every callback runs once, on the reactor, after the call returned or within it.
public final class FlowKeeper {
    private let reactor: Reactor
    private var book: FlowBook
    private var session: FlowSession?
    private var starting: [FlowTicket: (FlowStartAnswer) -> Void] = [:]
    private var hopping: [FlowTicket: (FlowHopAnswer) -> Void] = [:]
    private var ordering: [FlowTicket: (FlowSettled) -> Void] = [:]
    /// Settlements that neither the store nor a spool has, by their order: in the book, or between two tries.
    private var unsettled: [UInt64: Unsettled] = [:]
    private var lastSettlement: UInt64 = 0
    private var timer: (deadline: Int64, timer: Reactor.Timer)?
    private var isDriving = false
    private var onClosed: ((_ lost: Int) -> Void)?
    private var closeTimer: Reactor.Timer?
    private let answerDeadline: TimeAmount

    private struct Unsettled {
        let settlement: FlowSettlement
        let keep: (FlowSettlement) -> Bool
        let done: (FlowSettled) -> Void
    }

    /// A turn that the store refused; it is sent again as long as somebody waits for it.
    public var onError: ((PostgresError) -> Void)?

    public init(on reactor: Reactor, limits: FlowLimits = FlowLimits()) {
        self.reactor = reactor
        book = FlowBook(limits: limits)
        answerDeadline = .microseconds(limits.answerMax)
    }

    public var counters: FlowBook.Counters { book.counters }

    /// Requests and settlements that wait for the store.
    public var waiting: Int { book.waiting }

    // MARK: - Requests

    /// Holds a flow's units.  Within the limits' `waitMax`; where that ends first, and the store may have
    /// heard it, it is taken back.
    public func start(_ start: FlowStart, _ done: @escaping (FlowStartAnswer) -> Void) {
        reactor.preconditionInEventLoop()
        switch book.start(start, now: Self.now) {
        case .answered(let answer): done(answer)
        case .waits(let ticket):
            starting[ticket] = done
            drive()
        }
    }

    /// Asks whether a step may be forwarded.
    public func step(_ hop: FlowHop, _ done: @escaping (FlowHopAnswer) -> Void) {
        precondition(!hop.isFinish, "a finish is claimed")
        take(hop, done)
    }

    /// Claims the finish, before it is forwarded: from `passed` on no other hop can finish the flow, and nobody expires
    /// it, as long as this keeper lives and reaches the store.  To be settled once, whatever happens; where the claim was
    /// void for so long that the flow has expired, that is the answer to the settlement.
    public func claim(_ hop: FlowHop, _ done: @escaping (FlowHopAnswer) -> Void) {
        precondition(hop.isFinish, "only a finish is claimed")
        take(hop, done)
    }

    private func take(_ hop: FlowHop, _ done: @escaping (FlowHopAnswer) -> Void) {
        reactor.preconditionInEventLoop()
        switch book.take(hop, now: Self.now) {
        case .answered(let answer): done(answer)
        case .waits(let ticket):
            hopping[ticket] = done
            drive()
        }
    }

    /// Says what became of a flow.  Within the limits' `settleMax`; then it is for `keep`, and the answer is `pending`.
    ///
    /// - Parameter keep: puts the settlement into the spool.  False: that took it no more than the store did; both are
    ///   asked again until one has it, and `done` waits, so that nobody is told of what may be lost.
    public func settle(
        _ settlement: FlowSettlement, keep: @escaping (FlowSettlement) -> Bool, _ done: @escaping (FlowSettled) -> Void
    ) {
        reactor.preconditionInEventLoop()
        lastSettlement += 1
        unsettled[lastSettlement] = Unsettled(settlement: settlement, keep: keep, done: done)
        settle(lastSettlement)
    }

    private func settle(_ number: UInt64) {
        guard let one = unsettled[number] else { return }
        wait(for: book.settle(one.settlement, now: Self.now)) { [weak self] in self?.settled(number, $0) }
    }

    private func settled(_ number: UInt64, _ answer: FlowSettled) {
        // Closing has ended it before.
        guard let one = unsettled[number] else { return }
        if case .pending = answer, !one.keep(one.settlement) {
            _ = reactor.startTimer(in: SpoolWriter.retryInterval) { [weak self] in
                self?.settle(number)
                self?.drive()
            }
            return
        }
        unsettled[number] = nil
        one.done(answer)
    }

    /// Ends an open flow on the word of a client or an operator.
    public func resolve(_ resolution: FlowResolution, _ done: @escaping (FlowSettled) -> Void) {
        reactor.preconditionInEventLoop()
        wait(for: book.resolve(resolution, now: Self.now), done)
    }

    private func wait(for decision: FlowBook.Decision<FlowSettled>, _ done: @escaping (FlowSettled) -> Void) {
        switch decision {
        case .answered(let answer): done(answer)
        case .waits(let ticket):
            ordering[ticket] = done
            drive()
        }
    }

    /// Remembers what a step with a key was answered, for whoever sends it again.
    public func note(_ note: FlowNote) {
        reactor.preconditionInEventLoop()
        book.note(note, now: Self.now)
        if book.isDue { drive() }
    }

    /// The flow as the store has it; nil: unknown, or not of the environment (nil: any).
    public func show(
        _ id: ReservationID, environment: Int64?, _ done: @escaping (Result<FlowView?, PostgresError>) -> Void
    ) {
        reactor.preconditionInEventLoop()
        guard let session else { preconditionFailure("shown before the keeper began") }
        session.show(id, environment: environment, deadline: answerDeadline, done)
    }

    // MARK: - Life

    /// Requests are sent from now on; until then they wait.
    public func begin(_ session: FlowSession) {
        reactor.preconditionInEventLoop()
        self.session = session
        if session.isReady { storeReady() }
    }

    /// The connection of the session stands (again): to be called from its state changes.
    public func storeReady() {
        guard session != nil else { return }
        book.connected(now: Self.now)
        drive()
    }

    /// The connection of the session was lost or cannot be made.
    public func storeLost() {
        book.disconnected(now: Self.now)
        drive()
    }

    /// Orderly end, once no request will come any more.
    ///
    /// - Parameter done: once, when the store has answered everything that waits and every settlement is in the store or in
    ///   the spool, or after `limit` without that; with the number of settlements that are lost, which neither took even then.
    public func close(within limit: TimeAmount, _ done: @escaping (_ lost: Int) -> Void) {
        reactor.preconditionInEventLoop()
        precondition(onClosed == nil, "closed twice")
        onClosed = done
        closeTimer = reactor.startTimer(in: limit) { [weak self] in self?.giveUp() }
        drive()
    }

    /// The last try: what the spool has, the store will have.
    private func giveUp() {
        let left = unsettled.sorted { $0.key < $1.key }.map(\.value)
        unsettled = [:]
        let kept = left.filter { $0.keep($0.settlement) }
        for one in kept { one.done(.pending(one.settlement)) }
        finishClosing(lost: left.count - kept.count)
    }

    private func finishClosing(lost: Int) {
        guard let done = onClosed else { return }
        onClosed = nil
        if let timer = closeTimer { reactor.cancelTimer(timer) }
        closeTimer = nil
        done(lost)
    }

    // MARK: - Driving the book

    /// Carries out what the book wants until it wants nothing; callbacks may call any method of this keeper.
    private func drive() {
        guard !isDriving else { return }
        isDriving = true
        repeat {
            book.advance(to: Self.now)
            for action in book.takeActions() { perform(action) }
        } while book.isDue
        isDriving = false
        startTimer()
        if onClosed != nil, book.isIdle, unsettled.isEmpty { finishClosing(lost: 0) }
    }

    /// One timer, moved only for an earlier deadline; one that fires early finds nothing due and is set again.
    private func startTimer() {
        guard let deadline = book.deadline else { return }
        if let timer {
            guard deadline < timer.deadline else { return }
            reactor.cancelTimer(timer.timer)
        }
        timer = (
            deadline,
            reactor.startTimer(in: .microseconds(max(0, deadline - Self.now))) { [weak self] in
                self?.timer = nil
                self?.drive()
            }
        )
    }

    private func perform(_ action: FlowAction) {
        switch action {
        case .answerStart(let ticket, let answer): starting.removeValue(forKey: ticket)?(answer)
        case .answerHop(let ticket, let answer): hopping.removeValue(forKey: ticket)?(answer)
        case .answerOrder(let ticket, let answer): ordering.removeValue(forKey: ticket)?(answer)
        case .recall(let row): session?.recall(row, deadline: answerDeadline)
        case .turn(let number, let turn):
            session?.take(turn, deadline: answerDeadline) { [weak self] in self?.heard(number, $0) }
        }
    }

    private func heard(_ number: UInt64, _ result: Result<FlowTurnAnswers, PostgresError>) {
        switch result {
        case .success(let answers):
            book.answered(number, answers, now: Self.now)
        case .failure(let error):
            if session?.isReady == true {
                if !error.isRetryable { onError?(error) }
                book.failed(number, now: Self.now)
            } else {
                book.disconnected(now: Self.now)
            }
        }
        drive()
    }

    /// Microseconds of a clock that goes on while the machine sleeps.
    private static var now: Int64 {
        var time = timespec()
        clock_gettime(CLOCK_BOOTTIME, &time)
        return Int64(time.tv_sec) * 1_000_000 + Int64(time.tv_nsec) / 1_000
    }
}
