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
    private static let spools = ["00000000-0000-7000-8000-000000000001", "00000000-0000-7000-8000-000000000002"]

    @Test(arguments: 1...4) func theModelIsTheStore(_ seed: UInt64) async throws {
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
        let sessions = Self.spools.map { LeaseSession(client, spool: $0, epoch: 1) }

        var model = ModelStore()
        let rows = [(1, 1), (2, 1), (1, 2)].map { QuotaRow(environmentID: $0.0, serviceID: $0.1) }
        for (row, limit) in zip(rows, [200, nil, 150] as [Int64?]) { model.setLimit(limit, of: row) }
        for spool in 0...1 { _ = model.open(spool) }
        var random = SeededRandom(seed: seed)
        for step in 0..<120 {
            let spool = Int(random.pick(0...1))
            // How active another holder is would depend on how fast this test runs.
            try await admin.script("UPDATE pandora.quota_lease SET heard_at = clock_timestamp()")
            let what = try await operate(&random, &model, spool, rows, Self.Store(sessions[spool], reactor, admin))
            let state = try await Self.state(of: admin)
            #expect(state == Self.state(of: model), "seed \(seed), step \(step): \(what)")
            guard state == Self.state(of: model) else { break }
        }
        await client.shutdown()
        await admin.shutdown()
    }

    /// One operation on both; returns its name.
    private func operate(
        _ random: inout SeededRandom, _ model: inout ModelStore, _ spool: Int, _ rows: [QuotaRow], _ store: Store
    ) async throws -> String {
        let row = rows[[0, 0, 0, 0, 1, 2, 2][Int(random.pick(0...6))]]
        let period = random.chance(5) ? max(1, model.quotas[row]!.period - 1) : model.quotas[row]!.period
        let units = random.pick(0...40)
        switch random.pick(0...13) {
        case 0...4:
            let questions = [
                LeaseQuestion(row: rows[1], need: random.pick(0...10), wish: random.pick(0...90)),
                LeaseQuestion(row: rows[2], need: random.pick(0...10), wish: random.pick(0...90)),
                LeaseQuestion(row: rows[0], need: random.pick(0...10), wish: random.pick(0...90)),
            ]
            let expected = try model.acquire(spool, epoch: 1, questions).map(Self.timeless)
            #expect(try await store.acquire(questions).map(Self.timeless) == expected)
            return "acquire \(questions)"
        case 5...6:
            let total = random.pick(0...300)
            let returns = [LeaseReturn(row: row, period: period, totalReturned: total)]
            try model.giveBack(spool, epoch: 1, returns)
            try await store.giveBack(returns)
            return "give back \(returns)"
        case 7...9:
            let isLeased = !random.chance(4)
            let frame = ModelFrame(
                row: row, period: isLeased || random.chance(2) ? period : 0, units: units, leased: isLeased)
            _ = try model.ship(spool, epoch: 1, from: model.spools[spool]!.shippedTo, [frame])
            try await store.admin.script(
                """
                SELECT pandora.settle_hops('\(Self.spools[spool])', '{\(row.environmentID)}', '{\(row.serviceID)}',
                    '{\(frame.period)}', '{\(units)}', '{\(isLeased ? units : 0)}', '{1}')
                """)
            return "settle \(frame)"
        case 10:
            let limit = random.chance(4) ? nil : random.pick(0...300)
            model.setLimit(limit, of: row)
            try await store.admin.script(
                """
                UPDATE pandora.environment_service SET max_request = \(limit.map(String.init) ?? "NULL")
                 WHERE environment_id = \(row.environmentID) AND service_id = \(row.serviceID)
                """)
            return "limit \(limit ?? -1)"
        case 11:
            model.periodLength = 1
            model.now += 1
            model.makeResetDue()
            model.resetIfDue()
            try await store.admin.script(
                """
                UPDATE pandora.project_service SET next_reset = clock_timestamp() - interval '1 s';
                SELECT pandora.reset_if_due(1, 1), pandora.reset_if_due(1, 2);
                """)
            return "reset"
        case 12:
            let refund = random.chance(2)
            model.forget(spool, refund: refund)
            model.reopen(spool)
            try await store.admin.script(
                """
                SELECT pandora.forget_spool('\(Self.spools[spool])', \(refund));
                UPDATE pandora.log_spool SET epoch = 1;
                """)
            return "forget, refund \(refund)"
        default:
            #expect(Set(try await store.read()) == Set(try model.readLeases(spool, epoch: 1)))
            return "read"
        }
    }

    private static func timeless(_ answer: LeaseAnswer) -> LeaseAnswer {
        guard case .limited(var numbers) = answer else { return answer }
        numbers.resetIn = nil
        return .limited(numbers)
    }

    /// The store's side of an operation.
    private struct Store {
        let session: LeaseSession
        let reactor: Reactor
        let admin: PostgresClient

        init(_ session: LeaseSession, _ reactor: Reactor, _ admin: PostgresClient) {
            (self.session, self.reactor, self.admin) = (session, reactor, admin)
        }

        func acquire(_ questions: [LeaseQuestion]) async throws -> [LeaseAnswer] {
            try await ask { $0.acquire(questions, deadline: patience, $1) }
        }

        func giveBack(_ returns: [LeaseReturn]) async throws {
            try await ask { $0.giveBack(returns, deadline: patience, $1) }
        }

        func read() async throws -> [LeaseRecord] { try await ask { $0.read(deadline: patience, $1) } }

        private func ask<Answer: Sendable>(
            _ call: @escaping @Sendable (LeaseSession, @escaping (Result<Answer, PostgresError>) -> Void) -> Void
        ) async throws -> Answer {
            let promise = reactor.makePromise(of: Answer.self)
            reactor.execute { [session] in call(session) { promise.completeWith($0.mapError { $0 as any Error }) } }
            return try await promise.futureResult.get()
        }
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
