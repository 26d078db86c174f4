import Postgres
import TestKit
import Testing

@testable import GatewayStore

/// When a period ends, and what a reset does.
@Suite struct PeriodTests {
    private struct Case: Sendable {
        var frequency: String
        var anchor: String
        var zone = "UTC"
        var after: String
        var boundary: String
    }

    private static let cases = [
        Case(frequency: "daily", anchor: "2024-01-01", after: "2026-03-10 13:00Z", boundary: "2026-03-11 00:00Z"),
        // A boundary is the first moment of the next period.
        Case(frequency: "daily", anchor: "2024-01-01", after: "2026-03-11 00:00Z", boundary: "2026-03-12 00:00Z"),
        Case(frequency: "daily", anchor: "2024-01-01 06:30", after: "2026-03-11 06:29:59Z", boundary: "2026-03-11 06:30Z"),
        // Weeks begin on Mondays where the anchor does.
        Case(frequency: "weekly", anchor: "2024-01-01", after: "2026-03-10 00:00Z", boundary: "2026-03-16 00:00Z"),
        Case(frequency: "biweekly", anchor: "2024-01-01", after: "2026-03-10 00:00Z", boundary: "2026-03-23 00:00Z"),
        // Before the anchor, too.
        Case(frequency: "weekly", anchor: "2030-01-07", after: "2026-03-10 00:00Z", boundary: "2026-03-16 00:00Z"),
        Case(frequency: "monthly", anchor: "2030-01-31", after: "2026-02-01 00:00Z", boundary: "2026-02-28 00:00Z"),
        // Month ends are kept, not drifted from.
        Case(frequency: "monthly", anchor: "2025-01-31", after: "2025-01-31 00:00Z", boundary: "2025-02-28 00:00Z"),
        Case(frequency: "monthly", anchor: "2025-01-31", after: "2025-02-28 00:00Z", boundary: "2025-03-31 00:00Z"),
        Case(frequency: "monthly", anchor: "2025-01-31", after: "2025-03-31 00:00Z", boundary: "2025-04-30 00:00Z"),
        Case(frequency: "monthly", anchor: "2025-01-30", after: "2025-02-28 00:00Z", boundary: "2025-03-30 00:00Z"),
        Case(frequency: "monthly", anchor: "2025-12-31", after: "2025-12-31 00:00Z", boundary: "2026-01-31 00:00Z"),
        // Leap years.
        Case(frequency: "monthly", anchor: "2023-01-31", after: "2024-02-01 00:00Z", boundary: "2024-02-29 00:00Z"),
        Case(frequency: "monthly", anchor: "2024-02-29", after: "2025-02-01 00:00Z", boundary: "2025-02-28 00:00Z"),
        Case(frequency: "monthly", anchor: "2024-02-29", after: "2025-02-28 00:00Z", boundary: "2025-03-29 00:00Z"),
        Case(frequency: "monthly", anchor: "2024-02-29", after: "2028-02-01 00:00Z", boundary: "2028-02-29 00:00Z"),
        // Not a leap year.
        Case(frequency: "monthly", anchor: "2024-02-29", after: "2100-02-01 00:00Z", boundary: "2100-02-28 00:00Z"),
        // A day of 23 hours and one of 25.
        Case(frequency: "daily", anchor: "2024-01-01", zone: "Europe/Madrid", after: "2026-03-28 23:00Z", boundary: "2026-03-29 22:00Z"),
        Case(frequency: "daily", anchor: "2024-01-01", zone: "Europe/Madrid", after: "2026-10-24 22:00Z", boundary: "2026-10-25 23:00Z"),
        // 02:30 does not exist on 29 March and exists twice on 25 October: one boundary a day all the same.
        Case(
            frequency: "daily", anchor: "2024-01-01 02:30", zone: "Europe/Madrid",
            after: "2026-03-28 01:30Z", boundary: "2026-03-29 01:30Z"),
        Case(
            frequency: "daily", anchor: "2024-01-01 02:30", zone: "Europe/Madrid",
            after: "2026-03-29 01:30Z", boundary: "2026-03-30 00:30Z"),
        Case(
            frequency: "monthly", anchor: "2024-01-01", zone: "Asia/Kolkata",
            after: "2026-02-28 18:29:59Z", boundary: "2026-02-28 18:30Z"),
        Case(
            frequency: "weekly", anchor: "2024-01-01", zone: "America/Los_Angeles",
            after: "2026-03-02 08:00Z", boundary: "2026-03-09 07:00Z"),
    ]

