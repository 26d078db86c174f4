public import GatewayCore
internal import NIOCore
public import Postgres

/// Reads the log of hops. May be used from any task.
public struct LogReader: Sendable {
    private let client: PostgresClient

    public init(_ client: PostgresClient) { self.client = client }

    /// Hops of one chain that are read at most.
    public static let chainMax = 10_000

    /// The newest rows, the newest last.
    public func newest(_ limit: Int, _ filter: LogFilter = LogFilter()) async throws(PostgresError) -> [LogEntry] {
        var condition = LogCondition(filter)
        condition.add(age: filter.age)
        return try await read("log_newest", condition, order: "l.id DESC", limit: limit)
    }

    /// Rows after an id, in the order of ids.
    func after(_ id: RequestID, limit: Int, _ filter: LogFilter) async throws(PostgresError) -> [LogEntry] {
        var condition = LogCondition(filter)
        condition.add(.text, { $0.append("\(id)") }) { "l.id > \($0)" }
        return try await read("log_after", condition, order: "l.id", limit: limit)
    }

    /// The rows of one batch, in the order of ids.
    ///
    /// A batch is not a range of ids: a hop that took long comes in a later one than its neighbours. But it is one
    /// transaction, so its rows bear the same mark as the row with its smallest id.
    func batch(_ batch: LogBatch, _ filter: LogFilter) async throws(PostgresError) -> [LogEntry] {
        var condition = LogCondition(filter)
        condition.add(.text, { $0.append(batch.spool) }) { "l.spool_id = \($0)::uuid" }
        condition.add(.text, { $0.append("\(batch.ids.lowerBound)") }) {
            "l.id >= \($0) AND l.xmin = (SELECT f.xmin FROM pandora.request_logs f WHERE f.id = \($0))"
        }
        condition.add(.text, { $0.append("\(batch.ids.upperBound)") }) { "l.id <= \($0)" }
        return try await read("log_batch", condition, order: "l.id", limit: nil)
    }

    /// All hops of the chain that a hop belongs to, in the order of ids; empty where the log has no such hop.
    ///
    /// - Parameter hop: any hop of the chain. The first one need not be in the log any more.
    public func chain(of hop: RequestID) async throws(PostgresError) -> (root: RequestID, hops: [LogEntry])? {
        var parameters = Parameters()
        parameters.append("\(hop)")
        guard let found = try await client.query(Self.root, parameters, deadline: Self.patience).first,
            let root = RequestID(found.string(0))
        else { return nil }
        var filter = LogFilter()
        filter.chain = root
        var condition = LogCondition(filter)
        // A chain is of one environment.
        let environment: Int64? = found.int64(1)
        condition.add(.int8, { $0.append(environment) }) { "l.environment_id IS NOT DISTINCT FROM \($0)" }
        return (root, try await read("log_chain", condition, order: "l.id", limit: Self.chainMax))
    }

    /// The hops of a flow, in the order of ids. A step that was sent again is not among them: it is of no chain.
    public func hops(of flow: ReservationID) async throws(PostgresError) -> [LogEntry] {
        // The flow's id was made right after that of its first hop; nothing else leads from one to the other by an index.
        let began = flow.uuid.milliseconds
        var parameters = Parameters()
        parameters.append("\(flow)")
        parameters.append("\(RequestID(UUIDBits(high: (began - min(began, Self.startSlack)) << 16, low: 0)))")
        parameters.append("\(RequestID(UUIDBits(high: (began + Self.startSlack) << 16, low: 0)))")
        guard let first = try await client.query(Self.flowStart, parameters, deadline: Self.patience).first,
            let root = RequestID(first.string(0))
        else { return [] }
        var filter = LogFilter()
        (filter.chain, filter.reservation, filter.environmentID) = (root, flow, first.int64(1))
        return try await read("log_flow", LogCondition(filter), order: "l.id", limit: Self.chainMax)
    }

    /// Milliseconds between the id of a flow and that of its first hop, at most.
    private static let startSlack: UInt64 = 60_000

    /// What went upstream is a hop, and knows its chain. What did not may be a commit, or a hop that was refused, by a node whose
    /// clock is behind.
    private static let flowStart = Statement(
        name: "log_flow_start",
        sql: """
            SELECT coalesce(l.start_point, l.id), l.environment_id FROM pandora.request_logs l
             WHERE l.reservation_id = $1 AND l.id >= $2 AND l.id < $3 AND l.environment_id IS NOT NULL
             ORDER BY l.attempts = 0, l.id LIMIT 1
            """,
        parameterTypes: [.text, .text, .text])

    private func read(
        _ name: String, _ condition: LogCondition, order: String, limit: Int?
    ) async throws(PostgresError) -> [LogEntry] {
        let rows = """
            (SELECT * FROM pandora.request_logs l WHERE \(condition.sql)
              ORDER BY \(order) LIMIT \(limit.map(String.init) ?? "ALL"))
            """
        let statement = Statement(
            name: name, sql: LogEntry.sql(from: rows), parameterTypes: condition.types, isPrepared: false)
        return try await client.query(statement, condition.parameters, deadline: Self.patience).map(LogEntry.init)
    }

    /// A filter without an index reads a lot.
    private static let patience = TimeAmount.seconds(60)

    private static let root = Statement(
        name: "log_root",
        sql: """
            SELECT coalesce(l.start_point, l.id), l.environment_id FROM pandora.request_logs l WHERE l.id = $1
             UNION ALL
            (SELECT l.start_point, l.environment_id FROM pandora.request_logs l WHERE l.start_point = $1 LIMIT 1)
             LIMIT 1
            """,
        parameterTypes: [.text])
}

/// What the shipper announces of a batch (channel `pandora_log`).
struct LogBatch: Sendable, Equatable {
    var spool: String
    var ids: ClosedRange<RequestID>

    /// `spool first-id last-id`; nil for anything else.
    init?(payload: String) {
        let parts = payload.split(separator: " ")
        guard parts.count == 3, UUIDBits(String(parts[0])) != nil, let first = RequestID(String(parts[1])),
            let last = RequestID(String(parts[2])), first <= last
        else { return nil }
        (spool, ids) = (String(parts[0]), first...last)
    }
}
