import GatewayCore
import GatewayStore
import NIOCore
import Postgres
import QuotaModel
import Reactor
import TestKit
import Testing

@Suite struct FlowTurnTests {
    /// Every turn takes flows and quota rows of both environments, in any order, while periods turn, log batches end flows and
    /// leases are asked for: a deadlock would be a failure of one of them.
    @Test func turnsOfSeveralNodesNeverLockEachOtherOut() async throws {
        let database = try await TestDatabase.withQuota(1_000_000)
        try await database.psql(
            """
            SET search_path = pandora;
            UPDATE project_service SET max_request = NULL;
            INSERT INTO environment (project_id, name) VALUES (1, 'f');
            INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (2, 1, 1000000);
            INSERT INTO log_spool (id, node) VALUES ('\(Self.spool)', 'n');
            SELECT count(*) FROM lease_acquire('\(Self.spool)', 1, '{1,2}', '{1,1}', '{3,3}', '{3,3}');
            """)
        let reactor = try Reactor.start(name: "turns")
        // Those started last, which everybody takes steps of and ends.
        let known = Locked<[ReservationID]>([])
        try await withThrowingTaskGroup(of: Void.self) { group in
            for node in 0..<4 {
                group.addTask {
                    let client = try await PostgresClient.connect(to: database.url, role: .pipeline, on: reactor)
                    let store = FlowStore(client, reactor)
                    var maker = TurnMaker(node: node)
                    for _ in 0..<100 {
                        let turn = maker.next(known.withLock { $0 })
                        _ = try await store.take(turn)
                        known.withLock { $0 = Array(($0 + turn.starts.map(\.id)).suffix(24)) }
                    }
                    await client.shutdown()
                }
            }
            group.addTask {
                let client = try await PostgresClient.connect(to: database.url, on: reactor)
                for _ in 0..<40 {
                    try await client.script(Self.boundary)
                    try await client.script("SELECT pg_sleep(0.025)")
                    try await client.script("SELECT pandora.reset_next_due(), pandora.flow_expire(100, '0 s')")
                }
                await client.shutdown()
            }
            for work in [Self.batch, Self.lease] {
                group.addTask {
                    let client = try await PostgresClient.connect(to: database.url, on: reactor)
                    var random = SeededRandom(seed: 99)
                    for _ in 0..<100 { try await client.script(work(known.withLock { $0 }, &random)) }
                    await client.shutdown()
                }
            }
            try await group.waitForAll()
        }
        reactor.stop()
        #expect(try await database.psql("SELECT count(*) > 0 FROM pandora.quota_ledger WHERE kind = 'flow'") == ["t"])
        #expect(try await database.psql("SELECT count(*) > 0 FROM pandora.quota_ledger WHERE kind = 'hops'") == ["t"])
        #expect(try await database.psql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == ["0"])
    }