    @Test func theNextBoundary() async throws {
        try await withStore { store in
            for one in Self.cases {
                let found = try await store.run(
                    """
                    SELECT next_boundary('\(one.anchor)', '\(one.frequency)', '\(one.zone)', '\(one.after)') = '\(one.boundary)',
                           next_boundary('\(one.anchor)', '\(one.frequency)', '\(one.zone)', '\(one.after)')
                    """)
                #expect(found[0].hasPrefix("t|"), "\(one): \(found)")
            }
            #expect(try await store.run("SELECT next_boundary('2024-01-01', NULL, 'UTC', now())") == [""])
        }
    }

    /// Before each of two years' boundaries it is the next one, from its moment on the one after it: no clamped month end and no
    /// hour of summer time is stepped over, whatever the anchor, frequency and zone. Midnights were missing in São Paulo, and in
    /// Apia a whole day.
    @Test(arguments: [
        ("UTC", 2024), ("Europe/Madrid", 2024), ("America/Santiago", 2027), ("Australia/Lord_Howe", 2024), ("Pacific/Apia", 2011),
        ("America/Sao_Paulo", 2017),
    ])
    func noBoundaryIsSteppedOver(_ zone: String, _ year: Int) async throws {
        try await withStore { store in
            let found = try await store.run(
                """
                WITH f (frequency, days) AS (VALUES ('daily', 1), ('weekly', 7), ('biweekly', 14), ('monthly', 31)),
                    found AS (
                        SELECT DISTINCT frequency, anchor, period_boundary(anchor, frequency, '\(zone)', k) AS boundary FROM f,
                               unnest('{2024-01-01 00:00, 2024-02-29 02:30, 2023-12-31 23:59:59.999999, 2025-10-30 01:30}'::timestamp[])
                                   AS anchor,
                               LATERAL (SELECT (date '\(year)-01-01' - anchor::date) / days AS first) AS start,
                               generate_series(first, first + 731 / days) AS k),
                    boundaries AS (
                        SELECT *, lead(boundary) OVER (PARTITION BY frequency, anchor ORDER BY boundary) AS following FROM found),
                    answers AS (
                        SELECT format('%s from %s at %s', frequency, anchor, moment) AS question,
                               next_boundary(anchor, frequency, '\(zone)', moment)
                               IS DISTINCT FROM CASE WHEN distance < '0' THEN boundary ELSE following END AS is_wrong
                          FROM boundaries, unnest('{-1 h, -1 us, 0, 1 us, 1 h}'::interval[]) AS distance,
                               LATERAL (SELECT boundary + distance AS moment) AS asked
                         WHERE following IS NOT NULL)
                SELECT count(*) > 15000, string_agg(question, '; ') FILTER (WHERE is_wrong) FROM answers
                """)
            #expect(found == ["t|"])
        }
    }

    @Test func theCalendarSetsTheNextReset() async throws {
        try await withStore { store in
            try await store.seed(limit: 100)
            let isFirst = "next_reset = date_trunc('month', now()) + interval '1 month'"
            #expect(try await store.run("SELECT \(isFirst) FROM project_service") == ["t"])
            try await store.run("UPDATE project_service SET reset_frequency = NULL")
            #expect(try await store.run("SELECT next_reset FROM project_service") == [""])
            #expect(try await store.run("SELECT reset_if_due(1, 1)") == ["f"])
            try await store.run("UPDATE project_service SET reset_frequency = 'daily', time_zone = 'Asia/Tokyo'")
            #expect(try await store.run("SELECT to_char(next_reset AT TIME ZONE 'UTC', 'HH24:MI') FROM project_service") == ["15:00"])
            #expect(try await store.refusal(of: "UPDATE project_service SET time_zone = 'Mars/Olympus'") == "22023")
            #expect(try await store.refusal(of: "UPDATE project_service SET reset_frequency = 'yearly'") == "23514")
            #expect(try await store.refusal(of: "UPDATE project_service SET anchor = 'infinity'") != nil)
        }
    }

