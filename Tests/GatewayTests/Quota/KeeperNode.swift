import Foundation
import Gateway
import GatewayCore
import GatewayStore
import NIOCore
import Postgres
import Reactor
import TestKit

/// A worker's quota side alone: a reactor, a connection, a keeper, and the LISTEN that brings recalls.
///
/// Sendable: everything but the immutable references is used on the reactor only.
final class KeeperNode: @unchecked Sendable {
    let reactor: Reactor
    let spool: String
    private let client: PostgresClient
    private let listener: PostgresClient
    private let keeper: QuotaKeeper
    private let epoch: Int64

    /// Opens the spool and begins; the database must have the schema.
    init(_ database: TestDatabase, spool: String = UUID().uuidString.lowercased(), limits: LeaseLimits = .patient) async throws {
        self.spool = spool
        let opened = try await database.psql(
            """
            INSERT INTO pandora.log_spool AS s (id, node) VALUES ('\(spool)', 'test')
            ON CONFLICT (id) DO UPDATE SET epoch = s.epoch + 1 RETURNING epoch
            """)
        epoch = Int64(opened[0])!
        reactor = try Reactor.start(name: "keeper")
        let configuration = try PostgresConfiguration.patient(database.url)
        client = PostgresClient(configuration, role: .pipeline, on: reactor)
        listener = PostgresClient(configuration, role: .session, on: reactor)
        keeper = QuotaKeeper(on: reactor, limits: limits)
        try await onReactor { [self] in
            client.onStateChange = { [weak keeper] state in
                switch state {
                case .ready: keeper?.storeReady()
                case .lost: keeper?.storeLost()
                default: break
                }
            }
            listener.onNotification = { [weak keeper] notification in
                let ids = notification.payload.split(separator: ":").compactMap { Int64($0) }
                if ids.count == 2 { keeper?.recall(environment: ids[0], service: ids[1]) }
            }
            listener.listen(to: ["quota_recall"])
            keeper.begin(LeaseSession(client, spool: spool, epoch: epoch))
            client.start()
            listener.start()
        }
        try await client.ready(within: patience)
        try await listener.ready(within: patience)
    }

    func onReactor<Value: Sendable>(_ body: @escaping @Sendable () -> Value) async throws -> Value {
        try await reactor.submit(body).get()
    }

    /// Asks for `count` holds at once and waits for all answers.
    func admit(_ count: Int, _ want: QuotaWant) async throws -> [Admission] {
        let promise = reactor.makePromise(of: [Admission].self)
        reactor.execute { [self] in
            var answers: [Admission] = []
            for _ in 0..<count {
                keeper.admit(want) { admission in
                    answers.append(admission)
                    if answers.count == count { promise.succeed(answers) }
                }
            }
        }
        return try await promise.futureResult.get()
    }

    func reduce(_ hold: QuotaHold, to units: Int64) async throws { try await onReactor { [self] in keeper.reduce(hold, to: units) } }

    /// Settles holds; what they charged is booked as a log batch would.
    func settle(_ holds: [QuotaHold], charge: Int64, booking database: TestDatabase) async throws {
        let charged = try await onReactor { [self] in holds.map { keeper.settle($0, charge: charge) } }
        var sums: [[Int64]: (units: Int64, leased: Int64, frames: Int64)] = [:]
        for (hold, units) in zip(holds, charged) {
            let key = [hold.row.environmentID, hold.row.serviceID, hold.period]
            var sum = sums[key] ?? (0, 0, 0)
            sum = (sum.units + units, sum.leased + (hold.leased ? units : 0), sum.frames + 1)
            sums[key] = sum
        }
        for (key, sum) in sums {
            try await database.psql(
                """
                SELECT pandora.settle_hops('\(spool)', '{\(key[0])}', '{\(key[1])}', '{\(key[2])}',
                    '{\(sum.units)}', '{\(sum.leased)}', '{\(sum.frames)}')
                """)
        }
    }

