-- Flows: a row exists exactly as long as a flow is open.  How it ended is in the ledger.
--
-- Each function takes what waits at a node as arrays, at most one entry of a flow, and answers in one
-- statement.  Everything may be said again: a repeat finds what the first one did.  Plans are made once, which
-- takes longer than a statement does, and must go by index: tables that were empty then grow by thousands of rows
-- a second.

CREATE TABLE pandora.reservations (
    id             text        COLLATE "C" PRIMARY KEY DEFAULT pandora.new_typeid('rsv')
                               CHECK (id ~ '^rsv_[0-7][0-9a-hjkmnp-tv-z]{25}$'),
    environment_id bigint      NOT NULL,
    service_id     bigint      NOT NULL,
    api_key        text        COLLATE "C" NOT NULL,
    start_point    text        COLLATE "C" NOT NULL,
    flow           text        NOT NULL,
    units          bigint      NOT NULL CHECK (units >= 0),
    period         bigint      NOT NULL CHECK (period > 0),
    state          text        NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'finishing')),
    hops           integer     NOT NULL DEFAULT 1 CHECK (hops > 0),
    step           integer     NOT NULL DEFAULT 0 CHECK (step >= 0),
    last_hop       text        COLLATE "C",
    finishing_hop  text        COLLATE "C",
    request_time   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at     timestamptz NOT NULL,
    deadline_max   timestamptz NOT NULL,
    CHECK ((state = 'finishing') = (finishing_hop IS NOT NULL)),
    -- Steps extend an open flow up to its last moment; a claim may outlive it by the time its route has.
    CHECK (state = 'finishing' OR expires_at <= deadline_max),
    CHECK (request_time <= deadline_max)
) WITH (fillfactor = 50);

COMMENT ON COLUMN pandora.reservations.step IS 'position of the last hop in the declared order; 0 after the start';
COMMENT ON COLUMN pandora.reservations.last_hop IS 'request id of the last step or claim, which may be said again';
COMMENT ON COLUMN pandora.reservations.finishing_hop IS 'request id of the hop that claimed the finish';

CREATE INDEX reservations_expiry ON pandora.reservations (expires_at);
CREATE INDEX reservations_key ON pandora.reservations (api_key, service_id);
CREATE INDEX reservations_row ON pandora.reservations (environment_id, service_id, period, expires_at);

-- A step that is sent again with its idempotency key is the same step.  The rows go with their flow; a foreign
-- key would look for them once a flow, which costs more than all of the flow's other work.
CREATE TABLE pandora.flow_hop (
    reservation_id  text        COLLATE "C" NOT NULL,
    idempotency_key text        COLLATE "C" NOT NULL CHECK (length(idempotency_key) BETWEEN 1 AND 255),
    request_id      text        COLLATE "C" NOT NULL,
    status_code     smallint,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (reservation_id, idempotency_key)
);

-- Opens flows, in order of arrival as far as units and places reach; one that does not fit does not stop those
-- behind it.  A reset that is due by this server's clock happens first.
--   lives  microseconds until a flow without a further hop expires;  spans: until it expires in any case
--   caps   open flows that the key may have of the service
-- Verdicts: started (also where it was started already: said twice it is held once) · held: units are short ·
-- limit: the key has too many open · not_assigned · ended (this id was used before).
-- `unit_limit` is NULL where the row is unlimited; then nothing is tested, but held and used are counted all the same.
-- `leased` are units in leases, which a recall may bring back; `deadline_us` is the time left of the flow itself,
-- or where it was refused of the first one that will give units or a place back.
CREATE FUNCTION pandora.flow_start(
    ids text[], requests text[], keys text[], environments bigint[], services bigint[], flows text[],
    units bigint[], lives bigint[], spans bigint[], caps bigint[])
RETURNS TABLE (
    ordinal integer, verdict text, period bigint, unit_limit bigint, available bigint, held bigint,
    leased bigint, reset_us bigint, deadline_us bigint)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    moment       timestamptz;
    want         record;
    places       record;
    opened       bigint[] := array_fill(NULL::bigint, ARRAY[cardinality(ids)]);
    key_deadline timestamptz[] := array_fill(NULL::timestamptz, ARRAY[cardinality(ids)]);
    granted      bigint[] := array_fill(NULL::bigint, ARRAY[cardinality(ids)]);
    last_row     bigint[];
    raised       bigint;
    leases       bigint;
    row_deadline timestamptz;
    expiry       timestamptz;
