public import GatewayCore
public import GatewayStore
internal import Glibc
public import NIOCore
internal import Postgres
public import Reactor

/// Ships the node's spools to the database, one batch after the other over one connection.
///
/// Confined to the control reactor. Sendable without the compiler's proof: the only thing that other threads do with it is
/// to carry it into `reactor.execute`.
public final class Shipper: @unchecked Sendable {
    public struct Settings: Sendable {
        /// How long a few hops may wait for more.
        public var delay: TimeAmount = .milliseconds(250)
        public var batchFrames = Int(SpoolProgress.batchFrames)
        public var batchBytes = Int(SpoolProgress.batchBytes)
        /// How long shipped segments stay, so that a failover that lost commits can be made good.
        public var keep: TimeAmount = .hours(1)
        /// Bytes of shipped and unshipped segments of one spool; shipped ones go sooner beyond it.
        public var bound: Int64 = 1 << 30
        public var retry: TimeAmount = .milliseconds(100)
        public var housekeeping: TimeAmount = .seconds(10)

        public init() {}
    }

    /// What operators are told.
    public enum Event: Sendable, Equatable {
        /// Another process opened the spool: this one is on a copy of the disk, or should be gone.
        case fenced(UUIDBits)
        /// The database has more of the spool than the disk: the disk was rolled back.
        case rolledBack(UUIDBits, mark: Int64, end: Int64)
        /// Frames that could not be read; what they charged is lost with them.
        case damaged(UUIDBits, bytes: Int64)
        /// Frames that the database took no row of; their units are settled.
        case rejected(UUIDBits, frames: Int)
        /// What an earlier process left is all in the database.
        case adopted(UUIDBits)
        case failed(UUIDBits, String)
    }

    public struct Counters: Sendable, Equatable {
        public var batches = 0
        public var frames = 0
        public var retries = 0
        public var rejected = 0
        public var damagedBytes: Int64 = 0
        public var overrun: Int64 = 0
        public var moved: Int64 = 0
    }

    public internal(set) var counters = Counters()
    public var onEvent: ((Event) -> Void)?
    /// A worker's spool was opened in the database under this epoch; its leases may be taken. Again after a failover that
    /// forgot the spool.
    public var onOpened: ((UUIDBits, Int64) -> Void)?

    let reactor: Reactor
    let settings: Settings
    let target: any ShipTarget
    private var spools: [ShippedSpool] = []
    private var next = 0
    var isBusy = false
    private var isStopped = false
    private var timers: [UUIDBits: Reactor.Timer] = [:]
    private var housekeepingTimer: Reactor.Timer?
    private var drained: (() -> Void)?
    private var root: String?

    /// - Parameter session: over a client of role `session` that nobody else uses; the caller starts it and calls
    ///   `storeReady` whenever it becomes ready.
    public convenience init(on reactor: Reactor, session: ShipSession, settings: Settings = Settings()) {
        self.init(on: reactor, target: session, settings: settings)
    }

    init(on reactor: Reactor, target: any ShipTarget, settings: Settings = Settings()) {
        self.reactor = reactor
        self.target = target
        self.settings = settings
    }

    // MARK: - Spools

    /// Takes a worker's spool.
    public func attach(_ writer: SpoolHandle) throws {
        let spool = try ShippedSpool(writer.directory, writer.progress)
        writer.progress.onWake { [reactor, self, id = spool.id] in reactor.execute { self.woken(id) } }
        spools.append(spool)
        advance()
    }

    /// Takes every spool that lies in the directory and that no process has open, now and later.
    public func adopt(root: String) {
        self.root = root
        for name in (try? Directory.names(root)) ?? [] where UUIDBits(name) != nil {
            do throws(FileError) {
                // Open elsewhere: a worker of ours, or a process that is still there.
                guard let directory = try SpoolDirectory(opening: "\(root)/\(name)") else { continue }
                let spool = try ShippedSpool(adopting: directory)
                if spool.reader.earliest == nil { spool.removeAll() } else { spools.append(spool) }
            } catch {
                // Without an identity yet, it is being made, or its maker died before it wrote anything.
                if error.code != ENOENT, let id = UUIDBits(name) { onEvent?(.failed(id, "\(error)")) }
            }
        }
        advance()
    }

    /// The client became ready.
    public func storeReady() {
        for spool in spools {
            spool.retryAt = nil
            // Another server may have taken over, without the last commits of the one before.
            switch spool.state {
            case .open, .returning: spool.mustReread = true
            case .finished(let epoch): (spool.state, spool.mustReread) = (.open(epoch: epoch), true)
            case .closed, .abandoned: break
            }
        }
        scheduleHousekeeping()
        advance()
    }

    /// Calls back once everything written so far by anybody is in the database; never where the database stays away.
    public func drain(_ done: @escaping () -> Void) {
        drained = done
        advance()
    }

