internal import Postgres

extension Doctor {
    private static let logBegin = "(SELECT pandora.log_begin())"

    static let logQuestions = [
        Question(
            "log",
            """
            SELECT concat_ws(', period ', pandora.pair_name(f.environment_id, f.service_id), f.period),
                   \(whole("f.logged + f.loose")), \(whole("f.booked")), f.loose > 0
              FROM pandora.log_faults f ORDER BY 1 LIMIT \(namesMax)
            """,
            each: { row in
                let (logged, booked): (Int64, Int64) = (row.int64(1), row.int64(2))
                let beside = row.bool(3) ? " beside those of its leases" : ""
                return Finding(
                    .log, at: row.string(0),
                    "hops in the log charged \(logged) units\(beside), but the ledger has \(booked)",
                    hint: booked > logged
                        ? "rows of the log are missing, or came so late that log.keep has dropped their day"
                        : "rows of the ledger are missing, or somebody wrote to the log",
                    .init("log", logged), .init("ledger", booked))
            }),
        Question(
            "rejected",
            """
            SELECT pandora.pair_name(l.environment_id, l.service_id), \(whole("coalesce(sum(l.frames) FILTER (WHERE l.kind = 'hops'), 0)")),
                   \(whole("sum(l.used_delta)"))
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
