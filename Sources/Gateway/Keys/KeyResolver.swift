public import GatewayCore
public import GatewayStore
internal import NIOCore
internal import Postgres
public import Reactor

/// What became of a key.
public enum KeyResolution {
    /// Known; whether it may be used is for `KeyEntry.refusal(at:)` to say.
    case entry(KeyEntry)
    /// There is no such key.
    case unknown
    /// Nobody can tell at the moment: 503, never 401.
    case unavailable(retryAfter: Int64)
}

/// Resolves the keys of one worker's requests: its cache, and the store over the worker's connection. Confined to its reactor.
public final class KeyResolver {
    public struct Counters: Sendable, Equatable {
        public var hits = 0
        /// Questions to the store.
        public var questions = 0
        public var failures = 0
        /// Requests that a stale entry served.
        public var stale = 0
        public var unavailable = 0
    }

    typealias Fetch = (KeyDigest, TimeAmount, @escaping (Result<KeyEntry?, PostgresError>) -> Void) -> Void

    public private(set) var counters = Counters()
    private let reactor: Reactor
    private var cache: KeyCache
    private let fetch: Fetch
    private var waiting: [KeyDigest: [(KeyResolution) -> Void]] = [:]
    private var used: [KeyID: Int64] = [:]
    private let recordUsed: ([KeyID: Int64], @escaping (Bool) -> Void) -> Void
    private var usedTimer: Reactor.Timer?

    /// How long the store may take to answer, and how long where a stale entry can serve.
    static let deadline = TimeAmount.seconds(2)
    static let patience = TimeAmount.milliseconds(250)
    /// How often `last_used` is written.
    private let usedInterval: TimeAmount
    static let usedMax = 100_000

    public convenience init(on reactor: Reactor, session: KeySession, limits: KeyCache.Limits = KeyCache.Limits()) {
        self.init(
            on: reactor, limits: limits, fetch: { session.fetch($0, deadline: $1, $2) },
            recordUsed: { moments, done in
                session.recordLastUsed(moments, deadline: .seconds(10)) { result in
                    if case .success = result { done(true) } else { done(false) }
                }
            })
    }

    init(
        on reactor: Reactor, limits: KeyCache.Limits, usedInterval: TimeAmount = .minutes(1), fetch: @escaping Fetch,
        recordUsed: @escaping ([KeyID: Int64], @escaping (Bool) -> Void) -> Void = { $1(true) }
    ) {
        self.reactor = reactor
        cache = KeyCache(limits: limits)
        self.fetch = fetch
        self.recordUsed = recordUsed
        self.usedInterval = usedInterval
    }

    private var now: Int64 { Int64(reactor.turnNow.uptimeNanoseconds) }

    // MARK: - Requests

    /// Calls back once: before it returns where the cache knows, otherwise within two seconds; longer only while changes of
    /// the configuration overtake the answers.
    public func resolve(_ digest: KeyDigest, _ done: @escaping (KeyResolution) -> Void) {
        switch cache.lookup(digest, now: now) {
        case .entry(let entry):
            counters.hits += 1
            done(.entry(entry))
        case .absent:
            counters.hits += 1
            done(.unknown)
        case .stale(let entry):
            counters.stale += 1
            done(.entry(entry))
        case .waiting: waiting[digest, default: []].append(done)
        case .askStore(let ticket):
            waiting[digest, default: []].append(done)
            ask(ticket)
        case .overloaded:
            counters.unavailable += 1
            done(.unavailable(retryAfter: 1))
        }
    }

    private func ask(_ ticket: KeyTicket) {
        counters.questions += 1
        var patience: Reactor.Timer?
        if cache.hasFallback(ticket) {
            patience = reactor.startTimer(in: Self.patience) { [weak self] in self?.serveMeanwhile(ticket) }
        }
        fetch(ticket.digest, Self.deadline) { [weak self] result in
            guard let self else { return }
            if let patience { reactor.cancelTimer(patience) }
            switch result {
            case .success(let entry): answer(ticket, cache.filled(ticket, entry, now: now))
            case .failure:
                counters.failures += 1
                switch cache.failed(ticket, now: now) {
                case .stale(let entry): serveStale(ticket, entry)
                case .unavailable:
                    let count = tell(ticket.digest, .unavailable(retryAfter: 1))
                    counters.unavailable += count
                }
            }
        }
    }

    private func answer(_ ticket: KeyTicket, _ filled: KeyCache.Filled) {
        switch filled {
        case .entry(let entry): tell(ticket.digest, .entry(entry))
        case .absent: tell(ticket.digest, .unknown)
        case .askAgain(let again): ask(again)
        }
    }

    /// The store takes its time, and a stale entry is there: nobody waits for the answer any longer.
    private func serveMeanwhile(_ ticket: KeyTicket) {
        if let entry = cache.fallback(ticket, now: now) { serveStale(ticket, entry) }
    }

    private func serveStale(_ ticket: KeyTicket, _ entry: KeyEntry) {
        let count = tell(ticket.digest, .entry(entry))
        counters.stale += count
    }

    @discardableResult
    private func tell(_ digest: KeyDigest, _ resolution: KeyResolution) -> Int {
        guard let callbacks = waiting.removeValue(forKey: digest) else { return 0 }
        for callback in callbacks { callback(resolution) }
        return callbacks.count
    }

    // MARK: - What the node hears of the configuration

    /// An event of the node's ``ConfigListener``, on this worker's reactor.
    public func handle(_ event: ConfigEvent) {
        switch event {
        case .listening(let at): cache.listening(now: at)
        case .proved(let sent): cache.proved(sent: sent)
        case .lost: cache.listenLost()
        case .changed(let change): cache.invalidate(change)
        case .recall: break
        }
    }

    // MARK: - Last used

    /// A request of this key passed. Written at most once a minute for each key.
    public func noteUsed(_ entry: KeyEntry, at microseconds: Int64) {
        guard used.count < Self.usedMax || used[entry.keyID] != nil else { return }
        used[entry.keyID] = max(microseconds, used[entry.keyID] ?? .min)
        startUsedTimer()
    }

    private func startUsedTimer() {
        guard usedTimer == nil else { return }
        usedTimer = reactor.startTimer(in: usedInterval) { [weak self] in
            self?.usedTimer = nil
            self?.flushUsed {}
        }
    }

    /// Writes what was noted; also for an orderly end.
    public func flushUsed(_ done: @escaping () -> Void) {
        let moments = used
        guard !moments.isEmpty else { return done() }
        used.removeAll(keepingCapacity: true)
        recordUsed(moments) { [weak self] isWritten in
            // Kept for the next time, unless used again meanwhile.
            if !isWritten, let self {
                used.merge(moments) { max($0, $1) }
                startUsedTimer()
            }
            done()
        }
    }
}
