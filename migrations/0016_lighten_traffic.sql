-- What traffic writes again and again pays for no check that cannot apply to it.

-- The shape of an id is its maker's business: a regular expression was a fifth of what each insert and update cost.
ALTER TABLE pandora.reservations DROP CONSTRAINT reservations_id_check;
ALTER TABLE pandora.reservations ADD CONSTRAINT reservations_id_check
    CHECK (octet_length(id) = 30 AND starts_with(id, 'rsv_'));

-- Triggers of edits name the columns of edits: the conditions of others are read anew by every statement that books traffic.
CREATE OR REPLACE TRIGGER derive_available BEFORE UPDATE OF max_request ON pandora.environment_service FOR EACH ROW
    WHEN (OLD.max_request IS DISTINCT FROM NEW.max_request)
    EXECUTE FUNCTION pandora.derive_available();
CREATE OR REPLACE TRIGGER book_limit AFTER UPDATE OF period, max_request ON pandora.environment_service FOR EACH ROW
    WHEN (OLD.period <> NEW.period OR OLD.max_request IS DISTINCT FROM NEW.max_request)
    EXECUTE FUNCTION pandora.book_limit();
CREATE OR REPLACE TRIGGER shares_change AFTER UPDATE OF max_request, project_id, service_id ON pandora.environment_service
    FOR EACH ROW
    WHEN ((OLD.max_request, OLD.project_id, OLD.service_id)
          IS DISTINCT FROM (NEW.max_request, NEW.project_id, NEW.service_id))
    EXECUTE FUNCTION pandora.check_shares_of_row();
CREATE OR REPLACE TRIGGER touch_revise BEFORE UPDATE OF max_request ON pandora.environment_service FOR EACH ROW
    WHEN (OLD.max_request IS DISTINCT FROM NEW.max_request)
    EXECUTE FUNCTION pandora.revise();
CREATE OR REPLACE TRIGGER announce_change AFTER UPDATE OF max_request ON pandora.environment_service FOR EACH ROW
    WHEN (OLD.revision <> NEW.revision) EXECUTE FUNCTION pandora.announce('environment', 'environment_id');
CREATE OR REPLACE TRIGGER recall_leases AFTER UPDATE OF max_request ON pandora.environment_service FOR EACH ROW
    WHEN (NEW.max_request < OLD.max_request) EXECUTE FUNCTION pandora.recall_leases();

-- Functions on flows look in one index, and only then ask about the rest: a plan that is made while a table is empty takes any
-- index that has a part of the condition for as good as the right one, and reads all that the environment has, or the key, or
-- everybody, until the table is next analyzed.

ALTER FUNCTION pandora.flow_lock(text[], uuid, bigint[], bigint[], bigint[], bigint[], bigint[])
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off;

