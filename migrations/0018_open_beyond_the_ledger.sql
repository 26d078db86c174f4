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
