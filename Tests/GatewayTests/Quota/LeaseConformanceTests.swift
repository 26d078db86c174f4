import GatewayCore
import GatewayStore
import NIOCore
import Postgres
import QuotaModel
import Reactor
import TestKit
import Testing

/// The same random operations on the model and on PostgreSQL: answers, rows, leases and ledger must be equal, so
/// that what the simulation proves of the model holds for the store.
@Suite struct LeaseConformanceTests {
    fileprivate static let spools = ["00000000-0000-7000-8000-000000000001", "00000000-0000-7000-8000-000000000002"]

    @Test(arguments: FlowConformanceTests.seeds) func theModelIsTheStore(_ seed: UInt64) async throws {
        let database = try await TestDatabase.withQuota(200)
        let reactor = try Reactor.start(name: "conformance")
        defer { reactor.stop() }
        let admin = try await PostgresClient.connect(to: database.url, on: reactor)
        try await admin.script(
            """
            SET search_path = pandora;
            UPDATE project_service SET max_request = NULL;
            INSERT INTO environment (project_id, name) VALUES (1, 'f');
            INSERT INTO service (name) VALUES ('t');
            INSERT INTO project_service (project_id, service_id, reset_frequency) VALUES (1, 2, 'daily');
            INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (2, 1, NULL), (1, 2, 150);
            INSERT INTO log_spool (id, node) SELECT unnest('{\(Self.spools.joined(separator: ","))}'::uuid[]), 'n';
            """)
        let client = try await PostgresClient.connect(to: database.url, role: .pipeline, on: reactor)

        var model = ModelStore()
        let rows = [(1, 1), (2, 1), (1, 2)].map { QuotaRow(environmentID: $0.0, serviceID: $0.1) }
        for (row, limit) in zip(rows, [200, nil, 150] as [Int64?]) { model.setLimit(limit, of: row) }
        for spool in 0...1 { _ = model.open(spool) }
        var pair = Pair(random: SeededRandom(seed: seed), model: model, rows: rows, store: Store(client, reactor, admin))
        for step in 0..<160 {
            // How active another holder is would depend on how fast this test runs.
            for spool in 0...1 { pair.model.hear(spool) }
            try await admin.script("UPDATE pandora.quota_lease SET heard_at = clock_timestamp()")
            let what = try await pair.operate()
            let (state, expected) = (try await Self.state(of: admin), Self.state(of: pair.model))
            #expect(state == expected, "seed \(seed), step \(step): \(what)")
            guard state == expected else { break }
        }
        // Others may not meet all of it.
        if FlowConformanceTests.always.contains(seed) {
            #expect(pair.model.spools.values.allSatisfy { $0.epoch > 1 } && pair.fenced > 0)
            #expect(pair.writtenOff > 0 && pair.dropped > 0 && pair.skipped > 0)
        }
        await client.shutdown()
        await admin.shutdown()
    }

    private static func state(of admin: PostgresClient) async throws -> [String] {
        let rows = try await admin.script(
            """
            SELECT line FROM (
                SELECT concat_ws(' ', 'row', environment_id, service_id, coalesce(max_request, -1), used_request, held_request,
                                 period) AS line FROM pandora.environment_service
                UNION ALL
                SELECT concat_ws(' ', 'lease', right(spool_id::text, 1), environment_id, service_id, period, granted, settled,
                                 lost, refunded, returned, overrun) FROM pandora.quota_lease
                UNION ALL
                SELECT concat_ws(' ', 'ledger', environment_id, service_id, period, kind, sum(used_delta), sum(limit_delta))
                  FROM pandora.quota_ledger GROUP BY environment_id, service_id, period, kind
                HAVING sum(used_delta) <> 0 OR sum(limit_delta) <> 0) AS lines
            ORDER BY line COLLATE "C"
            """)
        return rows.map { $0.string(0) }
    }

    private static func state(of model: ModelStore) -> [String] {
        var lines: [String] = []
        for (row, quota) in model.quotas {
            lines.append("row \(row.environmentID) \(row.serviceID) \(quota.limit ?? -1) \(quota.used) \(quota.held) \(quota.period)")
        }
        for (key, lease) in model.leases {
            lines.append(
                "lease \(key.spool + 1) \(key.row.environmentID) \(key.row.serviceID) \(key.period) \(lease.granted) \(lease.settled) "
                    + "\(lease.lost) \(lease.refunded) \(lease.returned) \(lease.overrun)")
        }
        for (id, booked) in model.ledger {
            let kinds = [
                ("opened", 0, booked.openedLimit), ("limit", 0, booked.limit - booked.openedLimit),
                ("hops", booked.hops, 0), ("lost", booked.lost, 0), ("refund", booked.refund, 0),
                ("overrun", booked.overrun, 0),
            ]
            for (kind, used, limit) in kinds where used != 0 || limit != 0 {
                lines.append("ledger \(id.row.environmentID) \(id.row.serviceID) \(id.period) \(kind) \(used) \(limit)")
            }
        }
        return lines.sorted { Array($0.utf8).lexicographicallyPrecedes(Array($1.utf8)) }
    }
}

