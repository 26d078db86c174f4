import GatewayCore
import Postgres
import TestKit
import Testing

@testable import GatewayStore

/// What operators do with flows, nodes and quota.
@Suite struct OperatorTests {
    private static let spool = DoctorTests.spool

    /// 100 units of the service: flows 1 and 2 hold 4 and 5 of them, a spool 10.
    private func withFlows(_ body: (Store) async throws -> Void) async throws {
        try await withStore { store in
            try await store.seed(limit: 1000, environments: 2)
            try await store.run(
                """
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 100), (2, 1, 100);
                INSERT INTO log_spool (id, node) VALUES ('\(Self.spool)', 'n1');
                SELECT lease_acquire('\(Self.spool)', 1, '{1}', '{1}', '{10}', '{10}');
                SELECT flow_start('{\(Self.flow(1)),\(Self.flow(2))}', '{\(DoctorTests.hop(1)),\(DoctorTests.hop(2))}', '{k,k}', '{1,2}',
                    '{1,1}', '{order,refund}', '{4,5}', '{60000000,60000000}', '{600000000,600000000}', '{9,9}');
                """)
            try await body(store)
        }
    }

    private static func flow(_ number: Int) -> ReservationID { ReservationID(DoctorTests.flow(number))! }

    /// held|used of both rows.
    private func numbers(_ store: Store) async throws -> [String] {
        try await store.run("SELECT held_request, used_request FROM environment_service ORDER BY environment_id")
    }

    private func audited(_ store: Store) async throws -> [String] {
        try await store.run("SELECT actor, action, object_kind, object_id, detail->>'charged' FROM audit_log ORDER BY id")
    }

    private func claim(_ store: Store, _ number: Int, void: Bool) async throws {
        let deadline = void ? "now() - interval '1 s'" : "now() + interval '1 min'"
        try await store.run(
            """
            UPDATE reservations SET state = 'finishing', finishing_hop = '\(DoctorTests.hop(9))', expires_at = \(deadline)
             WHERE id = '\(Self.flow(number))'
            """)
    }

    // MARK: Flows

    @Test func openFlowsAreListedAndNarrowed() async throws {
        try await withFlows { store in
            let flows = try await store.admin.flows()
            #expect(flows.map(\.id) == ["\(Self.flow(1))", "\(Self.flow(2))"] && flows[0].environmentPath == "c/p/e1")
            #expect(flows[0].servicePath == "s/1" && flows[0].units == 4 && flows[0].flow == "order" && flows[0].state == "open")
            func ids(_ edit: (inout FlowFilter) -> Void) async throws -> [String] {
                var filter = FlowFilter()
                edit(&filter)
                return try await store.admin.flows(filter).map(\.id)
            }
            #expect(try await ids { $0.environmentID = 2 } == ["\(Self.flow(2))"])
            #expect(try await ids { $0.flow = "order" } == ["\(Self.flow(1))"])
            #expect(try await ids { $0.state = "finishing" } == [])
            #expect(try await ids { $0.age = 600_000_000 } == [])
            try await store.run("UPDATE reservations SET request_time = now() - interval '1 h' WHERE environment_id = 2")
            #expect(try await ids { $0.age = 600_000_000 } == ["\(Self.flow(2))"])
        }
    }

    @Test func aListHasAnEndHoweverMuchThereIs() async throws {
        try await withStore { store in
            try await store.run(
                """
                INSERT INTO reservations (id, environment_id, service_id, api_key, start_point, flow, units, period, request_time,
                                          expires_at, deadline_max)
                SELECT 'rsv_' || lpad(n::text, 26, '0'), 1, 1, 'k', 's', 'f', 1, 1, now() - n * interval '1 s', now(), now()
                  FROM generate_series(1, \(Administration.listMax + 1)) AS n
                """)
            let flows = try await store.admin.flows()
            // The newest is the one that is left out.
            #expect(flows.count == Int(Administration.listMax) && flows.last?.id == "rsv_00000000000000000000000002")
        }
    }