BEGIN
    PERFORM pandora.reset_rows_due(environments, services);
    PERFORM 1 FROM pandora.environment_service e
      WHERE (e.environment_id, e.service_id) IN (SELECT * FROM unnest(environments, services))
      ORDER BY e.environment_id, e.service_id FOR NO KEY UPDATE;
    moment := clock_timestamp();

    FOR want IN
        SELECT w.*, dense_rank() OVER (ORDER BY w.key, w.service) AS key_number,
               e.max_request, e.available_request, e.held_request, e.period, p.next_reset,
               own.period AS own_period, own.expires_at AS own_expiry, past.id IS NOT NULL AS ended
          FROM unnest(ids, keys, environments, services, units, lives, spans, caps) WITH ORDINALITY
               AS w (id, key, environment, service, units, life, span, cap, position)
          LEFT JOIN LATERAL (
               SELECT * FROM pandora.environment_service e
                WHERE e.environment_id = w.environment AND e.service_id = w.service LIMIT 1) e ON true
          LEFT JOIN LATERAL (
               SELECT p.next_reset FROM pandora.project_service p
                WHERE p.project_id = e.project_id AND p.service_id = e.service_id LIMIT 1) p ON true
          LEFT JOIN LATERAL (SELECT r.period, r.expires_at FROM pandora.reservations r WHERE r.id = w.id LIMIT 1) own ON true
          LEFT JOIN LATERAL (
               SELECT l.id FROM pandora.quota_ledger l
                WHERE l.reservation_id = w.id AND l.kind = 'flow' LIMIT 1) past ON true
         ORDER BY w.environment, w.service, w.position
    LOOP
        IF last_row IS DISTINCT FROM ARRAY[want.environment, want.service] THEN
            last_row := ARRAY[want.environment, want.service];
            raised := 0;
            leases := NULL;
            row_deadline := NULL;
        END IF;
        IF opened[want.key_number] IS NULL THEN
            SELECT count(*), min(r.expires_at) INTO places FROM pandora.reservations r
             WHERE r.api_key = want.key AND r.service_id = want.service;
            opened[want.key_number] := places.count;
            key_deadline[want.key_number] := places.min;
        END IF;
        ordinal := want.position;
        period := want.period;
        unit_limit := want.max_request;
        leased := 0;
        reset_us := (extract(epoch FROM want.next_reset - moment) * 1000000)::bigint;
        deadline_us := NULL;
        IF want.own_period IS NOT NULL THEN
            verdict := 'started';
            period := want.own_period;
            deadline_us := (extract(epoch FROM want.own_expiry - moment) * 1000000)::bigint;
        ELSIF want.ended THEN
            verdict := 'ended';
        ELSIF want.period IS NULL THEN
            verdict := 'not_assigned';
        ELSIF opened[want.key_number] >= want.cap THEN
            verdict := 'limit';
            deadline_us := (extract(epoch FROM key_deadline[want.key_number] - moment) * 1000000)::bigint;
        ELSIF want.available_request - want.held_request - raised < want.units THEN
            verdict := 'held';
            IF leases IS NULL THEN
                SELECT coalesce(sum(l.granted - l.settled), 0) INTO leases FROM pandora.quota_lease l
                 WHERE l.environment_id = want.environment AND l.service_id = want.service AND l.period = want.period;
                SELECT least(row_deadline, min(r.expires_at)) INTO row_deadline FROM pandora.reservations r
                 WHERE r.environment_id = want.environment AND r.service_id = want.service AND r.period = want.period;
            END IF;
            leased := leases;
            deadline_us := (extract(epoch FROM row_deadline - moment) * 1000000)::bigint;
        ELSE
            verdict := 'started';
            granted[want.position] := want.period;
            raised := raised + want.units;
            opened[want.key_number] := opened[want.key_number] + 1;
            deadline_us := least(want.life, want.span);
            expiry := moment + deadline_us * interval '1 us';
            key_deadline[want.key_number] := least(key_deadline[want.key_number], expiry);
            row_deadline := least(row_deadline, expiry);
        END IF;
        available := want.available_request;
        held := want.held_request + raised;
        RETURN NEXT;
    END LOOP;

    WITH made AS (
        INSERT INTO pandora.reservations (id, environment_id, service_id, api_key, start_point, flow, units, period,
                                          request_time, expires_at, deadline_max)
        SELECT w.id, w.environment, w.service, w.key, w.request, w.flow, w.units, w.period,
               moment, moment + least(w.life, w.span) * interval '1 us', moment + w.span * interval '1 us'
          FROM unnest(ids, requests, keys, environments, services, flows, units, lives, spans, granted)
               AS w (id, request, key, environment, service, flow, units, life, span, period)
         WHERE w.period IS NOT NULL
        ON CONFLICT DO NOTHING
        RETURNING environment_id, service_id, units, period)
    UPDATE pandora.environment_service e SET held_request = e.held_request + s.units
      FROM (SELECT m.environment_id, m.service_id, m.period, sum(m.units)::bigint AS units FROM made m GROUP BY 1, 2, 3) s
     WHERE e.environment_id = s.environment_id AND e.service_id = s.service_id AND e.period = s.period;