    /// No batch is started any more.
    public func stop() {
        isStopped = true
        for spool in spools { spool.progress?.onWake {} }
        for timer in timers.values { reactor.cancelTimer(timer) }
        timers.removeAll()
        if let housekeepingTimer { reactor.cancelTimer(housekeepingTimer) }
        housekeepingTimer = nil
    }

    // MARK: - One thing after the other

    /// Starts the next piece of work, if there is any.
    private func advance() {
        guard !isBusy, !isStopped, target.isReady else { return }
        let count = spools.count
        for step in 0..<count {
            let spool = spools[(next + step) % count]
            if start(spool) {
                next = (next + step + 1) % count
                return
            }
        }
        if let drained, spools.allSatisfy(isShipped) {
            self.drained = nil
            drained()
        }
    }

    private func isShipped(_ spool: ShippedSpool) -> Bool {
        switch spool.state {
        case .open: spool.mark >= spool.end
        case .finished, .abandoned: true
        case .closed, .returning: false
        }
    }

    /// - Returns: whether a question to the database is under way.
    private func start(_ spool: ShippedSpool) -> Bool {
        if let retryAt = spool.retryAt {
            guard reactor.turnNow >= retryAt else { return false }
            spool.retryAt = nil
        }
        switch spool.state {
        case .closed: open(spool)
        case .open(let epoch) where spool.mustReread, .returning(let epoch) where spool.mustReread: reread(spool, epoch)
        case .open(let epoch):
            if spool.mark < spool.end {
                guard spool.refusals > 0 || drained != nil || isDue(spool) else { return false }
                ship(spool, epoch)
            } else if spool.progress == nil {
                spool.state = .returning(epoch: epoch)
                returnLeases(spool, epoch)
            } else {
                sleep(spool)
            }
        case .returning(let epoch): returnLeases(spool, epoch)
        case .finished, .abandoned: break
        }
        return isBusy
    }

    /// The answer to what is under way.
    func finished() {
        isBusy = false
        advance()
    }

    func failed(_ spool: ShippedSpool, _ error: PostgresError) {
        counters.retries += 1
        if !error.isRetryable, !error.isConnectionLoss { onEvent?(.failed(spool.id, "\(error)")) }
        pause(spool)
        finished()
    }

    func pause(_ spool: ShippedSpool) {
        spool.retryAt = reactor.now + settings.retry
        startTimer(spool, in: settings.retry)
    }

    // MARK: - Waiting for frames

    /// A worker's few frames wait a moment for more; whatever an earlier process left does not.
    private func isDue(_ spool: ShippedSpool) -> Bool {
        guard let progress = spool.progress, !progress.isBatchFull else { return true }
        if let due = spool.dueAt { return reactor.now >= due || !progress.await(.fullBatch) }
        spool.dueAt = reactor.now + settings.delay
        startTimer(spool, in: settings.delay)
        return !progress.await(.fullBatch)
    }

    private func sleep(_ spool: ShippedSpool) {
        spool.dueAt = nil
        // Written meanwhile: the same as being woken.
        if let progress = spool.progress, !progress.await(.anything) { woken(spool.id) }
    }

    private func woken(_ id: UUIDBits) {
        guard !isStopped, let spool = spools.first(where: { $0.id == id }) else { return }
        if let progress = spool.progress, progress.isBatchFull { spool.dueAt = reactor.now }
        advance()
    }

    private func startTimer(_ spool: ShippedSpool, in delay: TimeAmount) {
        if let timer = timers[spool.id] { reactor.cancelTimer(timer) }
        timers[spool.id] = reactor.startTimer(in: delay) { [weak self] in
            guard let self else { return }
            timers[spool.id] = nil
            // The timer decides, not a second look at the clock.
            spool.retryAt = nil
            if spool.dueAt != nil { spool.dueAt = .uptimeNanoseconds(0) }
            advance()
        }
    }

    // MARK: - Housekeeping

    func startRemoval(of spool: ShippedSpool) {
        _ = reactor.startTimer(in: settings.keep) { [weak self] in
            guard let self, !isStopped else { return }
            // Being shipped once more: it stays as long again.
            guard case .finished = spool.state else { return startRemoval(of: spool) }
            spool.removeAll()
            spools.removeAll { $0 === spool }
            next = 0
        }
    }

    private func scheduleHousekeeping() {
        guard housekeepingTimer == nil else { return }
        housekeepingTimer = reactor.startTimer(in: settings.housekeeping) { [weak self] in
            guard let self else { return }
            housekeepingTimer = nil
            for spool in spools {
                spool.removeShipped(now: reactor.turnNow, keep: settings.keep, bound: settings.bound)
            }
            // A process that was still there at the start may be gone.
            if let root { adopt(root: root) }
            scheduleHousekeeping()
        }
    }
}
