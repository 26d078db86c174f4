internal import Curl
internal import GatewayCore
internal import GatewayStore
internal import Glibc
internal import NIOCore
internal import NIOHTTP1
internal import Postgres
internal import Reactor

/// Everything that serves requests on one thread: listeners, connections, libcurl, the cache of keys, leases and the spool.
/// Nothing of it is shared; a request meets no lock and no other thread.
///
/// Sendable without the compiler's proof: made on its reactor's thread and used only there; other threads only carry it into
/// `reactor.execute`.
final class Worker: TurnHook, @unchecked Sendable {
    /// Bytes of a body that wait on either side of the gateway before the other side is held back.
    static let windowBytes = 16 << 10
    /// How long the rest of a request is read and thrown away behind the last answer of a connection.
    static let lingerTime = TimeAmount.seconds(2)
    /// How often deadlines of connections are looked at: one is late by at most this.
    static let tickInterval = TimeAmount.milliseconds(250)

    let reactor: Reactor
    let curl: CurlClient
    let keys: KeyResolver
    let quota: QuotaKeeper
    let flows: FlowKeeper
    let spool: SpoolWriter
    let signer: StartPointSigner
    let limits: LimitSettings
    let allocator = ByteBufferAllocator()
    private(set) var traffic: TrafficTable
    private(set) var isDraining = false

    // Durations of the configuration, as the loop counts them.
    let keepAlive: TimeAmount
    let requestHead: TimeAmount
    let bodyIdle: TimeAmount

    private let database: PostgresClient
    private let index: Int
    private var listeners: [Listener] = []
    private var connections: [ObjectIdentifier: ClientConnection] = [:]
    private var dirty: [ClientConnection] = []
    /// Takes turns with `dirty`, so that neither gives up its memory.
    private var flushing: [ClientConnection] = []
    private var ids = RequestIDs()
    private var random = BufferedRandom()
    private var dateCache = DateField()
    private var addresses = TargetAddresses()
    private var whenEmpty: (() -> Void)?
    private let report: @Sendable (NodeEvent) -> Void
    private var failures = FailureReports()
    /// What the operator was told of the spool.
    private var told = (lost: Int64(0), failures: Int64(0))

    struct Parts: Sendable {
        var boot: BootSettings
        var traffic: TrafficSettings
        var database: PostgresConfiguration
        var nodeName: String
        var secret: [UInt8]
        var refusals = RefusalRows(perSecond: Limits.refusalRowsPerSecond)
        var report: @Sendable (NodeEvent) -> Void
    }

    /// On the reactor.
    init(_ parts: Parts, index: Int, on reactor: Reactor) throws {
        (self.reactor, self.index, report) = (reactor, index, parts.report)
        let boot = parts.boot
        limits = boot.limits
        (keepAlive, requestHead) = (TimeAmount(limits.keepAlive), TimeAmount(limits.requestHead))
        bodyIdle = TimeAmount(limits.bodyIdle)
        signer = StartPointSigner(secret: parts.secret)
        var configuration = CurlConfiguration()
        configuration.windowBytes = Self.windowBytes
        // What a paused transfer keeps twice: in the buffer and in libcurl's copy of what was not taken.
        configuration.receiveBufferBytes = Self.windowBytes / 2
        curl = try CurlClient(on: reactor, configuration: configuration)
        spool = try SpoolWriter(SpoolSettings(boot.spool, node: parts.nodeName, refusals: parts.refusals), on: reactor)
        database = PostgresClient(parts.database, role: .pipeline, on: reactor)
        keys = KeyResolver(on: reactor, session: KeySession(database), limits: KeyCache.Limits(boot.keys))
        quota = QuotaKeeper(on: reactor, limits: LeaseLimits(boot.quota))
        flows = FlowKeeper(on: reactor, limits: FlowLimits(boot.quota))
        traffic = TrafficTable(parts.traffic, limits: boot.limits, addresses: addresses, seed: index)
        reactor.addTurnHook(.flush, self)
        flows.begin(FlowSession(database))
        flows.onError = { error in parts.report(.flowRefused("\(error)")) }
        database.onStateChange = { [weak self] state in self?.databaseChanged(state) }
        database.start()
        startTicking()
    }

    /// So that the first request does not find the database away; without it the worker serves nevertheless.
    func untilDatabaseIsReady() async { try? await database.ready(within: Node.startPatience) }

    private func databaseChanged(_ state: PostgresClient.State) {
        switch state {
        case .ready:
            quota.storeReady()
            flows.storeReady()
        case .lost(let error):
            quota.storeLost()
            flows.storeLost()
            report(.databaseLost(worker: index, "\(error)"))
        case .idle, .connecting, .closed: break
        }
    }

    // MARK: What the control thread tells

    /// The spool is known to the database under this epoch: leases may be taken.
    func spoolOpened(epoch: Int64) { quota.begin(LeaseSession(database, spool: "\(spool.id)", epoch: epoch)) }

    func heard(_ event: ConfigEvent) {
        keys.handle(event)
        if case .recall(let row) = event { quota.recall(environment: row.environmentID, service: row.serviceID) }
    }

    func resolved(_ addresses: TargetAddresses) {
        self.addresses = addresses
        traffic.update(addresses)
    }

    /// Exchanges under way keep the plan that they began with.
    func reload(_ settings: TrafficSettings) {
        traffic = TrafficTable(settings, limits: limits, addresses: addresses, seed: index)
    }

    // MARK: Connections