END
$$;

-- Hops of open flows: steps, and the claim of the hop that would finish.  A claim keeps others from finishing,
-- and the sweeper away, until its deadline.
--   positions   place of the hop in the declared order, which is tested where it counts (ordered): the last step
--               again or the one after it; the finish comes after all steps
--   hop_limits  hops of the flow at most, the start and one finish included; a finish is always let in
--   lives       microseconds until the flow expires unless there is another hop; of a claim, until it is void
--   hop_keys    idempotency key of a step, or NULL
-- Verdicts: passed (also said again) · repeated: the step of `first_request`, which got `first_status`, was sent
-- again · finishing · order · hops · foreign: the route is not of this flow · committed · rolled_back · expired ·
-- unknown.  Units that an ended flow was charged are in `units`.
CREATE FUNCTION pandora.flow_advance(
    ids text[], requests text[], environments bigint[], flows text[], finishes boolean[], positions bigint[],
    ordered boolean[], hop_limits bigint[], lives bigint[], hop_keys text[])
RETURNS TABLE (
    ordinal bigint, verdict text, service_id bigint, period bigint, units bigint, start_point text, hops integer,
    expires_us bigint, first_request text, first_status smallint)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    moment timestamptz;
BEGIN
    PERFORM 1 FROM pandora.reservations r WHERE r.id = ANY (ids) ORDER BY r.id FOR UPDATE;
    moment := clock_timestamp();
    RETURN QUERY
    WITH judged AS MATERIALIZED (
        SELECT w.*, r.service_id, r.period, r.units, r.start_point, r.hops, r.expires_at,
               CASE WHEN w.finish THEN moment + w.life * interval '1 us'
                    ELSE least(moment + w.life * interval '1 us', r.deadline_max) END AS new_expiry,
               f.request_id AS first_request, f.status_code AS first_status, past.outcome, past.charged,
               CASE
               WHEN r.id IS NULL THEN coalesce(past.outcome, 'unknown')
               WHEN r.flow <> w.flow THEN 'foreign'
               WHEN r.state = 'finishing' THEN CASE WHEN w.finish AND r.finishing_hop = w.request THEN 'again' ELSE 'finishing' END
               -- Its claim was given up, perhaps before it got here.
               WHEN w.finish AND r.last_hop = w.request THEN 'finishing'
               WHEN f.request_id <> w.request THEN 'repeated'
               WHEN f.request_id = w.request OR r.last_hop = w.request THEN 'again'
               WHEN w.ordered AND w.position <> r.step + 1 AND (w.finish OR w.position <> r.step) THEN 'order'
               WHEN NOT w.finish AND r.hops + 1 >= w.hop_limit THEN 'hops'
               ELSE 'passed' END AS verdict
          FROM unnest(ids, requests, environments, flows, finishes, positions, ordered, hop_limits, lives, hop_keys)
               WITH ORDINALITY
               AS w (id, request, environment, flow, finish, position, ordered, hop_limit, life, hop_key, ordinal)
          LEFT JOIN LATERAL (
               SELECT * FROM pandora.reservations r
                WHERE r.id = w.id AND r.environment_id = w.environment LIMIT 1) r ON true
          LEFT JOIN LATERAL (
               SELECT h.request_id, h.status_code FROM pandora.flow_hop h
                WHERE NOT w.finish AND h.reservation_id = r.id AND h.idempotency_key = w.hop_key LIMIT 1) f ON true
          LEFT JOIN LATERAL (
               SELECT max(l.outcome) AS outcome, sum(l.used_delta)::bigint AS charged FROM pandora.quota_ledger l
                WHERE r.id IS NULL AND l.reservation_id = w.id AND l.environment_id = w.environment) past ON true),
    moved AS (
        UPDATE pandora.reservations r
           SET hops = r.hops + 1, last_hop = j.request, expires_at = j.new_expiry,
               step = CASE WHEN j.finish THEN r.step ELSE j.position END,
               state = CASE WHEN j.finish THEN 'finishing' ELSE 'open' END,
               finishing_hop = CASE WHEN j.finish THEN j.request END
          FROM judged j WHERE j.verdict = 'passed' AND r.id = j.id),
    noted AS (
        INSERT INTO pandora.flow_hop (reservation_id, idempotency_key, request_id)
        SELECT j.id, j.hop_key, j.request FROM judged j
         WHERE j.verdict = 'passed' AND NOT j.finish AND j.hop_key IS NOT NULL
        ON CONFLICT DO NOTHING)
    SELECT j.ordinal, CASE j.verdict WHEN 'again' THEN 'passed' ELSE j.verdict END, j.service_id, j.period,
           coalesce(j.units, j.charged), j.start_point, j.hops + CASE j.verdict WHEN 'passed' THEN 1 ELSE 0 END,
           (extract(epoch FROM CASE j.verdict WHEN 'passed' THEN j.new_expiry ELSE j.expires_at END - moment) * 1000000)::bigint,
           j.first_request, j.first_status
      FROM judged j ORDER BY j.ordinal;
