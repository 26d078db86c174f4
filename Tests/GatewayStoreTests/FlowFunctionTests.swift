import Postgres
import TestKit
import Testing

@testable import GatewayStore

/// What the functions on flows do beyond what the model of the conformance tests knows: other projects, other sessions, and
/// numbers that a hand has changed.
@Suite struct FlowFunctionTests {
    private static let flow = DoctorTests.flow
    private static let hop = DoctorTests.hop

    /// Environment 1 with 10 units of service 1.
    private func withQuota(_ body: (Store) async throws -> Void) async throws {
        try await withStore { store in
            try await store.seed(limit: nil, environments: 2)
            try await store.run("INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 10), (2, 1, 10)")
            try await body(store)
        }
    }

    private static func start(_ number: Int, units: Int = 1, environment: Int = 1, minutes: Int = 5) -> String {
        """
        flow_start('{\(flow(number))}', '{\(hop(number))}', '{k\(environment)}', '{\(environment)}', '{1}', '{f}', '{\(units)}',
                   '{\(minutes * 60_000_000)}', '{3600000000}', '{99}')
        """
    }

    private static func settle(_ number: Int, _ action: String, units: Int = 1) -> String {
        "flow_settle('{\(flow(number))}', '{\(hop(9))}', '{\(action)}', '{1}', '{1}', '{0}', '{\(units)}', '{0}')"
    }

    private func overdue(_ store: Store, minutes: String = "1") async throws {
        try await store.run("UPDATE reservations SET expires_at = clock_timestamp() - \(minutes) * interval '1 min'")
    }

    /// held|used of environment 1.
    private func numbers(_ store: Store) async throws -> [String] {
        try await store.run("SELECT held_request, used_request FROM environment_service WHERE environment_id = 1")
    }

    /// A node that gave a start up rolls it back over another connection: nobody else would ever end that flow.
    @Test func aRollbackWaitsForAStartThatIsUnderWay() async throws {
        try await withQuota { store in
            // Of another flow the ledger has an end.
            try await store.run("SELECT \(Self.start(2)); SELECT \(Self.settle(2, "rollback"))")
            let settled = try await store.answer(
                to: "SELECT verdict FROM \(Self.settle(1, "rollback"))", amid: "SELECT * FROM \(Self.start(1, units: 4))")
            #expect(settled == ["rolled_back"])
            #expect(try await store.run("SELECT count(*) FROM reservations") == ["0"])
            #expect(try await numbers(store) == ["0|0"])
            // And one that comes later still finds that it must not happen.
            #expect(try await store.run("SELECT verdict FROM \(Self.start(1))") == ["ended"])
        }
    }