    func counters() async throws -> LeaseBook.Counters { try await onReactor { [self] in keeper.counters } }

    func isFenced() async throws -> Bool { try await onReactor { [self] in keeper.isFenced } }

    func view(_ row: QuotaRow) async throws -> QuotaView? {
        try await onReactor { [self] in keeper.view(environment: row.environmentID, service: row.serviceID) }
    }

    /// Returns idle units and ends; false where `close` ran into its limit.
    func close() async throws {
        let promise = reactor.makePromise(of: Void.self)
        reactor.execute { [self] in keeper.close(within: patience) { promise.succeed(()) } }
        try await promise.futureResult.get()
        try await die()
    }

    /// Ends without a word, as a killed process does.
    func die() async throws {
        await client.shutdown()
        await listener.shutdown()
        reactor.stop()
    }
}

extension LeaseLimits {
    /// A loaded machine is no outage: requests wait for the store as long as it takes.
    static var patient: LeaseLimits {
        var limits = LeaseLimits()
        (limits.waitMax, limits.answerMax) = (120_000_000, 120_000_000)
        return limits
    }

    /// However slow the machine is: a lease is neither idle nor old.
    static var hoarding: LeaseLimits {
        var limits = patient
        (limits.idleAfter, limits.useFor) = (600_000_000, 600_000_000)
        return limits
    }
}

extension Admission {
    var hold: QuotaHold? { if case .held(let hold) = self { hold } else { nil } }

    var isRefused: Bool {
        switch self {
        case .refusedHeld, .refusedUsedUp: true
        default: false
        }
    }
}

extension TestDatabase {
    /// The schema, one client, project, environment and service, the row limited to `limit` units a day.
    static func withQuota(_ limit: Int64?) async throws -> TestDatabase {
        let database = try await TestDatabase.create(from: schema)
        let limit = limit.map(String.init) ?? "NULL"
        try await database.psql(
            """
            SET search_path = pandora;
            INSERT INTO client (type, name, email) VALUES ('developer', 'c', 'c@example.org');
            INSERT INTO project (client_id, name) VALUES (1, 'p');
            INSERT INTO environment (project_id, name) VALUES (1, 'e');
            INSERT INTO service (name, version) VALUES ('s', '1');
            INSERT INTO project_service (project_id, service_id, max_request, reset_frequency)
                VALUES (1, 1, \(limit), 'daily');
            INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, \(limit));
            """)
        return database
    }

    /// Waits until somebody has locked the row.
    func isLocked() async throws {
        try await eventually("the row is locked") {
            try await psql("SELECT count(*) FROM (SELECT FROM pandora.environment_service FOR UPDATE SKIP LOCKED) AS free")[0] == "0"
        }
    }

    /// Lets the period end while somebody waits for its row: what this transaction does is seen by nobody before it lets go.
    func endPeriodUnderAWait() async throws {
        try await psql(
            """
            BEGIN;
            UPDATE pandora.project_service SET next_reset = clock_timestamp();
            SELECT FROM pandora.environment_service FOR UPDATE;
            DO $$ BEGIN
                FOR turn IN 1..12000 LOOP
                    EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid)));
                    PERFORM pg_sleep(0.01);
                END LOOP;
            END $$;
            COMMIT;
            """)
    }

    private static let schema = Template("quota_schema") { database in
        let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent(
            "../../../migrations")
        let files = try FileManager.default.contentsOfDirectory(atPath: folder.path).filter { $0.hasSuffix(".sql") }
        for file in files.sorted() {
            try await database.psql(String(contentsOf: folder.appendingPathComponent(file), encoding: .utf8))
        }
    }

    /// used|available|held of the row, and the sum of the ledger's units.
    func numbers() async throws -> String {
        try await psql(
            """
            SELECT used_request, available_request, held_request,
                   (SELECT sum(used_delta) FROM pandora.quota_ledger l
                     WHERE (l.environment_id, l.service_id, l.period) = (1, 1, e.period))
              FROM pandora.environment_service e
            """)[0]
    }
}