END
$$;

-- What a step was answered, for the one who sends it again.
CREATE FUNCTION pandora.flow_note(ids text[], hop_keys text[], statuses smallint[]) RETURNS void
LANGUAGE sql VOLATILE AS $$
    UPDATE pandora.flow_hop h SET status_code = n.status
      FROM unnest(ids, hop_keys, statuses) AS n (id, hop_key, status)
     WHERE h.reservation_id = n.id AND h.idempotency_key = n.hop_key
$$;

-- Ends flows whose rows the caller has locked, or that have none any more: their rows go, the ledger says how they
-- ended, and the quota rows follow, last and in order, where their period still is the one of the hold.
--   outcomes  committed · rolled_back · expired · late: used after it expired, which is an overrun
--   used      units charged;  held: units that the row held
-- What the ledger has already is not booked again.
CREATE FUNCTION pandora.flow_book(
    ids text[], environments bigint[], services bigint[], periods bigint[], outcomes text[],
    used bigint[], held bigint[]) RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    sum_environments bigint[];
    sum_services     bigint[];
    sum_periods      bigint[];
    sum_used         bigint[];
    sum_held         bigint[];
BEGIN
    DELETE FROM pandora.flow_hop h WHERE h.reservation_id = ANY (ids);
    DELETE FROM pandora.reservations r WHERE r.id = ANY (ids);
    WITH ending AS MATERIALIZED (
        SELECT * FROM unnest(ids, environments, services, periods, outcomes, used, held)
            AS w (id, environment, service, period, outcome, used, held)),
    booked AS (
        INSERT INTO pandora.quota_ledger
            (environment_id, service_id, period, kind, used_delta, reservation_id, outcome)
        SELECT w.environment, w.service, w.period, CASE w.outcome WHEN 'late' THEN 'overrun' ELSE 'flow' END,
               w.used, w.id, nullif(w.outcome, 'late')
          FROM ending w
        ON CONFLICT DO NOTHING
        RETURNING environment_id, service_id, period, used_delta),
    sums AS (
        SELECT m.environment, m.service, m.period, sum(m.used)::bigint AS used, sum(m.held)::bigint AS held
          FROM (SELECT b.environment_id, b.service_id, b.period, b.used_delta, 0 FROM booked b
                UNION ALL
                SELECT w.environment, w.service, w.period, 0, w.held FROM ending w)
               AS m (environment, service, period, used, held)
         GROUP BY 1, 2, 3 HAVING sum(m.used) <> 0 OR sum(m.held) <> 0)
    SELECT array_agg(s.environment), array_agg(s.service), array_agg(s.period), array_agg(s.used), array_agg(s.held)
      INTO sum_environments, sum_services, sum_periods, sum_used, sum_held FROM sums s;
    IF sum_environments IS NULL THEN
        RETURN;
    END IF;
    PERFORM 1 FROM pandora.environment_service e
      WHERE (e.environment_id, e.service_id) IN (SELECT * FROM unnest(sum_environments, sum_services))
      ORDER BY e.environment_id, e.service_id FOR NO KEY UPDATE;
    UPDATE pandora.environment_service e
       SET used_request = e.used_request + s.used,
           available_request = e.available_request - s.used,
           held_request = greatest(e.held_request - s.held, 0)
      FROM unnest(sum_environments, sum_services, sum_periods, sum_used, sum_held)
           AS s (environment, service, period, used, held)
     WHERE e.environment_id = s.environment AND e.service_id = s.service AND e.period = s.period;
