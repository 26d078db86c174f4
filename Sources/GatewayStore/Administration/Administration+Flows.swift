public import GatewayCore
internal import Postgres

/// A flow, open or ended. Moments are microseconds since 1970.
public struct FlowRecord: Sendable, Equatable {
    /// `rsv_…`
    public var id: String
    public var environmentID: Int64
    public var serviceID: Int64
    /// `client/project/environment`; nil where there is no such environment any more.
    public var environmentPath: String?
    public var servicePath: String?
    /// `open` or `finishing`; `committed`, `rolled_back` or `expired`.
    public var state: String
    /// Held while it is open, charged once it has ended.
    public var units: Int64
    public var period: Int64
    /// Of an open flow: its name, the public id of its key, the first hop of its chain, how many hops it has had.
    public var flow: String?
    public var apiKey: String?
    public var startPoint: String?
    public var hops: Int64?
    /// The hop that claimed the finish.
    public var finishingHop: String?
    public var startedAt: Int64?
    /// Of a finishing flow: when its claim is void.
    public var expiresAt: Int64?
    public var endedAt: Int64?

    public var isOpen: Bool { state == "open" || state == "finishing" }
}

/// Which open flows are wanted; what is nil does not matter.
public struct FlowFilter: Sendable, Equatable {
    public var environmentID: Int64?
    public var flow: String?
    /// `open` or `finishing`.
    public var state: String?
    /// Started at least so many microseconds ago.
    public var age: Int64?

    public init() {}
}

extension Administration {
    /// Open flows, the oldest first; at most ``listMax``.
    public func flows(_ filter: FlowFilter = FlowFilter()) async throws(AdministrationError) -> [FlowRecord] {
        let rows = try await read(FlowSQL.list) {
            $0.append(filter.environmentID)
            $0.append(filter.flow)
            $0.append(filter.state)
            $0.append(filter.age)
        }
        return rows.map(FlowRecord.init)
    }

    /// Open, or as the ledger has it.
    public func flow(_ id: ReservationID) async throws(AdministrationError) -> FlowRecord {
        let rows = try await read(FlowSQL.find) { $0.append("\(id)") }
        guard let row = rows.first else {
            throw AdministrationError(
                .notFound, "there is no flow \(id), and the ledger has none", hint: "pandora flow list shows open ones")
        }
        return FlowRecord(row)
    }

    /// Ends a flow on an operator's word: what it holds is charged, or given back.
    ///
    /// A flow that has ended already stays as it is: that is refused unless it ended the way it should.
    ///
    /// - Parameter force: also one whose finish is under way, once its claim is void.
    public func endFlow(_ id: ReservationID, commits: Bool, force: Bool) async throws(AdministrationError) -> FlowRecord {
        let wanted = commits ? "committed" : "rolled_back"
        let rows = try await change(FlowSQL.end) {
            $0.append("\(id)")
            $0.append(commits ? "commit" : "rollback")
            $0.append(force)
        }
        let verdict: String = rows[0].string(0)
        let flow = try await flow(id)
        guard verdict != wanted else { return flow }
        if verdict == "finishing" {
            throw AdministrationError(
                .conflict, "the hop \(flow.finishingHop ?? "of a node") is finishing the flow",
                hint: force
                    ? "wait until its claim is void: pandora flow show \(id) says when"
                    : "it ends by itself, or expires with its claim; --force ends it once the claim is void")
        }
        throw AdministrationError(.conflict, "the flow has ended already: \(verdict)", hint: "pandora flow show \(id)")
    }
}

extension FlowRecord {
    fileprivate init(_ row: Row) {
        self.init(
            id: row.string(0), environmentID: row.int64(1), serviceID: row.int64(2), environmentPath: row.string(3),
            servicePath: row.string(4), state: row.string(5), units: row.int64(6), period: row.int64(7), flow: row.string(8),
            apiKey: row.string(9), startPoint: row.string(10), hops: row.int64(11), finishingHop: row.string(12),
            startedAt: row.timestampMicroseconds(13), expiresAt: row.timestampMicroseconds(14),
            endedAt: row.timestampMicroseconds(15))
    }
}

