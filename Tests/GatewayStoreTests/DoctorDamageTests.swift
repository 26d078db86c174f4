import Foundation
import NIOCore
import Postgres
import PrivateCluster
import Reactor
import TestKit
import Testing

@testable import GatewayStore

/// What somebody or something may do to the tables past the product: the doctor finds it, says what it is, and repairs it only
/// where nothing speaks against it.
@Suite struct DoctorDamageTests {
    private let doctor = DoctorTests()
    private static let numbers = "SELECT used_request, available_request, held_request FROM environment_service WHERE environment_id = 1"

    // MARK: Witnesses

    /// Rows of the ledger are gone: what is used is still right, as the log says, and must not be made wrong.
    @Test func aLedgerThatTheLogContradictsIsNoWitness() async throws {
        try await doctor.withTraffic { store in
            try await store.run(
                """
                DELETE FROM quota_ledger WHERE kind = 'hops';
                UPDATE environment_service SET held_request = 9 WHERE environment_id = 1;
                """)
            let found = try await doctor.examine(store)
            try #require(found.map(\.check) == [.used, .held, .log])
            #expect(found[2].hint?.hasPrefix("rows of the ledger are missing") == true)
            #expect(doctor.numbers(found[0]) == ["used": 9, "ledger": 2] && doctor.numbers(found[2]) == ["log": 7, "ledger": 0])
            // What does not hang on the ledger is put right all the same.
            #expect(try await doctor.repair(store).map(\.what) == ["held"])
            #expect(try await store.run(Self.numbers) == ["9|91|8"])
            #expect(try await doctor.examine(store) == [found[0], found[2]])
        }
    }

    /// Rows of the log are gone, or somebody wrote to the ledger: which of them is not known.
    @Test func aLedgerThatKnowsMoreThanTheLogIsNoWitnessEither() async throws {
        try await doctor.withTraffic { store in
            try await store.run(
                "INSERT INTO quota_ledger (environment_id, service_id, period, kind, used_delta) VALUES (1, 1, 1, 'hops', 50)")
            #expect(try await doctor.examine(store).map(\.check) == [.used, .log])
            #expect(try await doctor.repair(store) == [])
            #expect(try await store.run(Self.numbers) == ["9|91|8"])
        }
    }

    /// Hops without a lease do not say their period: they speak for or against all periods of their row, and no other row.
    @Test func hopsWithoutALeaseContradictTheirRowAlone() async throws {
        try await doctor.withTraffic { store in
            try await store.run(
                """
                INSERT INTO request_logs (execution_status, environment_id, service_id, units, outage) VALUES ('success', 1, 1, 4, true);
                UPDATE environment_service SET used_request = 3, available_request = max_request - 3;
                """)
            #expect(try await doctor.examine(store).map(\.check) == [.used, .used, .log])
            let repairs = try await doctor.repair(store)
            #expect(repairs.map(\.what) == ["used", "available"] && repairs.allSatisfy { $0.object == "c/p/e2 s/1, period 1" })
            #expect(try await store.run(Self.numbers) == ["3|97|8"])
        }
    }

    /// Rows that came late got the partition of a day that retention had dropped: the log does not begin there again.
    @Test func aDayThatWasMadeForLateRowsIsNoBeginningOfTheLog() async throws {
        try await doctor.withTraffic { store in
            // The period began twenty days ago, and the rows of its first days are dropped.
            try await store.run(
                """
                ALTER TABLE quota_ledger DISABLE TRIGGER append_only;
                UPDATE quota_ledger SET at = at - interval '20 days';
                ALTER TABLE quota_ledger ENABLE TRIGGER append_only;
                DELETE FROM request_logs WHERE units = 3;
                INSERT INTO request_logs (id, execution_status) VALUES (typeid('req', uuid_v7(now() - interval '30 days')), 'success');
                """)
            #expect(try await doctor.examine(store).map(\.check) == [.caught])
            #expect(try await doctor.repair(store).map(\.what) == ["moved"])
            #expect(try await doctor.examine(store) == [])
            let begin = "SELECT (log_begin() AT TIME ZONE 'UTC')::date - (now() AT TIME ZONE 'UTC')::date"
            #expect(try await store.run(begin) == ["-1"])
            // What is made again as a node does it is a day like any other.
            try await store.run("SELECT drop_log_partitions(now()); SELECT ensure_log_partitions(7)")
            #expect(try await store.run(begin) == ["-1"])
        }
    }

    // MARK: Whose it is

    @Test func aFlowThatIsOpenThoughTheLedgerEndedItIsFound() async throws {
        try await doctor.withTraffic { store in
            try await store.run(
                """
                INSERT INTO quota_ledger (environment_id, service_id, period, kind, reservation_id, outcome)
                VALUES (1, 1, 1, 'flow', '\(DoctorTests.flow(2))', 'rolled_back')
                """)
            let found = try await doctor.examine(store)
            try #require(found.map(\.check) == [.flow])
            #expect(found[0].place == "c/p/e1 s/1" && doctor.numbers(found[0]) == ["units": 3])
            #expect(found[0].message == "the flow \(DoctorTests.flow(2)) is open, but the ledger says that it has ended: rolled_back")
            #expect(try await doctor.repair(store) == [])
            // As its hint says.
            try await store.run(
                "SELECT flow_settle('{\(DoctorTests.flow(2))}', '{NULL}', '{rollback}', '{NULL}', '{0}', '{0}', '{NULL}', '{0}')")
            #expect(try await doctor.examine(store) == [])
        }
    }