-- Opens flows, in order of arrival as far as units and places reach; one that does not fit does not stop those
-- behind it.  A reset that is due by this server's clock happens first.
--   lives  microseconds until a flow without a further hop expires;  spans: until it expires in any case
--   caps   open flows that the key may have of the service
-- Verdicts: started (also where it was started already: said twice it is held once) · held: units are short ·
-- limit: the key has too many open · not_assigned · ended (this id was used before).
-- `unit_limit` is NULL where the row is unlimited; then nothing is tested, but held and used are counted all the same.
-- `leased` are units in leases, which a recall may bring back; `deadline_us` is the time left of the flow itself,
-- or where it was refused of the first one that will give units or a place back.
CREATE OR REPLACE FUNCTION pandora.flow_start(
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
            SELECT count(*), min(r.expires_at) INTO places
              FROM (SELECT r.service_id, r.expires_at FROM pandora.reservations r WHERE r.api_key = want.key OFFSET 0) r
             WHERE r.service_id = want.service;
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
-- and the sweeper away, until its deadline, which is soon: said again while the hop is on its way, it is renewed.
--   positions   place of the hop in the declared order, which is tested where it counts (ordered): the last step
--               again or the one after it; the finish comes after all steps
--   hop_limits  hops of the flow at most, the start and one finish included; a finish is always let in.  0: it renews
--               its claim, and is let in only where that stands
--   lives       microseconds until the flow expires unless there is another hop; of a claim, until it is void
--   hop_keys    idempotency key of a step, or NULL
-- Verdicts: passed (also said again) · repeated: the step of `first_request`, which got `first_status`, was sent
-- again · finishing · order · hops · foreign: the route is not of this flow · committed · rolled_back · expired ·
-- unknown.  Units that an ended flow was charged are in `units`.
CREATE OR REPLACE FUNCTION pandora.flow_advance(
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
               WHEN w.finish AND (r.last_hop = w.request OR w.hop_limit = 0) THEN 'finishing'
               WHEN f.request_id <> w.request THEN 'repeated'
               WHEN f.request_id = w.request OR r.last_hop = w.request THEN 'again'
               WHEN w.ordered AND w.position <> r.step + 1 AND (w.finish OR w.position <> r.step) THEN 'order'
               WHEN NOT w.finish AND r.hops + 1 >= w.hop_limit THEN 'hops'
               ELSE 'passed' END AS verdict
          FROM unnest(ids, requests, environments, flows, finishes, positions, ordered, hop_limits, lives, hop_keys)
               WITH ORDINALITY
               AS w (id, request, environment, flow, finish, position, ordered, hop_limit, life, hop_key, ordinal)
          LEFT JOIN LATERAL (
               SELECT * FROM pandora.reservations r WHERE r.id = w.id LIMIT 1) r ON r.environment_id = w.environment
          LEFT JOIN LATERAL (
               SELECT h.request_id, h.status_code FROM pandora.flow_hop h
                WHERE NOT w.finish AND h.reservation_id = r.id AND h.idempotency_key = w.hop_key LIMIT 1) f ON true
          LEFT JOIN LATERAL (
               SELECT max(l.environment_id) AS environment, max(l.outcome) AS outcome, sum(l.used_delta)::bigint AS charged
                 FROM pandora.quota_ledger l
                WHERE r.id IS NULL AND l.reservation_id = w.id) past ON past.environment = w.environment),
    moved AS (
        UPDATE pandora.reservations r
           SET hops = r.hops + CASE j.verdict WHEN 'passed' THEN 1 ELSE 0 END, last_hop = j.request, expires_at = j.new_expiry,
               step = CASE WHEN j.finish THEN r.step ELSE j.position END,
               state = CASE WHEN j.finish THEN 'finishing' ELSE 'open' END,
               finishing_hop = CASE WHEN j.finish THEN j.request END
          FROM judged j
         WHERE (j.verdict = 'passed' OR j.verdict = 'again' AND j.finish) AND r.id = j.id AND r.id = ANY (ids)),
    noted AS (
        INSERT INTO pandora.flow_hop (reservation_id, idempotency_key, request_id)
        SELECT j.id, j.hop_key, j.request FROM judged j
         WHERE j.verdict = 'passed' AND NOT j.finish AND j.hop_key IS NOT NULL
        ON CONFLICT DO NOTHING)
    SELECT j.ordinal, CASE j.verdict WHEN 'again' THEN 'passed' ELSE j.verdict END, j.service_id, j.period,
           coalesce(j.units, j.charged), j.start_point, j.hops + CASE j.verdict WHEN 'passed' THEN 1 ELSE 0 END,
           (extract(epoch FROM CASE WHEN j.verdict = 'passed' OR j.verdict = 'again' AND j.finish THEN j.new_expiry
                                    ELSE j.expires_at END - moment) * 1000000)::bigint,
           j.first_request, j.first_status
      FROM judged j ORDER BY j.ordinal;
END
$$;

-- What a step was answered, for the one who sends it again; of several answers of one step the last.
CREATE OR REPLACE FUNCTION pandora.flow_note(ids text[], hop_keys text[], statuses smallint[]) RETURNS void
LANGUAGE sql VOLATILE AS $$
    UPDATE pandora.flow_hop h SET status_code = n.status
      FROM (SELECT DISTINCT ON (w.id, w.hop_key) w.*
              FROM unnest(ids, hop_keys, statuses) WITH ORDINALITY AS w (id, hop_key, status, position)
             ORDER BY w.id, w.hop_key, w.position DESC) AS n
     WHERE h.reservation_id = n.id AND h.idempotency_key = n.hop_key
$$;
