-- Two corners of how flows end.  A flow that has expired is charged late once, also where that is nothing.  And nobody who has
-- quota rows waits for a flow, as whoever has the flow may wait for the rows: a flow that began since it was looked for, on a
-- connection that was given up, and that somebody else has in hand already, ends the statement (55P03), which is said again.

-- Ends flows, or opens them again.
--   actions  commit · rollback · reopen (a finish failed, the flow goes on for `lives` microseconds)
--   hops     the hop that speaks: the one that claimed the finish, or any hop of an open flow; NULL: a client or an
--            operator, who can only end what is open.  A hop says which row, period and units it is about, so that
--            what it says counts also where the database has lost the flow; period 0 is the current one.
--   environments  NULL: any (an operator)
--   units    charged at most, no more than is held; NULL: all that is held
-- Verdicts: committed · rolled_back · expired, whoever ended it · open · finishing · unknown; `charged` are the
-- units that the ledger has for it.
CREATE OR REPLACE FUNCTION pandora.flow_settle(
    ids text[], hops text[], actions text[], environments bigint[], services bigint[], periods bigint[],
    units bigint[], lives bigint[])
RETURNS TABLE (ordinal integer, verdict text, charged bigint)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    moment timestamptz;
    said   record;
    seen   bigint;
    total  integer := 0;
    ending_ids          text[] := '{}';
    ending_environments bigint[] := '{}';
    ending_services     bigint[] := '{}';
    ending_periods      bigint[] := '{}';
    ending_outcomes     text[] := '{}';
    ending_used         bigint[] := '{}';
    ending_held         bigint[] := '{}';
    opening_ids         text[] := '{}';
    opening_hops        text[] := '{}';
    opening_lives       bigint[] := '{}';
BEGIN
    -- Without a transaction id nothing is locked yet. Else the flows are, and perhaps quota rows, too: what is not locked began
    -- since.
    IF pg_current_xact_id_if_assigned() IS NULL THEN
        PERFORM 1 FROM pandora.reservations r WHERE r.id = ANY (ids) ORDER BY r.id FOR UPDATE;
    ELSE
        PERFORM 1 FROM pandora.reservations r WHERE r.id = ANY (ids) ORDER BY r.id FOR UPDATE NOWAIT;
    END IF;
    GET DIAGNOSTICS seen = ROW_COUNT;
    IF seen < cardinality(ids) THEN
        -- A start may still be waiting for its row on a connection that was given up: behind that lock it has either
        -- happened or will find in the ledger that it must not.
        PERFORM 1 FROM pandora.environment_service e
          WHERE (e.environment_id, e.service_id) IN (
                SELECT w.environment, w.service FROM unnest(ids, hops, environments, services) AS w (id, hop, environment, service)
                 WHERE w.hop IS NOT NULL
                   AND NOT EXISTS (SELECT FROM pandora.reservations r WHERE r.id = w.id)
                   AND NOT EXISTS (SELECT FROM pandora.quota_ledger l WHERE l.reservation_id = w.id AND l.kind = 'flow'))
          ORDER BY e.environment_id, e.service_id FOR NO KEY UPDATE;
        IF FOUND THEN
            PERFORM 1 FROM pandora.reservations r WHERE r.id = ANY (ids) ORDER BY r.id FOR UPDATE NOWAIT;
        END IF;
    END IF;
    moment := clock_timestamp();

    FOR said IN
        SELECT w.*, r.environment_id, r.service_id, r.period AS own_period, r.units AS own_units, r.state, r.finishing_hop,
               past.environment_id AS past_environment, past.service_id AS past_service, past.period AS past_period,
               past.outcome, past.charged, past.late
          FROM unnest(ids, hops, actions, environments, services, periods, units, lives) WITH ORDINALITY
               AS w (id, hop, action, environment, service, period, units, life, position)
          LEFT JOIN LATERAL (SELECT * FROM pandora.reservations r WHERE r.id = w.id LIMIT 1) r ON true
          LEFT JOIN LATERAL (
               SELECT max(l.environment_id) AS environment_id, max(l.service_id) AS service_id, max(l.period) AS period,
                      max(l.outcome) AS outcome, sum(l.used_delta)::bigint AS charged,
                      bool_or(l.kind = 'overrun') AS late
                 FROM pandora.quota_ledger l WHERE r.id IS NULL AND l.reservation_id = w.id) past ON true
         ORDER BY w.position
    LOOP
        ordinal := said.position;
        charged := coalesce(said.charged, 0);
        IF said.environment <> coalesce(said.environment_id, said.past_environment) THEN
            verdict := 'unknown';
            charged := 0;
        ELSIF said.state IS NOT NULL THEN
            IF said.state = 'finishing' AND said.finishing_hop IS DISTINCT FROM said.hop THEN
                verdict := 'finishing';
            ELSIF said.action = 'reopen' THEN
                verdict := 'open';
                IF said.hop IS NOT NULL THEN
                    opening_ids := opening_ids || said.id;
                    opening_hops := opening_hops || said.hop;
                    opening_lives := opening_lives || said.life;
                END IF;
            ELSE
                verdict := CASE said.action WHEN 'commit' THEN 'committed' ELSE 'rolled_back' END;
                charged := CASE said.action WHEN 'commit' THEN greatest(least(said.units, said.own_units), 0) ELSE 0 END;
                total := total + 1;
                ending_ids[total] := said.id;
                ending_environments[total] := said.environment_id;
                ending_services[total] := said.service_id;
                ending_periods[total] := said.own_period;
                ending_outcomes[total] := verdict;
                ending_used[total] := charged;
                ending_held[total] := said.own_units;
            END IF;
        ELSIF said.outcome IS NOT NULL
              AND (said.outcome <> 'expired' OR said.late OR said.hop IS NULL OR said.action <> 'commit') THEN
            verdict := said.outcome;
        ELSIF said.hop IS NULL OR said.action = 'reopen' THEN
            verdict := 'unknown';
        ELSE
            -- Its hop succeeded after it expired, or the database lost it; or its start must not happen any more.
            verdict := coalesce(said.outcome, CASE said.action WHEN 'commit' THEN 'committed' ELSE 'rolled_back' END);
            charged := CASE said.action WHEN 'commit' THEN greatest(said.units, 0) ELSE 0 END;
            total := total + 1;
            ending_ids[total] := said.id;
            ending_environments[total] := said.environment;
            ending_services[total] := coalesce(said.past_service, said.service);
            ending_periods[total] := coalesce(said.past_period, nullif(said.period, 0), (
                SELECT e.period FROM pandora.environment_service e
                 WHERE e.environment_id = said.environment AND e.service_id = said.service), 0);
            ending_outcomes[total] := CASE verdict WHEN 'expired' THEN 'late' ELSE verdict END;
            ending_used[total] := charged;
            ending_held[total] := 0;
        END IF;
        RETURN NEXT;
    END LOOP;

    IF opening_ids <> '{}' THEN
        -- The hop is remembered also where its claim never got here: it must not take effect any more.
        UPDATE pandora.reservations r
           SET state = 'open', finishing_hop = NULL, last_hop = o.hop,
               expires_at = CASE r.state WHEN 'open' THEN r.expires_at
                            ELSE least(moment + o.life * interval '1 us', r.deadline_max) END
          FROM unnest(opening_ids, opening_hops, opening_lives) AS o (id, hop, life) WHERE r.id = o.id;
    END IF;
    IF total > 0 THEN
        PERFORM pandora.flow_book(ending_ids, ending_environments, ending_services, ending_periods, ending_outcomes,
                                  ending_used, ending_held);
    END IF;
END
$$;
