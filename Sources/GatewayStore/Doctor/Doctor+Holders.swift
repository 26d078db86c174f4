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
            SELECT pandora.pair_name(h.environment_id, h.service_id), \(whole("sum(h.leased)")), \(whole("sum(h.reserved)"))
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
            SELECT l.spool_id::text, \(whole("sum(l.granted - l.settled)")) FROM pandora.quota_lease l
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
            SELECT s.id::text, s.node, h.units, \(seconds(since: "greatest(h.heard_at, s.shipped_at, s.opened_at)"))
              FROM pandora.log_spool s
              JOIN (SELECT l.spool_id, \(whole("sum(l.granted - l.settled)")) AS units, max(l.heard_at) AS heard_at
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
        Question(
            "ended",
            """
            SELECT r.id, pandora.pair_name(r.environment_id, r.service_id), r.units, max(l.outcome)
              FROM pandora.reservations r JOIN pandora.quota_ledger l ON l.reservation_id = r.id AND l.kind = 'flow'
             GROUP BY r.id ORDER BY r.id LIMIT \(namesMax)
            """,
            each: { row in
                let (id, units): (String, Int64) = (row.string(0), row.int64(2))
                return Finding(
                    .flow, at: row.string(1),
                    "the flow \(id) is open, but the ledger says that it has ended: \(row.string(3) as String)",
                    hint: """
                        somebody wrote to the ledger or to reservations; however it ends now, its units are given back and the ledger \
                        stays as it is: pandora flow rollback \(id)
                        """, .init("units", units))
            }),
        Question(
            "hops",
            """
            SELECT count(*), count(DISTINCT h.reservation_id) FROM pandora.flow_hop h
             WHERE NOT EXISTS (SELECT FROM pandora.reservations r WHERE r.id = h.reservation_id)
            """,
            each: { row in
                let (hops, flows): (Int64, Int64) = (row.int64(0), row.int64(1))
                guard hops > 0 else { return nil }
                return Finding(
                    .flow, at: "flow_hop", "\(hops) hops belong to \(flows) flows that are no more", hint: "pandora doctor --repair",
                    .init("hops", hops), .init("flows", flows))
            }),
    ]

    /// What time brings and somebody should have seen to.
    static let timeQuestions = [
        Question(
            "resets",
            """
            SELECT c.name || '/' || j.name || ' ' || s.name || '/' || s.version, \(seconds(since: "p.next_reset"))
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
            "calendar",
            """
            SELECT c.name || '/' || j.name || ' ' || s.name || '/' || s.version, p.next_reset::text, b.boundary::text
              FROM pandora.project_service p JOIN pandora.project j ON j.id = p.project_id
              JOIN pandora.client c ON c.id = j.client_id JOIN pandora.service s ON s.id = p.service_id
             CROSS JOIN LATERAL pandora.next_boundary(p.anchor, p.reset_frequency, p.time_zone, now()) AS b (boundary)
             WHERE p.next_reset > b.boundary ORDER BY 1 LIMIT \(namesMax)
            """,
            each: { row in
                Finding(
                    .reset, at: row.string(0),
                    "its period ends at \(row.string(2) as String) by its calendar, but will only be reset at \(row.string(1) as String)",
                    hint: "the server's clock may have been ahead; pandora doctor --repair")
            }),
        Question(
            "flows",
            """
            SELECT pandora.pair_name(r.environment_id, r.service_id), count(*), \(whole("sum(r.units)")),
                   \(seconds(since: "min(r.expires_at)"))
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
            SELECT d.day::text, to_regclass('pandora.' || d.name) IS NOT NULL
              FROM (SELECT a.day, 'request_logs_' || to_char(a.day, 'YYYYMMDD') AS name
                      FROM (SELECT (now() AT TIME ZONE 'UTC')::date + ahead FROM generate_series(0, 2) AS ahead) AS a (day)) AS d
             WHERE NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = 'pandora.request_logs'::regclass
                                  AND i.inhrelid = to_regclass('pandora.' || d.name))
             ORDER BY 1
            """,
            each: { row in
                row.bool(1)
                    ? Finding(
                        .partition, at: row.string(0), "the table of the day is there, but is no partition of the log",
                        hint: """
                            somebody detached it: attach it again, or rename it and a running node or pandora doctor --repair makes \
                            another
                            """)
                    : Finding(
                        .partition, at: row.string(0), "the log has no partition for the day",
                        hint: "a running node would make it; pandora doctor --repair")
            }),
    ]
}
