public import GatewayCore
public import GatewayStore
internal import Glibc
public import NIOCore
internal import Postgres
public import Reactor

/// Admits the requests of one worker against quota: drives a ``LeaseBook`` over the worker's connection to the store.
///
/// Confined to its reactor.
public final class QuotaKeeper {
    private let reactor: Reactor
    private var book: LeaseBook
    private var session: LeaseSession?
    private var waiting: [QuotaTicket: (Admission) -> Void] = [:]
    private var timer: (deadline: Int64, timer: Reactor.Timer)?
    private var isDriving = false
    private var onClosed: (() -> Void)?
    private var closeTimer: Reactor.Timer?
    private let answerDeadline: TimeAmount

    public init(on reactor: Reactor, limits: LeaseLimits = LeaseLimits()) {
        self.reactor = reactor
        book = LeaseBook(limits: limits)
        answerDeadline = .microseconds(limits.answerMax)
    }

    public var counters: LeaseBook.Counters { book.counters }

    /// Another process opened this worker's spool: nothing is admitted any more. The shipper hears of it, too, and the node ends.
    public var isFenced: Bool { book.isFenced }

    // MARK: - Requests

    /// Holds units for a request.  `done` runs before this returns where the lease has units or nothing needs
    /// holding, and exactly once in any case, within the limits' `waitMax`.
    public func admit(_ want: QuotaWant, _ done: @escaping (Admission) -> Void) {
        reactor.preconditionInEventLoop()
        switch book.admit(want, now: Self.now) {
        case .answered(let admission):
            if book.isDue { drive() }
            done(admission)
        case .waits(let ticket):
            waiting[ticket] = done
            drive()
        }
    }

    /// It is known what a request costs before it ends: the rest goes back.  From then on its hold has `units`.
    public func reduce(_ hold: QuotaHold, to units: Int64) {
        reactor.preconditionInEventLoop()
        book.reduce(hold, to: units, now: Self.now)
        if book.isDue { drive() }
    }

    /// A request ended and is charged.  Once per hold.
    ///
    /// - Returns: the units charged, at most those held: what the hop's record is to say.
    @discardableResult
    public func settle(_ hold: QuotaHold, charge units: Int64) -> Int64 {
        reactor.preconditionInEventLoop()
        let charged = book.settle(hold, charge: units, now: Self.now)
        if book.isDue { drive() }
        return charged
    }

    /// A request ended and costs nothing.  Instead of `settle`.
    public func release(_ hold: QuotaHold) { settle(hold, charge: 0) }

    /// The row's quota as this worker last knew it; nil where it was not asked yet or there is no limit.
    public func view(environment: Int64, service: Int64) -> QuotaView? {
        book.view(QuotaRow(environmentID: environment, serviceID: service), now: Self.now)
    }

    // MARK: - Life

    /// The spool is open under `session`'s epoch, and everything it held was shipped: what its leases still have
    /// open goes back, then requests are admitted.  Until then they wait, and after `waitMax` the outage rule applies.
    public func begin(_ session: LeaseSession) {
        reactor.preconditionInEventLoop()
        self.session = session
        book.opened()
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

    /// Another holder waits for units of the row (NOTIFY quota_recall).
    public func recall(environment: Int64, service: Int64) {
        reactor.preconditionInEventLoop()
        book.recalled(QuotaRow(environmentID: environment, serviceID: service), now: Self.now)
        if book.isDue { drive() }
    }

    /// Orderly end: idle units go back at once, those of requests in flight as these end.  Requests are still
    /// admitted.
    ///
    /// - Parameter done: once, when the store has heard of every unit, or after `limit` without that.
    public func close(within limit: TimeAmount, _ done: @escaping () -> Void) {
        reactor.preconditionInEventLoop()
        precondition(onClosed == nil, "closed twice")
        onClosed = done
        closeTimer = reactor.startTimer(in: limit) { [weak self] in self?.finishClosing() }
        book.close(now: Self.now)
        drive()
    }

    private func finishClosing() {
        guard let done = onClosed else { return }
        onClosed = nil
        if let timer = closeTimer { reactor.cancelTimer(timer) }
        closeTimer = nil
        done()
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
        if onClosed != nil, book.isClosed { finishClosing() }
    }

    /// One timer, moved only for an earlier deadline; one that fires early finds nothing due and is set again.
    private func startTimer() {
        guard let deadline = book.deadline else { return }
        if let timer {
            guard deadline < timer.deadline else { return }
            reactor.cancelTimer(timer.timer)
        }
        let wait = max(0, deadline - Self.now)
        timer = (
            deadline,
            reactor.startTimer(in: .microseconds(wait)) { [weak self] in
                self?.timer = nil
                self?.drive()
            }
        )
    }

    private func perform(_ action: LeaseAction) {
        switch action {
        case .answer(let ticket, let admission):
            waiting.removeValue(forKey: ticket)?(admission)
        case .ask(let number, let questions):
            session?.acquire(questions, deadline: answerDeadline) { [weak self] result in
                self?.heard(result) { $0.answered(number, $1, now: Self.now) } failed: {
                    $0.askFailed(number, now: Self.now)
                }
            }
        case .giveBack(let number, let returns):
            session?.giveBack(returns, deadline: answerDeadline) { [weak self] result in
                self?.heard(result) { book, _ in book.gaveBack(number, ok: true, now: Self.now) } failed: {
                    $0.gaveBack(number, ok: false, now: Self.now)
                }
            }
        case .readLeases(let number):
            session?.read(deadline: answerDeadline) { [weak self] result in
                self?.heard(result) { $0.leasesRead(number, $1, now: Self.now) } failed: {
                    $0.readFailed(number, now: Self.now)
                }
            }
        case .recall(let row):
            session?.recall(row, deadline: answerDeadline)
        }
    }

    private func heard<Answer>(
        _ result: Result<Answer, PostgresError>, _ took: (inout LeaseBook, Answer) -> Void,
        failed: (inout LeaseBook) -> Void
    ) {
        switch result {
        case .success(let answer):
            took(&book, answer)
        case .failure(let error):
            if error.sqlState == "PN004" {
                book.fenced(now: Self.now)
            } else if session?.isReady == true {
                failed(&book)
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
