-- A claim that is said again while its hop is on its way is renewed: claims can be short, so that a gateway that dies amid a
-- finish does not hold its flow for long.  A renewal that comes late, when its hop is settled and the flow may have gone on,
-- claims nothing anew.

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
