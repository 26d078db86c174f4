-- What a gateway's flows want at once is one transaction: the wait for the disk at its end, and with it the lock of a hot
-- quota row, is paid once.  These take the locks of its parts before the parts would take them crosswise: everybody takes
-- flows by their ids, then assignments of services that are due for a reset, then quota rows in order.

-- The flows that hops, settlements and notes of a turn are about.
CREATE FUNCTION pandora.flow_lock_flows(ids text[]) RETURNS void
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    PERFORM 1 FROM pandora.reservations r WHERE r.id = ANY (ids) ORDER BY r.id FOR UPDATE;
END
$$;

-- Whatever is due among the rows of a question, in the order in which everybody takes these locks.  Due is what was due when
-- the transaction began: one that has its quota rows must find nothing more to reset, whose rows another one may have.
CREATE OR REPLACE FUNCTION pandora.reset_rows_due(environments bigint[], services bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    due record;
BEGIN
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

-- The quota rows that settlements and starts of a turn are about: those named, those of the flows that end, and those that
-- a reset changes which is due first.
CREATE FUNCTION pandora.flow_lock_rows(ids text[], environments bigint[], services bigint[]) RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    due_projects bigint[];
    due_services bigint[];
BEGIN
    SELECT array_agg(d.project_id), array_agg(d.service_id) INTO due_projects, due_services
      FROM (SELECT p.project_id, p.service_id
              FROM pandora.project_service p
             WHERE p.next_reset <= transaction_timestamp()
               AND (p.project_id, p.service_id) IN (
                   SELECT e.project_id, e.service_id FROM unnest(environments, services) AS w (environment_id, service_id)
                     JOIN pandora.environment_service e USING (environment_id, service_id))
             ORDER BY p.project_id, p.service_id FOR NO KEY UPDATE) AS d;
    PERFORM 1 FROM pandora.environment_service e
      WHERE (e.environment_id, e.service_id) IN (
            SELECT * FROM unnest(environments, services)
            UNION SELECT r.environment_id, r.service_id FROM pandora.reservations r WHERE r.id = ANY (ids)
            UNION SELECT o.environment_id, o.service_id FROM unnest(due_projects, due_services) AS d (project_id, service_id)
                    JOIN pandora.environment_service o USING (project_id, service_id))
      ORDER BY e.environment_id, e.service_id FOR NO KEY UPDATE;
END
$$;