private enum FlowSQL {
    private static let open = """
        SELECT r.id, r.environment_id, r.service_id, r.state, r.units, r.period, r.flow, r.api_key, r.start_point,
               r.hops::bigint AS hops, r.finishing_hop, r.request_time, r.expires_at, NULL::timestamptz AS ended_at
          FROM pandora.reservations r
        """

    private static func named(_ flows: String, order: String) -> String {
        """
        SELECT f.id, f.environment_id, f.service_id, c.name || '/' || p.name || '/' || e.name, s.name || '/' || s.version,
               f.state, f.units, f.period, f.flow, f.api_key, f.start_point, f.hops, f.finishing_hop, f.request_time,
               f.expires_at, f.ended_at
          FROM (\(flows)) AS f
          LEFT JOIN pandora.environment e ON e.id = f.environment_id
          LEFT JOIN pandora.project p ON p.id = e.project_id LEFT JOIN pandora.client c ON c.id = p.client_id
          LEFT JOIN pandora.service s ON s.id = f.service_id
         ORDER BY \(order)
        """
    }

    static let list = Statement(
        name: "flow_list",
        sql: named(
            """
            \(open)
             WHERE ($1 IS NULL OR r.environment_id = $1) AND ($2 IS NULL OR r.flow = $2) AND ($3 IS NULL OR r.state = $3)
               AND ($4 IS NULL OR r.request_time <= clock_timestamp() - $4 * interval '1 us')
             ORDER BY r.request_time, r.id LIMIT \(Administration.listMax)
            """, order: "f.request_time, f.id"),
        parameterTypes: [.int8, .text, .text, .int8])

    /// One snapshot: a flow that ends meanwhile is seen on one side or the other. Its id says when it began.
    static let find = Statement(
        name: "flow_find",
        sql: named(
            """
            \(open) WHERE r.id = $1
            UNION ALL
            SELECT l.reservation_id, l.environment_id, l.service_id, max(l.outcome), sum(l.used_delta)::bigint, l.period, NULL, NULL,
                   NULL, NULL, NULL, pandora.typeid_time(l.reservation_id), NULL, max(l.at) FILTER (WHERE l.kind = 'flow')
              FROM pandora.quota_ledger l WHERE l.reservation_id = $1
             GROUP BY l.reservation_id, l.environment_id, l.service_id, l.period
            """, order: "f.ended_at NULLS FIRST"),
        parameterTypes: [.text])

    /// Under the lock of the flow's row, so that what is audited is what this word did. A void claim is ended in the name of
    /// the hop that made it.
    static let end = Statement(
        name: "flow_end",
        sql: """
            WITH before AS MATERIALIZED (
                SELECT r.*, CASE WHEN $4 AND r.state = 'finishing' AND r.expires_at < clock_timestamp()
                                 THEN r.finishing_hop END AS spoken_for
                  FROM pandora.reservations r WHERE r.id = $2 FOR UPDATE),
            ended AS MATERIALIZED (
                SELECT s.verdict, s.charged
                  FROM (SELECT count(*), max(b.spoken_for) AS hop FROM before b) AS locked
                 CROSS JOIN LATERAL pandora.flow_settle(
                       ARRAY[$2], ARRAY[locked.hop], ARRAY[$3], ARRAY[NULL::bigint], ARRAY[0::bigint], ARRAY[0::bigint],
                       ARRAY[NULL::bigint], ARRAY[0::bigint]) AS s),
            audited AS (
                INSERT INTO pandora.audit_log (actor, action, object_kind, object_id, detail)
                SELECT $1, $3, 'flow', $2, jsonb_build_object(
                           'environment_id', b.environment_id, 'service_id', b.service_id, 'period', b.period, 'flow', b.flow,
                           'state', b.state, 'held', b.units, 'charged', e.charged)
                  FROM ended e JOIN before b ON e.verdict IN ('committed', 'rolled_back'))
            SELECT e.verdict FROM ended e
            """,
        parameterTypes: [.text, .text, .text, .bool])
}
