public import GatewayCore
internal import GatewayStore
internal import Glibc
public import NIOCore
public import Postgres
internal import Reactor
internal import Synchronization

/// One gateway process: a control thread, and workers that share nothing.
///
/// Sendable without the compiler's proof: `start`, `reload` and `stop` are called one after the other by whoever owns the node;
/// everything else happens on the reactors.
public final class Node: @unchecked Sendable {
    public enum Failure: Error, CustomStringConvertible {
        case schema(String)
        case address(ListenAddress, String)

        public var description: String {
            switch self {
            case .schema(let reason): reason
            case .address(let address, let reason): "cannot listen on \(address): \(reason)"
            }
        }
    }

    private let configuration: Configuration
    private let database: PostgresConfiguration
    private let report: @Sendable (NodeEvent) -> Void
    private var control: Control?
    private var workers: [Worker] = []
    /// The bound addresses, with the ports that the kernel chose.
    public private(set) var addresses: [SocketAddress] = []

    /// How long the spool and the leases may take to reach the database at the end.
    static let finishTime = TimeAmount.seconds(10)
    static let leaseTime = TimeAmount.seconds(5)
    /// How often the database is tried at the start, before the first success.
    static let startPatience = TimeAmount.seconds(5)
    /// From an outage over the questions of the start to the next time that they are asked.
    static let startPause = Duration.milliseconds(500)

    /// - Parameter report: any thread; must not block.
    public init(_ configuration: Configuration, database: PostgresConfiguration, report: @escaping @Sendable (NodeEvent) -> Void) {
        (self.configuration, self.database, self.report) = (configuration, database, report)
    }

    // MARK: Start

    /// Waits for the database, however long and how often it is away, then serves.
    ///
    /// Throws where waiting does not help: a schema that this version does not know or this user may not read, an address that
    /// is taken, a spool directory that cannot be written.
    public func start() async throws {
        let control = try Control(configuration.boot, database: database, nodeName: nodeName, report: report)
        self.control = control
        let secret = try await control.prepare()
        let parts = Worker.Parts(
            boot: configuration.boot, traffic: configuration.traffic, database: database, nodeName: nodeName, secret: secret,
            report: report)
        for index in 0..<Self.workers(configuration.boot) {
            let reactor = try Reactor.start(name: "worker-\(index)")
            workers.append(try await reactor.submit { try Worker(parts, index: index, on: reactor) }.get())
        }
        try await control.begin(workers, configuration.traffic)
        for worker in workers { await worker.untilDatabaseIsReady() }
        try await listen()
    }

    /// Every worker listens on every address, each with a queue of its own.
    private func listen() async throws {
        for address in configuration.boot.listen {
            var bound: SocketAddress?
            for worker in workers {
                do {
                    let wanted = try bound ?? SocketAddress(ipAddress: address.host, port: address.port)
                    bound = try await worker.reactor.submit { try worker.listen(on: wanted) }.get()
                } catch {
                    throw Failure.address(address, "\(error)")
                }
            }
            if let bound { addresses.append(bound) }
        }
    }

    private var nodeName: String { configuration.boot.node ?? Self.hostName }

    private static var hostName: String {
        var name = [CChar](repeating: 0, count: 256)
        guard gethostname(&name, name.count - 1) == 0 else { return "pandora" }
        return String(decoding: name.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
    }

    static func workers(_ boot: BootSettings) -> Int { boot.workers ?? processors }

    private static var processors: Int { max(1, min(Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))), Limits.workers.upperBound)) }

    // MARK: Reload

    /// New exchanges use these routes and upstreams; exchanges under way finish on the old ones.
    public func reload(_ traffic: TrafficSettings) {
        control?.watchNames(of: traffic.upstreams)
        for worker in workers { worker.reactor.execute { worker.reload(traffic) } }
        report(.reloaded(routes: traffic.routes.routes.count, upstreams: traffic.upstreams.count))
    }

    // MARK: Stop

    /// The orderly end: requests in flight are answered within `drain`, the log is shipped, leases go back.
    public func stop() async {
        report(.draining)
        let drained = await everyWorker(within: TimeAmount(configuration.boot.drain)) { worker, done in worker.drain(done) }
        report(.drained(complete: drained))
        _ = await everyWorker(within: Self.finishTime + .seconds(1)) { worker, done in
            worker.finish(within: Self.leaseTime, done)
        }
        let shipped = await control?.finish(within: Self.finishTime) ?? true
        report(.shipped(complete: shipped))
        for worker in workers {
            try? await worker.reactor.submit { worker.close() }.get()
            worker.reactor.stop()
        }
        await control?.close()
        for worker in workers { worker.reactor.join() }
        workers.removeAll()
    }

    /// False where not every worker was done in time.
    private func everyWorker(within limit: TimeAmount, _ body: @escaping @Sendable (Worker, @escaping () -> Void) -> Void) async -> Bool {
        guard let first = workers.first?.reactor else { return true }
        let promises = workers.map { worker in
            let promise = worker.reactor.makePromise(of: Void.self)
            worker.reactor.execute { body(worker) { promise.succeed(()) } }
            return promise.futureResult
        }
        let all = first.makePromise(of: Bool.self)
        let isDecided = Atomic(false)
        let decide: @Sendable (Bool) -> Void = { value in
            if isDecided.compareExchange(expected: false, desired: true, ordering: .relaxed).exchanged { all.succeed(value) }
        }
        EventLoopFuture.andAllSucceed(promises, on: first).whenSuccess { decide(true) }
        _ = first.scheduleTask(in: limit) { decide(false) }
        return (try? await all.futureResult.get()) ?? false
    }
}
