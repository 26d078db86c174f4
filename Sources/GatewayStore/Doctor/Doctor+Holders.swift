internal import GatewayCore
internal import Postgres

extension Doctor {
    /// Whom holds belong to.
    static let holderQuestions = [
        Question(
            "flow_tenants",
            """
            SELECT r.id, pandora.pair_name(r.environment_id, r.service_id), r.units, CASE
                   WHEN NOT EXISTS (SELECT FROM pandora.environment e WHERE e.id = r.environment_id) THEN 'environment'
                   WHEN NOT EXISTS (SELECT FROM pandora.service s WHERE s.id = r.service_id) THEN 'service'
                   WHEN NOT EXISTS (SELECT FROM pandora.api_key k WHERE k.id = r.api_key) THEN 'key' END AS gone
              FROM pandora.reservations r
             WHERE NOT EXISTS (SELECT FROM pandora.environment e WHERE e.id = r.environment_id)
                OR NOT EXISTS (SELECT FROM pandora.service s WHERE s.id = r.service_id)
                OR NOT EXISTS (SELECT FROM pandora.api_key k WHERE k.id = r.api_key)
             ORDER BY r.id LIMIT \(namesMax)
            """,
            each: { row in
                let (id, units): (String, Int64) = (row.string(0), row.int64(2))
                return Finding(
                    .flowTenant, at: row.string(1), "the flow \(id) is open, but its \(row.string(3) as String) is not there any more",
                    hint: "it ends when it expires, or now: pandora flow rollback \(id)", .init("units", units))
            }),
        Question(
            "unassigned",
            """
            SELECT pandora.pair_name(h.environment_id, h.service_id), sum(h.leased)::bigint, sum(h.reserved)::bigint
              FROM (SELECT l.environment_id, l.service_id, l.granted - l.settled AS leased, 0 AS reserved
                      FROM pandora.quota_lease l WHERE l.granted > l.settled
                    UNION ALL
                    SELECT r.environment_id, r.service_id, 0, r.units FROM pandora.reservations r) AS h
             WHERE NOT EXISTS (SELECT FROM pandora.environment_service e
                                WHERE e.environment_id = h.environment_id AND e.service_id = h.service_id)
             GROUP BY h.environment_id, h.service_id ORDER BY 1 LIMIT \(namesMax)
            """,
            each: { row in
                let (leased, reserved): (Int64, Int64) = (row.int64(1), row.int64(2))
                return Finding(
                    .holder, isNote: true, at: row.string(0),
                    "the service is not assigned any more; leases still have \(leased) units open and flows \(reserved)",
                    .init("leased", leased), .init("reserved", reserved))
            }),
        Question(
            "holders",
            """
            SELECT l.spool_id::text, sum(l.granted - l.settled)::bigint FROM pandora.quota_lease l
             WHERE l.granted > l.settled AND NOT EXISTS (SELECT FROM pandora.log_spool s WHERE s.id = l.spool_id)
             GROUP BY 1 ORDER BY 1 LIMIT \(namesMax)
            """,
            each: { row in
                let (spool, units): (String, Int64) = (row.string(0), row.int64(1))
                return Finding(
                    .holder, at: "spool \(spool)", "\(units) units are leased to a spool that the database does not know",
                    hint: "pandora node forget \(spool) charges them, with --refund gives them back", .init("units", units))
            }),
        Question(
            "silence",
            """
            SELECT s.id::text, s.node, h.units, (extract(epoch FROM now() - greatest(h.heard_at, s.shipped_at, s.opened_at)))::bigint
              FROM pandora.log_spool s
              JOIN (SELECT l.spool_id, sum(l.granted - l.settled)::bigint AS units, max(l.heard_at) AS heard_at
                      FROM pandora.quota_lease l GROUP BY 1 HAVING sum(l.granted - l.settled) > 0) AS h ON h.spool_id = s.id
             WHERE greatest(h.heard_at, s.shipped_at, s.opened_at)
                   < now() - interval '\((Limits.leaseLostAfter + overdue).wholeMicroseconds) us'
             ORDER BY 4 DESC LIMIT \(namesMax)
            """,
            each: { row in
                let (spool, node): (String, String) = (row.string(0), row.string(1))
                let (units, seconds): (Int64, Int64) = (row.int64(2), row.int64(3))
                return Finding(
                    .silence, at: "node \(node), spool \(spool)",
                    "it holds \(units) units and has not been heard of for \(seconds / 60) minutes",
                    hint: """
                        a running node would write them off; if this one is gone for good: pandora node forget \(spool) charges them, \
                        with --refund gives them back
                        """, .init("units", units), .init("silent_seconds", seconds))
            }),
    ]

    /// What time brings and somebody should have seen to.
    static let timeQuestions = [
        Question(
            "resets",
            """
            SELECT c.name || '/' || j.name || ' ' || s.name || '/' || s.version, (extract(epoch FROM now() - p.next_reset))::bigint
              FROM pandora.project_service p JOIN pandora.project j ON j.id = p.project_id
              JOIN pandora.client c ON c.id = j.client_id JOIN pandora.service s ON s.id = p.service_id
             WHERE p.next_reset < now() - interval '\(overdue.wholeMicroseconds) us'
             ORDER BY p.next_reset LIMIT \(namesMax)
            """,
            each: { row in
                let seconds: Int64 = row.int64(1)
                return Finding(
                    .reset, at: row.string(0), "its period ended \(seconds / 60) minutes ago and nobody has reset it",
                    hint: "a running node would; pandora doctor --repair", .init("overdue_seconds", seconds))
            }),
        Question(
            "flows",
            """
            SELECT pandora.pair_name(r.environment_id, r.service_id), count(*), sum(r.units)::bigint,
                   (extract(epoch FROM now() - min(r.expires_at)))::bigint
              FROM pandora.reservations r WHERE r.expires_at < now() - interval '\(overdue.wholeMicroseconds) us'
             GROUP BY r.environment_id, r.service_id ORDER BY 1 LIMIT \(namesMax)
            """,
            each: { row in
                let (count, units, seconds): (Int64, Int64, Int64) = (row.int64(1), row.int64(2), row.int64(3))
                return Finding(
                    .flow, at: row.string(0),
                    "\(count) flows with \(units) units expired, the first \(seconds / 60) minutes ago, and nobody has given them back",
                    hint: "a running node would; pandora doctor --repair", .init("flows", count), .init("units", units),
                    .init("overdue_seconds", seconds))
            }),
        Question(
            "caught",
            """
            SELECT ((pandora.typeid_time(l.id) AT TIME ZONE 'UTC')::date)::text, count(*)
              FROM pandora.request_logs_default l GROUP BY 1 ORDER BY 1 LIMIT \(namesMax)
            """,
            each: { row in
                let (day, count): (String?, Int64) = (row.string(0), row.int64(1))
                return Finding(
                    .caught, at: "request_logs_default", "\(count) rows of the log are of \(day ?? "no day"), which has no partition",
                    hint: "a node's clock may be off; pandora doctor --repair moves them where the day is near", .init("rows", count))
            }),
        Question(
            "partitions",
            """
            SELECT (((now() AT TIME ZONE 'UTC')::date) + ahead)::text FROM generate_series(0, 2) AS ahead
             WHERE to_regclass('pandora.request_logs_' || to_char((now() AT TIME ZONE 'UTC')::date + ahead, 'YYYYMMDD')) IS NULL
             ORDER BY 1
            """,
            each: { row in
                Finding(
                    .partition, at: row.string(0), "the log has no partition for the day",
                    hint: "a running node would make it; pandora doctor --repair")
            }),
    ]
}