    @Test func anOperatorEndsFlowsAndTheAuditLogSaysSo() async throws {
        try await withFlows { store in
            let committed = try await store.admin.endFlow(Self.flow(1), commits: true, force: false)
            #expect(committed.state == "committed" && committed.units == 4 && committed.endedAt != nil && !committed.isOpen)
            let rolledBack = try await store.admin.endFlow(Self.flow(2), commits: false, force: false)
            #expect(rolledBack.state == "rolled_back" && rolledBack.units == 0)
            #expect(try await numbers(store) == ["10|4", "0|0"])
            // Said again it is so already; the contrary is refused; neither is a change.
            #expect(try await store.admin.endFlow(Self.flow(1), commits: true, force: false) == committed)
            #expect(try await refusal { try await store.admin.endFlow(Self.flow(1), commits: false, force: true) } == .conflict)
            #expect(try await refusal { try await store.admin.endFlow(Self.flow(7), commits: true, force: true) } == .notFound)
            #expect(
                try await audited(store) == [
                    "test|commit|flow|\(Self.flow(1))|4", "test|rollback|flow|\(Self.flow(2))|0",
                ])
            #expect(try await numbers(store) == ["10|4", "0|0"])
        }
    }

    @Test func aFinishUnderWayIsNotOverruledBeforeItsClaimIsVoid() async throws {
        try await withFlows { store in
            try await claim(store, 1, void: false)
            for force in [false, true] {
                #expect(try await refusal { try await store.admin.endFlow(Self.flow(1), commits: false, force: force) } == .conflict)
            }
            try await claim(store, 1, void: true)
            #expect(try await refusal { try await store.admin.endFlow(Self.flow(1), commits: false, force: false) } == .conflict)
            #expect(try await audited(store) == [])
            #expect(try await numbers(store) == ["14|0", "5|0"])
            #expect(try await store.admin.flow(Self.flow(1)).finishingHop == DoctorTests.hop(9))
            #expect(try await store.admin.endFlow(Self.flow(1), commits: true, force: true).units == 4)
            try await claim(store, 2, void: true)
            #expect(try await store.admin.endFlow(Self.flow(2), commits: false, force: true).state == "rolled_back")
            #expect(try await numbers(store) == ["10|4", "0|0"])
            #expect(try await audited(store).count == 2)
        }
    }

    @Test func theHopsOfAFlowAreInTheLog() async throws {
        try await withFlows { store in
            // The last is a commit by a node whose clock was behind: it is of no chain.
            let ids = try await store.run(
                """
                INSERT INTO request_logs (id, execution_status, environment_id, reservation_id, start_point, attempts) VALUES
                    ('\(DoctorTests.hop(1))', 'success', 1, '\(Self.flow(1))', NULL, 1),
                    ('\(DoctorTests.hop(2))', 'success', 2, '\(Self.flow(2))', NULL, 1),
                    (new_typeid('req'), 'success', 1, '\(Self.flow(1))', '\(DoctorTests.hop(1))', 1),
                    (new_typeid('req'), 'success', 1, NULL, '\(DoctorTests.hop(1))', 1),
                    ('\(DoctorTests.hop(0))', 'success', 1, '\(Self.flow(1))', NULL, 0) RETURNING id
                """)
            #expect(try await LogReader(store.client).hops(of: Self.flow(1)).map(\.id) == [ids[0], ids[2]])
            #expect(try await LogReader(store.client).hops(of: Self.flow(2)).map(\.id) == [ids[1]])
            #expect(try await LogReader(store.client).hops(of: Self.flow(3)) == [])
        }
    }

    // MARK: Nodes

    @Test func spoolsAreListedWithWhatTheyHold() async throws {
        try await withFlows { store in
            try await store.run(
                """
                INSERT INTO log_spool (id, node, opened_at) VALUES
                    ('22222222-2222-4222-8222-222222222222', 'old', now() - interval '2 days');
                INSERT INTO quota_lease (spool_id, environment_id, service_id, period, granted, heard_at) VALUES
                    ('33333333-3333-4333-8333-333333333333', 9, 9, 1, 7, now() - interval '1 h');
                """)
            let spools = try await store.admin.spools()
            #expect(spools.map(\.node) == ["n1", nil] && spools.map(\.open) == [10, 7] && spools.map(\.epoch) == [1, nil])
            #expect(spools[0].silence < 60_000_000 && spools[1].silence >= 3_600_000_000)
            #expect(try await store.admin.spools(all: true).map(\.node) == ["n1", nil, "old"])
            #expect(try await store.admin.spool(Self.spool.uppercased()).node == "n1")
            #expect(try await refusal { try await store.admin.spool("44444444-4444-4444-8444-444444444444") } == .notFound)
            #expect(try await refusal { try await store.admin.spool("n1") } == .invalidValue)
        }
    }

    @Test(arguments: [false, true]) func aNodeThatIsGoneIsForgotten(_ refund: Bool) async throws {
        try await withFlows { store in
            #expect(try await store.admin.forgetSpool(Self.spool, refund: refund) == 10)
            #expect(try await numbers(store)[0] == (refund ? "4|0" : "4|10"))
            let spool = try await store.admin.spool(Self.spool)
            #expect(spool.epoch == 2 && spool.open == 0 && spool.lost == (refund ? 0 : 10))
            #expect(try await store.admin.forgetSpool(Self.spool, refund: refund) == 0)
            let audited = try await store.run(
                "SELECT actor, action, object_id, detail->>'units', detail->>'refund' FROM audit_log ORDER BY id")
            #expect(audited == ["test|forget|\(Self.spool)|10|\(refund)", "test|forget|\(Self.spool)|0|\(refund)"])
            // A node that was not gone after all is fenced.
            #expect(
                try await store.refusal(of: "SELECT lease_acquire('\(Self.spool)', 1, '{1}', '{1}', '{1}', '{1}')") == "PN004")
        }
    }

    // MARK: Quota

    @Test func whatIsHeldIsShownAsLeasedAndReserved() async throws {
        try await withFlows { store in
            let quota = try await store.admin.quotas(environment: 1)[0]
            #expect((quota.held, quota.leased, quota.reserved, quota.free) == (14, 10, 4, 86))
            // Those of an old period are not of this one.
            try await store.run("UPDATE project_service SET next_reset = now(); SELECT reset_if_due(1, 1)")
            let next = try await store.admin.quotas(environment: 1)[0]
            #expect((next.held, next.leased, next.reserved, next.period) == (0, 0, 0, 2))
        }
    }
}
