import GatewayCore
import GatewayStore
import Postgres
import Reactor
import Synchronization
import TestKit
import Testing

/// A snapshot never shows half of what happens: the doctor finds nothing while everything moves, and finds and repairs what
/// was broken in the middle of it.
@Suite struct DoctorTrafficTests {
    /// Service 1 is small, edited and reset all the time; service 2 is large and left alone: nothing heals there by itself.
    private static func makeDatabase() async throws -> TestDatabase {
        let database = try await TestDatabase.withQuota(500)
        try await database.psql(
            """
            SET search_path = pandora;
            UPDATE project_service SET max_request = NULL;
            INSERT INTO service (name, version) VALUES ('t', '1');
            INSERT INTO project_service (project_id, service_id, max_request) VALUES (1, 2, 1000000);
            INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 2, 1000000);
            INSERT INTO api_key (id, environment_id, key, prefix) VALUES ('\(FlowNode.key)', 1, sha256('a'), 'a');
            """)
        return database
    }

    private static func want(_ units: Int64, service: Int64) -> QuotaWant {
        QuotaWant(environmentID: 1, serviceID: service, units: units, limited: true, outage: .deny)
    }

    /// Requests of both services: charged in part, refused where nothing is left.
    private static func request(_ node: ServingNode, until isOver: Flag) async throws {
        while !isOver.isSet {
            _ = try await node.serve((0..<40).map { (want(3, service: $0 % 2 + 1), Int64($0 % 4)) })
        }
    }

    /// Flows that are committed, rolled back on request, and left to expire.
    private static func flow(_ node: FlowNode, _ database: TestDatabase, until isOver: Flag) async throws {
        while !isOver.isSet {
            _ = try await node.runMany(10)
            for service in [Int64(1), 2] {
                let started = try await node.start { $0.row.serviceID = service }
                if let open = started.flow { _ = try await node.resolve(open.id, commits: false) }
                _ = try await node.start { $0.row.serviceID = service }
            }
            try await database.psql(
                "UPDATE pandora.reservations SET expires_at = now() - interval '1 s'; SELECT pandora.flow_expire(1000, '0')")
        }
    }

    /// A limit that is edited, taken away and set again, and periods that end.
    private static func administer(_ database: TestDatabase, until isOver: Flag) async throws -> Int64 {
        var round: Int64 = 0
        while !isOver.isSet {
            round += 1
            let limit = round % 4 == 0 ? "NULL" : "\(500 - round % 7)"
            try await database.psql(
                """
                UPDATE pandora.environment_service SET max_request = \(limit) WHERE service_id = 1;
                UPDATE pandora.project_service SET next_reset = now() WHERE service_id = 1;
                SELECT pandora.reset_if_due(1, 1);
                """)
            try await Task.sleep(for: .milliseconds(100))
        }
        return round
    }

    @Test func nothingIsFoundInTrafficButWhatIsBroken() async throws {
        let database = try await Self.makeDatabase()
        let root = TemporaryFolder()
        var nodes: [ServingNode] = []
        for seed in 1...2 { nodes.append(try await ServingNode(database, root, seed: UInt64(seed))) }
        let flows = try await FlowNode(database)
        let reactor = try Reactor.start(name: "doctor")
        let client = try await PostgresClient.connect(to: database.url, on: reactor)
        let patient = Patient(database: database, doctor: Doctor(client, actor: "test"))
        let isOver = Flag()

        let periods = try await withThrowingTaskGroup(of: Int64.self) { group in
            defer { isOver.set() }
            for node in nodes {
                group.addTask {
                    try await Self.request(node, until: isOver)
                    return 0
                }
            }
            group.addTask {
                try await Self.flow(flows, database, until: isOver)
                return 0
            }
            group.addTask { try await Self.administer(database, until: isOver) }
            for _ in 0..<4 {
                for _ in 0..<3 { try await patient.looksWell() }
                try await patient.brokenHoldsAreFoundAndRepaired()
                try await patient.aMissingRowOfTheLogIsFound()
            }
            isOver.set()
            return try await group.reduce(0, +)
        }

        #expect(periods > 1)
        for node in nodes { try await node.close() }
        try await flows.close()
        try await patient.looksWell()
        #expect(try await database.psql("SELECT held_request FROM pandora.environment_service") == ["0", "0"])
        #expect(try await database.number("SELECT sum(units) FROM pandora.request_logs") > 1_000)
        #expect(try await database.number("SELECT count(*) FROM pandora.quota_ledger WHERE outcome IS NOT NULL") > 50)
        #expect(try await database.number("SELECT count(*) FROM pandora.audit_log WHERE action = 'repair'") == 4)
        await client.shutdown()
        reactor.stop()
    }

    /// What the doctor is to look at, and what is done to it.
    private struct Patient {
        let database: TestDatabase
        let doctor: Doctor
        static let place = "c/p/e t/1, period 1"

        /// How the server is set up, and who else uses it, is not what is asked here.
        private func findings() async throws -> [Finding] {
            try await doctor.examine().filter { $0.check != .durability && $0.check != .connections }
        }

        func looksWell() async throws {
            let found = try await findings()
            #expect(found == [])
        }

        func brokenHoldsAreFoundAndRepaired() async throws {
            try await database.psql("UPDATE pandora.environment_service SET held_request = held_request + 100000 WHERE service_id = 2")
            let found = try await findings()
            #expect(found.map(\.check) == [.held] && found.first?.place == Self.place)
            let repairs = try await doctor.repair()
            let held = repairs.filter { $0.what == "held" }
            #expect(held.map(\.object) == [Self.place] && (held.first?.was ?? 0) - (held.first?.became ?? 0) == 100_000)
            // A reset that was due just then may have been done, too.
            #expect(repairs.allSatisfy { ["held", "reset"].contains($0.what) })
            try await looksWell()
        }

        func aMissingRowOfTheLogIsFound() async throws {
            try await eventually("a row is there") {
                try await database.number("SELECT count(*) FROM pandora.request_logs WHERE service_id = 2 AND units > 0") > 0
            }
            try await database.psql(
                """
                CREATE TABLE public.torn AS
                    SELECT * FROM pandora.request_logs WHERE service_id = 2 AND units > 0 ORDER BY id DESC LIMIT 1;
                DELETE FROM pandora.request_logs WHERE id IN (SELECT id FROM public.torn);
                """)
            let found = try await findings()
            #expect(found.map(\.check) == [.log] && found.first?.place == Self.place)
            try await database.psql("INSERT INTO pandora.request_logs SELECT * FROM public.torn; DROP TABLE public.torn")
            try await looksWell()
        }
    }

    private final class Flag: Sendable {
        private let value = Atomic(false)
        var isSet: Bool { value.load(ordering: .relaxed) }
        func set() { value.store(true, ordering: .relaxed) }
    }
}
