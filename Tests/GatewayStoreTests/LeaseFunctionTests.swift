import Postgres
import TestKit
import Testing

@testable import GatewayStore

/// What the functions on leases do beyond what the model of the conformance tests knows: time, other projects, other sessions,
/// and numbers that a hand has changed.
@Suite struct LeaseFunctionTests {
    private static let spools = ["11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"]

    /// Environment 1 with 100 units of service 1, environment 2 with 200, and two spools.
    private func withQuota(_ body: (Store) async throws -> Void) async throws {
        try await withStore { store in
            try await store.seed(limit: nil, environments: 2)
            try await store.run(
                """
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 100), (2, 1, 200);
                INSERT INTO log_spool (id, node) SELECT unnest('{\(Self.spools.joined(separator: ","))}'::uuid[]), 'n';
                """)
            try await body(store)
        }
    }

    private static func acquire(_ spool: Int, need: Int = 0, wish: Int = 0, environment: Int = 1) -> String {
        "lease_acquire('\(spools[spool])', 1, '{\(environment)}', '{1}', '{\(need)}', '{\(wish)}')"
    }

    private static func settle(_ units: Int, period: Int = 1) -> String {
        "settle_hops('\(spools[0])', '{1}', '{1}', '{\(period)}', '{\(units)}', '{\(period == 0 ? 0 : units)}', '{1}')"
    }

    private func silent(_ store: Store, seconds: Int, spool: Int) async throws {
        try await store.run(
            """
            UPDATE quota_lease SET heard_at = clock_timestamp() - interval '\(seconds) s' WHERE spool_id = '\(Self.spools[spool])'
            """)
    }

    /// held|used of environment 1.
    private func numbers(_ store: Store) async throws -> [String] {
        try await store.run("SELECT held_request, used_request FROM environment_service WHERE environment_id = 1")
    }

    private func reset(_ store: Store) async throws {
        try await store.run("UPDATE project_service SET next_reset = now(); SELECT reset_if_due(1, 1)")
    }

    @Test func whoWasNotHeardForTenSecondsHasNoShareOfWhatIsFree() async throws {
        try await withQuota { store in
            let question = "SELECT granted FROM \(Self.acquire(0, wish: 100))"
            #expect(try await store.run("SELECT granted FROM \(Self.acquire(1, wish: 20))") == ["20"])
            #expect(try await store.run(question) == ["20"])
            try await silent(store, seconds: 5, spool: 1)
            #expect(try await store.run(question) == ["15"])
            try await silent(store, seconds: 11, spool: 1)
            #expect(try await store.run(question) == ["22"])
        }
    }

    @Test func whoIsShortHearsWhenTheFirstFlowOfTheRowEnds() async throws {
        try await withQuota { store in
            let start = { (number: Int, environment: Int, units: Int, minutes: Int) in
                """
                SELECT flow_start('{\(DoctorTests.flow(number))}', '{\(DoctorTests.hop(number))}', '{k}', '{\(environment)}', '{1}',
                                  '{f}', '{\(units)}', '{\(minutes * 60_000_000)}', '{3600000000}', '{99}');
                """
            }
            try await store.run(
                """
                INSERT INTO project (client_id, name) VALUES (1, 'q');
                INSERT INTO service (name) VALUES ('t');
                INSERT INTO project_service (project_id, service_id, reset_frequency) VALUES (2, 1, 'daily'), (1, 2, 'daily');
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 2, 5);
                """)
            try await store.run(start(1, 1, 10, 2))
            try await reset(store)
            try await store.run("SELECT reset_if_due(1, 2)")
            try await store.run(
                """
                UPDATE project_service SET next_reset = now() + interval '9 h';
                UPDATE project_service SET next_reset = now() + interval '5 h' WHERE project_id = 1 AND service_id = 1;
                \(start(2, 2, 10, 3)) \(start(3, 1, 30, 5)) \(start(4, 1, 30, 4))
                \(start(5, 1, 1, 1).replacing("'{1}', '{1}'", with: "'{1}', '{2}'"))
                """)
            let columns = "granted, free, held, ceil(reset_us / 3600e6), ceil(flow_deadline_us / 60e6)"
            #expect(try await store.run("SELECT \(columns) FROM \(Self.acquire(0, need: 41))") == ["40|0|100|5|4"])
            let other = Self.acquire(0, need: 1).replacing("'{1}', '{1}'", with: "'{1}', '{2}'")
            #expect(try await store.run("SELECT \(columns) FROM \(other)") == ["1|3|2|9|"])
            // Nobody is short, or nobody else has anything.
            #expect(try await store.run("SELECT \(columns) FROM \(Self.acquire(1, need: 1, environment: 2))") == ["1|189|11|5|"])
            let both = "lease_acquire('\(Self.spools[1])', 1, '{2,1}', '{1,1}', '{1,1}', '{1,1}')"
            #expect(try await store.run("SELECT ceil(flow_deadline_us / 60e6) FROM \(both) ORDER BY ordinal") == ["", "4"])
            try await store.run("UPDATE reservations SET expires_at = now() - interval '1 s'; SELECT flow_expire(9, '0')")
            #expect(try await store.run("SELECT \(columns) FROM \(Self.acquire(0, need: 61))") == ["60|0|100|5|"])
        }
    }

