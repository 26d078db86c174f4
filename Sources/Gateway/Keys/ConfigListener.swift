public import GatewayCore
public import NIOCore
public import Postgres
public import Reactor
internal import Synchronization

/// What the node's LISTEN connection tells every worker. Moments are nanoseconds of the monotonic clock (`NIODeadline`).
public enum ConfigEvent: Sendable, Equatable {
    /// The connection listens from this moment on; what was announced before may have been missed.
    case listening(at: Int64)
    /// Everything announced before this moment has been told.
    case proved(sent: Int64)
    /// Nothing is heard any more.
    case lost
    case changed(ConfigChange)
    /// Another holder waits for units of the row.
    case recall(QuotaRow)
}

/// Listens for changes of the configuration, and proves every half second that it still hears: it sends itself a notification
/// over the same connection, because a connection can be dead for minutes before TCP says so.
///
/// Confined to the control reactor.
public final class ConfigListener {
    private struct Subscriber {
        let reactor: Reactor
        let handle: @Sendable (ConfigEvent) -> Void
    }

    private let reactor: Reactor
    private let client: PostgresClient
    private let proofChannel: String
    private var subscribers: [Subscriber] = []
    private var timer: Reactor.Timer?
    private var isListening = false
    private var isClosed = false
    /// The last moment that was proved.
    public private(set) var provedAt: NIODeadline?

    static let proofInterval = TimeAmount.milliseconds(500)
    /// A proof that takes longer shows that the connection is of no use: it is given up and made anew.
    static let proofDeadline = TimeAmount.seconds(2)
    static let configChannel = "pandora_config"
    static let recallChannel = "quota_recall"

    /// - Parameter configuration: of the database; the connection is the listener's own.
    public init(_ configuration: PostgresConfiguration, on reactor: Reactor) {
        self.reactor = reactor
        client = PostgresClient(configuration, role: .session, on: reactor)
        var random = SystemRandomNumberGenerator()
        // A channel of its own: nodes need not hear each other's proofs.
        proofChannel = "pandora_proof_" + String(random.next() as UInt64, radix: 36)
    }

    /// Has events told on another reactor, in order. Before `start`.
    public func subscribe(_ reactor: Reactor, _ handle: @escaping @Sendable (ConfigEvent) -> Void) {
        subscribers.append(Subscriber(reactor: reactor, handle: handle))
    }

    public func start() {
        client.onStateChange = { [weak self] state in self?.changed(to: state) }
        client.onNotification = { [weak self] notification in self?.notified(notification) }
        client.listen(to: [Self.configChannel, Self.recallChannel, proofChannel])
        client.start()
    }

    public func close() {
        isClosed = true
        stopProving()
        client.close()
    }

    private func changed(to state: PostgresClient.State) {
        switch state {
        case .ready:
            isListening = true
            // The client is ready only when it listens.
            tell(.listening(at: Int64(reactor.now.uptimeNanoseconds)))
            prove()
        case .lost, .closed:
            stopProving()
            guard isListening else { return }
            isListening = false
            tell(.lost)
        case .idle, .connecting: break
        }
    }

    private func notified(_ notification: PostgresNotification) {
        switch notification.channel {
        case proofChannel:
            guard let sent = UInt64(notification.payload) else { return }
            provedAt = .uptimeNanoseconds(sent)
            tell(.proved(sent: Int64(sent)))
        case Self.configChannel: tell(.changed(ConfigChange(payload: notification.payload)))
        case Self.recallChannel:
            let ids = notification.payload.split(separator: ":").compactMap { Int64($0) }
            if ids.count == 2 { tell(.recall(QuotaRow(environmentID: ids[0], serviceID: ids[1]))) }
        default: break
        }
    }

    private func prove() {
        var parameters = Parameters()
        parameters.append(proofChannel)
        parameters.append("\(reactor.now.uptimeNanoseconds)")
        client.execute(Self.notify, parameters, deadline: Self.proofDeadline) { [weak self] _ in
            // Where the connection is gone, the next one begins again.
            guard let self, !isClosed, client.isReady else { return }
            timer = reactor.startTimer(in: Self.proofInterval) { [weak self] in self?.prove() }
        }
    }

    private func stopProving() {
        if let timer { reactor.cancelTimer(timer) }
        timer = nil
    }

    private func tell(_ event: ConfigEvent) {
        for subscriber in subscribers { subscriber.reactor.execute { subscriber.handle(event) } }
    }

    private static let notify = Statement(
        name: "listen_prove", sql: "SELECT pg_notify($1, $2)", parameterTypes: [.text, .text])
}
