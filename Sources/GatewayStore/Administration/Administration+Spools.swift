internal import GatewayCore
internal import Postgres

/// A worker's log on its node's disk, as the database knows it. Moments are microseconds since 1970.
public struct SpoolRecord: Sendable, Equatable {
    /// A UUID in text.
    public var id: String
    /// The label of the node; nil: the database knows the spool by its leases alone.
    public var node: String?
    /// Goes up whenever a process opens the spool, and when it is forgotten.
    public var epoch: Int64?
    /// Bytes of it that are in the database.
    public var shippedTo: Int64?
    public var openedAt: Int64?
    /// It was opened, shipped, or asked for units.
    public var heardAt: Int64
    /// Microseconds since, by the server's clock.
    public var silence: Int64
    /// Units in its leases that are neither used nor given back.
    public var open: Int64
    /// Units of its leases that were written off and may still be used.
    public var lost: Int64
}

extension Administration {
    /// Spools, those heard of last first; at most ``listMax``.
    ///
    /// - Parameter all: also those that hold nothing and have been silent for a day.
    public func spools(all: Bool = false) async throws(AdministrationError) -> [SpoolRecord] {
        try await read(SpoolSQL.list) {
            $0.append(String?.none)
            $0.append(all)
        }.map(SpoolRecord.init)
    }

    /// - Parameter reference: its id.
    public func spool(_ reference: String) async throws(AdministrationError) -> SpoolRecord {
        guard let id = UUIDBits(reference) else {
            throw AdministrationError(.invalidValue, "a spool is named by its id, a UUID", hint: "pandora node list shows them")
        }
        let rows = try await read(SpoolSQL.list) {
            $0.append("\(id)")
            $0.append(true)
        }
        return try Self.one(rows.map(SpoolRecord.init), "spool", id)
    }

    /// An operator's word that the spool's node is gone. If it is not, it is fenced.
    ///
    /// - Parameter refund: the units it has open go back; otherwise they are charged.
    /// - Returns: how many there were.
    public func forgetSpool(_ id: String, refund: Bool) async throws(AdministrationError) -> Int64 {
        let rows = try await change(SpoolSQL.forget) {
            $0.append(id)
            $0.append(refund)
        }
        return rows[0].int64(0)
    }
}

extension SpoolRecord {
    fileprivate init(_ row: Row) {
        self.init(
            id: row.string(0), node: row.string(1), epoch: row.int64(2), shippedTo: row.int64(3),
            openedAt: row.timestampMicroseconds(4), heardAt: row.timestampMicroseconds(5), silence: row.int64(6),
            open: row.int64(7), lost: row.int64(8))
    }
}

private enum SpoolSQL {
    static let list = Statement(
        name: "spool_list",
        sql: """
            SELECT k.id::text, k.node, k.epoch, k.shipped_to, k.opened_at, k.heard_at,
                   (extract(epoch FROM clock_timestamp() - k.heard_at) * 1000000)::bigint, k.open, k.lost
              FROM (SELECT coalesce(s.id, h.spool_id) AS id, s.node, s.epoch, s.shipped_to, s.opened_at,
                           greatest(s.opened_at, s.shipped_at, h.heard_at) AS heard_at,
                           coalesce(h.open, 0)::bigint AS open, coalesce(h.lost, 0)::bigint AS lost
                      FROM pandora.log_spool s
                      FULL JOIN (SELECT l.spool_id, max(l.heard_at) AS heard_at, sum(l.granted - l.settled) AS open,
                                        sum(l.lost - l.refunded) AS lost
                                   FROM pandora.quota_lease l GROUP BY 1) AS h ON h.spool_id = s.id) AS k
             WHERE ($1 IS NULL OR k.id = $1::uuid)
               AND ($2 OR k.open > 0 OR k.heard_at > clock_timestamp() - interval '1 day')
             ORDER BY k.heard_at DESC, k.id LIMIT \(Administration.listMax)
            """,
        parameterTypes: [.text, .bool])

    static let forget = Statement(
        name: "spool_forget",
        sql: """
            WITH forgotten AS MATERIALIZED (SELECT pandora.forget_spool($2::uuid, $3) AS units),
            audited AS (
                INSERT INTO pandora.audit_log (actor, action, object_kind, object_id, detail)
                SELECT $1, 'forget', 'spool', $2, jsonb_build_object('units', f.units, 'refund', $3) FROM forgotten f)
            SELECT f.units FROM forgotten f
            """,
        parameterTypes: [.text, .text, .bool])
}
