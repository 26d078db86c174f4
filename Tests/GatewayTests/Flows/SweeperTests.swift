import Gateway
import GatewayCore
import GatewayStore
import NIOCore
import Postgres
import Reactor
import TestKit
import Testing

@Suite struct SweeperTests {
    /// A sweeper on a reactor of its own, much faster than the real one.
    ///
    /// Sendable: everything but the immutable references is used on the reactor only.
    final class Broom: @unchecked Sendable {
        let reactor: Reactor
        let client: PostgresClient
        let sweeper: Sweeper
        private(set) var failed: [Sweeper.Job] = []

        init(_ database: TestDatabase, rows: Int = 1_000, connected: Duration = .zero, logKeep: Duration? = nil) async throws {
            reactor = try Reactor.start(name: "sweeper")
            client = PostgresClient(try .patient(database.url), role: .session, on: reactor)
            var settings = Sweeper.Settings()
            for job in Sweeper.Job.allCases { settings.interval[job] = .milliseconds(20) }
            settings.rows = rows
            settings.connected = connected
            (settings.leaseKeep, settings.logKeep) = (.zero, logKeep)
            sweeper = Sweeper(on: reactor, session: SweepSession(client), settings: settings)
            try await reactor.submit { [self] in
                client.onStateChange = { [weak self] state in if case .ready = state { self?.sweeper.storeReady() } }
                sweeper.onError = { [weak self] job, _ in self?.failed.append(job) }
                client.start()
            }.get()
        }

        func done() async throws -> [Sweeper.Job: Int64] { try await reactor.submit { [self] in sweeper.done }.get() }
        func failures() async throws -> [Sweeper.Job] { try await reactor.submit { [self] in failed }.get() }

        func end() async throws {
            try await reactor.submit { [self] in sweeper.stop() }.get()
            await client.shutdown()
            reactor.stop()
        }
    }

    @Test func abandonedFlowsAreGivenBackHoweverManyTheyAre() async throws {
        let database = try await TestDatabase.withQuota(100)
        let node = try await FlowNode(database)
        #expect(try await node.startMany(50).compactMap(\.flow).count == 50)
        try await database.psql("UPDATE pandora.reservations SET expires_at = clock_timestamp() - interval '1 s'")
        let brooms = [try await Broom(database, rows: 7), try await Broom(database, rows: 7)]
        try await eventually("all are given back") { try await database.flowNumbers() == "0|100|0|0|0" }
        try await eventually("somebody did it") {
            var sum: Int64 = 0
            for broom in brooms { sum += try await broom.done()[.flows] ?? 0 }
            return sum == 50
        }
        for broom in brooms {
            #expect(try await broom.failures().isEmpty)
            try await broom.end()
        }
        try await node.close()
    }

    @Test func aSessionThatJustCameLeavesFlowsAndHoldersAlone() async throws {
        let database = try await TestDatabase.withQuota(100)
        let node = try await FlowNode(database)
        #expect(try await node.start().flow != nil)
        try await database.psql(
            """
            UPDATE pandora.reservations SET expires_at = clock_timestamp() - interval '1 s';
            UPDATE pandora.project_service SET next_reset = clock_timestamp() - interval '1 s';
            """)
        let broom = try await Broom(database, connected: .seconds(3_600))
        // A reset needs no such patience; when it is done the flows have had their turns.
        try await eventually("the reset is done") { try await broom.done()[.resets] == 1 }
        #expect(try await database.psql("SELECT count(*) FROM pandora.reservations")[0] == "1")
        try await broom.end()
        try await node.close()
    }

    @Test func dueResetsSilentHoldersOldLeasesAndTheLogsDaysAreSeenTo() async throws {
        let database = try await TestDatabase.withQuota(100)
        try await database.psql(
            """
            SET search_path = pandora;
            INSERT INTO log_spool (id, node)
                VALUES ('00000000-0000-7000-8000-000000000001', 'gone'), ('00000000-0000-7000-8000-000000000002', 'orderly');
            SELECT * FROM lease_acquire('00000000-0000-7000-8000-000000000001', 1, '{1}', '{1}', '{9}', '{9}');
            SELECT * FROM lease_acquire('00000000-0000-7000-8000-000000000002', 1, '{1}', '{1}', '{5}', '{5}');
            SELECT lease_give_back('00000000-0000-7000-8000-000000000002', 1, '{1}', '{1}', '{1}', '{5}');
            UPDATE quota_lease SET heard_at = clock_timestamp() - interval '1 h';
            UPDATE project_service SET next_reset = clock_timestamp() - interval '1 s';
            DROP TABLE request_logs_\(try await Self.day(database, 5));
            """)
        let broom = try await Broom(database)
        try await eventually("the reset is done") {
            try await database.psql("SELECT period, held_request FROM pandora.environment_service")[0] == "2|0"
        }
        try await eventually("the holder is written off and the other's lease dropped") {
            try await database.psql("SELECT string_agg(right(spool_id::text, 1) || ':' || lost, ' ') FROM pandora.quota_lease") == ["1:9"]
        }
        #expect(try await database.psql("SELECT sum(used_delta) FROM pandora.quota_ledger WHERE kind = 'lost'")[0] == "9")
        try await eventually("the day has its partition") {
            try await database.psql("SELECT to_regclass('pandora.request_logs_\(Self.day(database, 5))') IS NOT NULL")[0] == "t"
        }
        #expect(try await broom.failures().isEmpty)
        try await broom.end()
    }

    @Test func theLogsDaysGoWhenTheyHaveBeenKeptLongEnough() async throws {
        let database = try await TestDatabase.withQuota(100)
        for ago in 2...5 {
            try await database.psql("SELECT pandora.ensure_log_partition((clock_timestamp() AT TIME ZONE 'UTC')::date - \(ago))")
        }
        func isThere(_ ago: Int) async throws -> Bool {
            try await database.psql("SELECT to_regclass('pandora.request_logs_\(Self.day(database, -ago))') IS NOT NULL")[0] == "t"
        }
        // Nobody says how long: for ever.
        let keeper = try await Broom(database)
        try await eventually("it has looked") { try await keeper.done()[.retention] != nil }
        #expect(try await isThere(5))
        try await keeper.end()
        let broom = try await Broom(database, logKeep: .seconds(3 * 86_400))
        try await eventually("the oldest day is gone") { try await !isThere(5) }
        for ago in 1...4 { #expect(try await isThere(ago) == (ago < 4)) }
        #expect(try await broom.failures().isEmpty)
        try await broom.end()
    }

    static func day(_ database: TestDatabase, _ ahead: Int) async throws -> String {
        try await database.psql("SELECT to_char((clock_timestamp() AT TIME ZONE 'UTC')::date + \(ahead), 'YYYYMMDD')")[0]
    }

    @Test func anErrorIsReportedAndNeverFatal() async throws {
        let database = try await TestDatabase.withQuota(100)
        try await database.psql("ALTER FUNCTION pandora.flow_expire RENAME TO flow_expire_elsewhere")
        let broom = try await Broom(database)
        try await eventually("the error is reported more than once") {
            try await broom.failures().filter { $0 == .flows }.count > 1
        }
        try await database.psql(
            """
            ALTER FUNCTION pandora.flow_expire_elsewhere RENAME TO flow_expire;
            UPDATE pandora.project_service SET next_reset = clock_timestamp() - interval '1 s';
            """)
        try await eventually("the others have their turns") { try await broom.done()[.resets] == 1 }
        try await broom.end()
    }
}
