import Postgres
import TestKit
import Testing

@testable import GatewayStore

@Suite struct DoctorTests {
    static let spool = "11111111-1111-4111-8111-111111111111"
    static let key = "key_00000000000000000000000001"
    static let place = "c/p/e1 s/1, period 1"

    /// Environment e1 with 100 units of the service: 7 used by hops, 2 charged by a flow, 5 leased and 3 reserved.
    func withTraffic(_ body: (Store) async throws -> Void) async throws {
        try await withStore { store in
            try await store.seed(limit: 1000, environments: 2)
            try await store.run(
                """
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 100), (2, 1, 200);
                INSERT INTO api_key (id, environment_id, key, prefix) VALUES ('\(Self.key)', 1, sha256('a'), 'a');
                INSERT INTO log_spool (id, node) VALUES ('\(Self.spool)', 'n1');
                SELECT lease_acquire('\(Self.spool)', 1, '{1}', '{1}', '{12}', '{12}');
                INSERT INTO request_logs (execution_status, environment_id, service_id, units, period, spool_id)
                    VALUES ('success', 1, 1, 3, 1, '\(Self.spool)'), ('success', 1, 1, 4, 1, '\(Self.spool)');
                SELECT settle_hops('\(Self.spool)', '{1}', '{1}', '{1}', '{7}', '{7}', '{2}');
                SELECT flow_start('{\(Self.flow(1)),\(Self.flow(2))}', '{\(Self.hop(1)),\(Self.hop(2))}', '{\(Self.key),\(Self.key)}',
                    '{1,1}', '{1,1}', '{f,f}', '{2,3}', '{60000000,60000000}', '{600000000,600000000}', '{9,9}');
                SELECT flow_settle('{\(Self.flow(1))}', '{NULL}', '{commit}', '{NULL}', '{0}', '{0}', '{NULL}', '{0}');
                """)
            try await body(store)
        }
    }

    static func flow(_ number: Int) -> String { "rsv_0000000000000000000000000\(number)" }
    static func hop(_ number: Int) -> String { "req_0000000000000000000000000\(number)" }

    /// What is found; how the server is set up aside, because that of the tests is not durable on purpose.
    func examine(_ store: Store, log: Bool = true) async throws -> [Finding] {
        try await Doctor(store.client, actor: "test").examine(log: log).filter { $0.check != .durability }
    }

    func repair(_ store: Store) async throws -> [Repair] { try await Doctor(store.client, actor: "test").repair() }

    func numbers(_ finding: Finding?) -> [String: Int64] {
        Dictionary(uniqueKeysWithValues: (finding?.numbers ?? []).map { ($0.name, $0.value) })
    }

    @Test func whereEverythingAgreesThereIsNoFindingAndNothingToRepair() async throws {
        try await withTraffic { store in
            let (findings, repairs) = (try await examine(store), try await repair(store))
            #expect(findings == [] && repairs == [])
            let audited = try await store.run("SELECT count(*) FROM audit_log WHERE action = 'repair'")
            #expect(audited == ["0"])
        }
        try await withStore { store in
            let findings = try await examine(store)
            #expect(findings == [])
        }
    }

    // MARK: Equations

    @Test func whatIsHeldIsWhatLeasesAndFlowsHold() async throws {
        try await withTraffic { store in
            try await store.run("UPDATE environment_service SET held_request = 20 WHERE environment_id = 1")
            let found = try await examine(store)
            #expect(found.map(\.check) == [.held] && found[0].place == Self.place && !found[0].isNote)
            #expect(numbers(found[0]) == ["held": 20, "leased": 5, "reserved": 3])
            #expect(found[0].message == "20 units are held, but leases have 5 open and flows 3")

            #expect(try await repair(store) == [Repair(what: "held", object: Self.place, was: 20, became: 8)])
            #expect(try await store.run("SELECT held_request FROM environment_service WHERE environment_id = 1") == ["8"])
            #expect(try await examine(store) == [])
            let audited = try await store.run(
                """
                SELECT actor, object_kind, object_id = current_database(), detail->'repairs'->0->>'was'
                  FROM audit_log WHERE action = 'repair'
                """)
            #expect(audited == ["test|database|t|20"])
        }
    }

