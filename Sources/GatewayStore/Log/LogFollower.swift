internal import GatewayCore
public import Postgres
public import Reactor
internal import Synchronization

/// Shows hops as they reach the log.
///
/// The shipper announces each batch; the rows of exactly that batch are read, so a batch that commits after younger ones is
/// not missed. When announcements may have been missed (the connection was away), the log is read again from a while before
/// the newest hop, and what was shown already is left out.
public struct LogFollower: Sendable {
    private let client: PostgresClient
    private let reactor: Reactor
    private let filter: LogFilter

    private enum Event: Sendable {
        /// The connection listens from now on; what came before may have been missed.
        case listening
        case batch(String)
    }

    static let channel = "pandora_log"
    /// Announcements that wait; beyond it the log is read again instead.
    private static let waitingMax = 1_000
    /// Hops that are remembered as shown.
    private static let memory = 100_000
    /// How far batches may be out of order, in milliseconds.
    private static let overlap: UInt64 = 60_000
    private static let page = 5_000

    /// - Parameters:
    ///   - client: of role `session`, not started, for the follower alone.
    ///   - reactor: the client's.
    public init(_ client: PostgresClient, on reactor: Reactor, _ filter: LogFilter) {
        (self.client, self.reactor, self.filter) = (client, reactor, filter)
    }

    /// Shows the newest rows and then what comes, until the task is cancelled or the server refuses.
    ///
    /// - Parameters:
    ///   - newest: rows to begin with.
    ///   - now: milliseconds since 1970, by this machine's clock.
    ///   - show: entries in the order in which they are to be shown.
    public func run(newest: Int, now: UInt64, _ show: ([LogEntry]) -> Void) async throws(PostgresError) {
        let hasGap = Mutex(false)
        let (events, continuation) = AsyncStream.makeStream(of: Event.self, bufferingPolicy: .bufferingOldest(Self.waitingMax))
        let tell: @Sendable (Event) -> Void = { event in
            if case .dropped = continuation.yield(event) { hasGap.withLock { $0 = true } }
        }
        reactor.execute { [client] in
            client.onStateChange = { state in if case .ready = state { tell(.listening) } }
            client.onNotification = { notification in tell(.batch(notification.payload)) }
            client.listen(to: [Self.channel])
        }
        try await client.ready()
        let reader = LogReader(client)
        var memory = FollowMemory(capacity: Self.memory, now: now)
        var hasBegun = false
        for await event in events {
            do throws(PostgresError) {
                if case .batch(let payload) = event, hasBegun, !hasGap.withLock({ $0 }) {
                    guard let batch = LogBatch(payload: payload) else { continue }
                    memory.heard(of: batch.ids.upperBound)
                    show(Self.unseen(try await reader.batch(batch, filter), &memory))
                } else if hasBegun {
                    hasGap.withLock { $0 = false }
                    try await catchUp(reader, &memory, show)
                } else if case .listening = event {
                    show(try await begin(reader, newest, &memory))
                    hasBegun = true
                }
            } catch where error.isConnectionLoss {
                // The next `listening` makes it good; and if the connection stands, the next announcement does.
                hasGap.withLock { $0 = true }
            }
        }
    }

    private func begin(_ reader: LogReader, _ newest: Int, _ memory: inout FollowMemory) async throws(PostgresError) -> [LogEntry] {
        let entries = try await reader.newest(max(newest, 1), filter)
        // What is older than the first of them was left out on purpose, and so is it where none is wanted.
        if entries.count == max(newest, 1), let id = entries.first.flatMap({ RequestID($0.id) }) { memory.begin(after: id) }
        return Self.unseen(entries.suffix(newest), &memory)
    }

    private func catchUp(
        _ reader: LogReader, _ memory: inout FollowMemory, _ show: ([LogEntry]) -> Void
    ) async throws(PostgresError) {
        var last = memory.resumption(overlap: Self.overlap)
        while true {
            let entries = try await reader.after(last, limit: Self.page, filter)
            show(Self.unseen(entries, &memory))
            guard entries.count == Self.page, let id = entries.last.flatMap({ RequestID($0.id) }) else { return }
            last = id
        }
    }

    private static func unseen(_ entries: some Sequence<LogEntry>, _ memory: inout FollowMemory) -> [LogEntry] {
        entries.filter { entry in RequestID(entry.id).map { memory.show($0) } ?? true }
    }
}