    @Test func aResetOpensANewPeriodOfEveryEnvironment() async throws {
        try await withStore { store in
            try await store.seed(limit: 100, environments: 2)
            try await store.run(
                """
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 60), (2, 1, 40);
                UPDATE environment_service SET used_request = 30, available_request = max_request - 30, held_request = 5;
                """)
            #expect(try await store.run("SELECT reset_if_due(1, 1)") == ["f"])
            #expect(try await store.run("SELECT DISTINCT period FROM environment_service") == ["1"])
            // Down for years: one reset makes up for all of them.
            try await store.run("UPDATE project_service SET next_reset = '2020-01-01Z'")
            #expect(try await store.run("SELECT reset_if_due(1, 1)") == ["t"])
            #expect(try await store.run("SELECT reset_if_due(1, 1)") == ["f"])
            #expect(
                try await store.run(
                    "SELECT used_request, held_request, available_request, period FROM environment_service ORDER BY environment_id")
                    == ["0|0|60|2", "0|0|40|2"])
            #expect(
                try await store.run("SELECT next_reset = date_trunc('month', now()) + interval '1 month' FROM project_service")
                    == ["t"])
            #expect(
                try await store.run("SELECT environment_id, kind, limit_delta FROM quota_ledger WHERE period = 2 ORDER BY 1")
                    == ["1|opened|60", "2|opened|40"])
            #expect(try await store.run("SELECT reset_next_due()") == ["f"])
        }
    }

    /// A failover forgot that the period was opened, and a gateway had used units of it.
    @Test func aResetOpensAPeriodBeyondWhatTheLedgerKnows() async throws {
        try await withStore { store in
            try await store.seed(limit: 100)
            try await store.run(
                """
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 60);
                INSERT INTO log_spool (id, node) VALUES ('\(Store.spool)', 'n');
                SELECT settle_hops('\(Store.spool)', '{1}', '{1}', '{2}', '{7}', '{7}', '{1}');
                UPDATE project_service SET next_reset = now() - interval '1 h';
                """)
            #expect(try await store.run("SELECT reset_if_due(1, 1)") == ["t"])
            #expect(
                try await store.run("SELECT period, used_request, ledger_used, openings, is_wrong FROM quota_balance") == ["3|0|0|1|f"])
            #expect(
                try await store.run("SELECT period, sum(used_delta), sum(limit_delta) FROM quota_ledger GROUP BY 1 ORDER BY 1")
                    == ["1|0|60", "2|7|0", "3|0|60"])
        }
    }

    /// Both at once, whichever has the row first.
    @Test(arguments: [true, false]) func aResetAndABatchOfAForgottenPeriodSeeEachOther(_ batchIsFirst: Bool) async throws {
        try await withStore { store in
            try await store.seed(limit: 100)
            try await store.run(
                """
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 60);
                INSERT INTO log_spool (id, node) VALUES ('\(Store.spool)', 'n');
                UPDATE project_service SET next_reset = now() - interval '1 h';
                """)
            let batch = "SELECT pandora.settle_hops('\(Store.spool)', '{1}', '{1}', '{2}', '{7}', '{7}', '{1}')"
            let reset = "SELECT pandora.reset_if_due(1, 1)"
            let (first, watcher) = (try await store.connect(), try await store.connect())
            try await first.script("BEGIN; \(batchIsFirst ? batch : reset)")
            async let second = store.run(batchIsFirst ? reset : batch)
            try await eventually("the other one waits") {
                try await watcher.script(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )[0].string(0) == "1"
            }
            try await first.script("COMMIT")
            _ = try await second
            #expect(
                try await store.run("SELECT period, used_request, ledger_used, openings, is_wrong FROM quota_balance")
                    == [batchIsFirst ? "3|0|0|1|f" : "2|7|7|1|f"])
            for client in [first, watcher] { await client.shutdown() }
        }
    }

    /// Of one service of one project: the others have their own periods.
    @Test func aResetLeavesOtherServicesAndOtherProjectsAlone() async throws {
        try await withStore { store in
            try await store.seed(limit: 100)
            try await store.seedNeighbours()
            try await store.run(
                """
                INSERT INTO project_service (project_id, service_id, reset_frequency) VALUES (1, 2, 'daily'), (2, 1, 'daily');
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 60), (1, 2, 70), (2, 1, 80);
                UPDATE environment_service SET used_request = 30, available_request = max_request - 30, held_request = 5;
                UPDATE project_service SET next_reset = now() - interval '1 h';
                """)
            let periods = "SELECT environment_id, service_id, period, used_request, held_request FROM environment_service ORDER BY 1, 2"
            let due = "SELECT project_id, service_id FROM project_service WHERE next_reset < now() ORDER BY 1, 2"
            // A question resets what it is about.
            try await store.run("SELECT reset_rows_due('{1}', '{1}')")
            #expect(try await store.run(periods) == ["1|1|2|0|0", "1|2|1|30|5", "2|1|1|30|5"])
            #expect(try await store.run(due) == ["1|2", "2|1"])
            #expect(try await store.run("SELECT reset_if_due(1, 1), reset_if_due(1, 2)") == ["f|t"])
            #expect(try await store.run(due) == ["2|1"])
            #expect(try await store.run("SELECT reset_if_due(1, 1), reset_if_due(2, 1)") == ["f|t"])
            #expect(try await store.run(periods) == ["1|1|2|0|0", "1|2|2|0|0", "2|1|2|0|0"])
            #expect(try await store.run("SELECT reset_next_due()") == ["f"])
        }
    }

    /// The one that is due longest comes first, and one that another session has in hand is left to it.
    @Test func aSweepersTurnIsTheOldestResetThatNobodyHasInHand() async throws {
        try await withStore { store in
            try await store.seed(limit: 100)
            try await store.run(
                """
                INSERT INTO service (name) VALUES ('t'), ('u');
                INSERT INTO project_service (project_id, service_id, reset_frequency) VALUES (1, 2, 'daily'), (1, 3, 'daily');
                UPDATE project_service SET next_reset = now() - service_id * interval '1 h';
                """)
            let other = try await store.connect()
            try await other.script("BEGIN; SELECT FROM pandora.project_service WHERE service_id = 3 FOR NO KEY UPDATE")
            #expect(try await store.run("SET lock_timeout = '10 s'; SELECT reset_next_due()") == ["t"])
            #expect(try await store.run("SELECT service_id FROM project_service WHERE next_reset < now() ORDER BY 1") == ["1", "3"])
            await other.shutdown()
        }
    }

    @Test func nodesThatFindAResetDueAtOnceDoItOnce() async throws {
        try await withStore { store in
            try await store.seed(limit: 100)
            try await store.run(
                """
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 60);
                UPDATE project_service SET next_reset = '2020-01-01Z';
                """)
            var clients: [PostgresClient] = []
            for _ in 0..<6 { clients.append(try await store.connect()) }
            let done = try await withThrowingTaskGroup(of: String?.self) { group in
                for (index, client) in clients.enumerated() {
                    let call = index.isMultiple(of: 2) ? "reset_if_due(1, 1)" : "reset_next_due()"
                    group.addTask { try await client.script("SELECT pandora.\(call)")[0].string(0) }
                }
                return try await group.reduce(into: []) { $0.append($1) }
            }
            #expect(done.count { $0 == "t" } == 1)
            #expect(try await store.run("SELECT period FROM environment_service") == ["2"])
            for client in clients { await client.shutdown() }
        }
    }

    /// Periods that are over do not go on because somebody edits the calendar before anybody has reset them.
    @Test(arguments: ["time_zone = 'Asia/Tokyo'", "anchor = '2024-01-01 06:00'", "reset_frequency = 'daily'"])
    func anEditOfTheCalendarDoesNotUndoAResetThatIsDue(_ edit: String) async throws {
        try await withStore { store in
            try await store.seed(limit: 100)
            try await store.run(
                """
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 60);
                UPDATE project_service SET next_reset = clock_timestamp() - interval '1 s';
                UPDATE project_service SET \(edit);
                """)
            #expect(try await store.run("SELECT reset_next_due()") == ["t"])
            // From there on the new calendar counts.
            #expect(
                try await store.run(
                    "SELECT next_reset = next_boundary(anchor, reset_frequency, time_zone, clock_timestamp()) FROM project_service")
                    == ["t"])
            #expect(try await store.run("SELECT period FROM environment_service") == ["2"])
            try await store.run("UPDATE project_service SET next_reset = now(); UPDATE project_service SET reset_frequency = NULL")
            #expect(try await store.run("SELECT reset_next_due()") == ["f"])
        }
    }

    /// Whoever resets several projects, or rows beside those that it asks for, waits for no row that comes before one it has.
    @Test(arguments: ["true", "project_id = 1"]) func resetsLockRowsInEverybodysOrder(_ due: String) async throws {
        try await withStore { store in
            try await store.seed(limit: 100)
            // The environment that comes first belongs to the project that comes last.
            try await store.run(
                """
                INSERT INTO project (client_id, name) VALUES (1, 'q');
                UPDATE environment SET project_id = 2;
                INSERT INTO environment (project_id, name) VALUES (1, 'e2');
                INSERT INTO project_service (project_id, service_id, max_request, reset_frequency) VALUES (2, 1, 100, 'monthly');
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 100), (2, 1, 100);
                INSERT INTO log_spool (id, node) VALUES ('\(Store.spool)', 'n');
                UPDATE project_service SET next_reset = '2020-01-01Z' WHERE \(due);
                """)
            // As a log batch has them.
            async let batch: Void = store.holdRows(
                "WHERE environment_id = 1", then: "SELECT FROM environment_service WHERE environment_id = 2 FOR NO KEY UPDATE")
            try await store.rowsAreHeld(1)
            #expect(
                try await store.refusal(of: "SELECT lease_acquire('\(Store.spool)', 1, '{2, 1}', '{1, 1}', '{5, 5}', '{5, 5}')") == nil)
            try await batch
            #expect(
                try await store.run("SELECT environment_id, held_request FROM environment_service ORDER BY 1") == ["1|5", "2|5"])
            #expect(try await store.run("SELECT count(*) FROM project_service WHERE next_reset < now()") == ["0"])
        }
    }
}