/// The store's side of an operation.
private struct Store {
    let client: PostgresClient
    let reactor: Reactor
    let admin: PostgresClient

    init(_ client: PostgresClient, _ reactor: Reactor, _ admin: PostgresClient) {
        (self.client, self.reactor, self.admin) = (client, reactor, admin)
    }

    /// Nil: the holder is fenced.
    func ask<Answer: Sendable>(
        _ session: LeaseSession,
        _ call: @escaping @Sendable (LeaseSession, @escaping (Result<Answer, PostgresError>) -> Void) -> Void
    ) async throws -> Answer? {
        let promise = reactor.makePromise(of: Answer.self)
        reactor.execute { call(session) { promise.completeWith($0.mapError { $0 as any Error }) } }
        do { return try await promise.futureResult.get() } catch let error as PostgresError where error.sqlState == "PN004" { return nil }
    }
}

/// One operation after the other on both.
private struct Pair {
    var random: SeededRandom
    var model: ModelStore
    let rows: [QuotaRow]
    let store: Store
    /// What came of the operations that often come to nothing.
    var (fenced, writtenOff, dropped, skipped) = (0, Int64(0), 0, 0)

    private static let spools = LeaseConformanceTests.spools
    /// Of periods and of silence; microseconds.
    private static let (long, hour): (Int64, Int64) = (1 << 50, 3_600_000_000)

    init(random: SeededRandom, model: ModelStore, rows: [QuotaRow], store: Store) {
        (self.random, self.model, self.rows, self.store) = (random, model, rows, store)
    }

    /// Returns its name.
    mutating func operate() async throws -> String {
        let spool = Int(random.pick(0...1))
        switch random.pick(0...17) {
        case 0...4: return try await acquire(spool)
        case 5...6: return try await giveBack(spool)
        case 7...9: return try await ship(spool)
        case 10: return try await edit()
        case 11: return try await assign()
        case 12: return try await reset()
        case 13: return try await forget(spool)
        case 14: return try await open(spool)
        case 15: return try await writeOff(spool)
        case 16: return try await drop()
        default: return try await read(spool)
        }
    }

    private mutating func anyRow() -> QuotaRow { rows[[0, 0, 0, 0, 1, 2, 2][Int(random.pick(0...6))]] }

    /// The current one mostly; the one before; or the one to come, as after a failover that forgot its opening.
    private mutating func anyPeriod(of row: QuotaRow) -> Int64 {
        let current = model.quotas[row]?.period ?? 1
        if random.chance(8) { return current + 1 }
        return random.chance(5) ? max(1, current - 1) : current
    }

    /// The holder's session; now and then of a process whose spool somebody else has opened.
    private mutating func session(_ spool: Int) -> (LeaseSession, epoch: Int64) {
        let epoch = model.spools[spool]!.epoch - (random.chance(12) ? 1 : 0)
        return (LeaseSession(store.client, spool: Self.spools[spool], epoch: epoch), epoch)
    }

    /// What the model says; nil: the holder is fenced.
    private mutating func said<Answer>(_ call: (inout ModelStore) throws(ModelStore.Failure) -> Answer) -> Answer? {
        do throws(ModelStore.Failure) { return try call(&model) } catch {
            fenced += 1
            return nil
        }
    }

    // MARK: - What holders say

    private mutating func acquire(_ spool: Int) async throws -> String {
        let questions = [1, 2, 0].map { LeaseQuestion(row: rows[$0], need: random.pick(0...10), wish: random.pick(0...90)) }
        let (session, epoch) = session(spool)
        let expected = said { store throws(ModelStore.Failure) in try store.acquire(spool, epoch: epoch, questions) }
        let answers = try await store.ask(session) { $0.acquire(questions, deadline: patience, $1) }
        #expect(answers?.map(Self.timeless) == expected?.map(Self.timeless))
        return "acquire \(questions), epoch \(epoch)"
    }

    private mutating func giveBack(_ spool: Int) async throws -> String {
        let row = anyRow()
        let returns = [LeaseReturn(row: row, period: anyPeriod(of: row), totalReturned: random.pick(0...300))]
        let (session, epoch) = session(spool)
        let expected: Void? = said { store throws(ModelStore.Failure) in _ = try store.giveBack(spool, epoch: epoch, returns) }
        let answer: Void? = try await store.ask(session) { $0.giveBack(returns, deadline: patience, $1) }
        #expect((answer == nil) == (expected == nil))
        return "give back \(returns), epoch \(epoch)"
    }

    private mutating func read(_ spool: Int) async throws -> String {
        let (session, epoch) = session(spool)
        let expected = said { store throws(ModelStore.Failure) in try store.readLeases(spool, epoch: epoch) }
        let answer = try await store.ask(session) { $0.read(deadline: patience, $1) }
        #expect(answer.map { Set($0) } == expected.map { Set($0) })
        return "read, epoch \(epoch)"
    }

