-- A lease is a gateway worker's hold on quota, taken ahead of traffic so that a request costs no round trip.
--
-- Locks are taken in one order everywhere: spool, reservations, leases, project_service (a due reset),
-- environment_service; within each, sorted: by id, or by environment, service, period.

-- The counters only grow.  open = granted - settled.  Units leave a lease by their holder's word (hops
-- shipped, idle units given back) or by a write-off, which remembers them in `lost` so that a holder who
-- returns can settle against it.
CREATE TABLE pandora.quota_lease (
    spool_id       uuid        NOT NULL,
    environment_id bigint      NOT NULL,
    service_id     bigint      NOT NULL,
    period         bigint      NOT NULL,
    granted        bigint      NOT NULL DEFAULT 0 CHECK (granted >= 0),
    settled        bigint      NOT NULL DEFAULT 0 CHECK (settled BETWEEN 0 AND granted),
    lost           bigint      NOT NULL DEFAULT 0 CHECK (lost BETWEEN 0 AND settled),
    refunded       bigint      NOT NULL DEFAULT 0 CHECK (refunded BETWEEN 0 AND lost),
    returned       bigint      NOT NULL DEFAULT 0 CHECK (returned >= 0),
    overrun        bigint      NOT NULL DEFAULT 0 CHECK (overrun >= 0),
    heard_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (spool_id, environment_id, service_id, period)
) WITH (fillfactor = 50);

COMMENT ON COLUMN pandora.quota_lease.returned IS 'units the holder said it gives back unused';
COMMENT ON COLUMN pandora.quota_lease.overrun IS 'units the holder used that this lease never had (a failover lost the grant)';

CREATE INDEX quota_lease_row ON pandora.quota_lease (environment_id, service_id, period);

