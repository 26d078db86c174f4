import Foundation
import Gateway
import GatewayCore
import GatewayStore
import NIOCore
import Postgres
import Reactor
import TestKit
import Testing

/// PostgreSQL away in each phase of a flow, and answers that come too late.
@Suite struct FlowOutageTests {
    func stop(_ database: TestDatabase) async throws {
        try await database.cluster.psql(
            """
            ALTER DATABASE \(database.name) ALLOW_CONNECTIONS false;
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '\(database.name)';
            """, database: "postgres")
    }

    func start(_ database: TestDatabase) async throws {
        try await database.cluster.psql("ALTER DATABASE \(database.name) ALLOW_CONNECTIONS true", database: "postgres")
    }

    /// Nothing waits longer than this for a store that is away.
    var quick: FlowLimits {
        var limits = FlowLimits.patient
        limits.settleMax = 200_000
        return limits
    }

    @Test func withoutTheStoreNothingStartsAndNothingIsLost() async throws {
        let database = try await TestDatabase.withQuota(10)
        let node = try await FlowNode(database)
        let open = try #require(try await node.start().flow)
        try await stop(database)
        try await eventually("the node notices") { try await !node.isReady() }
        #expect(try await node.start() == .unavailable(retryAfter: 2))
        #expect(try await node.step(open.id) == .unavailable(retryAfter: 2))
        #expect(try await node.claim(open.id).0 == .unavailable(retryAfter: 2))
        #expect(try await node.resolve(open.id, commits: true) == .unavailable(retryAfter: 2))
        try await start(database)
        try await eventually("the node is back") { try await node.isReady() }
        #expect(try await node.finish(open.id).1 == .ended(.committed(units: 1)))
        #expect(try await database.flowNumbers() == "1|9|0|1|0")
        try await node.close()
    }

    @Test(arguments: [FlowVerdict.commit, .rollback, .reopen])
    func aSettlementWithoutTheStoreIsPendingAndTheLogBooksIt(_ verdict: FlowVerdict) async throws {
        let database = try await TestDatabase.withQuota(10)
        let node = try await FlowNode(database, flow: FlowNode.flow(units: 4), limits: quick)
        let open = try #require(try await node.start().flow)
        let (answer, hop) = try await node.claim(open.id)
        let settlement = try #require(answer.flow?.settlement(verdict, hop: hop, of: node.flow))
        try await stop(database)
        try await eventually("the node notices") { try await !node.isReady() }
        #expect(try await node.settle(settlement) == .pending(settlement))
        try await start(database)
        // The frame may come twice: a failover can lose the mark, and the process may have said it, too.
        let shipping = try await SettlementShipping(database)
        try await shipping.ship([settlement, settlement])
        let numbers = ["commit": "4|6|0|4|0", "rollback": "0|10|0|0|0", "reopen": "0|10|4|0|1"]["\(verdict)"]
        #expect(try await database.flowNumbers() == numbers)
        try await eventually("the node is back") { try await node.isReady() }
        _ = try await node.settle(settlement)
        #expect(try await database.flowNumbers() == numbers)
        if verdict == .reopen {
            let other = try await FlowNode(database, flow: node.flow)
            #expect(try await other.finish(open.id).1 == .ended(.committed(units: 4)))
            try await other.close()
        }
        try await shipping.end()
        try await node.close()
    }