    /// Of another service, or of another environment, nothing explains a row or is put right with it.
    @Test func everyRowIsComparedWithWhatIsItsOwn() async throws {
        try await withTraffic { store in
            try await store.run(
                """
                INSERT INTO service (name) VALUES ('t');
                INSERT INTO project_service (project_id, service_id) VALUES (1, 2);
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 2, 50);
                SELECT lease_acquire('\(Self.spool)', 1, '{1,2}', '{2,1}', '{6,7}', '{6,7}');
                SELECT flow_start('{\(Self.flow(3))}', '{\(Self.hop(3))}', '{\(Self.key)}', '{1}', '{2}', '{f}', '{4}', '{60000000}',
                                  '{600000000}', '{9}');
                """)
            #expect(try await examine(store) == [])
            try await store.run("UPDATE environment_service SET held_request = 77 WHERE (environment_id, service_id) = (1, 2)")
            let place = "c/p/e1 t/1, period 1"
            #expect(try await examine(store).map(\.place) == [place])
            #expect(try await repair(store) == [Repair(what: "held", object: place, was: 77, became: 10)])
            #expect(try await examine(store) == [])
            try await store.run("UPDATE environment_service SET held_request = 77 WHERE environment_id = 2")
            #expect(try await repair(store).map(\.became) == [7])
            #expect(try await examine(store) == [])
        }
    }