    private mutating func ship(_ spool: Int) async throws -> String {
        let (row, units, isLeased) = (anyRow(), random.pick(0...40), !random.chance(4))
        let period = isLeased || random.chance(2) ? anyPeriod(of: row) : 0
        let frame = ModelFrame(row: row, period: period, units: units, leased: isLeased)
        let known = model.spools[spool]!
        _ = try model.ship(spool, epoch: known.epoch, from: known.shippedTo, [frame])
        try await store.admin.script(
            """
            SELECT pandora.settle_hops('\(Self.spools[spool])', '{\(row.environmentID)}', '{\(row.serviceID)}',
                '{\(period)}', '{\(units)}', '{\(isLeased ? units : 0)}', '{1}')
            """)
        return "settle \(frame)"
    }

    private mutating func open(_ spool: Int) async throws -> String {
        let expected = model.open(spool)
        let rows = try await store.admin.script(
            "UPDATE pandora.log_spool SET epoch = epoch + 1 WHERE id = '\(Self.spools[spool])' RETURNING epoch")
        #expect(rows[0].string(0) == "\(expected.epoch)")
        return "open \(spool)"
    }

    // MARK: - What operators say

    private mutating func edit() async throws -> String {
        let (row, limit) = (anyRow(), random.chance(4) ? nil : random.pick(0...300))
        guard model.quotas[row] != nil else { return "edit nothing" }
        model.setLimit(limit, of: row)
        try await store.admin.script(
            """
            UPDATE pandora.environment_service SET max_request = \(limit.map(String.init) ?? "NULL")
             WHERE environment_id = \(row.environmentID) AND service_id = \(row.serviceID)
            """)
        return "limit \(limit ?? -1)"
    }

    /// Takes a service away, and gives it back later.
    private mutating func assign() async throws -> String {
        let row = rows[2]
        guard model.quotas[row] == nil else {
            model.unassign(row)
            try await store.admin.script(
                "DELETE FROM pandora.environment_service WHERE environment_id = \(row.environmentID) AND service_id = \(row.serviceID)")
            return "unassign"
        }
        model.setLimit(90, of: row)
        try await store.admin.script(
            """
            INSERT INTO pandora.environment_service (environment_id, service_id, max_request)
            VALUES (\(row.environmentID), \(row.serviceID), 90)
            """)
        return "assign"
    }

    private mutating func forget(_ spool: Int) async throws -> String {
        let refund = random.chance(2)
        model.forget(spool, refund: refund)
        try await store.admin.script("SELECT pandora.forget_spool('\(Self.spools[spool])', \(refund))")
        return "forget, refund \(refund)"
    }

    // MARK: - What time brings

    private mutating func reset() async throws -> String {
        let before = model.quotas.mapValues(\.period)
        model.periodLength = Self.long
        model.makeResetDue()
        model.resetIfDue()
        skipped += model.quotas.count { $0.value.period > before[$0.key]! + 1 }
        try await store.admin.script(
            """
            UPDATE pandora.project_service SET next_reset = clock_timestamp() - interval '1 s';
            SELECT pandora.reset_if_due(1, 1), pandora.reset_if_due(1, 2);
            """)
        return "reset"
    }

    /// Of one holder nothing was heard for two hours, except its log, perhaps.
    private mutating func writeOff(_ spool: Int) async throws -> String {
        let ships = random.chance(3)
        model.now += 2 * Self.hour
        model.hear(1 - spool)
        let known = model.spools[spool]!
        if ships { _ = try model.ship(spool, epoch: known.epoch, from: known.shippedTo, []) }
        let before = model.ledger.values.reduce(0) { $0 + $1.lost }
        model.writeOff(silence: Self.hour)
        let units = model.ledger.values.reduce(0) { $0 + $1.lost } - before
        writtenOff += units
        try await store.admin.script(
            """
            UPDATE pandora.quota_lease SET heard_at = clock_timestamp() - interval '2 h' WHERE spool_id = '\(Self.spools[spool])';
            UPDATE pandora.log_spool SET shipped_at = clock_timestamp() - interval '\(ships ? 0 : 2) h'
             WHERE id = '\(Self.spools[spool])'
            """)
        let rows = try await store.admin.script("SELECT pandora.write_off_silent('1 h', '0', 1000)")
        #expect(rows[0].string(0) == "\(units)")
        return "write off \(spool), which ships: \(ships)"
    }

    private mutating func drop() async throws -> String {
        model.now += 2 * Self.hour
        let count = model.dropSettledLeases(olderThan: Self.hour)
        dropped += count
        try await store.admin.script("UPDATE pandora.quota_lease SET heard_at = clock_timestamp() - interval '2 h'")
        let rows = try await store.admin.script("SELECT pandora.drop_settled_leases('1 h')")
        #expect(rows[0].string(0) == "\(count)")
        return "drop settled leases"
    }

    private static func timeless(_ answer: LeaseAnswer) -> LeaseAnswer {
        guard case .limited(var numbers) = answer else { return answer }
        numbers.resetIn = nil
        return .limited(numbers)
    }
}
