internal import GatewayCore
internal import GatewayStore
internal import Glibc
internal import NIOCore
internal import Postgres
internal import Reactor

/// What a node does beside its requests, on one thread: it listens for changes of the configuration, ships the log, and keeps
/// names resolved.
///
/// Sendable without the compiler's proof: its reactor's thread alone uses the parts; the asynchronous methods hop there.
final class Control: @unchecked Sendable {
    private let boot: BootSettings
    private let database: PostgresConfiguration
    private let nodeName: String
    private let report: @Sendable (NodeEvent) -> Void
    private let reactor: Reactor
    private let shipClient: PostgresClient
    private let shipper: Shipper
    private let listener: ConfigListener
    private let sweepClient: PostgresClient
    private let sweeper: Sweeper
    private var resolver: NameResolver?
    private var isClosing = false

    /// Beside those of the workers, with some to spare for an operator.
    private static let connections = 5

    init(
        _ boot: BootSettings, database: PostgresConfiguration, nodeName: String, report: @escaping @Sendable (NodeEvent) -> Void
    ) throws {
        (self.boot, self.database, self.nodeName, self.report) = (boot, database, nodeName, report)
        reactor = try Reactor.start(name: "control")
        shipClient = PostgresClient(database, role: .session, on: reactor)
        shipper = Shipper(on: reactor, session: ShipSession(shipClient), settings: Shipper.Settings(boot))
        listener = ConfigListener(database, on: reactor)
        sweepClient = PostgresClient(database, role: .session, on: reactor)
        var sweeps = Sweeper.Settings()
        (sweeps.lostAfter, sweeps.logKeep) = (boot.quota.lostAfter, boot.log.keep)
        sweeper = Sweeper(on: reactor, session: SweepSession(sweepClient), settings: sweeps)
    }

    // MARK: Start

    /// Waits for the database and returns the cluster's secret; a database that goes away over the questions is waited for, too.
    /// Throws what waiting does not mend: a schema that is not this version's, or one that this user may not read.
    func prepare() async throws -> [UInt8] {
        let client = PostgresClient(database, role: .session, on: reactor)
        defer { Task { await client.shutdown() } }
        while true {
            do {
                try await client.ready(within: Node.startPatience)
            } catch {
                report(.waitingForDatabase("\(error)"))
                continue
            }
            do {
                return try await ask(client)
            } catch let error as PostgresError where error.mayPass {
                report(.waitingForDatabase("\(error)"))
            } catch MigrationError.database(let error) where error.mayPass {
                report(.waitingForDatabase("\(error)"))
            }
            // The connection may stand all the same, and the next refusal be quick.
            try await Task.sleep(for: Node.startPause)
        }
    }

    private func ask(_ client: PostgresClient) async throws -> [UInt8] {
        let schema = try await Migrator(client).state()
        guard schema.isCurrent else { throw Node.Failure.schema("\(schema)") }
        let server = try await DatabaseSettings.read(client)
        let cluster = try await ClusterSettings.read(client)
        for fault in server.durabilityFaults { report(.databaseUnfit(fault)) }
        if let fault = server.connectionFault(needed: Node.workers(boot) + Self.connections) { report(.databaseUnfit(fault)) }
        return cluster.secret
    }

    /// Ships the workers' spools and what earlier processes left, and tells the workers what it hears.
    func begin(_ workers: [Worker], _ traffic: TrafficSettings) async throws {
        let handles = try await Self.spools(of: workers)
        try await reactor.submit { [self] in
            wire(workers)
            shipper.onEvent = { [report] event in
                report(.spool(event))
                if case .fenced(let spool) = event, handles.contains(where: { $0.directory.id == spool }) { report(.fenced) }
            }
            for handle in handles { try shipper.attach(handle) }
            shipper.adopt(root: boot.spool.directory)
            shipClient.start()
            listener.start()
            sweepClient.start()
        }.get()
        resolver = NameResolver(
            changed: { addresses in
                for worker in workers { worker.reactor.execute { worker.resolved(addresses) } }
            }, failed: { [report] name, reason in report(.nameFailed(name: name, reason)) })
        watchNames(of: traffic.upstreams)
    }

    private static func spools(of workers: [Worker]) async throws -> [SpoolHandle] {
        var handles: [SpoolHandle] = []
        for worker in workers { handles.append(try await worker.reactor.submit { worker.spool.handle }.get()) }
        return handles
    }

    private func wire(_ workers: [Worker]) {
        shipClient.onStateChange = { [weak self] state in self?.shipClientChanged(state) }
        sweepClient.onStateChange = { [weak self] state in if case .ready = state { self?.sweeper.storeReady() } }
        sweeper.onError = { [report] job, error in report(.maintenanceFailed("\(job.rawValue): \(error)")) }
        shipper.onOpened = { spool, epoch in
            for worker in workers {
                worker.reactor.execute { if worker.spool.id == spool { worker.spoolOpened(epoch: epoch) } }
            }
        }
        for worker in workers { listener.subscribe(worker.reactor) { event in worker.heard(event) } }
        listener.subscribe(reactor) { [unowned self] event in
            switch event {
            case .listening: report(.listening(lost: false))
            case .lost: if !isClosing { report(.listening(lost: true)) }
            case .proved, .changed, .recall: break
            }
        }
    }

    private func shipClientChanged(_ state: PostgresClient.State) {
        switch state {
        case .ready: shipper.storeReady()
        case .lost(let error): report(.controlDatabaseLost("\(error)"))
        case .idle, .connecting, .closed: break
        }
    }

    func watchNames(of upstreams: [Upstream]) { resolver?.watch(NameResolver.names(of: upstreams)) }

    // MARK: Stop

    /// Ships what is left; false where that took longer.
    func finish(within limit: TimeAmount) async -> Bool {
        resolver?.stop()
        let promise = reactor.makePromise(of: Bool.self)
        reactor.execute { [self] in
            var isDecided = false
            func decide(_ value: Bool) {
                guard !isDecided else { return }
                isDecided = true
                promise.succeed(value)
            }
            shipper.drain { decide(true) }
            _ = reactor.startTimer(in: limit) { decide(false) }
        }
        return (try? await promise.futureResult.get()) ?? false
    }

    func close() async {
        try? await reactor.submit { [self] in
            sweeper.stop()
            sweepClient.close()
            shipper.stop()
            isClosing = true
            listener.close()
            shipClient.close()
        }.get()
        reactor.stop()
        reactor.join()
    }
}

extension PostgresError {
    /// The same question may be answered later: the server is away, takes no changes, was told to cancel the statement, or is
    /// short of something (classes 40, 53, 55, 57 and 58). What it objects to otherwise stays as it is.
    fileprivate var mayPass: Bool {
        if isConnectionLoss { return true }
        guard case .server(let state) = kind else { return false }
        return ["40", "53", "55", "57", "58"].contains(state.errorClass)
    }
}
