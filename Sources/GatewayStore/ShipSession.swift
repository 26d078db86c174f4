public import GatewayCore
internal import NIOCore
public import Postgres

/// Where the database has a spool's mark.
public struct SpoolMark: Sendable, Equatable {
    /// Goes up whenever somebody opens the spool; who opened it earlier is fenced.
    public var epoch: Int64
    /// Offset up to which the frames are in the database.
    public var shippedTo: Int64

    public init(epoch: Int64, shippedTo: Int64) {
        self.epoch = epoch
        self.shippedTo = shippedTo
    }
}

/// What the hops of a shipment charged in one period of one row.
public struct ShipmentCharge: Sendable, Equatable {
    public var row: QuotaRow
    /// 0: whichever is current when the shipment is booked.
    public var period: Int64
    public var units: Int64
    /// How many of them came out of a lease.
    public var leased: Int64
    public var frames: Int64

    public init(row: QuotaRow, period: Int64, units: Int64, leased: Int64, frames: Int64) {
        self.row = row
        self.period = period
        self.units = units
        self.leased = leased
        self.frames = frames
    }
}

/// A piece of a spool, cut at its mark.
public struct Shipment: Sendable {
    public var spool: UUIDBits
    public var epoch: Int64
    public var start: Int64
    public var end: Int64
    /// Rows as ``CopyRowEncoder`` writes them.
    public var rows: [UInt8]
    /// The smallest and the largest id among the rows; nil where there are none.
    public var ids: ClosedRange<RequestID>?
    public var charges: [ShipmentCharge]
    /// Flows whose settlement could not reach the database when it was due.
    public var settlements: [FlowSettlement]

    public init(
        spool: UUIDBits, epoch: Int64, start: Int64, end: Int64, rows: [UInt8], ids: ClosedRange<RequestID>?,
        charges: [ShipmentCharge], settlements: [FlowSettlement] = []
    ) {
        self.spool = spool
        self.epoch = epoch
        self.start = start
        self.end = end
        self.rows = rows
        self.ids = ids
        self.charges = charges
        self.settlements = settlements
    }
}

public enum ShipmentOutcome: Sendable, Equatable {
    /// `overrun`: units used from leases that the database does not know. `moved`: charges whose period was over.
    case shipped(overrun: Int64, moved: Int64)
    /// The mark is not where the shipment was cut, or somebody else opened the spool: nothing was written.
    case elsewhere
}

/// Opens spools in the database and ships them. Needs a client of role `session`; confined to its reactor.
public final class ShipSession {
    private let client: PostgresClient

    public init(_ client: PostgresClient) { self.client = client }

    public var isReady: Bool { client.isReady }

    /// Registers a spool or raises the epoch of a known one.
    public func open(
        _ spool: UUIDBits, node: String, _ done: @escaping (Result<SpoolMark, PostgresError>) -> Void
    ) {
        var parameters = Parameters()
        parameters.append("\(spool)")
        parameters.append(node)
        client.execute(Self.openStatement, parameters) { result in done(result.map { Self.mark($0[0]) }) }
    }

    /// The mark as it is; nil where the database does not know the spool (a failover lost it).
    public func mark(of spool: UUIDBits, _ done: @escaping (Result<SpoolMark?, PostgresError>) -> Void) {
        var parameters = Parameters()
        parameters.append("\(spool)")
        client.execute(Self.markStatement, parameters) { result in done(result.map { $0.first.map(Self.mark) }) }
    }

    /// Mark, rows, ledger, leases and quota in one transaction; or nothing of it.
    public func ship(_ shipment: Shipment, _ done: @escaping (Result<ShipmentOutcome, PostgresError>) -> Void) {
        var outcome = ShipmentOutcome.shipped(overrun: 0, moved: 0)
        client.transaction { transaction in
            transaction.execute(Self.moveMark, Self.moveParameters(shipment)) { result in
                guard case .success(let rows) = result else { return }
                guard rows.affected == 1 else {
                    outcome = .elsewhere
                    return transaction.rollback()
                }
                Self.write(shipment, in: transaction) { outcome = $0 }
            }
        } _: { result in
            done(result.map { _ in outcome })
        }
    }

    private static func write(
        _ shipment: Shipment, in transaction: Transaction, _ settled: @escaping (ShipmentOutcome) -> Void
    ) {
        if !shipment.rows.isEmpty {
            transaction.copyIn(
                into: "pandora.request_logs", columns: CopyRowEncoder.columns, rows: ByteBuffer(bytes: shipment.rows)
            ) { _ in }
        }
        if let ids = shipment.ids {
            var parameters = Parameters()
            parameters.append("\(shipment.spool) \(ids.lowerBound) \(ids.upperBound)")
            transaction.execute(announce, parameters) { _ in }
        }
        // The hot rows come last, so that they are locked briefly.
        if !shipment.settlements.isEmpty { transaction.execute(lock, lockParameters(shipment)) { _ in } }
        if !shipment.charges.isEmpty {
            transaction.execute(settle, settleParameters(shipment)) { result in
                guard case .success(let rows) = result else { return }
                settled(.shipped(overrun: rows[0].int64(0), moved: rows[0].int64(1)))
            }
        }
        for round in rounds(shipment.settlements) {
            transaction.execute(FlowSession.settleStatement, FlowSession.parameters(of: round)) { _ in }
        }
        transaction.commit()
    }