    @Test func aSuccessOfAFlowOfWhichNothingIsLeftIsInTheLedger() async throws {
        try await withQuota { store async throws in
            let settle = Self.settle(1, "commit", units: 3).replacing("'{1}', '{1}', '{0}'", with: "'{1}', '{77}', '{0}'")
            #expect(try await store.run("SELECT verdict, charged FROM \(settle)") == ["committed|3"])
            #expect(
                try await store.run("SELECT service_id, period, used_delta FROM quota_ledger WHERE kind = 'flow'") == ["77|0|3"])
        }
    }

    /// A gateway's connection keeps the plans that it made when there were no flows.
    @Test(arguments: [false, true]) func aHopReadsItsOwnFlowHoweverManyAreOpenOrHaveEnded(_ isVacuumed: Bool) async throws {
        try await withQuota { store in
            func verdict(of call: String, reading table: String) async throws -> (answer: [String], rows: Int) {
                func rowsRead() async throws -> Int {
                    let read = "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = '\(table)'"
                    return try #require(Int(try await store.run(read)[0]))
                }
                try await store.run("BEGIN")
                let before = try await rowsRead()
                let answer = try await store.run("SELECT verdict FROM \(call)")
                let after = try await rowsRead()
                try await store.run("COMMIT")
                return (answer, after - before)
            }
            let crowd =
                """
                INSERT INTO reservations (environment_id, service_id, api_key, start_point, flow, units, period, expires_at, deadline_max)
                SELECT 1, 1, 'k', 's', 'f', 0, 1, t, t FROM generate_series(1, 500), (SELECT now() + interval '1 min') AS soon (t);
                """
            if isVacuumed {
                try await store.run("\(crowd) DELETE FROM reservations")
                try await store.client.script("VACUUM ANALYZE pandora.reservations")
            }
            let advance =
                """
                flow_advance('{\(Self.flow(1))}', '{\(Self.hop(2))}', '{1}', '{f}', '{f}', '{1}', '{f}', '{9}', '{60000000}', '{NULL}')
                """
            #expect(try await verdict(of: advance, reading: "reservations").answer == ["unknown"])
            #expect(try await store.run("SELECT verdict FROM \(Self.start(1, minutes: 60))") == ["started"])
            try await store.run(
                """
                \(crowd)
                INSERT INTO quota_ledger (environment_id, service_id, period, kind, reservation_id, outcome)
                SELECT 1, 1, 1, 'flow', new_typeid('rsv'), 'expired' FROM generate_series(1, 500);
                """)
            // Those that its key has open.
            #expect(try await verdict(of: Self.start(2), reading: "reservations") == (["started"], 1))
            // To lock it, to look at it, to change it.
            #expect(try await verdict(of: advance, reading: "reservations") == (["passed"], 3))
            try await store.run("SELECT \(Self.settle(1, "rollback"))")
            #expect(try await verdict(of: advance, reading: "quota_ledger") == (["rolled_back"], 1))
        }
    }

    @Test func aSweepTakesNoMoreThanItMayAndTheOldestFirst() async throws {
        try await withQuota { store in
            for number in 1...4 { try await store.run("SELECT \(Self.start(number))") }
            try await overdue(store, minutes: "right(id, 1)::integer")
            #expect(try await store.run("SELECT flow_expire(3, '0')") == ["3"])
            #expect(try await store.run("SELECT id FROM reservations") == [Self.flow(1)])
            #expect(try await store.run("SELECT flow_expire(3, '0'), flow_expire(3, '0')") == ["1|0"])
        }
    }

    @Test func aSweepLeavesToOthersWhatTheyHaveInHand() async throws {
        try await withQuota { store in
            for number in 1...3 { try await store.run("SELECT \(Self.start(number))") }
            try await overdue(store)
            let other = try await store.connect()
            try await other.script("BEGIN; SELECT FROM pandora.reservations WHERE id = '\(Self.flow(2))' FOR UPDATE")
            #expect(try await store.run("SET lock_timeout = '10 s'; SELECT flow_expire(9, '0')") == ["2"])
            await other.shutdown()
        }
    }

    @Test func aLateSuccessThatCostsNothingMayBeSaidTwice() async throws {
        try await withQuota { store in
            try await store.run("SELECT \(Self.start(1))")
            try await overdue(store)
            try await store.run("SELECT flow_expire(9, '0')")
            for _ in 0..<2 {
                #expect(try await store.run("SELECT verdict, charged FROM \(Self.settle(1, "commit", units: 0))") == ["expired|0"])
            }
            #expect(try await numbers(store) == ["0|0"])
        }
    }

    /// The row's numbers were lowered by hand: what is held may be unknown, what was used is not.
    @Test func aFlowEndsWhateverAHandDidToWhatIsHeld() async throws {
        try await withQuota { store in
            for number in 1...2 { try await store.run("SELECT \(Self.start(number, units: 3))") }
            try await store.run("UPDATE environment_service SET held_request = 1")
            #expect(try await store.run("SELECT verdict FROM \(Self.settle(1, "commit", units: 3))") == ["committed"])
            #expect(try await numbers(store) == ["0|3"])
            try await overdue(store)
            #expect(try await store.run("SELECT flow_expire(9, '0')") == ["1"])
        }
    }

    @Test func whoIsRefusedHearsOfItsOwnPeriodAndItsOwnRow() async throws {
        try await withQuota { store in
            try await store.run(
                """
                INSERT INTO project (client_id, name) VALUES (1, 'q');
                INSERT INTO project_service (project_id, service_id, reset_frequency) VALUES (2, 1, 'daily');
                INSERT INTO service (name) VALUES ('t');
                INSERT INTO project_service (project_id, service_id, reset_frequency) VALUES (1, 2, 'daily');
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 2, 5);
                UPDATE project_service SET next_reset = now() + interval '9 h';
                UPDATE project_service SET next_reset = now() + interval '5 h' WHERE project_id = 1 AND service_id = 1;
                INSERT INTO log_spool (id, node) VALUES ('\(DoctorTests.spool)', 'n');
                SELECT lease_acquire('\(DoctorTests.spool)', 1, '{1}', '{1}', '{2}', '{2}');
                SELECT \(Self.start(1, units: 3, minutes: 3)), \(Self.start(2, environment: 2, minutes: 2));
                """)
            let question = "SELECT verdict, leased, ceil(reset_us / 3600e6), ceil(deadline_us / 60e6) FROM \(Self.start(3, units: 9))"
            #expect(try await store.run(question) == ["held|2|5|3"])
            #expect(try await store.run(question.replacing("'{1}', '{1}'", with: "'{1}', '{2}'")) == ["held|0|9|"])
            // What is left of the period before gives nothing back to this one.
            try await store.run(
                """
                UPDATE project_service SET next_reset = now() WHERE project_id = 1 AND service_id = 1;
                SELECT reset_if_due(1, 1);
                UPDATE project_service SET next_reset = now() + interval '7 h' WHERE project_id = 1 AND service_id = 1;
                SELECT \(Self.start(4, units: 6, minutes: 4));
                """)
            #expect(try await store.run(question) == ["held|0|7|4"])
        }
    }
}
