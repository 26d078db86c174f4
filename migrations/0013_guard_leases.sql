-- Leases, resets and limits at the moments when they meet.

-- The next reset follows from the calendar; only a reset moves it otherwise.  One that is due stays due whatever the new
-- calendar says: the period that it ends is over.
CREATE OR REPLACE FUNCTION pandora.schedule_reset() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    -- Refuses a time zone that the server does not know, also where nothing is reset yet.
    PERFORM clock_timestamp() AT TIME ZONE NEW.time_zone;
    IF TG_OP = 'UPDATE' AND NEW.reset_frequency IS NOT NULL THEN
        IF OLD.next_reset <= clock_timestamp() THEN
            NEW.next_reset := OLD.next_reset;
            RETURN NEW;
        END IF;
    END IF;
    NEW.next_reset := pandora.next_boundary(NEW.anchor, NEW.reset_frequency, NEW.time_zone, clock_timestamp());
    RETURN NEW;
END
$$;

-- Whatever is due among the rows of a question.  Due is what was due when the transaction began: one that has its quota rows
-- must find nothing more to reset, whose rows another one may have.  Whoever waited for its rows over the end of a period is
-- answered with a `reset_us` that is not positive, and has to ask again.
-- All locks are taken before the first reset, in the order in which everybody takes them: the rows of a project that is reset
-- first may come after those of another one, and after those that are named and not due.
CREATE OR REPLACE FUNCTION pandora.reset_rows_due(environments bigint[], services bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    due record;
BEGIN
    PERFORM 1
       FROM unnest(environments, services) AS w (environment_id, service_id)
       JOIN pandora.environment_service e USING (environment_id, service_id)
       JOIN pandora.project_service p ON p.project_id = e.project_id AND p.service_id = e.service_id
      WHERE p.next_reset <= transaction_timestamp();
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM pandora.flow_lock_rows('{}', environments, services);
    FOR due IN
        SELECT DISTINCT p.project_id, p.service_id
          FROM unnest(environments, services) AS w (environment_id, service_id)
          JOIN pandora.environment_service e USING (environment_id, service_id)
          JOIN pandora.project_service p ON p.project_id = e.project_id AND p.service_id = e.service_id
         WHERE p.next_reset <= transaction_timestamp()
         ORDER BY 1, 2
    LOOP
        PERFORM pandora.reset_if_due(due.project_id, due.service_id);
    END LOOP;
END
$$;

-- A limit that is lowered takes back what gateways hold ahead of traffic: nothing new is admitted beyond it.
CREATE FUNCTION pandora.recall_leases() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('quota_recall', NEW.environment_id || ':' || NEW.service_id);
    RETURN NULL;
END
$$;

CREATE TRIGGER recall_leases AFTER UPDATE ON pandora.environment_service FOR EACH ROW
    WHEN (NEW.max_request < OLD.max_request) EXECUTE FUNCTION pandora.recall_leases();

-- Grants units for all rows a worker asks for, in one statement.
--   needs   units that waiting requests want now
--   wishes  units the worker would like ahead of traffic
-- A row gets what its waiting requests need as far as free units reach, and beyond that its wish, capped at
-- free / (2 x holders active in the last 10 s), so that the last units stay within everybody's reach.
-- A reset that is due by this server's clock happens first.  Answers in the order of the question; `assigned` is
-- false where the service is not assigned; `unit_limit` is NULL where it is unlimited (nothing is granted).
-- `reset_us` counts from the answer; a lease is unusable once it has passed.  The totals are those of the
-- holder's lease in `period`: from them it finds grants whose answer was lost.
CREATE OR REPLACE FUNCTION pandora.lease_acquire(
    of_spool uuid, of_epoch bigint,
    environments bigint[], services bigint[], needs bigint[], wishes bigint[])
RETURNS TABLE (
    ordinal integer, assigned boolean, granted bigint, own_open bigint, free bigint, held bigint,
    used bigint, unit_limit bigint, period bigint, reset_us bigint, flow_deadline_us bigint,
    total_granted bigint, total_returned bigint, total_overrun bigint)
LANGUAGE plpgsql AS $$
DECLARE
    want  record;
    quota pandora.environment_service;
    lease pandora.quota_lease;
    other bigint;
    spare bigint;
    boundary timestamptz;
BEGIN
    PERFORM pandora.require_spool(of_spool, of_epoch);
    PERFORM 1 FROM pandora.quota_lease l
      WHERE l.spool_id = of_spool AND (l.environment_id, l.service_id) IN
            (SELECT * FROM unnest(environments, services))
      ORDER BY l.environment_id, l.service_id, l.period FOR NO KEY UPDATE;
    PERFORM pandora.reset_rows_due(environments, services);

    FOR want IN
        SELECT w.environment_id, w.service_id, w.need, greatest(w.need, w.wish) AS wish, w.position::integer
          FROM unnest(environments, services, needs, wishes) WITH ORDINALITY
               AS w (environment_id, service_id, need, wish, position)
         ORDER BY w.environment_id, w.service_id, w.position
    LOOP
        SELECT * INTO quota FROM pandora.environment_service e
         WHERE e.environment_id = want.environment_id AND e.service_id = want.service_id
           FOR NO KEY UPDATE;
        ordinal := want.position;
        assigned := quota.environment_id IS NOT NULL;
        granted := 0;
        spare := greatest(quota.available_request - quota.held_request, 0);
        IF spare > 0 AND want.wish > 0 THEN
            SELECT count(*) INTO other FROM pandora.quota_lease l
             WHERE l.environment_id = want.environment_id AND l.service_id = want.service_id
               AND l.period = quota.period AND l.spool_id <> of_spool
               AND l.heard_at > clock_timestamp() - interval '10 s';
            granted := least(spare, greatest(want.need, least(want.wish, spare / (2 * (other + 1)))));
        END IF;
        IF granted > 0 THEN
            INSERT INTO pandora.quota_lease AS l (spool_id, environment_id, service_id, period, granted)
            VALUES (of_spool, want.environment_id, want.service_id, quota.period, lease_acquire.granted)
            ON CONFLICT ON CONSTRAINT quota_lease_pkey DO UPDATE
               SET granted = l.granted + excluded.granted, heard_at = clock_timestamp()
            RETURNING * INTO lease;
            UPDATE pandora.environment_service e SET held_request = e.held_request + lease_acquire.granted
             WHERE e.environment_id = want.environment_id AND e.service_id = want.service_id
               AND e.period = quota.period;
        ELSE
            SELECT * INTO lease FROM pandora.quota_lease l
             WHERE l.spool_id = of_spool AND l.environment_id = want.environment_id
               AND l.service_id = want.service_id AND l.period = quota.period;
        END IF;
        own_open := coalesce(lease.granted - lease.settled, 0);
        total_granted := coalesce(lease.granted, 0);
        total_returned := coalesce(lease.returned, 0);
        total_overrun := coalesce(lease.overrun, 0);
        free := quota.available_request - quota.held_request - granted;
        held := quota.held_request + granted;
        used := quota.used_request;
        unit_limit := quota.max_request;
        period := quota.period;
        SELECT p.next_reset INTO boundary FROM pandora.project_service p
         WHERE p.project_id = quota.project_id AND p.service_id = quota.service_id;
        reset_us := (extract(epoch FROM boundary - clock_timestamp()) * 1000000)::bigint;
        flow_deadline_us := NULL;
        IF granted < want.need AND held > own_open THEN
            SELECT (extract(epoch FROM min(r.expires_at) - clock_timestamp()) * 1000000)::bigint
              INTO flow_deadline_us FROM pandora.reservations r
             WHERE r.environment_id = want.environment_id AND r.service_id = want.service_id
               AND r.period = quota.period;
        END IF;
        RETURN NEXT;
    END LOOP;
    -- While this waited for rows the holder may have died, and whoever has its spool now may have returned its leases.
    PERFORM pandora.require_spool(of_spool, of_epoch);
END
$$;

-- Writes off holders silent for longer than `silence`: none of their leases was heard of, and their spool did not ship either.
-- (What a long request holds of a row without other traffic says nothing for as long as it takes.)  Only a session that has
-- itself been connected for `connected` may judge: after a restart or a failover every holder has been silent, and none is gone.
CREATE OR REPLACE FUNCTION pandora.write_off_silent(silence interval, connected interval, at_most integer) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    since timestamptz := clock_timestamp() - silence;
    lease pandora.quota_lease;
    units bigint := 0;
BEGIN
    IF clock_timestamp() - connected <
       (SELECT a.backend_start FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()) THEN
        RETURN 0;
    END IF;
    FOR lease IN
        SELECT * FROM pandora.quota_lease l
         WHERE l.granted > l.settled AND l.heard_at < since
           AND NOT EXISTS (SELECT FROM pandora.quota_lease o WHERE o.spool_id = l.spool_id AND o.heard_at >= since)
           AND NOT EXISTS (SELECT FROM pandora.log_spool s WHERE s.id = l.spool_id AND s.shipped_at >= since)
         ORDER BY l.environment_id, l.service_id, l.period, l.spool_id
         LIMIT at_most FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        units := units + pandora.close_lease(lease, true);
    END LOOP;
    RETURN units;
END
$$;

-- Settled leases of past periods say nothing any more; but a write-off is what hops settle against, however late their spool
-- comes back.
CREATE OR REPLACE FUNCTION pandora.drop_settled_leases(older_than interval) RETURNS bigint
LANGUAGE sql VOLATILE AS $$
    WITH gone AS (
        DELETE FROM pandora.quota_lease l
         WHERE l.granted = l.settled AND l.lost = l.refunded AND l.heard_at < clock_timestamp() - older_than
           AND NOT EXISTS (
               SELECT FROM pandora.environment_service e
                WHERE e.environment_id = l.environment_id AND e.service_id = l.service_id
                  AND e.period <= l.period)
        RETURNING 1)
    SELECT count(*) FROM gone
$$;

-- Units that leave a lease lower what is held, never below nothing: whatever somebody did to one row by hand, the units of all
-- others leave their leases in the same statement, and the doctor reports it.

-- Idle units go back, said as the total the holder has given back of the lease so far: said twice, or late, it
-- counts once.  What was written off meanwhile is refunded instead, while its period is current.
-- Returns the units taken back; fewer than offered means that the holder's view was not the database's.
CREATE OR REPLACE FUNCTION pandora.lease_return(
    of_spool uuid, of_epoch bigint,
    environments bigint[], services bigint[], periods bigint[], totals bigint[])
RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    back   record;
    lease  pandora.quota_lease;
    units  bigint;
    idle   bigint;
    refund bigint;
    taken  bigint := 0;
BEGIN
    PERFORM pandora.require_spool(of_spool, of_epoch);
    PERFORM 1 FROM pandora.quota_lease l
      WHERE l.spool_id = of_spool AND (l.environment_id, l.service_id, l.period) IN
            (SELECT * FROM unnest(environments, services, periods))
      ORDER BY l.environment_id, l.service_id, l.period FOR NO KEY UPDATE;
    FOR back IN
        SELECT * FROM unnest(environments, services, periods, totals)
            AS b (environment_id, service_id, period, total)
         ORDER BY 1, 2, 3
    LOOP
        SELECT * INTO lease FROM pandora.quota_lease l
         WHERE l.spool_id = of_spool AND l.environment_id = back.environment_id
           AND l.service_id = back.service_id AND l.period = back.period;
        units := back.total - lease.returned;
        CONTINUE WHEN NOT FOUND OR units <= 0;
        idle := least(units, lease.granted - lease.settled);
        UPDATE pandora.environment_service e SET held_request = greatest(e.held_request - idle, 0)
         WHERE e.environment_id = back.environment_id AND e.service_id = back.service_id
           AND e.period = back.period;
        refund := CASE WHEN FOUND THEN least(units - idle, lease.lost - lease.refunded) ELSE 0 END;
        IF refund > 0 THEN
            INSERT INTO pandora.quota_ledger (environment_id, service_id, period, kind, used_delta, spool_id)
            VALUES (back.environment_id, back.service_id, back.period, 'refund', -refund, of_spool);
            UPDATE pandora.environment_service e
               SET used_request = e.used_request - refund, available_request = e.available_request + refund
             WHERE e.environment_id = back.environment_id AND e.service_id = back.service_id
               AND e.period = back.period;
        END IF;
        UPDATE pandora.quota_lease l
           SET settled = l.settled + idle, refunded = l.refunded + refund, returned = back.total,
               heard_at = clock_timestamp()
         WHERE l.spool_id = of_spool AND l.environment_id = back.environment_id
           AND l.service_id = back.service_id AND l.period = back.period;
        taken := taken + idle + refund;
    END LOOP;
    RETURN taken;
END
$$;

-- Ends leases whose holder has not been heard of.  `charge`: their open units count as used (the holder may
-- have answered requests with them); otherwise they return at once, on an operator's word.
-- The lease rows must be locked by the caller.
CREATE OR REPLACE FUNCTION pandora.close_lease(lease pandora.quota_lease, charge boolean) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    open bigint := lease.granted - lease.settled;
BEGIN
    IF open = 0 THEN
        RETURN 0;
    END IF;
    UPDATE pandora.quota_lease l
       SET settled = l.settled + open, lost = l.lost + CASE WHEN charge THEN open ELSE 0 END
     WHERE l.spool_id = lease.spool_id AND l.environment_id = lease.environment_id
       AND l.service_id = lease.service_id AND l.period = lease.period;
    IF charge THEN
        INSERT INTO pandora.quota_ledger (environment_id, service_id, period, kind, used_delta, spool_id)
        VALUES (lease.environment_id, lease.service_id, lease.period, 'lost', open, lease.spool_id);
    END IF;
    UPDATE pandora.environment_service e
       SET held_request = greatest(e.held_request - open, 0),
           used_request = e.used_request + CASE WHEN charge THEN open ELSE 0 END,
           available_request = e.available_request - CASE WHEN charge THEN open ELSE 0 END
     WHERE e.environment_id = lease.environment_id AND e.service_id = lease.service_id
       AND e.period = lease.period;
    RETURN open;
END
$$;