    /// A statement takes one word about each flow; what more there is comes after it.
    static func rounds(_ settlements: [FlowSettlement]) -> [[FlowOrder]] {
        var rounds: [[FlowOrder]] = []
        var said: [ReservationID: Int] = [:]
        for settlement in settlements {
            let round = said[settlement.id, default: 0]
            said[settlement.id] = round + 1
            if round == rounds.count { rounds.append([]) }
            rounds[round].append(.settle(settlement))
        }
        return rounds
    }

    /// Returns what a spool's leases have left, on the word of whoever holds the spool and has shipped all of it. What was
    /// written off meanwhile was not used either: it is refunded.
    public func returnLeases(
        of spool: UUIDBits, epoch: Int64, _ done: @escaping (Result<Void, PostgresError>) -> Void
    ) {
        var parameters = Parameters()
        parameters.append("\(spool)")
        parameters.append(epoch)
        client.execute(Self.returnAll, parameters) { done($0.map { _ in }) }
    }

    private static func mark(_ row: Row) -> SpoolMark { SpoolMark(epoch: row.int64(0), shippedTo: row.int64(1)) }

    private static func moveParameters(_ shipment: Shipment) -> Parameters {
        var parameters = Parameters()
        parameters.append("\(shipment.spool)")
        parameters.append(shipment.epoch)
        parameters.append(shipment.start)
        parameters.append(shipment.end)
        return parameters
    }

    private static func settleParameters(_ shipment: Shipment) -> Parameters {
        var parameters = Parameters()
        parameters.append("\(shipment.spool)")
        parameters.append(shipment.charges.map(\.row.environmentID))
        parameters.append(shipment.charges.map(\.row.serviceID))
        parameters.append(shipment.charges.map(\.period))
        parameters.append(shipment.charges.map(\.units))
        parameters.append(shipment.charges.map(\.leased))
        parameters.append(shipment.charges.map(\.frames))
        // Where hops charged something there were rows of them, too, unless the log takes none.
        parameters.append(shipment.rows.isEmpty)
        return parameters
    }

    private static func lockParameters(_ shipment: Shipment) -> Parameters {
        var parameters = Parameters()
        parameters.append(shipment.settlements.map { "\($0.id)" })
        parameters.append("\(shipment.spool)")
        parameters.append(shipment.charges.map(\.row.environmentID))
        parameters.append(shipment.charges.map(\.row.serviceID))
        parameters.append(shipment.charges.map(\.period))
        parameters.append(shipment.settlements.map(\.row.environmentID))
        parameters.append(shipment.settlements.map(\.row.serviceID))
        return parameters
    }

    private static let openStatement = Statement(
        name: "ship_open",
        sql: """
            INSERT INTO pandora.log_spool AS s (id, node) VALUES ($1::uuid, $2)
            ON CONFLICT (id) DO UPDATE SET epoch = s.epoch + 1, node = excluded.node, opened_at = clock_timestamp()
            RETURNING s.epoch, s.shipped_to
            """,
        parameterTypes: [.text, .text])

    private static let markStatement = Statement(
        name: "ship_mark", sql: "SELECT epoch, shipped_to FROM pandora.log_spool WHERE id = $1::uuid",
        parameterTypes: [.text])

    private static let moveMark = Statement(
        name: "ship_move",
        sql: """
            UPDATE pandora.log_spool SET shipped_to = $4, shipped_at = clock_timestamp()
             WHERE id = $1::uuid AND epoch = $2 AND shipped_to = $3
            """,
        parameterTypes: [.text, .int8, .int8, .int8])

    private static let announce = Statement(
        name: "ship_announce", sql: "SELECT pg_notify('pandora_log', $1)", parameterTypes: [.text])

    private static let lock = Statement(
        name: "ship_lock", sql: "SELECT pandora.flow_lock($1, $2::uuid, $3, $4, $5, $6, $7)",
        parameterTypes: [.textArray, .text, .int8Array, .int8Array, .int8Array, .int8Array, .int8Array])

    private static let settle = Statement(
        name: "ship_settle",
        sql: "SELECT overrun, moved FROM pandora.settle_hops($1::uuid, $2, $3, $4, $5, $6, $7, $8)",
        parameterTypes: [.text, .int8Array, .int8Array, .int8Array, .int8Array, .int8Array, .int8Array, .bool])

    private static let returnAll = Statement(
        name: "ship_return",
        sql: """
            SELECT pandora.lease_return($1::uuid, $2, array_agg(l.environment_id), array_agg(l.service_id), array_agg(l.period),
                                        array_agg(l.returned + l.granted - l.settled + l.lost - l.refunded))
              FROM pandora.quota_lease l
             WHERE l.spool_id = $1::uuid AND (l.granted > l.settled OR l.lost > l.refunded)
            """,
        parameterTypes: [.text, .int8])
}
