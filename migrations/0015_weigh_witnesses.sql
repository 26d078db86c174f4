-- What the doctor repairs is certain only where nothing else says otherwise: a ledger that the log contradicts is no
-- witness, a server that came up a moment ago is no judge of flows, and a day that was made for late rows is no beginning
-- of the log.

-- Where the log begins: the first day that has a partition, those aside that were made again for rows that came late.
CREATE FUNCTION pandora.log_begin() RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT min(to_date(right(c.relname, 8), 'YYYYMMDD'))::timestamp AT TIME ZONE 'UTC'
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = 'pandora.request_logs'::regclass AND c.relname ~ '^request_logs_[0-9]{8}$'
       AND obj_description(c.oid, 'pg_class') IS DISTINCT FROM 'late'
$$;

-- What hops charged according to the log and to the ledger, where these differ.
--
-- The log must never say more. It may say less of a period that began before the log does, and a day of grace makes up for
-- hops that arrived before their period began. Hops without a lease do not say in which period they were booked: they may
-- explain what any period of their row has more in the ledger. Hops that the log refused are known to the ledger.
CREATE VIEW pandora.log_faults AS
    WITH booked AS (
        SELECT l.environment_id, l.service_id, l.period,
               min(l.at) >= (SELECT pandora.log_begin()) + interval '1 day' AS is_kept,
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
    SELECT p.environment_id, p.service_id, p.period, p.logged, p.booked, 0::numeric AS loose
      FROM periods p JOIN pairs USING (environment_id, service_id)
     WHERE p.logged > p.booked OR p.is_kept AND p.booked > p.logged AND pairs.loose = 0
    UNION ALL
    SELECT q.environment_id, q.service_id, NULL, 0, q.unexplained, q.loose FROM pairs q
     WHERE q.loose > 0 AND (q.unexplained > q.loose OR q.is_kept AND q.unexplained < q.loose);

COMMENT ON COLUMN pandora.log_faults.period IS 'NULL: hops without a lease, which may be of any period';
COMMENT ON COLUMN pandora.log_faults.loose IS 'units of hops that do not say their period, beside `logged`';

-- Puts right what is certain, in one transaction, and says so in the audit log:
--   partitions  of the log for the days ahead, and for what the DEFAULT partition caught of days near enough
--   flows       expired for longer than `overdue`, at most so many; hops of flows that are no more
--   resets      that are due, or that are set for later than the calendar has them
--   numbers     held from leases and reservations; used and available from the ledger, where it has the whole period and the
--               log does not contradict it
-- Each number is compared again under the lock of its row, by a statement that begins after the lock: whoever changes
-- leases, reservations or ledger has not committed without having had that lock.
-- `what`: partition · moved · log_busy (partitions had to be left alone) · flows · flows_early (flows had to be) · hops ·
-- reset · schedule · held · used · available.
CREATE OR REPLACE FUNCTION pandora.repair(actor text, overdue interval, at_most integer, days_ahead integer)
RETURNS TABLE (what text, object text, was bigint, became bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    today        date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
    log_begin    timestamptz := pandora.log_begin();
    done         jsonb := '[]';
    found        record;
    environments bigint[];
    services     bigint[];
    witnessed    text[] := '{}';
    new_used     bigint;
    new_held     bigint;
BEGIN
    -- Reading the whole log takes a while: before anything is locked, and only where somebody asks what it says.
    IF EXISTS (SELECT FROM pandora.quota_balance b WHERE b.used_request <> b.ledger_used) THEN
        SELECT coalesce(array_agg(concat_ws(' ', b.environment_id, b.service_id, b.period)), '{}') INTO witnessed
          FROM pandora.quota_balance b
         WHERE b.used_request <> b.ledger_used AND b.openings = 1 AND b.ledger_used BETWEEN 0 AND 9223372036854775807
           AND NOT EXISTS (
               SELECT FROM pandora.log_faults f
                WHERE f.environment_id = b.environment_id AND f.service_id = b.service_id
                  AND coalesce(f.period, b.period) = b.period);
    END IF;

    -- Tables before rows, as the shipper has it.
    BEGIN
        FOR found IN
            SELECT caught.day, sum(caught.rows) AS rows FROM (
                SELECT (pandora.typeid_time(l.id) AT TIME ZONE 'UTC')::date AS day, count(*) AS rows
                  FROM pandora.request_logs_default l GROUP BY 1
                UNION ALL
                SELECT today + ahead, 0 FROM generate_series(0, days_ahead) AS ahead) AS caught
             -- A clock that was years off is nothing to make years of partitions for.
             WHERE caught.day BETWEEN today - 400 AND today + days_ahead
             GROUP BY 1 ORDER BY 1
        LOOP
            IF pandora.ensure_log_partition(found.day) THEN
                IF found.day::timestamp AT TIME ZONE 'UTC' < log_begin THEN
                    EXECUTE format('COMMENT ON TABLE pandora.%I IS ''late''', 'request_logs_' || to_char(found.day, 'YYYYMMDD'));
                END IF;
                done := done || jsonb_build_object(
                    'what', CASE WHEN found.rows > 0 THEN 'moved' ELSE 'partition' END, 'object', found.day,
                    'became', found.rows);
            END IF;
        END LOOP;
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
        done := jsonb_build_array(jsonb_build_object('what', 'log_busy', 'object', 'request_logs'));
    END;

    -- Flows are taken with SKIP LOCKED, further down: what does not wait cannot wait crosswise.
    PERFORM 1 FROM pandora.project_service p
      WHERE p.next_reset <= now() OR p.next_reset > pandora.next_boundary(p.anchor, p.reset_frequency, p.time_zone, now())
      ORDER BY p.project_id, p.service_id FOR NO KEY UPDATE;
    SELECT array_agg(locked.environment_id), array_agg(locked.service_id) INTO environments, services FROM (
        SELECT e.environment_id, e.service_id FROM pandora.environment_service e
         WHERE EXISTS (SELECT FROM pandora.project_service p
                        WHERE p.project_id = e.project_id AND p.service_id = e.service_id AND p.next_reset <= now())
            OR (e.environment_id, e.service_id) IN (
                SELECT r.environment_id, r.service_id FROM pandora.reservations r WHERE r.expires_at < now() - overdue)
            OR (e.environment_id, e.service_id) IN (
                SELECT b.environment_id, b.service_id FROM pandora.quota_balance b WHERE b.is_wrong)
         ORDER BY e.environment_id, e.service_id FOR NO KEY UPDATE) AS locked;

    -- After a restart, a crash of one of its processes or a promotion, settles still wait in the nodes. All of them start a
    -- new walwriter; who may not see it (pg_monitor may) knows of restarts alone.
    IF greatest(pg_postmaster_start_time(), (
            SELECT max(a.backend_start) FROM pg_stat_activity a WHERE a.backend_type = 'walwriter')) < now() - overdue THEN
        SELECT array_agg(r.id) AS ids, array_agg(r.environment_id) AS environments, array_agg(r.service_id) AS services,
               array_agg(r.period) AS periods, array_agg(r.units) AS units
          INTO found
          FROM (SELECT * FROM pandora.reservations r WHERE r.expires_at < now() - overdue
                 ORDER BY r.expires_at LIMIT at_most FOR UPDATE SKIP LOCKED) AS r;
        IF found.ids IS NOT NULL THEN
            PERFORM pandora.flow_book(
                found.ids, found.environments, found.services, found.periods,
                array_fill('expired'::text, ARRAY[cardinality(found.ids)]),
                array_fill(0::bigint, ARRAY[cardinality(found.ids)]), found.units);
            done := done || jsonb_build_object('what', 'flows', 'object', 'expired', 'became', cardinality(found.ids));
        END IF;
    ELSIF EXISTS (SELECT FROM pandora.reservations r WHERE r.expires_at < now() - overdue) THEN
        done := done || jsonb_build_object('what', 'flows_early', 'object', 'expired');
    END IF;
    WITH gone AS (
        DELETE FROM pandora.flow_hop h WHERE (h.reservation_id, h.idempotency_key) IN (
            SELECT o.reservation_id, o.idempotency_key FROM pandora.flow_hop o
             WHERE NOT EXISTS (SELECT FROM pandora.reservations r WHERE r.id = o.reservation_id) FOR UPDATE SKIP LOCKED)
        RETURNING 1)
    SELECT count(*) AS rows INTO found FROM gone;
    IF found.rows > 0 THEN
        done := done || jsonb_build_object('what', 'hops', 'object', 'flow_hop', 'became', found.rows);
    END IF;

    FOR found IN
        SELECT p.project_id, p.service_id, p.next_reset <= now() AS is_due,
               c.name || '/' || j.name || ' ' || s.name || '/' || s.version AS name
          FROM pandora.project_service p JOIN pandora.project j ON j.id = p.project_id
          JOIN pandora.client c ON c.id = j.client_id JOIN pandora.service s ON s.id = p.service_id
         WHERE p.next_reset <= now() OR p.next_reset > pandora.next_boundary(p.anchor, p.reset_frequency, p.time_zone, now())
         ORDER BY 1, 2
    LOOP
        IF NOT found.is_due THEN
            UPDATE pandora.project_service p
               SET next_reset = pandora.next_boundary(p.anchor, p.reset_frequency, p.time_zone, now())
             WHERE p.project_id = found.project_id AND p.service_id = found.service_id;
            done := done || jsonb_build_object('what', 'schedule', 'object', found.name);
        ELSIF pandora.reset_if_due(found.project_id, found.service_id) THEN
            done := done || jsonb_build_object('what', 'reset', 'object', found.name);
        END IF;
    END LOOP;

    FOR found IN
        SELECT b.*, pandora.pair_name(b.environment_id, b.service_id) || ', period ' || b.period AS name
          FROM unnest(environments, services) AS locked (environment_id, service_id)
          JOIN pandora.quota_balance b USING (environment_id, service_id)
         WHERE b.is_wrong ORDER BY 1, 2
    LOOP
        new_held := least(found.leased + found.reserved, 9223372036854775807);
        new_used := CASE WHEN concat_ws(' ', found.environment_id, found.service_id, found.period) = ANY (witnessed)
                         THEN found.ledger_used ELSE found.used_request END;
        UPDATE pandora.environment_service e
           SET used_request = new_used, available_request = e.max_request - new_used, held_request = new_held
         WHERE e.environment_id = found.environment_id AND e.service_id = found.service_id;
        SELECT done || coalesce(jsonb_agg(to_jsonb(n)), '[]') INTO done
          FROM (VALUES ('used', found.name, found.used_request, new_used),
                       ('available', found.name, found.available_request, found.max_request - new_used),
                       ('held', found.name, found.held_request, new_held)) AS n (what, object, was, became)
         WHERE n.was IS DISTINCT FROM n.became;
    END LOOP;

    IF jsonb_path_exists(done, '$[*] ? (@.what != "log_busy" && @.what != "flows_early")') THEN
        INSERT INTO pandora.audit_log (actor, action, object_kind, object_id, detail)
        VALUES (repair.actor, 'repair', 'database', current_database(), jsonb_build_object('repairs', done));
    END IF;
    RETURN QUERY SELECT d.* FROM jsonb_to_recordset(done) AS d (what text, object text, was bigint, became bigint);
END
$$;
