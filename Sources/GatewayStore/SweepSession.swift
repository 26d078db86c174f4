public import Postgres

/// What time brings to quota, flows and log, for whichever node sees to it first: rows that another one has in hand are left
/// to it.  Confined to the reactor of its client, of either role.
public struct SweepSession: Sendable {
    private let client: PostgresClient

    public init(_ client: PostgresClient) { self.client = client }

    public var isReady: Bool { client.isReady }

    /// Gives abandoned flows back.  Returns how many; as many as `rows`: there may be more.
    ///
    /// - Parameter connected: microseconds that this session must have been connected.
    public func expireFlows(
        rows: Int, connected: Int64, _ done: @escaping (Result<Int64, PostgresError>) -> Void
    ) {
        var parameters = Parameters()
        parameters.append(Int64(rows))
        parameters.append(connected)
        count(Self.expire, parameters, done)
    }

    /// Resets one project's service that is overdue.  Returns 0 where there is none.
    public func resetNextDue(_ done: @escaping (Result<Int64, PostgresError>) -> Void) {
        count(Self.reset, Parameters(), done)
    }

    /// Charges what holders have open that were silent for `silence` microseconds.  Returns the units.
    public func writeOff(
        silence: Int64, connected: Int64, rows: Int, _ done: @escaping (Result<Int64, PostgresError>) -> Void
    ) {
        var parameters = Parameters()
        parameters.append(silence)
        parameters.append(connected)
        parameters.append(Int64(rows))
        count(Self.writeOff, parameters, done)
    }

    /// Drops settled leases of past periods that were not heard of for `keep` microseconds.  Returns how many.
    public func dropLeases(keep: Int64, _ done: @escaping (Result<Int64, PostgresError>) -> Void) {
        var parameters = Parameters()
        parameters.append(keep)
        count(Self.dropLeases, parameters, done)
    }

    /// Makes the log's partitions up to so many days ahead.  Returns how many were made.
    public func ensurePartitions(days: Int, _ done: @escaping (Result<Int64, PostgresError>) -> Void) {
        var parameters = Parameters()
        parameters.append(Int64(days))
        count(Self.partitions, parameters, done)
    }

    /// Drops the log's oldest partitions, of days that ended `keep` microseconds ago or earlier.  Returns how many; 0: there are
    /// no more, or somebody else is at it.
    public func dropPartitions(keep: Int64, _ done: @escaping (Result<Int64, PostgresError>) -> Void) {
        var parameters = Parameters()
        parameters.append(keep)
        count(Self.retention, parameters, done)
    }

    private func count(
        _ statement: Statement, _ parameters: Parameters, _ done: @escaping (Result<Int64, PostgresError>) -> Void
    ) {
        client.execute(statement, parameters) { result in done(result.map { $0.first?.int64(0) ?? 0 }) }
    }

    private static let expire = Statement(
        name: "sweep_flows", sql: "SELECT pandora.flow_expire($1::integer, $2 * interval '1 us')",
        parameterTypes: [.int8, .int8])

    private static let reset = Statement(
        name: "sweep_reset", sql: "SELECT pandora.reset_next_due()::integer::bigint")

    private static let writeOff = Statement(
        name: "sweep_holders",
        sql: "SELECT pandora.write_off_silent($1 * interval '1 us', $2 * interval '1 us', $3::integer)",
        parameterTypes: [.int8, .int8, .int8])

    private static let dropLeases = Statement(
        name: "sweep_leases", sql: "SELECT pandora.drop_settled_leases($1 * interval '1 us')", parameterTypes: [.int8])

    private static let partitions = Statement(
        name: "sweep_partitions", sql: "SELECT pandora.ensure_log_partitions($1::integer)::bigint",
        parameterTypes: [.int8])

    private static let retention = Statement(
        name: "sweep_retention", sql: "SELECT pandora.drop_log_partitions(now() - $1 * interval '1 us')::bigint",
        parameterTypes: [.int8])
}
