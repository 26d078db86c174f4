internal import Postgres

extension FlowSession {
    static let startStatement = Statement(
        name: "flow_start",
        sql: """
            SELECT verdict, period, unit_limit, available, held, leased, reset_us, deadline_us
              FROM pandora.flow_start($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ORDER BY ordinal
            """,
        parameterTypes: [
            .textArray, .textArray, .textArray, .int8Array, .int8Array, .textArray, .int8Array, .int8Array, .int8Array,
            .int8Array,
        ])

    static let advanceStatement = Statement(
        name: "flow_advance",
        sql: """
            SELECT verdict, service_id, period, units, start_point, hops, expires_us, first_request, first_status
              FROM pandora.flow_advance($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ORDER BY ordinal
            """,
        parameterTypes: [
            .textArray, .textArray, .int8Array, .textArray, .boolArray, .int8Array, .boolArray, .int8Array, .int8Array,
            .textArray,
        ])

    static let settleStatement = Statement(
        name: "flow_settle",
        sql: "SELECT verdict, charged FROM pandora.flow_settle($1, $2, $3, $4, $5, $6, $7, $8) ORDER BY ordinal",
        parameterTypes: [
            .textArray, .textArray, .textArray, .int8Array, .int8Array, .int8Array, .int8Array, .int8Array,
        ])

    static let noteStatement = Statement(
        name: "flow_note", sql: "SELECT pandora.flow_note($1, $2, $3)",
        parameterTypes: [.textArray, .textArray, .int2Array])

    static let lockFlowsStatement = Statement(
        name: "flow_lock_flows", sql: "SELECT pandora.flow_lock_flows($1)", parameterTypes: [.textArray])

    static let lockRowsStatement = Statement(
        name: "flow_lock_rows", sql: "SELECT pandora.flow_lock_rows($1, $2, $3)",
        parameterTypes: [.textArray, .int8Array, .int8Array])

    static let recallStatement = Statement(
        name: "flow_recall", sql: "SELECT pg_notify('quota_recall', $1)", parameterTypes: [.text])

    /// One snapshot: a flow that ends meanwhile is seen on one side or the other.
    static let showStatement = Statement(
        name: "flow_show",
        sql: """
            SELECT r.environment_id, r.service_id, r.period, r.state, r.units, r.request_time, r.flow, r.api_key,
                   r.start_point, r.hops, r.expires_at,
                   (extract(epoch FROM r.expires_at - clock_timestamp()) * 1000000)::bigint
              FROM pandora.reservations r WHERE r.id = $1 AND r.environment_id = coalesce($2, r.environment_id)
            UNION ALL
            SELECT l.environment_id, l.service_id, l.period, max(l.outcome), sum(l.used_delta)::bigint,
                   max(l.at) FILTER (WHERE l.kind = 'flow'), NULL, NULL, NULL, NULL, NULL, NULL
              FROM pandora.quota_ledger l
             WHERE l.reservation_id = $1 AND l.environment_id = coalesce($2, l.environment_id)
             GROUP BY l.environment_id, l.service_id, l.period
            """,
        // A plan that is kept from when the tables were empty would read all of them.
        parameterTypes: [.text, .int8], isPrepared: false)
}
