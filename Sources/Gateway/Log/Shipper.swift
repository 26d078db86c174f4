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

    public private(set) var counters = Counters()
    public var onEvent: ((Event) -> Void)?
    /// A worker's spool was opened in the database under this epoch; its leases may be taken. Again after a failover that
    /// forgot the spool.
    public var onOpened: ((UUIDBits, Int64) -> Void)?

    let reactor: Reactor
    private let settings: Settings
    private let target: any ShipTarget
    private var spools: [ShippedSpool] = []
    private var next = 0
    private var isBusy = false
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
        for spool in spools { spool.retryAt = nil }
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
        if let drained, spools.allSatisfy({ $0.state == .finished || isShipped($0) }) {
            self.drained = nil
            drained()
        }
    }

    private func isShipped(_ spool: ShippedSpool) -> Bool {
        if case .open = spool.state { spool.mark >= spool.end } else { false }
    }

    /// - Returns: whether a question to the database is under way.
    private func start(_ spool: ShippedSpool) -> Bool {
        if let retryAt = spool.retryAt {
            guard reactor.turnNow >= retryAt else { return false }
            spool.retryAt = nil
        }
        switch spool.state {
        case .closed: open(spool)
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
        case .finished: break
        }
        return isBusy
    }

    /// The answer to what is under way.
    private func finished() {
        isBusy = false
        advance()
    }

    private func failed(_ spool: ShippedSpool, _ error: PostgresError) {
        counters.retries += 1
        if !error.isRetryable, !error.isConnectionLoss { onEvent?(.failed(spool.id, "\(error)")) }
        pause(spool)
        finished()
    }

    private func pause(_ spool: ShippedSpool) {
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

    // MARK: - Questions to the database

    private func open(_ spool: ShippedSpool) {
        isBusy = true
        target.open(spool.id, node: spool.node) { [self] result in
            switch result {
            case .failure(let error): failed(spool, error)
            case .success(let mark):
                spool.state = .open(epoch: mark.epoch)
                moved(spool, to: mark.shippedTo)
                if spool.progress != nil { onOpened?(spool.id, mark.epoch) }
                finished()
            }
        }
    }

    /// The mark is where the database says.
    private func moved(_ spool: ShippedSpool, to mark: Int64) {
        let before = spool.mark
        spool.mark = mark
        if mark > before { spool.progress?.shipped(to: mark, frames: 0) }
        if mark > spool.end {
            onEvent?(.rolledBack(spool.id, mark: mark, end: spool.end))
            spool.state = .finished
        }
    }

    private func ship(_ spool: ShippedSpool, _ epoch: Int64) {
        isBusy = true
        spool.dueAt = nil
        do throws(FileError) {
            let framesMax = min(spool.framesMax ?? .max, settings.batchFrames)
            var piece = try spool.reader.read(
                from: spool.mark, to: spool.end, bytesMax: settings.batchBytes, framesMax: framesMax)
            if piece.end == spool.mark { piece = skipped(spool) }
            // A single frame that was refused twice is settled without its row.
            let isRejected = spool.refusals >= 2 && piece.frames.count == 1
            let (shipment, strange) = spool.cutter.cut(piece, epoch: epoch, withRows: !isRejected)
            target.ship(shipment) { [self] result in
                switch result {
                case .success(.shipped(let overrun, let moved)):
                    counters.overrun += overrun
                    counters.moved += moved
                    shipped(spool, piece, rejected: isRejected ? piece.frames : strange)
                case .success(.elsewhere): reread(spool, epoch)
                case .failure(let error): refused(spool, piece, error)
                }
            }
        } catch {
            onEvent?(.failed(spool.id, "\(error)"))
            pause(spool)
            isBusy = false
        }
    }

    /// Nothing readable lies at the mark: on to what can be read, or to the end.
    private func skipped(_ spool: ShippedSpool) -> SpoolReader.Piece {
        spool.reader.refresh()
        var piece = SpoolReader.Piece()
        piece.start = spool.mark
        piece.end = spool.reader.segments.first { $0 > spool.mark } ?? spool.end
        piece.damaged = piece.end - piece.start
        return piece
    }

    private func shipped(_ spool: ShippedSpool, _ piece: SpoolReader.Piece, rejected: [Range<Int>]) {
        counters.batches += 1
        counters.frames += piece.frames.count
        for range in rejected { spool.reject(piece.bytes[range]) }
        if !rejected.isEmpty {
            counters.rejected += rejected.count
            onEvent?(.rejected(spool.id, frames: rejected.count))
        }
        if piece.damaged > 0 {
            counters.damagedBytes += piece.damaged
            onEvent?(.damaged(spool.id, bytes: piece.damaged))
        }
        spool.mark = piece.end
        spool.progress?.shipped(to: piece.end, frames: Int64(piece.frames.count))
        if let framesMax = spool.framesMax {
            // Past the bad frame batches grow again; while it lies ahead it is met again and halved down to.
            let doubled = framesMax * 2
            (spool.framesMax, spool.refusals) = (doubled >= settings.batchFrames ? nil : doubled, 0)
        } else {
            spool.refusals = 0
        }
        finished()
    }

    private func refused(_ spool: ShippedSpool, _ piece: SpoolReader.Piece, _ error: PostgresError) {
        guard !error.isRetryable, !error.isConnectionLoss, error.isRefusal else { return failed(spool, error) }
        onEvent?(.failed(spool.id, "\(error)"))
        spool.refusals += 1
        if spool.refusals >= 2, piece.frames.count > 1 {
            // A half is not tried twice.
            (spool.framesMax, spool.refusals) = (piece.frames.count / 2, 1)
        } else if spool.refusals > 2 {
            // Refused without a row, too: not the frame's fault.
            pause(spool)
        }
        finished()
    }

    private func reread(_ spool: ShippedSpool, _ epoch: Int64) {
        target.mark(of: spool.id) { [self] result in
            switch result {
            case .failure(let error): return failed(spool, error)
            case .success(nil): (spool.state, spool.mark) = (.closed, 0)
            case .success(let mark?) where mark.epoch != epoch:
                onEvent?(.fenced(spool.id))
                spool.state = .finished
            case .success(let mark?):
                // Still where we cut: whatever moved it back, ask again a little later.
                if mark.shippedTo == spool.mark { pause(spool) }
                moved(spool, to: mark.shippedTo)
            }
            finished()
        }
    }

    private func returnLeases(_ spool: ShippedSpool, _ epoch: Int64) {
        isBusy = true
        target.returnLeases(of: spool.id, epoch: epoch) { [self] result in
            switch result {
            case .failure(let error) where error.sqlState?.code == "PN004":
                onEvent?(.fenced(spool.id))
                spool.state = .finished
                finished()
            case .failure(let error): failed(spool, error)
            case .success:
                onEvent?(.adopted(spool.id))
                spool.state = .finished
                startRemoval(of: spool)
                finished()
            }
        }
    }

    // MARK: - Housekeeping

    private func startRemoval(of spool: ShippedSpool) {
        _ = reactor.startTimer(in: settings.keep) { [weak self] in
            guard let self, !isStopped else { return }
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

extension PostgresError {
    /// The server said no, rather than nothing.
    fileprivate var isRefusal: Bool { if case .server = kind { true } else { false } }
}
