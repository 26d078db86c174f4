import GatewayCore
import GatewayStore
import NIOCore
import Postgres
import Reactor
import TestKit

@testable import Gateway

/// A node with one worker: it admits, logs and ships.
///
/// Sendable: the keeper is used on the worker's reactor only.
final class ServingNode: @unchecked Sendable {
    let worker: SpoolWorker
    let log: LogNode
    private let client: PostgresClient
    private let keeper: QuotaKeeper
    private let hops: Locked<Hops>

    init(_ database: TestDatabase, _ root: TemporaryFolder, seed: UInt64) async throws {
        worker = try await SpoolWorker(root)
        let reactor = worker.reactor
        let configuration = try PostgresConfiguration.patient(database.url)
        let client = PostgresClient(configuration, role: .pipeline, on: reactor)
        let made = Locked<QuotaKeeper?>(nil)
        let hold = made
        try await reactor.submit {
            let keeper = QuotaKeeper(on: reactor, limits: .patient)
            client.onStateChange = { [weak keeper] state in
                switch state {
                case .ready: keeper?.storeReady()
                case .lost: keeper?.storeLost()
                default: break
                }
            }
            client.start()
            hold.withLock { $0 = keeper }
        }.get()
        try await client.ready(within: patience)
        self.client = client
        keeper = made.withLock { $0! }
        hops = Locked(Hops(seed: seed))
        log = try await LogNode(database.url) { $0.batchFrames = 30 } opened: { spool, epoch in
            reactor.execute {
                made.withLock { $0! }.begin(LeaseSession(client, spool: "\(spool)", epoch: epoch))
            }
        }
        try await log.attach(worker)
    }

    /// Serves requests that come at once; each is charged as told, once it was admitted.
    ///
    /// - Returns: the units charged.
    func serve(_ wants: [(want: QuotaWant, charge: Int64)]) async throws -> Int64 {
        let promise = worker.reactor.makePromise(of: Int64.self)
        let sum = Locked((units: Int64(0), waiting: wants.count))
        try await worker.on { [self] writer in
            for (want, charge) in wants {
                keeper.admit(want) { [self] admission in
                    var hop = hops.withLock { $0.plain() }
                    (hop.environmentID, hop.serviceID) = (want.row.environmentID, want.row.serviceID)
                    if let hold = admission.hold {
                        hop.units = keeper.settle(hold, charge: charge)
                        (hop.period, hop.leased, hop.outage) = (hold.period, hold.leased, hold.outage)
                    } else {
                        hop.executionStatus = .unauthorized
                        hop.refusal = .quotaExceeded
                    }
                    writer.append(hop, reserved: false)
                    let state = sum.withLock { state in
                        state.units += hop.units
                        state.waiting -= 1
                        return state
                    }
                    if state.waiting == 0 { promise.succeed(state.units) }
                }
            }
        }
        return try await promise.futureResult.get()
    }

    func close() async throws {
        let promise = worker.reactor.makePromise(of: Void.self)
        worker.reactor.execute { [self] in keeper.close(within: patience) { promise.succeed(()) } }
        try await promise.futureResult.get()
        try await log.drain()
        try await die()
    }

    func die() async throws {
        await client.shutdown()
        try await log.end()
        await worker.end()
    }
}