END
$$;

-- Ends flows, or opens them again.
--   actions  commit · rollback · reopen (a finish failed, the flow goes on for `lives` microseconds)
--   hops     the hop that speaks: the one that claimed the finish, or any hop of an open flow; NULL: a client or an
--            operator, who can only end what is open.  A hop says which row, period and units it is about, so that
--            what it says counts also where the database has lost the flow; period 0 is the current one.
--   environments  NULL: any (an operator)
--   units    charged at most, no more than is held; NULL: all that is held
-- Verdicts: committed · rolled_back · expired, whoever ended it · open · finishing · unknown; `charged` are the
-- units that the ledger has for it.
CREATE FUNCTION pandora.flow_settle(
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
    PERFORM 1 FROM pandora.reservations r WHERE r.id = ANY (ids) ORDER BY r.id FOR UPDATE;
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
            PERFORM 1 FROM pandora.reservations r WHERE r.id = ANY (ids) ORDER BY r.id FOR UPDATE;
        END IF;
    END IF;
    moment := clock_timestamp();

    FOR said IN
        SELECT w.*, r.environment_id, r.service_id, r.period AS own_period, r.units AS own_units, r.state, r.finishing_hop,
               past.environment_id AS past_environment, past.service_id AS past_service, past.period AS past_period,
               past.outcome, past.charged
          FROM unnest(ids, hops, actions, environments, services, periods, units, lives) WITH ORDINALITY
               AS w (id, hop, action, environment, service, period, units, life, position)
          LEFT JOIN LATERAL (SELECT * FROM pandora.reservations r WHERE r.id = w.id LIMIT 1) r ON true
          LEFT JOIN LATERAL (
               SELECT max(l.environment_id) AS environment_id, max(l.service_id) AS service_id, max(l.period) AS period,
                      max(l.outcome) AS outcome, sum(l.used_delta)::bigint AS charged
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
              AND (said.outcome <> 'expired' OR said.charged > 0 OR said.hop IS NULL OR said.action <> 'commit') THEN
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

-- The locks of a log batch that settles flows as well, taken before its parts would take them crosswise.
CREATE FUNCTION pandora.flow_lock(
    ids text[], of_spool uuid, lease_environments bigint[], lease_services bigint[], lease_periods bigint[],
    environments bigint[], services bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM pandora.reservations r WHERE r.id = ANY (ids) ORDER BY r.id FOR UPDATE;
    PERFORM 1 FROM pandora.quota_lease l
      WHERE l.spool_id = of_spool AND (l.environment_id, l.service_id, l.period) IN
            (SELECT * FROM unnest(lease_environments, lease_services, lease_periods))
      ORDER BY l.environment_id, l.service_id, l.period FOR NO KEY UPDATE;
    PERFORM 1 FROM pandora.environment_service e
      WHERE (e.environment_id, e.service_id) IN
            (SELECT * FROM unnest(environments || lease_environments, services || lease_services))
      ORDER BY e.environment_id, e.service_id FOR NO KEY UPDATE;
END
$$;

-- Gives abandoned flows back.  A flow whose finishing hop is in flight is left alone until its claim is void.  Only
-- a session that has itself been connected for `connected` may judge: after a restart or a failover, settles still
-- wait in the nodes.  Returns how many expired; rows that another node has in hand are left to it.
CREATE FUNCTION pandora.flow_expire(at_most integer, connected interval) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    moment timestamptz := clock_timestamp();
    gone   record;
BEGIN
    IF moment - connected < (SELECT a.backend_start FROM pg_stat_get_activity(pg_backend_pid()) AS a) THEN
        RETURN 0;
    END IF;
    SELECT array_agg(r.id) AS ids, array_agg(r.environment_id) AS environments, array_agg(r.service_id) AS services,
           array_agg(r.period) AS periods, array_agg(r.units) AS units
      INTO gone
      FROM (SELECT * FROM pandora.reservations r WHERE r.expires_at < moment
             ORDER BY r.expires_at LIMIT at_most FOR UPDATE SKIP LOCKED) AS r;
    IF gone.ids IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM pandora.flow_book(
        gone.ids, gone.environments, gone.services, gone.periods,
        array_fill('expired'::text, ARRAY[cardinality(gone.ids)]), array_fill(0::bigint, ARRAY[cardinality(gone.ids)]),
        gone.units);
    RETURN cardinality(gone.ids);
END
$$;
