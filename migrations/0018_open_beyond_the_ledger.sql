-- A period opens beyond the last one that the ledger knows, also where a reset opens it: a failover may forget an opening while
-- hops of the period that it opened are still to be booked.  Opened once more, the row would not know of what they used.

-- A reset: every environment of the project opens a new period.  What is held of the old one resolves in the
-- ledger of its own period; it neither returns to the new one nor takes from it.
CREATE OR REPLACE FUNCTION pandora.reset_if_due(of_project bigint, of_service bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    due pandora.project_service;
BEGIN
    SELECT * INTO due FROM pandora.project_service p
     WHERE p.project_id = of_project AND p.service_id = of_service FOR NO KEY UPDATE;
    IF due.next_reset IS NULL OR due.next_reset > clock_timestamp() THEN
        RETURN false;
    END IF;
    PERFORM 1 FROM pandora.environment_service e
      WHERE e.project_id = of_project AND e.service_id = of_service
      ORDER BY e.environment_id FOR NO KEY UPDATE;
    UPDATE pandora.environment_service e
       SET used_request = 0, held_request = 0, available_request = e.max_request,
           period = 1 + greatest(e.period, (SELECT max(l.period) FROM pandora.quota_ledger l
                                             WHERE l.environment_id = e.environment_id AND l.service_id = e.service_id))
     WHERE e.project_id = of_project AND e.service_id = of_service;
    UPDATE pandora.project_service p
       SET next_reset = pandora.next_boundary(p.anchor, p.reset_frequency, p.time_zone, clock_timestamp())
     WHERE p.project_id = of_project AND p.service_id = of_service;
    RETURN true;
END
$$;

-- What the hops of a batch charged.  Runs in the transaction that moves the mark of the spool, after the rows
-- were copied; the hot rows come last and in order, so they are locked briefly and never crosswise.
--   periods  0: whatever period is current (an unlimited row, or an outage; no lease was needed)
--   units    charged by the hops of the row;  leased: how many of them came out of a lease
--   rowless  the log took no rows of them
-- Leased units settle the lease, then a write-off of it; what neither covers was used from a lease that this
-- database does not know (a failover lost it) and is booked as overrun.
CREATE OR REPLACE FUNCTION pandora.settle_hops(
    of_spool uuid,
    environments bigint[], services bigint[], periods bigint[],
    units bigint[], leased bigint[], frames bigint[], rowless boolean DEFAULT false,
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
            (environment_id, service_id, period, kind, used_delta, spool_id, frames, rowless)
        SELECT hops.environment_id, hops.service_id, in_period, entry.kind, entry.delta, of_spool, hops.frames,
               settle_hops.rowless
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
        -- A period that is not open here yet (a failover forgot it): whoever opens it sees this in the ledger, or had opened it.
        PERFORM 1 FROM pandora.environment_service e
          WHERE e.environment_id = hops.environment AND e.service_id = hops.service AND e.period < hops.period
            FOR NO KEY UPDATE;
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
