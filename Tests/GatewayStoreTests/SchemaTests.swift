import NIOCore
import Postgres
import TestKit
import Testing

@testable import GatewayStore

/// What the schema does by itself, whoever writes to it.
@Suite struct SchemaTests {
    private static let tables = [
        "service", "client", "project", "environment", "api_key", "project_service", "environment_service",
    ]

    private func withTenants(_ body: (Store) async throws -> Void) async throws {
        try await withStore { store in
            try await store.seed(limit: 1000, environments: 2)
            try await store.run(
                """
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 600), (2, 1, 400);
                INSERT INTO api_key (environment_id, key, prefix) VALUES (1, sha256('a'), 'a');
                """)
            try await body(store)
        }
    }

    // MARK: Triggers

    @Test(arguments: tables) func anUpdateSetsUpdatedAt(_ table: String) async throws {
        try await withTenants { store in
            try await store.run("UPDATE \(table) SET created_at = '2020-01-01', updated_at = '2020-01-01'")
            // Whatever the writer says.
            #expect(
                try await store.run("SELECT DISTINCT updated_at > now() - interval '1 minute', created_at = '2020-01-01' FROM \(table)")
                    == ["t|t"])
        }
    }

    @Test(arguments: [
        ("service", "name = 't'"), ("service", "version = '2'"), ("service", "status = 'disabled'"),
        ("client", "type = 'developer'"), ("client", "name = 'd'"), ("client", "email = 'a@b'"),
        ("project", "name = 'q'"), ("project", "status = 'disabled'"), ("environment", "status = 'disabled'"),
        ("api_key", "environment_id = 2"), ("api_key", "key = sha256('b')"), ("api_key", "prefix = 'b'"), ("api_key", "name = 'n'"),
        ("api_key", "status = 'disabled'"), ("api_key", "expires_at = '2030-01-01'"),
        ("project_service", "max_request = 5000"), ("project_service", "reset_frequency = 'daily'"),
        ("project_service", "anchor = '2024-01-02'"), ("project_service", "time_zone = 'Asia/Tokyo'"),
        ("environment_service", "max_request = 10"),
    ])
    func configurationRaisesTheRevision(_ table: String, _ assignment: String) async throws {
        try await withTenants { store in
            try await store.run("UPDATE \(table) SET \(assignment); UPDATE \(table) SET \(assignment)")
            #expect(try await store.run("SELECT DISTINCT revision FROM \(table)") == ["2"])
            try await store.run("UPDATE \(table) SET revision = 77")
            #expect(try await store.run("SELECT DISTINCT revision FROM \(table)") == ["2"])
        }
    }

    @Test func trafficLeavesTheRevisionAlone() async throws {
        try await withTenants { store in
            try await store.run(
                """
                UPDATE api_key SET last_used = now();
                UPDATE environment_service SET held_request = 5, used_request = 7, available_request = max_request - 7;
                UPDATE project_service SET next_reset = now() - interval '1 s';
                SELECT reset_if_due(1, 1);
                """)
            let revisions = try await store.run(
                "SELECT revision FROM api_key UNION SELECT revision FROM environment_service UNION SELECT revision FROM project_service")
            #expect(revisions == ["1"])
            #expect(try await store.run("SELECT DISTINCT period FROM environment_service") == ["2"])
        }
    }

    @Test func configurationIsAnnouncedAndTrafficIsNot() async throws {
        try await withTenants { store in
            let heard = Locked<[String]>([])
            let listener = PostgresClient(try .patient(store.database.url), role: .session, on: store.reactor)
            try await store.reactor.submit {
                listener.onNotification = { notification in heard.withLock { $0.append(notification.payload) } }
                listener.listen(to: ["pandora_config"])
            }.get()
            try await listener.ready(within: patience)
            try await store.run("UPDATE api_key SET last_used = now()")
            try await store.run("UPDATE environment_service SET held_request = 1")
            try await store.run("UPDATE project SET status = 'enabled'")
            try await store.run("UPDATE environment_service SET max_request = 1 WHERE environment_id = 2")
            try await store.run("UPDATE project_service SET max_request = 2000")
            try await store.run("UPDATE api_key SET status = 'disabled'")
            try await store.run("DELETE FROM environment_service WHERE environment_id = 1")
            let key = try await store.run("SELECT id FROM api_key")[0]
            try await eventually("the last change is heard") { heard.withLock { $0.count >= 4 } }
            #expect(heard.withLock({ $0 }) == ["environment:2", "project:1", "api_key:\(key)", "environment:1"])
            await listener.shutdown()
        }
    }

    // MARK: Tenants

    @Test func anEnvironmentKeepsItsName() async throws {
        try await withTenants { store async throws in
            #expect(try await store.refusal(of: "UPDATE environment SET name = 'other' WHERE id = 1") == "PN001")
            #expect(try await store.refusal(of: "UPDATE environment SET name = 'e1', status = 'disabled' WHERE id = 1") == nil)
        }
    }

    @Test func aServiceOutsideTheProjectCannotBeAssigned() async throws {
        try await withTenants { store in
            try await store.run(
                """
                INSERT INTO service (name) VALUES ('elsewhere');
                INSERT INTO project (client_id, name) VALUES (1, 'other');
                INSERT INTO environment (project_id, name) VALUES (2, 'e');
                INSERT INTO project_service (project_id, service_id) VALUES (2, 2);
                """)
            // Of no project, of another project, and of another project under a false flag.
            #expect(try await store.refusal(of: "INSERT INTO environment_service (environment_id, service_id) VALUES (1, 2)") == "23503")
            #expect(try await store.refusal(of: "INSERT INTO environment_service (environment_id, service_id) VALUES (3, 1)") == "23503")
            #expect(
                try await store.refusal(
                    of: "INSERT INTO environment_service (environment_id, service_id, project_id) VALUES (1, 2, 2)") == "23503")
            #expect(try await store.refusal(of: "UPDATE environment_service SET service_id = 2 WHERE environment_id = 1") == "23503")
            #expect(try await store.refusal(of: "INSERT INTO environment_service (environment_id, service_id) VALUES (3, 2)") == nil)
            // And what is assigned cannot be taken from the project.
            #expect(try await store.refusal(of: "DELETE FROM project_service WHERE project_id = 1") == "23503")
        }
    }

    @Test func identifiersAreGeneratedAndOrderedByTime() async throws {
        try await withTenants { store in
            try await store.run("INSERT INTO request_logs (execution_status) VALUES ('success')")
            try await store.run("SELECT pg_sleep(0.002); INSERT INTO request_logs (execution_status) VALUES ('success')")
            try await store.run(
                """
                INSERT INTO reservations (environment_id, service_id, api_key, start_point, flow, units, period, expires_at, deadline_max)
                VALUES (1, 1, 'k', 's', 'f', 1, 1, now() + interval '1 m', now() + interval '1 m')
                """)
            let shape = "_[0-7][0-9a-hjkmnp-tv-z]{25}$"
            #expect(try await store.run("SELECT bool_and(id ~ '^req\(shape)'), count(DISTINCT id) FROM request_logs") == ["t|2"])
            #expect(try await store.run("SELECT bool_and(id ~ '^key\(shape)') FROM api_key") == ["t"])
            #expect(try await store.run("SELECT bool_and(id ~ '^rsv\(shape)') FROM reservations") == ["t"])
            #expect(
                try await store.run("SELECT array_agg(id ORDER BY id) = array_agg(id ORDER BY request_time) FROM request_logs") == ["t"])
            #expect(
                try await store.refusal(
                    of: "INSERT INTO api_key (id, environment_id, key, prefix) VALUES ('nonsense', 1, sha256('b'), 'b')") == "23514")
        }
    }

    @Test func aKeyHoldsADigestAndThatOnce() async throws {
        try await withTenants { store async throws in
            #expect(
                try await store.refusal(
                    of: "INSERT INTO api_key (environment_id, key, prefix) VALUES (2, sha256('a'), 'a')") == "23505")
            #expect(
                try await store.refusal(
                    of: "INSERT INTO api_key (environment_id, key, prefix) VALUES (2, 'pk_secret', 'a')") == "23514")
        }
    }

    @Test(arguments: ["Upper", "a b", "-a", "a-", "a/b", "", "ä", String(repeating: "a", count: 64)])
    func aNameIsASlug(_ name: String) async throws {
        try await withTenants { store async throws in
            let inserts = [
                "environment (project_id, name) VALUES (1, '\(name)')", "project (client_id, name) VALUES (1, '\(name)')",
                "service (name) VALUES ('\(name)')",
            ]
            for statement in inserts {
                #expect(try await store.refusal(of: "INSERT INTO \(statement)") == "23514", "\(statement)")
            }
        }
    }

    // MARK: Numbers

    @Test func availableIsWhatIsLeftOfTheLimit() async throws {
        try await withTenants { store in
            try await store.run("UPDATE environment_service SET used_request = 250, available_request = 350 WHERE environment_id = 1")
            try await store.run("UPDATE environment_service SET max_request = 100 WHERE environment_id = 1")
            #expect(try await store.run("SELECT available_request FROM environment_service WHERE environment_id = 1") == ["-150"])
            // An edit of the limit alone decides what is available, whatever the writer says.
            try await store.run("UPDATE environment_service SET max_request = 500, available_request = 9 WHERE environment_id = 1")
            #expect(try await store.run("SELECT available_request FROM environment_service WHERE environment_id = 1") == ["250"])
            for wrong in ["available_request = 1", "used_request = 1", "used_request = -1, available_request = 501", "held_request = -1"] {
                #expect(
                    try await store.refusal(
                        of: "UPDATE environment_service SET \(wrong) WHERE environment_id = 1") == "23514", "\(wrong)")
            }
            try await store.run(
                """
                UPDATE project_service SET max_request = NULL;
                UPDATE environment_service SET max_request = NULL WHERE environment_id = 1
                """)
            #expect(
                try await store.run("SELECT available_request IS NULL, used_request FROM environment_service WHERE environment_id = 1")
                    == ["t|250"])
        }
    }

    @Test func editsOfALimitAreInTheLedger() async throws {
        try await withTenants { store in
            try await store.run(
                """
                UPDATE environment_service SET max_request = 450 WHERE environment_id = 1;
                UPDATE environment_service SET max_request = 450 WHERE environment_id = 1;
                UPDATE project_service SET max_request = NULL;
                UPDATE environment_service SET max_request = NULL WHERE environment_id = 1;
                UPDATE environment_service SET max_request = 70 WHERE environment_id = 1;
                """)
            let rows = try await store.run("SELECT kind, limit_delta, period FROM quota_ledger WHERE environment_id = 1 ORDER BY id")
            #expect(rows == ["opened|600|1", "limit|-150|1", "limit|-450|1", "limit|70|1"])
        }
    }

    @Test func aServiceAssignedAgainOpensANewPeriod() async throws {
        try await withTenants { store in
            try await store.run(
                """
                DELETE FROM environment_service WHERE environment_id = 1;
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 50)
                """)
            #expect(
                try await store.run("SELECT period, used_request, available_request FROM environment_service WHERE environment_id = 1")
                    == ["2|0|50"])
            try await store.run(
                """
                DELETE FROM environment_service WHERE environment_id = 1;
                INSERT INTO environment (project_id, name) VALUES (1, 'e3');
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 50), (3, 1, 50)
                """)
            #expect(try await store.run("SELECT environment_id, period FROM environment_service ORDER BY 1") == ["1|3", "2|1", "3|1"])
            // One that was never there begins with the first.
            try await store.run(
                """
                INSERT INTO service (name) VALUES ('t');
                INSERT INTO project_service (project_id, service_id) VALUES (1, 2);
                INSERT INTO environment_service (environment_id, service_id) VALUES (1, 2), (2, 2);
                """)
            #expect(try await store.run("SELECT DISTINCT period FROM environment_service WHERE service_id = 2") == ["1"])
        }
    }

    @Test func historyIsAppendOnly() async throws {
        try await withTenants { store in
            try await store.run("INSERT INTO audit_log (actor, action, object_kind, object_id) VALUES ('a', 'b', 'c', 'd')")
            #expect(try await store.refusal(of: "UPDATE quota_ledger SET used_delta = 1") == "PN006")
            #expect(try await store.refusal(of: "UPDATE audit_log SET actor = 'nobody'") == "PN006")
        }
    }

    // MARK: The log

    @Test func everyDayHasItsPartitionAndTheRestIsCaught() async throws {
        try await withStore { store in
            try await store.run(
                """
                INSERT INTO request_logs (id, execution_status) VALUES
                    (new_typeid('req'), 'success'),
                    (typeid('req', uuid_v7('2031-05-01 12:00Z')), 'success'), (typeid('req', uuid_v7('2031-05-02 00:00Z')), 'success');
                """)
            #expect(try await store.run("SELECT count(*) FROM request_logs_default") == ["2"])
            // What was caught moves over when its day comes.
            #expect(try await store.run("SELECT ensure_log_partition('2031-05-01'), ensure_log_partition('2031-05-01')") == ["t|f"])
            #expect(try await store.run("SELECT count(*) FROM request_logs_default") == ["1"])
            #expect(try await store.run("SELECT count(*) FROM request_logs_20310501") == ["1"])
            #expect(try await store.run("SELECT count(*) FROM request_logs") == ["3"])
            // Yesterday, today and a week ahead are there from the beginning; retention drops what ended.
            let midnight = "date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
            #expect(try await store.run("SELECT drop_log_partitions(\(midnight) - interval '1 us')") == ["0"])
            #expect(try await store.run("SELECT drop_log_partitions(\(midnight))") == ["1"])
            #expect(try await store.run("SELECT count(*) FROM request_logs") == ["3"])
            #expect(try await store.run("SELECT ensure_log_partitions(7)") == ["1"])
        }
    }

    @Test func oneAtATimeDropsDaysAndNotTooManyAtOnce() async throws {
        try await withStore { store in
            try await store.run("SELECT ensure_log_partition(date '2024-01-01' + n) FROM generate_series(0, 39) AS n")
            let drop = "SELECT drop_log_partitions('2024-03-01Z')"
            // Somebody else has begun: nobody waits, nothing fails.
            #expect(try await store.answer(to: drop, amid: drop) == ["0"])
            #expect(try await store.run(drop) == ["10"])
            #expect(try await store.run(drop) == ["0"])
        }
    }

    @Test func theLogRefersToNothingButExplainsItself() async throws {
        try await withStore { store async throws in
            #expect(
                try await store.refusal(
                    of: """
                        INSERT INTO request_logs (execution_status, environment_id, service_id, api_key, start_point)
                        VALUES ('success', 9, 9, 'key_x', 'req_x')
                        """)
                    == nil)
            #expect(try await store.refusal(of: "INSERT INTO request_logs (execution_status) VALUES ('unauthorized')") == "23514")
        }
    }
}