    /// A start on a connection that was given up still gets its row while another connection takes it back, and before that one
    /// has the row the flow has expired and the sweeper has it: who has the quota row must not wait for it.
    @Test(arguments: [false, true]) func aFlowThatBeganMeanwhileIsLeftToWhoeverHasIt(_ isMixed: Bool) async throws {
        let database = try await TestDatabase.withQuota(10)
        let reactor = try Reactor.start(name: "turns")
        let straggler = try await PostgresClient.connect(to: database.url, on: reactor)
        let other = try await PostgresClient.connect(to: database.url, on: reactor)
        let sweeper = try await PostgresClient.connect(to: database.url, on: reactor)
        let client = try await PostgresClient.connect(to: database.url, role: .pipeline, on: reactor)
        let (id, hop) = (ReservationID(UUIDBits(high: 1, low: 1)), RequestID(UUIDBits(high: 1, low: 2)))
        func untilWaiting(_ count: Int) async throws {
            try await eventually("\(count) wait for the row") {
                try await database.psql(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == ["\(count)"]
            }
        }
        try await straggler.script("BEGIN")
        try await straggler.script(
            "SELECT * FROM pandora.flow_start('{\(id)}', '{\(hop)}', '{\(FlowNode.key)}', '{1}', '{1}', '{f}', '{1}', '{1}', '{1}', '{9}')")
        try await other.script("BEGIN")
        async let locked = other.script("SELECT 1 FROM pandora.environment_service FOR UPDATE")
        try await untilWaiting(1)
        let undo = FlowSettlement(id: id, hop: hop, row: QuotaRow(environmentID: 1, serviceID: 1), period: 0, action: .rollback)
        var turn = FlowTurn()
        turn.orders = [.settle(undo)]
        if isMixed {
            turn.starts = [
                FlowStart(
                    FlowNode.flow(), id: ReservationID(UUIDBits(high: 2, low: 1)), requestID: hop, keyID: FlowNode.key,
                    row: undo.row)
            ]
        }
        let store = FlowStore(client, reactor)
        async let answer: Result<FlowTurnAnswers, any Error> = { [turn] in
            do { return .success(try await store.take(turn)) } catch { return .failure(error) }
        }()
        try await untilWaiting(2)
        try await straggler.script("COMMIT")
        _ = try await locked
        try await untilWaiting(1)
        async let swept = sweeper.script("SELECT pandora.flow_expire(9, '0 s')")
        try await untilWaiting(2)
        try await other.script("COMMIT")
        #expect(try await swept[0].string(0) == "1")
        // Where the sweeper got the row first, there is nothing left to wait for. Nobody is ended by the server, a second later,
        // because they waited for each other.
        if case .failure(let error) = await answer { #expect((error as? PostgresError)?.sqlState == .lockNotAvailable, "\(error)") }
        let again = try await store.take(turn)
        #expect(again.orders == [.ended(.expired(charged: 0))])
        #expect(try await database.flowNumbers() == (isMixed ? "0|10|1|0|1" : "0|10|0|0|0"))
        for client in [straggler, other, sweeper, client] { await client.shutdown() }
        reactor.stop()
    }

    private static let spool = "00000000-0000-7000-8000-000000000001"

    /// The period ends in a moment, which is still to come when that is committed: a transaction that did not see it, but began
    /// after it, would find a reset due that was not when it took its locks.
    private static let boundary = """
        DO $$ BEGIN
            LOOP
                UPDATE pandora.project_service SET next_reset = clock_timestamp() + interval '20 ms';
                EXIT WHEN (SELECT next_reset > clock_timestamp() + interval '15 ms' FROM pandora.project_service);
            END LOOP;
        END $$
        """

    /// A log batch with hops of both rows and the ends of some flows.  Its hops are charged from leases that had been granted
    /// when it began, as a worker admits from nothing else.
    @Sendable private static func batch(_ known: [ReservationID], _ random: inout SeededRandom) -> String {
        let ids = known.shuffled(using: &random).prefix(6)
        func array(_ value: (ReservationID) -> String) -> String { "'{\(ids.map(value).joined(separator: ","))}'" }
        let environments = array { "\(environment(of: $0))" }
        let (ones, zeros, names) = (array { _ in "1" }, array { _ in "0" }, array { "\($0)" })
        let rows = random.chance(2) ? "'{1,2}', '{1,1}'" : "'{2,1}', '{1,1}'"
        let periods = "ARRAY[current_setting('test.period'), current_setting('test.period')]::bigint[]"
        return """
            BEGIN;
            SELECT set_config('test.period', max(period)::text, true)
              FROM (SELECT period FROM pandora.quota_lease WHERE spool_id = '\(spool)' GROUP BY period HAVING count(*) = 2) AS granted;
            SELECT pandora.flow_lock(\(names), '\(spool)', \(rows), \(periods), \(environments), \(ones));
            SELECT pandora.settle_hops('\(spool)', \(rows), \(periods), '{1,1}', '{1,1}', '{1,1}');
            SELECT pandora.flow_settle(\(names), \(array { _ in "hop" }), \(array { _ in "rollback" }), \(environments), \(ones),
                                       \(zeros), \(zeros), \(zeros));
            COMMIT
            """
    }

    @Sendable private static func lease(_ known: [ReservationID], _ random: inout SeededRandom) -> String {
        let rows = random.chance(2) ? "'{1,2}', '{1,1}'" : "'{2,1}', '{1,1}'"
        return "SELECT pandora.lease_acquire('\(spool)', 1, \(rows), '{3,3}', '{3,3}')"
    }

    fileprivate static func environment(of id: ReservationID) -> Int64 { Int64(id.uuid.high % 2) + 1 }
}

private struct TurnMaker {
    var random: SeededRandom
    private let node: UInt64
    private var last: UInt64 = 0
    private let flow = Flow(name: "f", start: "a", steps: ["b"], finish: "d", units: 1, timeMax: .seconds(3_000), hops: 999, open: 999)

    init(node: Int) { (random, self.node) = (SeededRandom(seed: UInt64(node) + 1), UInt64(node)) }

    mutating func next(_ known: [ReservationID]) -> FlowTurn {
        var turn = FlowTurn()
        let chosen = known.shuffled(using: &random)
        for id in chosen.prefix(6) {
            let key = StepKey("k".utf8)!
            turn.hops.append(
                FlowHop(stepOf: flow, index: 0, id: id, requestID: request(), environmentID: FlowTurnTests.environment(of: id), key: key))
            turn.notes.append(FlowNote(id: id, key: key, status: 200))
        }
        for id in chosen.dropFirst(4).prefix(6) {
            let row = QuotaRow(environmentID: FlowTurnTests.environment(of: id), serviceID: 1)
            let action: FlowSettlement.Action = random.chance(2) ? .commit(units: 1) : .reopen(timeToLive: 300_000_000)
            turn.orders.append(
                random.chance(2)
                    ? .resolve(FlowResolution(id: id, environmentID: nil, commits: true))
                    : .settle(FlowSettlement(id: id, hop: request(), row: row, period: 0, action: action)))
        }
        for _ in 0..<4 { turn.starts.append(start()) }
        return turn
    }

    private mutating func request() -> RequestID {
        last += 1
        return RequestID(UUIDBits(high: node << 32 + last, low: 5))
    }

    private mutating func start() -> FlowStart {
        let id = ReservationID(UUIDBits(high: random.next() << 1 | random.next() % 2, low: 1))
        let row = QuotaRow(environmentID: FlowTurnTests.environment(of: id), serviceID: 1)
        let key = KeyID(UUIDBits(high: UInt64(row.environmentID), low: 1))
        return FlowStart(flow, id: id, requestID: request(), keyID: key, row: row)
    }
}
