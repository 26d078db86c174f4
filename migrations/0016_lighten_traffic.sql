-- What traffic writes again and again pays for no check that cannot apply to it.

-- The shape of an id is its maker's business: a regular expression cost as much as two indexes of the row.
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
--
-- Flows are looked for by id alone, and only then asked whose they are: to a plan that is made while the tables are small, an
-- index that begins with the environment is as good as the one by id, and it would read all that the environment has.
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
          FROM judged j WHERE (j.verdict = 'passed' OR j.verdict = 'again' AND j.finish) AND r.id = j.id),
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