    @Test func whatAFlowThatWasDeletedLeftBehindIsFoundAndRemoved() async throws {
        try await doctor.withTraffic { store in
            let step = """
                SELECT flow_advance('{\(DoctorTests.flow(2))}', '{\(DoctorTests.hop(5))}', '{1}', '{f}', '{false}', '{1}', '{false}', '{9}',
                    '{60000000}', '{again}')
                """
            try await store.run(step)
            #expect(try await doctor.examine(store) == [])
            try await store.run("DELETE FROM reservations")
            let found = try await doctor.examine(store)
            #expect(found.map(\.check) == [.held, .flow] && doctor.numbers(found[1]) == ["hops": 1, "flows": 1])
            #expect(try await doctor.repair(store).map(\.what) == ["hops", "held"])
            #expect(try await doctor.examine(store) == [])
            #expect(try await store.run("SELECT count(*) FROM flow_hop") == ["0"])
        }
    }

    /// One row that holds less than its leases have is no reason to keep the units of all others: `greatest` is as good there
    /// as where hops settle.
    @Test func aRowThatHoldsTooLittleKeepsNobodyFromGivingUpUnits() async throws {
        try await doctor.withTraffic { store in
            let seen = "SELECT held_request, used_request FROM environment_service ORDER BY environment_id"
            try await store.run(
                """
                SELECT lease_acquire('\(DoctorTests.spool)', 1, '{2}', '{1}', '{20}', '{20}');
                UPDATE environment_service SET held_request = 0 WHERE environment_id = 1;
                """)
            #expect(
                try await store.run("SELECT lease_return('\(DoctorTests.spool)', 1, '{1,2}', '{1,1}', '{1,1}', '{2,5}')") == ["7"])
            #expect(try await store.run(seen) == ["0|9", "15|0"])
            try await store.run("UPDATE quota_lease SET heard_at = now() - interval '1 h'")
            #expect(try await store.run("SELECT write_off_silent('10 min', '0', 1)") == ["3"])
            #expect(try await store.admin.forgetSpool(DoctorTests.spool, refund: true) == 15)
            #expect(try await store.run(seen) == ["0|12", "0|0"])
            #expect(try await doctor.repair(store).map(\.what) == ["held"])
            #expect(try await store.run(seen) == ["3|12", "0|0"])
            #expect(try await doctor.examine(store) == [])
        }
    }

    // MARK: Time

    /// The server's clock was ahead when the period was reset, and is right again: the period would last for a year.
    @Test func aResetThatIsSetForLaterThanItsCalendarHasItIsFoundAndMovedBack() async throws {
        try await doctor.withTraffic { store in
            for later in ["now() + interval '1 year'", "'infinity'"] {
                try await store.run("UPDATE project_service SET next_reset = \(later)")
                let found = try await doctor.examine(store)
                #expect(found.map(\.check) == [.reset] && found[0].place == "c/p s/1" && !found[0].isNote)
                #expect(try await doctor.repair(store).map(\.message) == ["c/p s/1: the next reset is when the calendar has it"])
                #expect(
                    try await store.run("SELECT next_reset = date_trunc('month', now(), 'UTC') + interval '1 month' FROM project_service")
                        == ["t"])
                #expect(try await doctor.examine(store) == [])
            }
            // Earlier is an operator's wish.
            try await store.run("UPDATE project_service SET next_reset = next_reset - interval '1 s'")
            let (found, repairs) = (try await doctor.examine(store), try await doctor.repair(store))
            #expect(found == [] && repairs == [])
        }
    }

    @Test func momentsThatNeverWereDoNotBlindTheDoctor() async throws {
        try await doctor.withTraffic { store in
            try await store.run(
                """
                UPDATE project_service SET next_reset = '-infinity';
                UPDATE reservations SET expires_at = '-infinity';
                UPDATE quota_lease SET heard_at = '-infinity';
                UPDATE log_spool SET opened_at = '-infinity', shipped_at = NULL;
                """)
            #expect(try await doctor.examine(store).map(\.check) == [.silence, .reset, .flow])
            let repaired = try await store.run("SELECT pg_sleep(0.01); SELECT what FROM repair('test', '1 us', 10, 7)")
            #expect(repaired.contains("reset"))
            #expect(try await store.run("SELECT next_reset > now() FROM project_service") == ["t"])
        }
    }

    /// Nobody charges so much, but a hand may write it: the rest of the database is looked at and repaired all the same.
    @Test func sumsThatNoNumberHoldsDoNotBlindTheDoctor() async throws {
        try await doctor.withTraffic { store in
            try await store.run(
                """
                INSERT INTO request_logs (execution_status, environment_id, service_id, units, period)
                    SELECT 'success', 1, 1, 9223372036854775807, 1 FROM generate_series(1, 2);
                INSERT INTO quota_ledger (environment_id, service_id, period, kind, used_delta)
                    SELECT 1, 1, 1, 'adjust', 9223372036854775807 FROM generate_series(1, 2);
                INSERT INTO quota_lease (spool_id, environment_id, service_id, period, granted)
                    SELECT ('\(DoctorTests.spool)'::text::uuid), 1, s, 1, 9223372036854775807 FROM generate_series(2, 3) AS s;
                INSERT INTO quota_lease (spool_id, environment_id, service_id, period, granted)
                    SELECT gen_random_uuid(), 2, 1, 1, 9223372036854775807 FROM generate_series(1, 2);
                UPDATE environment_service SET held_request = 20 WHERE environment_id = 1;
                """)
            let found = try await doctor.examine(store)
            #expect(Set(found.map(\.check)) == [.used, .held, .log, .holder])
            #expect(doctor.numbers(found.first { $0.check == .used }) == ["used": 9, "ledger": .max])
            let repairs = try await doctor.repair(store)
            #expect(repairs.contains(Repair(what: "held", object: DoctorTests.place, was: 20, became: 8)))
            #expect(try await store.run("SELECT used_request FROM environment_service WHERE environment_id = 1") == ["9"])
        }
    }

    /// A process of the server crashed: all of its sessions were cut, as in a restart or a promotion, and settles wait in the nodes.
    @Test func flowsAreLeftAloneAfterACrashWithinTheServer() async throws {
        let cluster = try await offTheCooperativePool { try PrivateCluster.temporary() }
        let reactor = try Reactor.start(name: "crash")
        func connect() async throws -> PostgresClient {
            try await PostgresClient.connect(to: cluster.url(), on: reactor)
        }
        let client = try await connect()
        try await Migrator(client).migrate()
        try await client.script(
            """
            INSERT INTO pandora.reservations (environment_id, service_id, api_key, start_point, flow, units, period, request_time,
                                              expires_at, deadline_max)
            SELECT 1, 1, 'k', 's', 'f', 0, 1, t, t, t FROM (SELECT now() - interval '1 h') AS past (t)
            """)
        let killed = try await client.script("SELECT pg_backend_pid(), clock_timestamp()")[0]
        let (process, moment): (String, String) = (killed.string(0), killed.string(1))
        kill(Int32(process)!, SIGKILL)
        await client.shutdown()
        // For a moment the server may not have noticed.
        let isNew = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walwriter' AND backend_start > '\(moment)'"
        var again: PostgresClient?
        try await eventually("the server has come up again") {
            guard let client = try? await connect() else { return false }
            let answer: String? = (try? await client.script(isNew))?[0].string(0)
            if answer == "1" { again = client } else { await client.shutdown() }
            return again != nil
        }
        let other = try #require(again)
        func repair(_ overdue: String) async throws -> [String] {
            try await other.script("SELECT what FROM pandora.repair('test', \(overdue), 10, 7)").map { $0.string(0) as String }
                .filter { $0.hasPrefix("flows") }
        }
        // Almost as long as the server has been there, but longer than since the crash.
        #expect(try await repair("clock_timestamp() - pg_postmaster_start_time() - interval '10 ms'") == ["flows_early"])
        #expect(try await other.script("SELECT count(*) FROM pandora.reservations")[0].string(0) == "1")
        #expect(try await repair("interval '1 us'") == ["flows"])
        await other.shutdown()
        reactor.stop()
        try await offTheCooperativePool {
            reactor.join()
            try cluster.stop()
        }
    }

    // MARK: The log

    @Test func aDayThatWasDetachedIsSaidAndNotTakenForThere() async throws {
        try await doctor.withTraffic { store in
            let day = try await store.run("SELECT to_char((now() AT TIME ZONE 'UTC')::date + 1, 'YYYYMMDD')")[0]
            try await store.run("ALTER TABLE request_logs DETACH PARTITION request_logs_\(day)")
            let found = try await doctor.examine(store)
            #expect(found.map(\.check) == [.partition] && found[0].message.contains("is no partition of the log"))
            #expect(try await doctor.repair(store) == [])
            #expect(try await doctor.examine(store) == found)
            // As its hint says.
            try await store.run("ALTER TABLE request_logs_\(day) RENAME TO aside")
            #expect(try await doctor.repair(store).map(\.what) == ["partition"])
            #expect(try await doctor.examine(store) == [])
        }
    }

    // MARK: The repair

    @Test func aRepairThatCannotBeAuditedIsNone() async throws {
        try await doctor.withTraffic { store in
            try await store.run(
                """
                UPDATE environment_service SET held_request = 20 WHERE environment_id = 1;
                ALTER TABLE audit_log ADD CHECK (action <> 'repair');
                """)
            #expect(try await refusal { try await doctor.repair(store) } == .refused)
            #expect(try await store.run(Self.numbers) == ["9|91|20"])
        }
    }
}