    /// PostgreSQL is away and the disk refuses, too: nobody hears of an end before one of them has it.
    @Test(arguments: [true, false]) func aSettlementThatNobodyTakesIsSaidAgainUntilSomebodyDoes(_ spoolTakesIt: Bool) async throws {
        let database = try await TestDatabase.withQuota(10)
        let node = try await FlowNode(database, limits: quick)
        let open = try #require(try await node.start().flow)
        let (answer, hop) = try await node.claim(open.id)
        let settlement = try #require(answer.flow?.settlement(.commit, hop: hop, of: node.flow))
        try await stop(database)
        try await eventually("the node notices") { try await !node.isReady() }
        let (refused, isMended) = (Locked(0), Locked(false))
        async let settled = node.settle(settlement) { late in
            #expect(late == settlement)
            if isMended.withLock({ $0 }) { return true }
            refused.withLock { $0 += 1 }
            return false
        }
        try await eventually("it is said again") { refused.withLock { $0 } >= 3 }
        if spoolTakesIt {
            isMended.withLock { $0 = true }
            #expect(try await settled == .pending(settlement))
            try await start(database)
            #expect(try await database.flowNumbers() == "0|10|1|0|1")
        } else {
            try await start(database)
            #expect(try await settled == .ended(.committed(units: 1)))
            #expect(try await database.flowNumbers() == "1|9|0|1|0")
        }
        try await node.close()
    }

    /// A node that holds the claim of a flow and has lost its store; the answers to what it settles.
    func cutOff(
        _ database: TestDatabase, _ limits: FlowLimits
    ) async throws -> (FlowNode, FlowSettlement, Locked<[FlowSettled]>) {
        let node = try await FlowNode(database, limits: limits)
        let open = try #require(try await node.start().flow)
        let (answer, hop) = try await node.claim(open.id)
        let settlement = try #require(answer.flow?.settlement(.commit, hop: hop, of: node.flow))
        try await stop(database)
        try await eventually("the node notices") { try await !node.isReady() }
        return (node, settlement, Locked([]))
    }

    @Test(arguments: [true, false]) func theEndWaitsForASettlementBetweenTwoTriesAndCountsItWhereItIsLost(_ isTaken: Bool) async throws {
        let (node, settlement, answers) = try await cutOff(TestDatabase.withQuota(10), quick)
        let lost = try await node.ask { (_, keeper, done: @escaping (Int) -> Void) in
            var refused = 0
            keeper.settle(
                settlement,
                keep: { _ in
                    if isTaken, refused > 0 { return true }
                    refused += 1
                    // Neither the book nor the spool has it now.
                    if refused == 1 { keeper.close(within: isTaken ? .seconds(600) : .seconds(1), done) }
                    return false
                }) { answer in answers.withLock { $0.append(answer) } }
        }
        #expect(lost == (isTaken ? 0 : 1))
        // Nobody is told of what is lost.
        #expect(answers.withLock { $0 } == (isTaken ? [.pending(settlement)] : []))
        await node.die()
    }

    @Test func theEndGivesTheSpoolWhatStillWaitsForTheStore() async throws {
        var limits = FlowLimits.patient
        limits.settleMax = 600_000_000
        let (node, settlement, answers) = try await cutOff(TestDatabase.withQuota(10), limits)
        let lost = try await node.ask { (_, keeper, done: @escaping (Int) -> Void) in
            keeper.settle(settlement, keep: { $0 == settlement }) { answer in answers.withLock { $0.append(answer) } }
            keeper.close(within: .milliseconds(10), done)
        }
        #expect(lost == 0 && answers.withLock { $0 } == [.pending(settlement)])
        await node.die()
    }

    @Test func aStartThatGaveUpBehindALockLeavesNothing() async throws {
        let database = try await TestDatabase.withQuota(10)
        var limits = FlowLimits.patient
        limits.waitMax = 100_000
        let node = try await FlowNode(database, limits: limits)
        let reactor = try Reactor.start(name: "locker")
        let locker = try await PostgresClient.connect(to: database.url, on: reactor)
        try await locker.script("BEGIN")
        try await locker.script("SELECT * FROM pandora.environment_service FOR UPDATE")
        #expect(try await node.start() == .unavailable(retryAfter: 2))
        try await locker.script("COMMIT")
        try await eventually("it was taken back") {
            try await database.psql("SELECT count(*) FROM pandora.quota_ledger WHERE outcome = 'rolled_back'")[0] == "1"
        }
        #expect(try await database.flowNumbers() == "0|10|0|0|0")
        #expect(try await node.counters().undone == 1)
        await locker.shutdown()
        reactor.stop()
        try await node.close()
    }

