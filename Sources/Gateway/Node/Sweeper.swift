internal import GatewayCore
public import GatewayStore
internal import NIOCore
public import Postgres
public import Reactor

/// Does what time brings to quota, flows and log: expired flows, due resets, silent holders, settled leases, the log's days.
///
/// Every node sweeps; what one has in hand another leaves to it.  One statement at a time.  Confined to its reactor, that of
/// the control thread.
public final class Sweeper {
    /// What is swept, by itself, each at its own pace.
    public enum Job: String, Sendable, CaseIterable {
        case flows, resets, holders, leases, partitions, retention
    }

    public struct Settings: Sendable {
        public var interval: [Job: Duration] = [
            .flows: Limits.sweep, .resets: Limits.sweep, .holders: Limits.sweepHolders, .leases: Limits.sweepLeases,
            .partitions: Limits.sweepPartitions, .retention: Limits.sweepPartitions,
        ]
        /// Rows at a time; where there may be more the next turn comes at once.
        public var rows = Limits.sweepRows
        public var lostAfter = Limits.leaseLostAfter
        public var connected = Limits.sweepConnected
        public var leaseKeep = Limits.leaseKeep
        public var partitionDays = Limits.partitionDays
        /// How long the log's days are kept; nil: for ever.
        public var logKeep: Duration?
        public init() {}
    }

    /// What each job has done since the start: flows, resets, units, leases, partitions made, partitions dropped.
    public private(set) var done: [Job: Int64] = [:]
    /// A job failed; it is tried again at its next turn.
    public var onError: ((Job, PostgresError) -> Void)?

    private let reactor: Reactor
    private let session: SweepSession
    private let settings: Settings
    private var dueAt: [Job: NIODeadline] = [:]
    private var isBusy = false
    private var isStopped = false
    private var timer: Reactor.Timer?

    /// - Parameter session: over a client of the reactor; the caller starts it and calls `storeReady` whenever it becomes
    ///   ready.
    public init(on reactor: Reactor, session: SweepSession, settings: Settings = Settings()) {
        (self.reactor, self.session, self.settings) = (reactor, session, settings)
    }

    /// The client became ready: every job has its turn.
    public func storeReady() {
        for job in Job.allCases { dueAt[job] = reactor.now }
        sweep()
    }

    /// Nothing is swept any more.
    public func stop() {
        isStopped = true
        if let timer { reactor.cancelTimer(timer) }
        timer = nil
    }

    private func sweep() {
        guard !isBusy, !isStopped, session.isReady else { return }
        let now = reactor.now
        guard let job = Job.allCases.filter({ dueAt[$0].map { $0 <= now } ?? false }).min(by: { dueAt[$0]! < dueAt[$1]! })
        else { return sleep() }
        isBusy = true
        run(job) { [weak self] result in self?.ended(job, result) }
    }

    private func run(_ job: Job, _ done: @escaping (Result<Int64, PostgresError>) -> Void) {
        let connected = settings.connected.wholeMicroseconds
        switch job {
        case .flows: session.expireFlows(rows: settings.rows, connected: connected, done)
        case .resets: session.resetNextDue(done)
        case .holders:
            session.writeOff(
                silence: settings.lostAfter.wholeMicroseconds, connected: connected, rows: settings.rows, done)
        case .leases: session.dropLeases(keep: settings.leaseKeep.wholeMicroseconds, done)
        case .partitions: session.ensurePartitions(days: settings.partitionDays, done)
        case .retention:
            guard let keep = settings.logKeep else { return done(.success(0)) }
            session.dropPartitions(keep: keep.wholeMicroseconds, done)
        }
    }

    private func ended(_ job: Job, _ result: Result<Int64, PostgresError>) {
        isBusy = false
        var isMore = false
        switch result {
        case .success(let count):
            done[job, default: 0] += count
            isMore = (job == .resets || job == .retention) && count > 0 || job == .flows && count >= Int64(settings.rows)
        case .failure(let error):
            if !isStopped { onError?(job, error) }
        }
        let pause = settings.interval[job] ?? Limits.sweep
        dueAt[job] = isMore ? reactor.now : reactor.now + .microseconds(pause.wholeMicroseconds)
        sweep()
    }

    private func sleep() {
        guard let next = dueAt.values.min() else { return }
        if let timer { reactor.cancelTimer(timer) }
        timer = reactor.startTimer(at: next) { [weak self] in
            self?.timer = nil
            self?.sweep()
        }
    }
}