    @Test func whatIsUsedIsWhatTheLedgerExplains() async throws {
        try await withTraffic { store in
            try await store.run("UPDATE environment_service SET used_request = 50, available_request = 50 WHERE environment_id = 1")
            let found = try await examine(store)
            #expect(found.map(\.check) == [.used] && numbers(found[0]) == ["used": 50, "ledger": 9])
            let repairs = try await repair(store)
            #expect(repairs.map(\.what) == ["used", "available"] && repairs.map(\.became) == [9, 91])
            #expect(
                try await store.run("SELECT used_request, available_request FROM environment_service WHERE environment_id = 1") == ["9|91"])
            #expect(try await examine(store) == [])
        }
    }

    @Test func whatIsAvailableIsTheLimitLessWhatIsUsed() async throws {
        try await withTraffic { store in
            try await store.run(
                """
                ALTER TABLE environment_service DROP CONSTRAINT available_is_max_minus_used;
                UPDATE environment_service SET available_request = 1000 WHERE environment_id = 1;
                """)
            let found = try await examine(store)
            #expect(found.map(\.check) == [.available] && numbers(found[0]) == ["available": 1000, "limit": 100, "used": 9])
            #expect(try await repair(store).map(\.became) == [91])
            #expect(try await examine(store) == [])
        }
    }

    @Test func aLimitThatTheLedgerDoesNotExplainIsNotRepaired() async throws {
        try await withTraffic { store in
            try await store.run(
                """
                ALTER TABLE environment_service DISABLE TRIGGER book_limit;
                UPDATE environment_service SET max_request = 90 WHERE environment_id = 1;
                ALTER TABLE environment_service ENABLE TRIGGER book_limit;
                """)
            let found = try await examine(store)
            #expect(found.map(\.check) == [.limit] && numbers(found[0]) == ["limit": 90, "ledger": 100])
            #expect(try await repair(store) == [])
            #expect(try await examine(store) == found)
        }
    }

    @Test func aPeriodWithoutItsOpeningIsNotRepairedFromTheLedger() async throws {
        try await withTraffic { store in
            try await store.run(
                """
                DELETE FROM quota_ledger WHERE environment_id = 1 AND kind IN ('opened', 'hops');
                UPDATE environment_service SET held_request = 0 WHERE environment_id = 1;
                """)
            #expect(try await examine(store, log: false).map(\.check) == [.opening, .used, .limit, .held])
            // What does not hang on the ledger is put right all the same.
            #expect(try await repair(store).map(\.what) == ["held"])
            #expect(
                try await store.run("SELECT used_request, held_request FROM environment_service WHERE environment_id = 1") == ["9|8"])
        }
    }

    @Test func hopsInTheLogChargedWhatTheLedgerHas() async throws {
        try await withTraffic { store in
            let lost = try await store.run("DELETE FROM request_logs WHERE units = 3 RETURNING id")
            #expect(lost.count == 1)
            var found = try await examine(store)
            #expect(found.map(\.check) == [.log] && numbers(found[0]) == ["log": 4, "ledger": 7] && found[0].place == Self.place)
            #expect(try await examine(store, log: false) == [])
            try await store.run(
                "INSERT INTO request_logs (execution_status, environment_id, service_id, units, period) VALUES ('success', 1, 1, 9, 1)")
            found = try await examine(store)
            #expect(found.map(\.check) == [.log] && numbers(found[0]) == ["log": 13, "ledger": 7])
            #expect(try await repair(store) == [])
        }
    }

    /// They are charged, and their frames are where an operator can read them: nothing is wrong, but it is worth knowing.
    @Test func hopsThatTheLogRefusedAreANote() async throws {
        try await withTraffic { store in
            // The last of them used more than the lease had.
            try await store.run(
                """
                SELECT settle_hops('\(Self.spool)', '{1}', '{1}', '{1}', '{4}', '{4}', '{1}', true);
                SELECT settle_hops('\(Self.spool)', '{1}', '{1}', '{1}', '{3}', '{3}', '{1}', true);
                """)
            let found = try await examine(store)
            #expect(found.map(\.check) == [.rejected] && found[0].isNote && found[0].place == "c/p/e1 s/1")
            #expect(numbers(found[0]) == ["hops": 2, "units": 7])
            #expect(try await repair(store) == [])
            // They explain no other row that is missing.
            try await store.run("DELETE FROM request_logs WHERE units = 3")
            #expect(try await examine(store).filter { !$0.isNote }.map { numbers($0) } == [["log": 4, "ledger": 7]])
        }
    }

    /// Of hops without a lease the log does not say in which period they were booked.
    @Test func hopsWithoutALeaseMayBeOfAnyPeriod() async throws {
        try await withTraffic { store in
            try await store.run(
                """
                UPDATE project_service SET next_reset = now();
                SELECT reset_if_due(1, 1);
                SELECT settle_hops('\(Self.spool)', '{1}', '{1}', '{0}', '{6}', '{0}', '{1}');
                """)
            let missing = try await examine(store)
            #expect(
                missing.map(\.check) == [.log] && missing[0].place == "c/p/e1 s/1, period 2"
                    && numbers(missing[0]) == ["log": 0, "ledger": 6])
            let row =
                "INSERT INTO request_logs (execution_status, environment_id, service_id, units, outage) VALUES ('success', 1, 1, 3, true)"
            try await store.run(row)
            #expect(try await examine(store).map { numbers($0) } == [["log": 3, "ledger": 6]])
            try await store.run(row)
            #expect(try await examine(store) == [])
            try await store.run(row)
            #expect(try await examine(store).map { numbers($0) } == [["log": 9, "ledger": 6]])
        }
    }

    /// Hops that used more than their lease had, or that came after a write-off, or after their flow had expired.
    @Test func overrunsRefundsAndLateFlowsAgreeToo() async throws {
        try await withTraffic { store in
            try await store.run(
                """
                UPDATE quota_lease SET heard_at = now() - interval '1 h';
                SELECT write_off_silent('10 min', '0', 10);
                INSERT INTO request_logs (execution_status, environment_id, service_id, units, period) VALUES ('success', 1, 1, 8, 1);
                SELECT settle_hops('\(Self.spool)', '{1}', '{1}', '{1}', '{8}', '{8}', '{1}');
                UPDATE reservations SET expires_at = now() - interval '1 s';
                SELECT flow_expire(10, '0');
                SELECT flow_settle('{\(Self.flow(2))}', '{\(Self.hop(3))}', '{commit}', '{1}', '{1}', '{1}', '{3}', '{0}');
                """)
            #expect(
                try await store.run(
                    "SELECT kind, used_delta FROM quota_ledger WHERE environment_id = 1 AND kind IN ('overrun', 'refund') ORDER BY id")
                    == ["refund|-5", "overrun|3", "overrun|3"])
            #expect(try await examine(store) == [])
        }
    }

    /// A period that began before the log does lacks hops in the log, and that is no fault.
    @Test func theLogIsComparedAsFarAsItReaches() async throws {
        try await withTraffic { store in
            try await store.run(
                """
                ALTER TABLE quota_ledger DISABLE TRIGGER append_only;
                UPDATE quota_ledger SET at = at - interval '3 days';
                DELETE FROM request_logs WHERE units = 3;
                """)
            #expect(try await examine(store) == [])
        }
    }

    // MARK: Whose it is

    @Test func aFlowWhoseTenantIsGoneIsFound() async throws {
        try await withTraffic { store in
            try await store.run("DELETE FROM api_key")
            let found = try await examine(store)
            #expect(found.map(\.check) == [.flowTenant] && found[0].message.contains("\(Self.flow(2)) is open, but its key"))
            #expect(numbers(found[0]) == ["units": 3])
        }
    }

    @Test func holdsOfAServiceThatWasTakenAwayAreANote() async throws {
        try await withTraffic { store in
            try await store.run("DELETE FROM environment_service WHERE environment_id = 1")
            let found = try await examine(store)
            #expect(found.map(\.check) == [.holder, .ledger] && found.allSatisfy(\.isNote))
            #expect(numbers(found[0]) == ["leased": 5, "reserved": 3])
        }
    }

    @Test func leasesOfAnUnknownSpoolAreFound() async throws {
        try await withTraffic { store in
            try await store.run("DELETE FROM log_spool")
            let found = try await examine(store)
            #expect(found.map(\.check) == [.holder] && found[0].place == "spool \(Self.spool)" && !found[0].isNote)
            #expect(numbers(found[0]) == ["units": 5])
        }
    }

    @Test func whereNotEverythingIsNamedItIsSaid() async throws {
        try await withTraffic { store in
            func lease(toUnknown spools: Int) async throws {
                try await store.run(
                    """
                    INSERT INTO quota_lease (spool_id, environment_id, service_id, period, granted)
                    SELECT gen_random_uuid(), 1, 1, 1, 1 FROM generate_series(1, \(spools))
                    """)
            }
            try await lease(toUnknown: Doctor.namesMax - 1)
            let all = try await examine(store).filter { $0.check == .holder }
            #expect(all.count == Doctor.namesMax - 1 && !all.contains(where: \.isNote))
            try await lease(toUnknown: 2)
            let some = try await examine(store).filter { $0.check == .holder }
            #expect(some.count == Doctor.namesMax + 1 && some.filter(\.isNote) == [some.last])
        }
    }

    @Test func aSilentHolderIsFoundUntilItIsHeardOf() async throws {
        try await withTraffic { store in
            let past = "now() - interval '1 h'"
            try await store.run(
                "UPDATE quota_lease SET heard_at = \(past); UPDATE log_spool SET opened_at = \(past), shipped_at = \(past)")
            let found = try await examine(store)
            #expect(found.map(\.check) == [.silence] && found[0].place == "node n1, spool \(Self.spool)")
            #expect(numbers(found[0])["units"] == 5)
            // What becomes of the units is for an operator, or a node, to say.
            #expect(try await repair(store) == [])
            try await store.run("UPDATE log_spool SET shipped_at = now()")
            #expect(try await examine(store) == [])
        }
    }

    @Test func aChainWithoutItsFirstHopIsANote() async throws {
        try await withTraffic { store in
            let root = "typeid('req', uuid_v7(now() - interval '2 h'))"
            try await store.run(
                """
                CREATE TABLE root AS SELECT \(root) AS id;
                INSERT INTO request_logs (execution_status, start_point) SELECT 'success', id FROM root, generate_series(1, 3);
                INSERT INTO request_logs (execution_status, start_point) VALUES ('success', new_typeid('req'));
                """)
            let found = try await examine(store)
            #expect(found.map(\.check) == [.chain] && found[0].isNote && numbers(found[0]) == ["chains": 1, "hops": 3])
            try await store.run("INSERT INTO request_logs (id, execution_status) SELECT id, 'success' FROM root")
            #expect(try await examine(store) == [])
        }
    }

    // MARK: What is due

    @Test func anOverdueResetIsFoundAndDone() async throws {
        try await withTraffic { store in
            try await store.run("UPDATE project_service SET next_reset = now() - interval '1 h'")
            let found = try await examine(store)
            #expect(found.map(\.check) == [.reset] && found[0].place == "c/p s/1" && numbers(found[0])["overdue_seconds"]! >= 3600)
            #expect(try await repair(store).map(\.what) == ["reset"])
            #expect(try await store.run("SELECT DISTINCT period, used_request, held_request FROM environment_service") == ["2|0|0"])
            #expect(try await examine(store) == [])
        }
    }

    @Test func expiredFlowsAreFoundAndGivenBack() async throws {
        try await withTraffic { store in
            try await store.run("UPDATE reservations SET expires_at = now() - interval '10 min'")
            let found = try await examine(store)
            #expect(found.map(\.check) == [.flow] && found[0].place == "c/p/e1 s/1")
            #expect(numbers(found[0]).filter { $0.key != "overdue_seconds" } == ["flows": 1, "units": 3])
            // Within two minutes of the server's start settles may still wait in the nodes.
            let isEarly = try await store.run("SELECT pg_postmaster_start_time() > now() - interval '2 min'") == ["t"]
            #expect(try await repair(store).map(\.what) == (isEarly ? ["flows_early"] : ["flows"]))
            // Without that patience, since the server of the tests is young.
            let rows = try await store.run("SELECT pg_sleep(0.01); SELECT what, became FROM repair('test', '1 us', 10, 7)")
            #expect(rows == (isEarly ? ["flows|1"] : []))
            #expect(try await store.run("SELECT outcome FROM quota_ledger WHERE reservation_id = '\(Self.flow(2))'") == ["expired"])
            #expect(try await store.run("SELECT held_request FROM environment_service WHERE environment_id = 1") == ["5"])
            #expect(try await examine(store) == [])
        }
    }

    /// Whoever expired a moment ago is the sweeper's, and so is what is more than one transaction's work.
    @Test func aRepairGivesBackOverdueFlowsAndSoManyAtMost() async throws {
        try await withTraffic { store in
            try await store.run(
                """
                SELECT flow_start('{\(Self.flow(3)),\(Self.flow(4))}', '{\(Self.hop(3)),\(Self.hop(4))}', '{\(Self.key),\(Self.key)}',
                                  '{2,2}', '{1,1}', '{f,f}', '{1,1}', '{60000000,60000000}', '{600000000,600000000}', '{9,9}');
                CREATE TABLE age AS SELECT now() AS at, now() - pg_postmaster_start_time() AS age;
                UPDATE reservations SET expires_at = at - age * right(id, 1)::integer, request_time = '2020-01-01' FROM age
                 WHERE id <> '\(Self.flow(2))';
                UPDATE reservations SET expires_at = now() - interval '1 us' WHERE id = '\(Self.flow(2))';
                """)
            // The server has not been there for so long: settles may still wait in the nodes.
            #expect(try await store.run("SELECT what FROM age, repair('test', now() - at + age * 2, 9, 7)") == ["flows_early"])
            // Half as old as the server: those of environment 2 are overdue, and the one of environment 1 is not yet.
            let repair = { (most: Int) in "SELECT what, became FROM age, repair('test', age / 2 + (now() - at), \(most), 7)" }
            #expect(try await store.run(repair(1)) == ["flows|1"])
            #expect(try await store.run("SELECT id FROM reservations ORDER BY 1") == [Self.flow(2), Self.flow(3)])
            #expect(try await store.run(repair(9)) == ["flows|1"])
            #expect(try await store.run("SELECT id FROM reservations") == [Self.flow(2)])
        }
    }

    @Test func rowsOfTheDefaultPartitionMoveWhereTheirDayIsNear() async throws {
        try await withTraffic { store in
            try await store.run(
                """
                INSERT INTO request_logs (id, execution_status) VALUES
                    (typeid('req', uuid_v7(now() - interval '5 days')), 'success'), ('nonsense', 'success'),
                    (typeid('req', uuid_v7('2091-05-01 12:00Z')), 'success');
                """)
            let found = try await examine(store)
            #expect(found.map(\.check) == [.caught, .caught, .caught] && found.allSatisfy { numbers($0) == ["rows": 1] })
            #expect(found[1].message.contains("2091-05-01") && found[2].message.contains("no day"))
            let repairs = try await repair(store)
            #expect(repairs.map(\.what) == ["moved"] && repairs[0].became == 1)
            #expect(try await examine(store).map(\.message) == found.dropFirst().map(\.message))
            #expect(try await store.run("SELECT count(*) FROM request_logs") == ["5"])
        }
    }

    @Test func aDayWithoutPartitionIsFoundAndMade() async throws {
        try await withTraffic { store in
            let day = try await store.run("SELECT to_char((now() AT TIME ZONE 'UTC')::date + 1, 'YYYYMMDD')")[0]
            try await store.run("DROP TABLE request_logs_\(day)")
            #expect(try await examine(store).map(\.check) == [.partition])
            #expect(try await repair(store).map(\.what) == ["partition"])
            #expect(try await examine(store) == [])
        }
    }

    /// Somebody reads the DEFAULT partition: everything else is repaired, and what is left is said.
    @Test func partitionsInUseAreLeftAndTheRestIsRepaired() async throws {
        try await withTraffic { store in
            try await store.run(
                """
                INSERT INTO request_logs (id, execution_status) VALUES (typeid('req', uuid_v7(now() - interval '5 days')), 'success');
                UPDATE environment_service SET held_request = 20 WHERE environment_id = 1;
                """)
            let reader = try await store.connect()
            try await reader.script("BEGIN; SELECT count(*) FROM pandora.request_logs")
            let repairs = try await repair(store)
            #expect(repairs.map(\.what) == ["log_busy", "held"] && repairs[0].isLeft)
            await reader.shutdown()
            #expect(try await examine(store).map(\.check) == [.caught])
        }
    }

    /// Which partitions there are is no part of a snapshot: one that went after it was taken would take its rows along.
    @Test func theSnapshotIsTakenWhenPartitionsCanNeitherComeNorGo() async throws {
        try await withTraffic { store in
            let other = try await store.connect()
            try await other.script("BEGIN; LOCK TABLE pandora.request_logs IN ACCESS EXCLUSIVE MODE")
            async let found = examine(store)
            try await eventually("the doctor waits") {
                try await store.database.psql(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == ["1"]
            }
            try await other.script("UPDATE pandora.environment_service SET held_request = 20 WHERE environment_id = 1; COMMIT")
            #expect(try await found.map(\.check) == [.held])
            await other.shutdown()
        }
    }

    @Test func whoCannotLookSaysWhy() async throws {
        let database = try await TestDatabase.create()
        try await withClient(of: database) { client, _ async throws in
            #expect(try await refusal { try await Doctor(client, actor: "test").examine() } == .schemaMismatch)
            #expect(try await refusal { try await Doctor(client, actor: "test").repair() } == .schemaMismatch)
        }
    }
}
