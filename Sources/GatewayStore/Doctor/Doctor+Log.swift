internal import Postgres

extension Doctor {
    /// Where the log begins: the first day that has a partition.
    private static let logBegin = """
        (SELECT min(to_date(right(c.relname, 8), 'YYYYMMDD'))::timestamp AT TIME ZONE 'UTC'
           FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
          WHERE i.inhparent = 'pandora.request_logs'::regclass AND c.relname ~ '^request_logs_[0-9]{8}$')
        """

    /// What hops charged, period by period, in the log and in the ledger.
    ///
    /// The log must never say more. It may say less of a period that began before the log does, and a day of grace makes up for
    /// hops that arrived before their period began. Hops without a lease do not say in which period they were booked: they may
    /// explain what any period of their row has more in the ledger. Hops that the log refused are known to the ledger.
    private static let sums = """
        booked AS (
            SELECT l.environment_id, l.service_id, l.period,
                   min(l.at) >= \(logBegin) + interval '1 day' AS is_kept,
                   coalesce(sum(l.used_delta) FILTER (
                       WHERE l.kind IN ('hops', 'overrun') AND l.reservation_id IS NULL AND NOT l.rowless), 0) AS units
              FROM pandora.quota_ledger l GROUP BY 1, 2, 3),
        logged AS (
            SELECT h.environment_id, h.service_id, h.period, sum(h.units) AS units FROM pandora.request_logs h
             WHERE h.units > 0 AND h.environment_id IS NOT NULL AND h.service_id IS NOT NULL GROUP BY 1, 2, 3),
        loose AS (SELECT * FROM logged WHERE period IS NULL),
        periods AS (
            SELECT environment_id, service_id, period, coalesce(b.is_kept, false) AS is_kept,
                   coalesce(b.units, 0) AS booked, coalesce(h.units, 0) AS logged
              FROM booked b FULL JOIN (SELECT * FROM logged WHERE period IS NOT NULL) AS h USING (environment_id, service_id, period)),
        pairs AS (
            SELECT environment_id, service_id, coalesce(bool_and(p.is_kept), true) AS is_kept,
                   coalesce(sum(p.booked - p.logged) FILTER (WHERE p.is_kept AND p.booked > p.logged), 0) AS unexplained,
                   coalesce(max(l.units), 0) AS loose
              FROM periods p FULL JOIN loose l USING (environment_id, service_id) GROUP BY 1, 2)
        """

    static let logQuestions = [
        Question(
            "log",
            """
            WITH \(sums)
            SELECT pandora.pair_name(p.environment_id, p.service_id) || ', period ' || p.period, p.logged::bigint, p.booked::bigint,
                   0::bigint
              FROM periods p JOIN pairs USING (environment_id, service_id)
             WHERE p.logged > p.booked OR p.is_kept AND p.booked > p.logged AND pairs.loose = 0
            UNION ALL
            SELECT pandora.pair_name(q.environment_id, q.service_id), 0, q.unexplained::bigint, q.loose::bigint FROM pairs q
             WHERE q.loose > 0 AND (q.unexplained > q.loose OR q.is_kept AND q.unexplained < q.loose)
             ORDER BY 1 LIMIT \(namesMax)
            """,
            each: { row in
                let (logged, booked, loose): (Int64, Int64, Int64) = (row.int64(1), row.int64(2), row.int64(3))
                let beside = loose > 0 ? " beside those of its leases" : ""
                return Finding(
                    .log, at: row.string(0),
                    "hops in the log charged \(logged + loose) units\(beside), but the ledger has \(booked)",
                    hint: booked > logged + loose
                        ? "rows of the log are missing"
                        : "rows of the ledger are missing, or somebody wrote to the log",
                    .init("log", logged + loose), .init("ledger", booked))
            }),
        Question(
            "rejected",
            """
            SELECT pandora.pair_name(l.environment_id, l.service_id), sum(l.frames) FILTER (WHERE l.kind = 'hops')::bigint,
                   sum(l.used_delta)::bigint
              FROM pandora.quota_ledger l
             WHERE l.rowless AND l.kind IN ('hops', 'overrun') AND l.at >= \(logBegin)
             GROUP BY l.environment_id, l.service_id ORDER BY 1 LIMIT \(namesMax)
            """,
            each: { row in
                let (hops, units): (Int64, Int64) = (row.int64(1), row.int64(2))
                return Finding(
                    .rejected, isNote: true, at: row.string(0),
                    "the log refused the rows of \(hops) hops; the \(units) units they charged are booked",
                    hint: "the hops are on the disks of their nodes, beside the spools in files named rejected", .init("hops", hops),
                    .init("units", units))
            }),
        // Whoever got the head of an answer could chain to it, although its end, and so its row, was lost with the process;
        // and refusals share rows under a flood.
        Question(
            "chains",
            """
            SELECT count(DISTINCT l.start_point), count(*), min(l.start_point) FROM pandora.request_logs l
             WHERE l.start_point >= pandora.typeid_floor('req', \(logBegin))
               AND l.start_point < pandora.typeid_floor('req', now() - interval '1 hour')
               AND NOT EXISTS (SELECT FROM pandora.request_logs h WHERE h.id = l.start_point)
            """,
            each: { row in
                let (chains, hops): (Int64, Int64) = (row.int64(0), row.int64(1))
                guard chains > 0 else { return nil }
                return Finding(
                    .chain, isNote: true, at: row.string(2),
                    "\(chains) chains with \(hops) hops lack their first hop: it was still under way when its process died, it was one "
                        + "of many refusals in one row, or a node has not shipped it",
                    .init("chains", chains), .init("hops", hops))
            }),
        Question(
            "ledger",
            """
            SELECT count(*), min(pandora.pair_name(l.environment_id, l.service_id))
              FROM (SELECT DISTINCT q.environment_id, q.service_id FROM pandora.quota_ledger q) AS l
             WHERE NOT EXISTS (SELECT FROM pandora.environment_service e
                                WHERE e.environment_id = l.environment_id AND e.service_id = l.service_id)
            """,
            each: { row in
                let count: Int64 = row.int64(0)
                guard count > 0 else { return nil }
                return Finding(
                    .ledger, isNote: true, at: row.string(1),
                    "the ledger has the history of \(count) pairs of environment and service that are not assigned any more",
                    .init("pairs", count))
            }),
    ]
}