    @Test func onlySilentHoldersAreWrittenOffAndSoManyATime() async throws {
        try await withQuota { store in
            for environment in 1...2 {
                for spool in 0...1 { try await store.run("SELECT \(Self.acquire(spool, need: 4 + spool, environment: environment))") }
            }
            #expect(try await store.run("SELECT write_off_silent('10 min', '0', 9)") == ["0"])
            try await silent(store, seconds: 601, spool: 0)
            try await silent(store, seconds: 300, spool: 1)
            // A session that has just come has heard nobody.
            #expect(try await store.run("SELECT write_off_silent('10 min', '1 h', 9)") == ["0"])
            #expect(try await store.run("SELECT write_off_silent('10 min', '0', 1)") == ["4"])
            #expect(try await numbers(store) == ["5|4"])
            #expect(try await store.run("SELECT write_off_silent('10 min', '0', 9), write_off_silent('10 min', '0', 9)") == ["4|0"])
            #expect(try await store.run("SELECT spool_id, sum(lost) FROM quota_lease GROUP BY 1 ORDER BY 1") == [
                "\(Self.spools[0])|8", "\(Self.spools[1])|0",
            ])
        }
    }

    /// Whoever has a lease in hand, a log batch for instance, is heard of in a moment.
    @Test func aLeaseThatSomebodyHasInHandIsNotWrittenOff() async throws {
        try await withQuota { store in
            for environment in 1...2 { try await store.run("SELECT \(Self.acquire(0, need: 4, environment: environment))") }
            try await silent(store, seconds: 3_600, spool: 0)
            let other = try await store.connect()
            try await other.script("BEGIN; SELECT FROM pandora.quota_lease WHERE environment_id = 1 FOR NO KEY UPDATE")
            #expect(try await store.run("SET lock_timeout = '10 s'; SELECT write_off_silent('10 min', '0', 9)") == ["4"])
            #expect(try await numbers(store) == ["4|0"])
            await other.shutdown()
        }
    }

    // A worker ships hops over one connection and speaks of its leases over another.

    private static let back = "lease_return('\(spools[0])', 1, '{1}', '{1}', '{1}', '{9}')"

    @Test func unitsThatABatchHasInHandDoNotGoBackAsWell() async throws {
        try await withQuota { store in
            try await store.run("SELECT \(Self.acquire(0, need: 9))")
            #expect(try await store.answer(to: "SELECT \(Self.back)", amid: "SELECT \(Self.settle(4))") == ["5"])
            #expect(try await numbers(store) == ["0|4"])
        }
    }

    @Test func unitsThatJustGoBackAreNotUsedAsWell() async throws {
        try await withQuota { store in
            try await store.run("SELECT \(Self.acquire(0, need: 9))")
            let answer = try await store.answer(to: "SELECT overrun FROM \(Self.settle(4))", amid: "SELECT \(Self.back)")
            #expect(answer == ["4"])
            #expect(try await numbers(store) == ["0|4"])
        }
    }

    @Test(arguments: [false, true]) func unitsThatABatchHasInHandAreNotWrittenOffAsWell(_ refund: Bool) async throws {
        try await withQuota { store in
            try await store.run("SELECT \(Self.acquire(0, need: 9))")
            let forget = "SELECT forget_spool('\(Self.spools[0])', \(refund))"
            #expect(try await store.answer(to: forget, amid: "SELECT \(Self.settle(4))") == ["5"])
            #expect(try await numbers(store) == [refund ? "0|4" : "0|9"])
        }
    }

    @Test func settledLeasesOfPastPeriodsGoAndNoOthers() async throws {
        try await withQuota { store in
            // Another service of the environment stays in period 1.
            try await store.run(
                """
                INSERT INTO service (name) VALUES ('t');
                INSERT INTO project_service (project_id, service_id, reset_frequency) VALUES (1, 2, 'daily');
                INSERT INTO environment_service (environment_id, service_id) VALUES (1, 2);
                """)
            // Two of period 1, one of which stays open; and one of period 2, settled.
            try await store.run("SELECT \(Self.acquire(0, need: 3)); SELECT \(Self.acquire(1, need: 3)); SELECT \(Self.settle(3))")
            try await reset(store)
            try await store.run("SELECT \(Self.acquire(0, need: 2)); SELECT \(Self.settle(2, period: 2))")
            #expect(try await store.run("SELECT drop_settled_leases('1 h')") == ["0"])
            try await store.run("UPDATE quota_lease SET heard_at = now() - interval '2 h'")
            #expect(try await store.run("SELECT drop_settled_leases('3 h')") == ["0"])
            #expect(try await store.run("SELECT drop_settled_leases('1 h')") == ["1"])
            #expect(
                try await store.run("SELECT spool_id, period, granted - settled FROM quota_lease ORDER BY 1, 2") == [
                    "\(Self.spools[0])|2|0", "\(Self.spools[1])|1|3",
                ])
            // Those of a service that is not assigned any more go as well.
            try await store.run("DELETE FROM environment_service WHERE environment_id = 1")
            #expect(try await store.run("SELECT drop_settled_leases('1 h')") == ["1"])
        }
    }

    @Test func hopsWithoutALeaseOfAServiceThatWasTakenAwayBelongToItsLastPeriod() async throws {
        try await withQuota { store in
            try await reset(store)
            try await store.run("DELETE FROM environment_service WHERE environment_id = 1")
            #expect(try await store.run("SELECT moved FROM \(Self.settle(6, period: 0))") == ["1"])
            #expect(try await store.run("SELECT period, used_delta FROM quota_ledger WHERE kind = 'hops'") == ["2|6"])
            // Nobody knows a period of this one.
            try await store.run("SELECT settle_hops('\(Self.spools[0])', '{1}', '{77}', '{0}', '{5}', '{0}', '{1}')")
            #expect(try await store.run("SELECT period, used_delta FROM quota_ledger WHERE service_id = 77") == ["0|5"])
        }
    }

    /// Whatever a hand did to the row, the log goes on.
    @Test func hopsAreBookedWhateverAHandDidToWhatIsHeld() async throws {
        try await withQuota { store in
            try await store.run("SELECT \(Self.acquire(0, need: 9)); UPDATE environment_service SET held_request = 2")
            try await store.run("SELECT \(Self.settle(7)); SELECT \(Self.settle(0))")
            // What is free is no entry.
            #expect(try await store.run("SELECT used_delta FROM quota_ledger WHERE kind = 'hops'") == ["7"])
            #expect(try await numbers(store) == ["0|7"])
        }
    }

    @Test func whoIsForgottenIsFencedAndNobodyElse() async throws {
        try await withQuota { store in
            for spool in 0...1 { try await store.run("SELECT \(Self.acquire(spool, need: 4))") }
            #expect(try await store.run("SELECT forget_spool('\(Self.spools[0])', true)") == ["4"])
            #expect(try await numbers(store) == ["4|0"])
            #expect(try await store.refusal(of: "SELECT \(Self.acquire(0, need: 1))") == "PN004")
            #expect(try await store.run("SELECT granted FROM \(Self.acquire(1, need: 1))") == ["1"])
        }
    }
}
