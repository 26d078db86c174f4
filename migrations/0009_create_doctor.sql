-- What `pandora doctor` compares, and what it puts right by itself.

-- A pair in words: acme/shop/prod orders/1.  Ids where there are no such rows any more.
CREATE FUNCTION pandora.pair_name(of_environment bigint, of_service bigint) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT coalesce(
               (SELECT c.name || '/' || p.name || '/' || e.name
                  FROM pandora.environment e JOIN pandora.project p ON p.id = e.project_id
                  JOIN pandora.client c ON c.id = p.client_id
                 WHERE e.id = of_environment),
               'environment ' || of_environment)
        || ' ' || coalesce(
               (SELECT s.name || '/' || s.version FROM pandora.service s WHERE s.id = of_service),
               'service ' || of_service)
$$;

-- The moment in an identifier; NULL where it is none.
CREATE FUNCTION pandora.typeid_time(id text) RETURNS timestamptz
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    -- The first ten characters are two zero bits and 48 bits of Unix milliseconds.
    SELECT CASE WHEN id ~ '^[a-z]+_[0-7][0-9a-hjkmnp-tv-z]{25}$' THEN (
        SELECT to_timestamp(sum((strpos('0123456789abcdefghjkmnpqrstvwxyz', substr(right(id, 26), i, 1)) - 1)
                                * (32::bigint ^ (10 - i))) / 1000)
          FROM generate_series(1, 10) AS i) END
$$;

-- Each row of quota beside what explains it: in one snapshot its numbers are equal.
CREATE VIEW pandora.quota_balance AS
    SELECT e.environment_id, e.service_id, e.period, e.max_request, e.used_request, e.available_request, e.held_request,
           booked.used AS ledger_used, booked.units_limit AS ledger_limit, booked.openings, leased.units AS leased,
           reserved.units AS reserved,
           e.used_request <> booked.used OR e.held_request <> leased.units + reserved.units
               OR e.available_request IS DISTINCT FROM e.max_request - e.used_request AS is_wrong
      FROM pandora.environment_service e
     CROSS JOIN LATERAL (
           SELECT coalesce(sum(l.used_delta), 0) AS used, coalesce(sum(l.limit_delta), 0) AS units_limit,
                  count(*) FILTER (WHERE l.kind = 'opened') AS openings
             FROM pandora.quota_ledger l
            WHERE l.environment_id = e.environment_id AND l.service_id = e.service_id AND l.period = e.period) AS booked
     CROSS JOIN LATERAL (
           SELECT coalesce(sum(l.granted - l.settled), 0) AS units FROM pandora.quota_lease l
            WHERE l.environment_id = e.environment_id AND l.service_id = e.service_id AND l.period = e.period) AS leased
     CROSS JOIN LATERAL (
           SELECT coalesce(sum(r.units), 0) AS units FROM pandora.reservations r
            WHERE r.environment_id = e.environment_id AND r.service_id = e.service_id AND r.period = e.period) AS reserved;

COMMENT ON COLUMN pandora.quota_balance.openings IS 'rows that open the period in the ledger: without one, the ledger does not explain it';

-- Puts right what is certain, in one transaction, and says so in the audit log:
--   partitions  of the log for the days ahead, and for what the DEFAULT partition caught of days near enough
--   flows       expired for longer than `overdue`, at most so many
--   resets      that are due
--   numbers     held from leases and reservations; used and available from the ledger, where it has the whole period
-- Each number is compared again under the lock of its row, by a statement that begins after the lock: whoever changes
-- leases, reservations or ledger has not committed without having had that lock.
-- `what`: partition · moved · log_busy (partitions had to be left alone) · flows · reset · held · used · available.
CREATE FUNCTION pandora.repair(actor text, overdue interval, at_most integer, days_ahead integer)
RETURNS TABLE (what text, object text, was bigint, became bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    today        date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
    done         jsonb := '[]';
    found        record;
    environments bigint[];
    services     bigint[];
    new_used     bigint;
    new_held     bigint;
BEGIN
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
                done := done || jsonb_build_object(
                    'what', CASE WHEN found.rows > 0 THEN 'moved' ELSE 'partition' END, 'object', found.day,
                    'became', found.rows);
            END IF;
        END LOOP;
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
        done := jsonb_build_array(jsonb_build_object('what', 'log_busy', 'object', 'request_logs'));
    END;

    -- Flows are taken with SKIP LOCKED, further down: what does not wait cannot wait crosswise.
    PERFORM 1 FROM pandora.project_service p WHERE p.next_reset <= now()
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

    -- After a restart, settles still wait in the nodes.
    IF pg_postmaster_start_time() < now() - overdue THEN
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
    END IF;

    FOR found IN
        SELECT p.project_id, p.service_id, c.name || '/' || j.name || ' ' || s.name || '/' || s.version AS name
          FROM pandora.project_service p JOIN pandora.project j ON j.id = p.project_id
          JOIN pandora.client c ON c.id = j.client_id JOIN pandora.service s ON s.id = p.service_id
         WHERE p.next_reset <= now() ORDER BY 1, 2
    LOOP
        IF pandora.reset_if_due(found.project_id, found.service_id) THEN
            done := done || jsonb_build_object('what', 'reset', 'object', found.name);
        END IF;
    END LOOP;

    FOR found IN
        SELECT b.*, pandora.pair_name(b.environment_id, b.service_id) || ', period ' || b.period AS name
          FROM unnest(environments, services) AS locked (environment_id, service_id)
          JOIN pandora.quota_balance b USING (environment_id, service_id)
         WHERE b.is_wrong ORDER BY 1, 2
    LOOP
        new_held := found.leased + found.reserved;
        new_used := CASE WHEN found.openings = 1 AND found.ledger_used >= 0 THEN found.ledger_used
                         ELSE found.used_request END;
        UPDATE pandora.environment_service e
           SET used_request = new_used, available_request = e.max_request - new_used, held_request = new_held
         WHERE e.environment_id = found.environment_id AND e.service_id = found.service_id;
        SELECT done || coalesce(jsonb_agg(to_jsonb(n)), '[]') INTO done
          FROM (VALUES ('used', found.name, found.used_request, new_used),
                       ('available', found.name, found.available_request, found.max_request - new_used),
                       ('held', found.name, found.held_request, new_held)) AS n (what, object, was, became)
         WHERE n.was IS DISTINCT FROM n.became;
    END LOOP;

    IF jsonb_path_exists(done, '$[*] ? (@.what != "log_busy")') THEN
        INSERT INTO pandora.audit_log (actor, action, object_kind, object_id, detail)
        VALUES (repair.actor, 'repair', 'database', current_database(), jsonb_build_object('repairs', done));
    END IF;
    RETURN QUERY SELECT d.* FROM jsonb_to_recordset(done) AS d (what text, object text, was bigint, became bigint);
END
$$;