    func listen(on address: SocketAddress) throws -> SocketAddress {
        let listener = try reactor.listen(on: address) { [unowned self] channel in try furnish(channel) }
        listener.mayAccept = { [unowned self] in connections.count < limits.connections }
        listeners.append(listener)
        return listener.localAddress
    }

    private func furnish(_ channel: any Channel) throws {
        let options = channel.syncOptions
        try options?.setOption(.writeBufferWaterMark, value: .init(low: Self.windowBytes / 4, high: Self.windowBytes / 2))
        var decoderLimits = NIOHTTPDecoderLimitConfiguration()
        decoderLimits.maxHeaderFieldSize = max(limits.headerField, limits.requestTarget + 1)
        decoderLimits.maxHeaderListSize = limits.headerList + limits.requestTarget
        decoderLimits.maxHeaderFieldCount = limits.headerFields
        let decoder = RequestDecoder(decoderLimits, blanksMax: Limits.headBlanks)
        let connection = ClientConnection(self, decoder)
        let pipeline = channel.pipeline.syncOperations
        try pipeline.addHandler(ArrivalNote(connection))
        try pipeline.addHandler(ByteToMessageHandler(decoder))
        try pipeline.addHandler(connection)
    }

    func opened(_ connection: ClientConnection) {
        connections[ObjectIdentifier(connection)] = connection
        // Accepted at the last moment: it came in time.
        if isDraining { connection.drain(Self.lingerTime) }
    }

    func closed(_ connection: ClientConnection) {
        connections[ObjectIdentifier(connection)] = nil
        if !isDraining { for listener in listeners { listener.resumeAccepting() } }
        if connections.isEmpty { tellEmpty() }
    }

    private func startTicking() {
        _ = reactor.startTimer(in: Self.tickInterval) { [weak self] in
            guard let self else { return }
            for connection in Array(connections.values) { connection.tick(reactor.turnNow) }
            noteSpool()
            startTicking()
        }
    }

    /// Nobody else sees hops that are lost: their rows are not there. At most once a second.
    private func noteSpool() {
        let now = (lost: spool.progress.lost, failures: spool.progress.failures)
        guard now != told, failures.mayTell("spool", second: reactor.turnNow.uptimeNanoseconds / 1_000_000_000) else { return }
        report(.logRefused(worker: index, lost: now.lost - told.lost, failures: now.failures - told.failures))
        told = now
    }

    // MARK: Small things of exchanges

    func makeRequestID() -> RequestID { ids.next() }

    func makeReservationID() -> ReservationID { ReservationID(ids.next().uuid) }

    func makeTrace(continuing trace: TraceContext?) -> TraceContext {
        trace?.child(random: &random) ?? TraceContext(random: &random)
    }

    /// The value of `Date` now.
    var date: [UInt8] { dateCache.value(at: WallClock.microseconds / 1_000_000) }

    /// False where the hop was lost, and counted.
    @discardableResult
    func log(_ record: HopRecord, hasPlace: Bool) -> Bool { spool.append(record, reserved: hasPlace) }

    /// Failures of upstreams are told to the operator, at most one of a kind and target a second.
    func noteFailure(_ error: TransferError, _ plan: RoutePlan) {
        guard failures.mayTell("\(plan.pool.upstream.name) \(error.label)", second: reactor.turnNow.uptimeNanoseconds / 1_000_000_000)
        else { return }
        report(.upstreamFailed(upstream: plan.pool.upstream.name, route: plan.route.name, error.description))
    }

    /// An upstream that does not say what an answer costs, where it should, is told as one that fails is.
    func noteUnits(_ fault: UnitsReport.Fault, _ plan: RoutePlan) {
        guard failures.mayTell("\(plan.route.name) units \(fault)", second: reactor.turnNow.uptimeNanoseconds / 1_000_000_000)
        else { return }
        report(.unitsNotReported(upstream: plan.pool.upstream.name, route: plan.route.name, fault.rawValue))
    }

    // MARK: The end of a turn

    func flushSoon(_ connection: ClientConnection) {
        dirty.append(connection)
        reactor.requestTurn()
    }

    /// The hops of this turn are in the spool: the answers may leave. While the disk refuses them, no answer does.
    func endOfTurn() {
        guard !dirty.isEmpty, spool.isWritten else { return }
        swap(&dirty, &flushing)
        for connection in flushing { connection.flush() }
        flushing.removeAll(keepingCapacity: true)
    }

    var nextDeadline: NIODeadline? { nil }

    // MARK: The orderly end

    /// Takes no further connection and no further request of the open ones; calls back once all of them are gone.
    func drain(_ done: @escaping () -> Void) {
        isDraining = true
        whenEmpty = done
        for connection in connections.values { connection.drain(.zero) }
        for listener in listeners { listener.stopAccepting() }
        listeners.removeAll()
        if connections.isEmpty { tellEmpty() }
    }

    private func tellEmpty() {
        guard isDraining, let done = whenEmpty else { return }
        whenEmpty = nil
        done()
    }

    /// Ends what the drain left over, closes the spool and returns idle units.
    func finish(within limit: TimeAmount, _ done: @escaping () -> Void) {
        whenEmpty = nil
        for connection in Array(connections.values) { connection.giveUp() }
        curl.shutdown()
        flows.close(within: limit) { [self] lost in
            spool.progress.lostRecords(Int64(lost))
            quota.close(within: limit) { [self] in
                keys.flushUsed { [self] in
                    spool.close()
                    done()
                }
            }
        }
    }

    func close() {
        database.close()
        reactor.removeTurnHook(self)
    }
}