-- Grants units for all rows a worker asks for, in one statement.
--   needs   units that waiting requests want now
--   wishes  units the worker would like ahead of traffic
-- A row gets what its waiting requests need as far as free units reach, and beyond that its wish, capped at
-- free / (2 x holders active in the last 10 s), so that the last units stay within everybody's reach.
-- A reset that is due by this server's clock happens first.  Answers in the order of the question; `assigned` is
-- false where the service is not assigned; `unit_limit` is NULL where it is unlimited (nothing is granted).
-- `reset_us` counts from the answer; a lease is unusable once it has passed.  The totals are those of the
-- holder's lease in `period`: from them it finds grants whose answer was lost.
CREATE FUNCTION pandora.lease_acquire(
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
END
$$;

-- Idle units go back, said as the total the holder has given back of the lease so far: said twice, or late, it
-- counts once.  What was written off meanwhile is refunded instead, while its period is current.
-- Returns the units taken back; fewer than offered means that the holder's view was not the database's.
CREATE FUNCTION pandora.lease_return(
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
        UPDATE pandora.environment_service e SET held_request = e.held_request - idle
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

-- The same said in units, for callers that talk to the database once.  Not to be repeated.
CREATE FUNCTION pandora.lease_give_back(
    of_spool uuid, of_epoch bigint,
    environments bigint[], services bigint[], periods bigint[], units bigint[])
RETURNS bigint
LANGUAGE sql VOLATILE AS $$
    SELECT pandora.lease_return(of_spool, of_epoch,
        array_agg(b.environment_id ORDER BY b.position), array_agg(b.service_id ORDER BY b.position),
        array_agg(b.period ORDER BY b.position),
        array_agg(coalesce(l.returned, 0) + greatest(b.units, 0) ORDER BY b.position))
      FROM unnest(environments, services, periods, units) WITH ORDINALITY
           AS b (environment_id, service_id, period, units, position)
      LEFT JOIN pandora.quota_lease l
             ON l.spool_id = of_spool AND l.environment_id = b.environment_id
            AND l.service_id = b.service_id AND l.period = b.period
$$;

-- What the hops of a batch charged.  Runs in the transaction that moves the mark of the spool, after the rows
-- were copied; the hot rows come last and in order, so they are locked briefly and never crosswise.
--   periods  0: whatever period is current (an unlimited row, or an outage; no lease was needed)
--   units    charged by the hops of the row;  leased: how many of them came out of a lease
-- Leased units settle the lease, then a write-off of it; what neither covers was used from a lease that this
-- database does not know (a failover lost it) and is booked as overrun.
CREATE FUNCTION pandora.settle_hops(
    of_spool uuid,
    environments bigint[], services bigint[], periods bigint[],
    units bigint[], leased bigint[], frames bigint[],
    OUT overrun bigint, OUT moved bigint)
LANGUAGE plpgsql AS $$
DECLARE
    hops      record;
    lease     pandora.quota_lease;
    settle    bigint;
    refund    bigint;
    excess    bigint;
    in_period bigint;
    booked    jsonb := '[]';
BEGIN
    overrun := 0;
    moved := 0;
    FOR hops IN
        SELECT * FROM unnest(environments, services, periods, units, leased, frames)
            AS h (environment_id, service_id, period, units, leased, frames)
         WHERE h.units > 0 ORDER BY 1, 2, 3
    LOOP
        settle := 0;
        refund := 0;
        in_period := hops.period;
        IF in_period = 0 THEN
            SELECT coalesce(
                (SELECT e.period FROM pandora.environment_service e
                  WHERE e.environment_id = hops.environment_id AND e.service_id = hops.service_id),
                (SELECT max(l.period) FROM pandora.quota_ledger l
                  WHERE l.environment_id = hops.environment_id AND l.service_id = hops.service_id), 0)
              INTO in_period;
        END IF;
        IF hops.leased > 0 THEN
            SELECT * INTO lease FROM pandora.quota_lease l
             WHERE l.spool_id = of_spool AND l.environment_id = hops.environment_id
               AND l.service_id = hops.service_id AND l.period = in_period
               FOR NO KEY UPDATE;
            IF FOUND THEN
                settle := least(hops.leased, lease.granted - lease.settled);
                refund := least(hops.leased - settle, lease.lost - lease.refunded);
                UPDATE pandora.quota_lease l
                   SET settled = l.settled + settle, refunded = l.refunded + refund, heard_at = clock_timestamp()
                 WHERE l.spool_id = of_spool AND l.environment_id = hops.environment_id
                   AND l.service_id = hops.service_id AND l.period = in_period;
            END IF;
        END IF;
        excess := hops.leased - settle - refund;
        overrun := overrun + excess;
        IF excess > 0 THEN
            INSERT INTO pandora.quota_lease AS l (spool_id, environment_id, service_id, period, overrun)
            VALUES (of_spool, hops.environment_id, hops.service_id, in_period, excess)
            ON CONFLICT ON CONSTRAINT quota_lease_pkey DO UPDATE SET overrun = l.overrun + excluded.overrun;
        END IF;
        INSERT INTO pandora.quota_ledger
            (environment_id, service_id, period, kind, used_delta, spool_id, frames)
        SELECT hops.environment_id, hops.service_id, in_period, entry.kind, entry.delta, of_spool, hops.frames
          FROM (VALUES ('hops', hops.units - excess), ('refund', -refund), ('overrun', excess))
               AS entry (kind, delta)
         WHERE entry.kind = 'hops' OR entry.delta <> 0;
        booked := booked || jsonb_build_object(
            'environment', hops.environment_id, 'service', hops.service_id, 'period', in_period,
            'used', hops.units - refund, 'held', settle);
    END LOOP;

    FOR hops IN
        SELECT * FROM jsonb_to_recordset(booked)
            AS b (environment bigint, service bigint, period bigint, used bigint, held bigint)
         ORDER BY 1, 2, 3
    LOOP
        -- greatest(): whatever an operator did to the row by hand, the log goes on; `pandora doctor` reports it.
        UPDATE pandora.environment_service e
           SET used_request = e.used_request + hops.used,
               available_request = e.available_request - hops.used,
               held_request = greatest(e.held_request - hops.held, 0)
         WHERE e.environment_id = hops.environment AND e.service_id = hops.service AND e.period = hops.period;
        IF NOT FOUND THEN
            moved := moved + 1;
        END IF;
    END LOOP;
END
$$;

-- Ends leases whose holder has not been heard of.  `charge`: their open units count as used (the holder may
-- have answered requests with them); otherwise they return at once, on an operator's word.
-- The lease rows must be locked by the caller.
CREATE FUNCTION pandora.close_lease(lease pandora.quota_lease, charge boolean) RETURNS bigint
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
       SET held_request = e.held_request - open,
           used_request = e.used_request + CASE WHEN charge THEN open ELSE 0 END,
           available_request = e.available_request - CASE WHEN charge THEN open ELSE 0 END
     WHERE e.environment_id = lease.environment_id AND e.service_id = lease.service_id
       AND e.period = lease.period;
    RETURN open;
END
$$;

-- Writes off holders silent for longer than `silence`.  Only a session that has itself been connected for
-- `connected` may judge: after a restart or a failover every holder has been silent, and none is gone.
CREATE FUNCTION pandora.write_off_silent(silence interval, connected interval, at_most integer) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    lease pandora.quota_lease;
    units bigint := 0;
BEGIN
    IF clock_timestamp() - connected <
       (SELECT a.backend_start FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()) THEN
        RETURN 0;
    END IF;
    FOR lease IN
        SELECT * FROM pandora.quota_lease l
         WHERE l.granted > l.settled AND l.heard_at < clock_timestamp() - silence
         ORDER BY l.environment_id, l.service_id, l.period, l.spool_id
         LIMIT at_most FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        units := units + pandora.close_lease(lease, true);
    END LOOP;
    RETURN units;
END
$$;

-- An operator's word that a node is gone.  The epoch goes up, so a node that is not gone after all is fenced.
CREATE FUNCTION pandora.forget_spool(of_spool uuid, refund boolean) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    lease pandora.quota_lease;
    units bigint := 0;
BEGIN
    UPDATE pandora.log_spool s SET epoch = s.epoch + 1 WHERE s.id = of_spool;
    FOR lease IN
        SELECT * FROM pandora.quota_lease l
         WHERE l.spool_id = of_spool AND l.granted > l.settled
         ORDER BY l.environment_id, l.service_id, l.period FOR NO KEY UPDATE
    LOOP
        units := units + pandora.close_lease(lease, NOT refund);
    END LOOP;
    RETURN units;
END
$$;

-- Settled leases of past periods say nothing any more.
CREATE FUNCTION pandora.drop_settled_leases(older_than interval) RETURNS bigint
LANGUAGE sql VOLATILE AS $$
    WITH gone AS (
        DELETE FROM pandora.quota_lease l
         WHERE l.granted = l.settled AND l.heard_at < clock_timestamp() - older_than
           AND NOT EXISTS (
               SELECT FROM pandora.environment_service e
                WHERE e.environment_id = l.environment_id AND e.service_id = l.service_id
                  AND e.period <= l.period)
        RETURNING 1)
    SELECT count(*) FROM gone
$$;