    @Test func aClaimThatGaveUpBehindALockOpensTheFlowAgain() async throws {
        let database = try await TestDatabase.withQuota(10)
        var limits = FlowLimits.patient
        limits.waitMax = 100_000
        let (node, other) = (try await FlowNode(database, limits: limits), try await FlowNode(database))
        let open = try #require(try await other.start().flow)
        let reactor = try Reactor.start(name: "locker")
        let locker = try await PostgresClient.connect(to: database.url, on: reactor)
        try await locker.script("BEGIN")
        try await locker.script("SELECT * FROM pandora.reservations FOR UPDATE")
        let (answer, hop) = try await node.claim(open.id)
        #expect(answer == .unavailable(retryAfter: 2))
        try await locker.script("COMMIT")
        try await eventually("it was given up") {
            try await database.psql("SELECT state, last_hop FROM pandora.reservations")[0] == "open|\(hop)"
        }
        #expect(try await other.finish(open.id).1 == .ended(.committed(units: 1)))
        await locker.shutdown()
        reactor.stop()
        try await node.close()
        try await other.close()
    }

    @Test func whatWasOnItsWayIsSaidAgainOverANewConnection() async throws {
        let database = try await TestDatabase.withQuota(10)
        let node = try await FlowNode(database)
        let reactor = try Reactor.start(name: "locker")
        let locker = try await PostgresClient.connect(to: database.url, on: reactor)
        try await locker.script("BEGIN")
        try await locker.script("SELECT * FROM pandora.environment_service FOR UPDATE")
        async let answer = node.start()
        let victim = try #require(try await node.backendPID())
        try await eventually("the start waits for the row") {
            try await database.psql("SELECT wait_event_type FROM pg_stat_activity WHERE pid = \(victim)") == ["Lock"]
        }
        try await database.psql("SELECT pg_terminate_backend(\(victim))")
        try await locker.script("COMMIT")
        #expect(try await answer.flow != nil)
        #expect(try await database.flowNumbers() == "0|10|1|0|1")
        await locker.shutdown()
        reactor.stop()
        try await node.close()
    }
}

/// A worker's spool and the node's shipper, for settlements only.
///
/// Sendable: everything but the immutable references is used on the reactor only.
private final class SettlementShipping: @unchecked Sendable {
    private let reactor: Reactor
    private let root: String
    private let client: PostgresClient
    private let shipper: Shipper
    private let writer: SpoolWriter

    init(_ database: TestDatabase) async throws {
        let root = FileManager.default.temporaryDirectory.appendingPathComponent("flows-\(UUID().uuidString)").path
        self.root = root
        let reactor = try Reactor.start(name: "shipping")
        self.reactor = reactor
        let client = try await PostgresClient.connect(to: database.url, on: reactor)
        self.client = client
        (shipper, writer) = try await reactor.submit {
            let settings = SpoolSettings(root: root, node: "test")
            return UncheckedPair(Shipper(on: reactor, session: ShipSession(client)), try SpoolWriter(settings, on: reactor))
        }.get().values
    }

    /// Writes frames and waits until the database has them.
    func ship(_ settlements: [FlowSettlement]) async throws {
        let promise = reactor.makePromise(of: Bool.self)
        reactor.execute { [self] in
            do {
                try shipper.attach(writer.handle)
                shipper.storeReady()
                let written = settlements.map { writer.append($0, reserved: false) }
                reactor.execute { self.shipper.drain { promise.succeed(written.allSatisfy { $0 }) } }
            } catch {
                promise.fail(error)
            }
        }
        #expect(try await promise.futureResult.get())
    }

    func end() async throws {
        try await reactor.submit { [self] in
            shipper.stop()
            writer.close()
        }.get()
        await client.shutdown()
        reactor.stop()
        try? FileManager.default.removeItem(atPath: root)
    }

    private struct UncheckedPair: @unchecked Sendable {
        // Made on the reactor and used there only.
        let values: (Shipper, SpoolWriter)
        init(_ shipper: Shipper, _ writer: SpoolWriter) { values = (shipper, writer) }
    }
}
