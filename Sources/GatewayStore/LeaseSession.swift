public import GatewayCore
public import NIOCore
public import Postgres

/// A worker's conversation with the store about its leases, in the messages of a ``LeaseBook``.
///
/// Confined to the reactor of its client.  Every call fails with SQLSTATE `PN004` once another process has opened
/// the spool.
public struct LeaseSession: Sendable {
    private let client: PostgresClient
    private let spool: String
    private let epoch: Int64

    /// - Parameters:
    ///   - client: a pipeline connection: what was sent first takes effect first.
    ///   - spool: the id of the worker's spool, a UUID in text.
    ///   - epoch: the one under which this process opened it.
    public init(_ client: PostgresClient, spool: String, epoch: Int64) {
        self.client = client
        self.spool = spool
        self.epoch = epoch
    }

    public var isReady: Bool { client.isReady }

    /// Asks for all rows in one statement, which performs a due reset first.  Answers in the order of the questions.
    ///
    /// - Parameter questions: at most one of a row.
    public func acquire(
        _ questions: [LeaseQuestion], deadline: TimeAmount,
        _ done: @escaping (Result<[LeaseAnswer], PostgresError>) -> Void
    ) {
        var parameters = holder()
        parameters.append(questions.map(\.row.environmentID))
        parameters.append(questions.map(\.row.serviceID))
        parameters.append(questions.map(\.need))
        parameters.append(questions.map(\.wish))
        client.execute(Self.acquireStatement, parameters, deadline: deadline) { result in
            done(result.map { rows in rows.map(LeaseAnswer.init) })
        }
    }

    /// Returns idle units, said as totals: saying it again changes nothing.
    public func giveBack(
        _ returns: [LeaseReturn], deadline: TimeAmount, _ done: @escaping (Result<Void, PostgresError>) -> Void
    ) {
        var parameters = holder()
        parameters.append(returns.map(\.row.environmentID))
        parameters.append(returns.map(\.row.serviceID))
        parameters.append(returns.map(\.period))
        parameters.append(returns.map(\.totalReturned))
        client.execute(Self.returnStatement, parameters, deadline: deadline) { done($0.map { _ in }) }
    }

    /// All leases of the spool.
    public func read(deadline: TimeAmount, _ done: @escaping (Result<[LeaseRecord], PostgresError>) -> Void) {
        client.execute(Self.readStatement, holder(), deadline: deadline) { result in
            done(result.map { rows in rows.map(LeaseRecord.init) })
        }
    }

    /// Asks the other holders of a row to return idle units (NOTIFY quota_recall, payload `environment:service`).
    public func recall(_ row: QuotaRow, deadline: TimeAmount) {
        var parameters = Parameters()
        parameters.append("\(row.environmentID):\(row.serviceID)")
        client.execute(Self.recallStatement, parameters, deadline: deadline) { _ in }
    }

    private func holder() -> Parameters {
        var parameters = Parameters()
        parameters.append(spool)
        parameters.append(epoch)
        return parameters
    }

    private static let acquireStatement = Statement(
        name: "lease_ask",
        sql: """
            SELECT assigned, unit_limit, period, total_granted, total_returned, total_overrun, own_open, free, held,
                   reset_us, flow_deadline_us
              FROM pandora.lease_acquire($1::uuid, $2, $3, $4, $5, $6) ORDER BY ordinal
            """,
        parameterTypes: [.text, .int8, .int8Array, .int8Array, .int8Array, .int8Array])

    private static let returnStatement = Statement(
        name: "lease_return",
        sql: "SELECT pandora.lease_return($1::uuid, $2, $3, $4, $5, $6)",
        parameterTypes: [.text, .int8, .int8Array, .int8Array, .int8Array, .int8Array])

    // A condition, as the planner drops calls of stable functions whose results nobody reads.  It is asked first and once.
    private static let readStatement = Statement(
        name: "lease_records",
        sql: """
            SELECT environment_id, service_id, period, granted, returned, overrun, granted - settled
              FROM pandora.quota_lease
             WHERE spool_id = $1::uuid AND pandora.require_spool($1::uuid, $2) IS NOT NULL
             ORDER BY 1, 2, 3
            """,
        parameterTypes: [.text, .int8])

    private static let recallStatement = Statement(
        name: "lease_recall_others", sql: "SELECT pg_notify('quota_recall', $1)", parameterTypes: [.text])
}

extension LeaseAnswer {
    fileprivate init(_ row: Row) {
        guard row.bool(0) else {
            self = .notAssigned
            return
        }
        guard let limit: Int64 = row.int64(1) else {
            self = .unlimited(period: row.int64(2))
            return
        }
        self = .limited(
            LeaseNumbers(
                period: row.int64(2),
                totals: LeaseTotals(granted: row.int64(3), returned: row.int64(4), overrun: row.int64(5)),
                ownOpen: row.int64(6), free: row.int64(7), held: row.int64(8), limit: limit,
                resetIn: row.int64(9), flowDeadlineIn: row.int64(10)))
    }
}

extension LeaseRecord {
    fileprivate init(_ row: Row) {
        self.init(
            row: QuotaRow(environmentID: row.int64(0), serviceID: row.int64(1)), period: row.int64(2),
            totals: LeaseTotals(granted: row.int64(3), returned: row.int64(4), overrun: row.int64(5)),
            open: row.int64(6))
    }
}
