import Foundation
import GatewayCore
import GatewayStore
import NIOCore
import Reactor
import TestKit

@testable import Gateway
@testable import Postgres

/// A node's shipper on a control reactor of its own, over a real connection.
///
/// Sendable: everything but the immutable references and what is locked is used on the reactor only.
final class LogNode: @unchecked Sendable {
    let control: Reactor
    private let client: PostgresClient
    private let target: TamperingTarget
    private let shipper: Shipper
    private let told = Locked<[Shipper.Event]>([])
    private let openings = Locked<[(spool: UUIDBits, epoch: Int64)]>([])

    /// - Parameter opened: called on the control reactor when a worker's spool was opened.
    init(
        _ url: String, _ adjust: @Sendable (inout Shipper.Settings) -> Void = { _ in },
        opened: @escaping @Sendable (UUIDBits, Int64) -> Void = { _, _ in }
    ) async throws {
        let control = try Reactor.start(name: "control")
        self.control = control
        var configuration = try PostgresConfiguration.patient(url)
        configuration.applicationName = "shipper"
        client = PostgresClient(configuration, role: .session, on: control)
        var settings = Shipper.Settings()
        settings.delay = .milliseconds(20)
        settings.retry = .milliseconds(10)
        settings.housekeeping = .milliseconds(50)
        adjust(&settings)
        target = TamperingTarget(ShipSession(client))
        shipper = Shipper(on: control, target: target, settings: settings)
        shipper.onEvent = { [told] event in told.withLock { $0.append(event) } }
        shipper.onOpened = { [openings] spool, epoch in
            openings.withLock { $0.append((spool, epoch)) }
            opened(spool, epoch)
        }
        try await on { [client] shipper in
            client.onStateChange = { [weak shipper] state in
                if case .ready = state { shipper?.storeReady() }
            }
            client.start()
        }
        try await client.ready(within: patience)
    }

    func on<Value: Sendable>(_ body: @escaping @Sendable (Shipper) throws -> Value) async throws -> Value {
        try await control.submit { [shipper] in try body(shipper) }.get()
    }

    /// Changes what becomes of the questions to the database.
    func tamper(_ body: @escaping @Sendable (TamperingTarget) -> Void) async throws {
        try await control.submit { [self] in body(target) }.get()
    }

    func attach(_ worker: SpoolWorker) async throws { try await on { [handle = worker.handle] in try $0.attach(handle) } }

    func adopt(_ root: TemporaryFolder) async throws { try await on { $0.adopt(root: root.path) } }

    func counters() async throws -> Shipper.Counters { try await on { $0.counters } }

    var events: [Shipper.Event] { told.withLock { $0 } }
    var opened: [(spool: UUIDBits, epoch: Int64)] { openings.withLock { $0 } }

    /// Waits until everything written so far is in the database.
    func drain() async throws {
        let isDrained = Locked(false)
        try await on { shipper in shipper.drain { isDrained.withLock { $0 = true } } }
        try await eventually("drained; \(events)") { isDrained.withLock { $0 } }
    }

    /// Breaks the connection as the server's administrator would.
    func cutOff(_ database: TestDatabase) async throws {
        try await database.psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'shipper'")
    }

    /// Ends without a word.
    func end() async throws {
        try await on { $0.stop() }
        await client.shutdown()
        control.stop()
        try await offTheCooperativePool { [control] in control.join() }
    }
}

/// The database as it is, except for what a test wants to go wrong. Used on the control reactor only.
final class TamperingTarget: ShipTarget {
    private let session: ShipSession
    /// So many batches to come are booked, but the answer to their COMMIT is lost.
    var lostAnswers = 0
    /// So many batches to come are refused as a deadlock would be.
    var deadlocks = 0
    /// Frames of each batch that was tried.
    private(set) var batches = 0

    init(_ session: ShipSession) { self.session = session }

    var isReady: Bool { session.isReady }

    func open(_ spool: UUIDBits, node: String, _ done: @escaping (Result<SpoolMark, PostgresError>) -> Void) {
        session.open(spool, node: node, done)
    }

    func mark(of spool: UUIDBits, _ done: @escaping (Result<SpoolMark?, PostgresError>) -> Void) {
        session.mark(of: spool, done)
    }

    func ship(_ shipment: Shipment, _ done: @escaping (Result<ShipmentOutcome, PostgresError>) -> Void) {
        batches += 1
        if deadlocks > 0 {
            deadlocks -= 1
            return done(.failure(PostgresError(.server(.deadlockDetected), "deadlock detected")))
        }
        session.ship(shipment) { [self] result in
            guard lostAnswers > 0, case .success(.shipped) = result else { return done(result) }
            lostAnswers -= 1
            done(.failure(PostgresError(.connectionLost, "lost", statement: "commit", mayHaveTakenEffect: true)))
        }
    }

    func returnLeases(of spool: UUIDBits, epoch: Int64, _ done: @escaping (Result<Void, PostgresError>) -> Void) {
        session.returnLeases(of: spool, epoch: epoch, done)
    }
}

extension TestDatabase {
    /// Ids of the log, in order.
    func loggedIDs() async throws -> [RequestID] {
        try await psql("SELECT id FROM pandora.request_logs ORDER BY id").map { RequestID($0)! }
    }

