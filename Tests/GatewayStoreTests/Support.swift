import GatewayStore
import Glibc
import NIOCore
import Postgres
import Reactor
import TestKit
import Testing

/// A migrated database of one's own, and a connection to it.
struct Store: Sendable {
    let database: TestDatabase
    let reactor: Reactor
    let client: PostgresClient

    var admin: Administration { Administration(client, actor: "test") }

    /// Rows of the last command, columns separated by `|`.
    @discardableResult
    func run(_ sql: String) async throws -> [String] {
        try await client.script("SET search_path = pandora; " + sql).map { row in
            (0..<row.columns).map { row.string($0) ?? "" }.joined(separator: "|")
        }
    }

    /// The SQLSTATE that the server refuses commands with; nil where it does not.
    func refusal(of sql: String) async throws -> String? {
        do { try await run(sql) } catch let error as PostgresError { return error.sqlState?.code }
        return nil
    }

    /// Another connection.
    func connect() async throws -> PostgresClient {
        try await PostgresClient.connect(to: database.url, on: reactor)
    }

    /// The answer to `second`, which is asked while `first` is done but not committed yet, on another connection: it comes at
    /// once, or after the commit where it must wait for that.
    func answer(to second: String, amid first: String) async throws -> [String] {
        let (one, other) = (try await connect(), try await connect())
        try await one.script("SET search_path = pandora; BEGIN; \(first)")
        let isDone = Locked(false)
        async let rows = {
            defer { isDone.withLock { $0 = true } }
            return try await other.script("SET search_path = pandora; \(second)").map { row in
                (0..<row.columns).map { row.string($0) ?? "" }.joined(separator: "|")
            }
        }()
        try await eventually("it is done or waits") {
            if isDone.withLock({ $0 }) { return true }
            return try await run(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") != ["0"]
        }
        try await one.script("COMMIT")
        let answer = try await rows
        await one.shutdown()
        await other.shutdown()
        return answer
    }

    static let spool = "00000000-0000-7000-8000-000000000001"

    /// Has rows of quota locked until somebody waits for them; then runs the rest of the transaction.
    func holdRows(_ rows: String = "", then rest: String) async throws {
        try await database.psql(
            """
            SET search_path = pandora;
            BEGIN;
            SELECT FROM environment_service \(rows) FOR NO KEY UPDATE;
            DO $$ BEGIN
                FOR turn IN 1..12000 LOOP
                    EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid)));
                    PERFORM pg_sleep(0.01);
                END LOOP;
            END $$;
            \(rest);
            COMMIT;
            """)
    }

    /// Waits until so many rows of quota are locked by others.
    func rowsAreHeld(_ count: Int) async throws {
        try await eventually("rows are locked") {
            try await run(
                """
                SELECT (SELECT count(*) FROM environment_service) - count(*)
                  FROM (SELECT FROM environment_service FOR NO KEY UPDATE SKIP LOCKED) AS free
                """) == ["\(count)"]
        }
    }

    /// One client, project and service, and environments e1, e2 …; the service is assigned to the project.
    func seed(limit: Int64?, environments: Int = 1) async throws {
        try await run(
            """
            INSERT INTO client (name) VALUES ('c');
            INSERT INTO project (client_id, name) VALUES (1, 'p');
            INSERT INTO service (name) VALUES ('s');
            INSERT INTO environment (project_id, name) SELECT 1, 'e' || n FROM generate_series(1, \(environments)) AS n ORDER BY n;
            INSERT INTO project_service (project_id, service_id, max_request, reset_frequency)
                VALUES (1, 1, \(limit.map(String.init) ?? "NULL"), 'monthly');
            """)
    }

    /// Beside what ``seed(limit:environments:)`` makes: the service 2, and the project 2 of the same client with the next environment.
    func seedNeighbours() async throws {
        try await run(
            """
            INSERT INTO service (name) VALUES ('t');
            INSERT INTO project (client_id, name) VALUES (1, 'q');
            INSERT INTO environment (project_id, name) VALUES (2, 'e');
            """)
    }
}

extension TestDatabase.Template {
    static let schema = TestDatabase.Template("store_schema") { database in
        try await withClient(of: database) { client, _ in try await Migrator(client).migrate() }
    }
}

func withStore(_ body: (Store) async throws -> Void) async throws {
    let database = try await TestDatabase.create(from: .schema)
    try await withClient(of: database) { client, reactor in
        try await body(Store(database: database, reactor: reactor, client: client))
    }
}

/// A reactor and a connection, ended with the test.
func withClient(of database: TestDatabase, _ body: (PostgresClient, Reactor) async throws -> Void) async throws {
    let reactor = try Reactor.start(name: "store-test")
    let outcome: Result<Void, any Error>
    do {
        let client = try await PostgresClient.connect(to: database.url, on: reactor)
        do {
            outcome = .success(try await body(client, reactor))
        } catch {
            outcome = .failure(error)
        }
        await client.shutdown()
    } catch {
        outcome = .failure(error)
    }
    reactor.stop()
    try await offTheCooperativePool { reactor.join() }
    try outcome.get()
}

/// What the body must be refused with.
func refusal<Value>(
    sourceLocation: SourceLocation = #_sourceLocation, _ body: () async throws -> Value
) async throws -> AdministrationError.Code? {
    do { _ = try await body() } catch let error as AdministrationError { return error.code }
    Issue.record("not refused", sourceLocation: sourceLocation)
    return nil
}

enum WallClock {
    /// Since 1970.
    static var milliseconds: Int64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return Int64(time.tv_sec) * 1000 + Int64(time.tv_nsec) / 1_000_000
    }
}