    /// A number.
    func number(_ sql: String) async throws -> Int64 { Int64(try await psql(sql)[0])! }

    /// What psql needs to make the same schema elsewhere.
    static func schemaScript() throws -> String {
        let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("../../../migrations")
        let files = try FileManager.default.contentsOfDirectory(atPath: folder.path).filter { $0.hasSuffix(".sql") }.sorted()
        return try files.map { try String(contentsOf: folder.appendingPathComponent($0), encoding: .utf8) }.joined(separator: "\n")
    }

    /// Rows whose numbers the ledger and the leases do not explain, and units of hops that are in only one of log and ledger.
    func unexplained() async throws -> [String] {
        try await psql(
            """
            SELECT 'row', e.environment_id, e.service_id, used_request, held_request, u.used, h.held
              FROM pandora.environment_service e
             CROSS JOIN LATERAL (SELECT coalesce(sum(used_delta), 0) AS used FROM pandora.quota_ledger l
                   WHERE (l.environment_id, l.service_id, l.period) = (e.environment_id, e.service_id, e.period)) u
             CROSS JOIN LATERAL (SELECT coalesce(sum(granted - settled), 0) AS held FROM pandora.quota_lease l
                   WHERE (l.environment_id, l.service_id, l.period) = (e.environment_id, e.service_id, e.period)) h
             WHERE (used_request, held_request) <> (u.used, h.held);
            SELECT 'period', *
              FROM (SELECT environment_id, service_id, period, sum(used_delta) AS booked FROM pandora.quota_ledger
                     WHERE kind IN ('hops', 'overrun') GROUP BY 1, 2, 3) l
              FULL JOIN (SELECT environment_id, service_id, coalesce(period, 1) AS period, sum(units) AS logged
                           FROM pandora.request_logs WHERE units > 0 GROUP BY 1, 2, 3) r
             USING (environment_id, service_id, period)
             WHERE booked IS DISTINCT FROM logged;
            """)
    }
}

/// A row of `request_logs`: as it should be, made of a record, and as it is.
struct LogRow: Codable, Equatable {
    var id: String
    var startPoint: String?
    var requestTime: Int64
    var executionStatus: String
    var unauthorizedReason: String?
    var statusCode: Int?
    var environmentId: Int64?
    var serviceId: Int64?
    var apiKey: String?
    var reservationId: String?
    var units: Int64
    var period: Int64?
    var outage: Bool
    var route: String?
    var target: String?
    var attempts: Int
    var repeats: Int
    var method: String?
    var host: String?
    var path: String?
    var durationUs: Int64?
    var firstByteUs: Int64?
    var bytesIn: Int64?
    var bytesOut: Int64?
    /// As PostgreSQL writes an address.
    var remoteAddress: String?
    var traceId: String?
    var node: String
    var spoolId: String

    init(_ hop: HopRecord, node: String, spool: UUIDBits) {
        id = "\(hop.id)"
        startPoint = hop.startPoint.map { "\($0)" }
        requestTime = hop.requestTime
        executionStatus = "\(hop.executionStatus.text)"
        unauthorizedReason = hop.refusal.map { "\($0.code)" } ?? (hop.executionStatus == .unauthorized ? "UNKNOWN" : nil)
        statusCode = hop.statusCode.map(Int.init)
        environmentId = hop.environmentID
        serviceId = hop.serviceID
        apiKey = hop.keyID.map { "\($0)" }
        reservationId = hop.reservationID.map { "\($0)" }
        units = hop.units
        period = hop.period == 0 ? nil : hop.period
        outage = hop.outage
        route = hop.texts.route?.text
        target = hop.texts.target?.text
        attempts = Int(hop.attempts)
        repeats = Int(hop.repeats)
        method = hop.texts.method?.text
        host = hop.texts.host?.text
        path = hop.texts.path?.text
        durationUs = hop.duration
        firstByteUs = hop.firstByte
        bytesIn = hop.bytesIn
        bytesOut = hop.bytesOut
        remoteAddress = hop.remoteAddress.map(Self.text)
        traceId = hop.traceID.map { "\($0)".filter { $0 != "-" } }
        self.node = node
        spoolId = "\(spool)"
    }

    private static func text(_ address: RemoteAddress) -> String {
        var bytes = [UInt8](repeating: 0, count: 46)
        let family = address.isIPv6 ? AF_INET6 : AF_INET
        let raw = withUnsafeBytes(of: (address.high.bigEndian, address.low.bigEndian)) { Array($0) }
        let text = bytes.withUnsafeMutableBytes { buffer in
            String(cString: inet_ntop(family, raw, buffer.baseAddress!.assumingMemoryBound(to: CChar.self), 46)!)
        }
        return address.prefixLength == (address.isIPv6 ? 128 : 32) ? text : "\(text)/\(address.prefixLength)"
    }

    /// All rows of the log, in the order of their ids.
    static func all(in database: TestDatabase) async throws -> [LogRow] {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return try await database.psql(
            """
            SELECT to_jsonb(l) || jsonb_build_object('request_time', (extract(epoch FROM l.request_time) * 1000000)::bigint)
              FROM pandora.request_logs l ORDER BY id
            """
        ).map { try decoder.decode(LogRow.self, from: Data($0.utf8)) }
    }
}
