-- What keeps the numbers of project_service and environment_service true, whoever edits them.

-- The next reset follows from the calendar; only a reset moves it otherwise.
CREATE FUNCTION pandora.schedule_reset() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    -- Refuses a time zone that the server does not know, also where nothing is reset yet.
    PERFORM clock_timestamp() AT TIME ZONE NEW.time_zone;
    NEW.next_reset := pandora.next_boundary(NEW.anchor, NEW.reset_frequency, NEW.time_zone, clock_timestamp());
    RETURN NEW;
END
$$;

CREATE TRIGGER schedule BEFORE INSERT ON pandora.project_service FOR EACH ROW
    EXECUTE FUNCTION pandora.schedule_reset();
CREATE TRIGGER schedule_change BEFORE UPDATE ON pandora.project_service FOR EACH ROW
    WHEN ((OLD.reset_frequency, OLD.anchor, OLD.time_zone)
          IS DISTINCT FROM (NEW.reset_frequency, NEW.anchor, NEW.time_zone))
    EXECUTE FUNCTION pandora.schedule_reset();

-- A row opens with what its limit allows.  An edit of the limit moves `available` by the same amount in the
-- same statement, so it cannot overwrite what traffic used meanwhile.
CREATE FUNCTION pandora.derive_available() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.available_request := NEW.max_request - NEW.used_request;
    RETURN NEW;
END
$$;

-- Periods count on from whatever the ledger has seen of the pair: a service that was taken away and assigned
-- again must not meet the holds of its former life.
CREATE FUNCTION pandora.open_assignment() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.project_id := coalesce(NEW.project_id,
        (SELECT e.project_id FROM pandora.environment e WHERE e.id = NEW.environment_id));
    NEW.period := 1 + coalesce(
        (SELECT max(l.period) FROM pandora.quota_ledger l
          WHERE l.environment_id = NEW.environment_id AND l.service_id = NEW.service_id), 0);
    NEW.available_request := NEW.max_request - NEW.used_request;
    RETURN NEW;
END
$$;

CREATE TRIGGER open BEFORE INSERT ON pandora.environment_service FOR EACH ROW
    EXECUTE FUNCTION pandora.open_assignment();
CREATE TRIGGER derive_available BEFORE UPDATE ON pandora.environment_service FOR EACH ROW
    WHEN (OLD.max_request IS DISTINCT FROM NEW.max_request)
    EXECUTE FUNCTION pandora.derive_available();

-- The ledger's side of an opened period and of an edited limit.
CREATE FUNCTION pandora.book_limit() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.period <> OLD.period THEN
        INSERT INTO pandora.quota_ledger (environment_id, service_id, period, kind, used_delta, limit_delta)
        VALUES (NEW.environment_id, NEW.service_id, NEW.period, 'opened',
                NEW.used_request, coalesce(NEW.max_request, 0));
    ELSE
        INSERT INTO pandora.quota_ledger (environment_id, service_id, period, kind, limit_delta)
        VALUES (NEW.environment_id, NEW.service_id, NEW.period, 'limit',
                coalesce(NEW.max_request, 0) - coalesce(OLD.max_request, 0));
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER book_opened AFTER INSERT ON pandora.environment_service FOR EACH ROW
    EXECUTE FUNCTION pandora.book_limit();
CREATE TRIGGER book_limit AFTER UPDATE ON pandora.environment_service FOR EACH ROW
    WHEN (OLD.period <> NEW.period OR OLD.max_request IS DISTINCT FROM NEW.max_request)
    EXECUTE FUNCTION pandora.book_limit();

-- The environments of a project share what the project has.  Both sides of the rule are checked under the lock
-- of the project_service row, so two environments cannot grow into the same units at once.
CREATE FUNCTION pandora.check_shares(of_project bigint, of_service bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    allowed   bigint;
    shared    numeric;
    unlimited bigint;
    names     record;
BEGIN
    SELECT p.max_request INTO allowed FROM pandora.project_service p
     WHERE p.project_id = of_project AND p.service_id = of_service FOR NO KEY UPDATE;
    IF allowed IS NULL THEN
        RETURN;
    END IF;
    -- A snapshot taken before the lock would not show what the other editor committed.
    IF current_setting('transaction_isolation') = 'repeatable read' THEN
        RAISE EXCEPTION 'limits cannot be edited in a repeatable read transaction'
            USING ERRCODE = 'PN005', HINT = 'Use read committed (the default) or serializable.';
    END IF;
    SELECT coalesce(sum(e.max_request), 0), min(e.environment_id) FILTER (WHERE e.max_request IS NULL)
      INTO shared, unlimited
      FROM pandora.environment_service e WHERE e.project_id = of_project AND e.service_id = of_service;
    IF unlimited IS NULL AND shared <= allowed THEN
        RETURN;
    END IF;
    SELECT c.name || '/' || p.name AS project, s.name || '/' || s.version AS service INTO names
      FROM pandora.project p JOIN pandora.client c ON c.id = p.client_id, pandora.service s
     WHERE p.id = of_project AND s.id = of_service;
    IF unlimited IS NOT NULL THEN
        RAISE EXCEPTION 'environment "%" of project "%" would be unlimited, but the project has % units of service "%"',
            (SELECT e.name FROM pandora.environment e WHERE e.id = unlimited), names.project, allowed, names.service
            USING ERRCODE = 'PN003', HINT = 'Give the environment a limit, or make the project unlimited.';
    END IF;
    RAISE EXCEPTION 'the environments of project "%" would have % units of service "%", but the project has %',
        names.project, shared, names.service, allowed
        USING ERRCODE = 'PN002', HINT = 'Raise the limit of the project or lower those of its environments.';
END
$$;

CREATE FUNCTION pandora.check_shares_of_row() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pandora.check_shares(NEW.project_id, NEW.service_id);
    RETURN NULL;
END
$$;

CREATE TRIGGER shares AFTER INSERT ON pandora.environment_service FOR EACH ROW
    EXECUTE FUNCTION pandora.check_shares_of_row();
CREATE TRIGGER shares_change AFTER UPDATE ON pandora.environment_service FOR EACH ROW
    WHEN ((OLD.max_request, OLD.project_id, OLD.service_id)
          IS DISTINCT FROM (NEW.max_request, NEW.project_id, NEW.service_id))
    EXECUTE FUNCTION pandora.check_shares_of_row();
CREATE TRIGGER shares_change AFTER UPDATE ON pandora.project_service FOR EACH ROW
    WHEN (OLD.max_request IS DISTINCT FROM NEW.max_request)
    EXECUTE FUNCTION pandora.check_shares_of_row();

CREATE TRIGGER touch BEFORE UPDATE ON pandora.project_service FOR EACH ROW EXECUTE FUNCTION pandora.touch();
CREATE TRIGGER touch BEFORE UPDATE ON pandora.environment_service FOR EACH ROW EXECUTE FUNCTION pandora.touch();

CREATE TRIGGER touch_revise BEFORE UPDATE ON pandora.project_service FOR EACH ROW
    WHEN ((OLD.max_request, OLD.reset_frequency, OLD.anchor, OLD.time_zone)
          IS DISTINCT FROM (NEW.max_request, NEW.reset_frequency, NEW.anchor, NEW.time_zone))
    EXECUTE FUNCTION pandora.revise();
CREATE TRIGGER touch_revise BEFORE UPDATE ON pandora.environment_service FOR EACH ROW
    WHEN (OLD.max_request IS DISTINCT FROM NEW.max_request)
    EXECUTE FUNCTION pandora.revise();

-- What a cached key knows of an assignment hangs on its environment.
CREATE TRIGGER announce AFTER INSERT OR DELETE ON pandora.project_service FOR EACH ROW
    EXECUTE FUNCTION pandora.announce('project', 'project_id');
CREATE TRIGGER announce_change AFTER UPDATE ON pandora.project_service FOR EACH ROW
    WHEN (OLD.revision <> NEW.revision) EXECUTE FUNCTION pandora.announce('project', 'project_id');
CREATE TRIGGER announce AFTER INSERT OR DELETE ON pandora.environment_service FOR EACH ROW
    EXECUTE FUNCTION pandora.announce('environment', 'environment_id');
CREATE TRIGGER announce_change AFTER UPDATE ON pandora.environment_service FOR EACH ROW
    WHEN (OLD.revision <> NEW.revision) EXECUTE FUNCTION pandora.announce('environment', 'environment_id');

-- A reset: every environment of the project opens a new period.  What is held of the old one resolves in the
-- ledger of its own period; it neither returns to the new one nor takes from it.
CREATE FUNCTION pandora.reset_if_due(of_project bigint, of_service bigint) RETURNS boolean
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
       SET used_request = 0, held_request = 0, available_request = e.max_request, period = e.period + 1
     WHERE e.project_id = of_project AND e.service_id = of_service;
    UPDATE pandora.project_service p
       SET next_reset = pandora.next_boundary(p.anchor, p.reset_frequency, p.time_zone, clock_timestamp())
     WHERE p.project_id = of_project AND p.service_id = of_service;
    RETURN true;
END
$$;

-- Whatever is due among the rows of a question, in the order in which everybody takes these locks.
CREATE FUNCTION pandora.reset_rows_due(environments bigint[], services bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    due record;
BEGIN
    FOR due IN
        SELECT DISTINCT p.project_id, p.service_id
          FROM unnest(environments, services) AS w (environment_id, service_id)
          JOIN pandora.environment_service e USING (environment_id, service_id)
          JOIN pandora.project_service p ON p.project_id = e.project_id AND p.service_id = e.service_id
         WHERE p.next_reset <= clock_timestamp()
         ORDER BY 1, 2
    LOOP
        PERFORM pandora.reset_if_due(due.project_id, due.service_id);
    END LOOP;
END
$$;

-- The sweeper's turn: at most one overdue row, so that a transaction is one project's reset.  Returns whether
-- there was one; rows that another node resets just now are left to it.
CREATE FUNCTION pandora.reset_next_due() RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    due record;
BEGIN
    SELECT p.project_id, p.service_id INTO due FROM pandora.project_service p
     WHERE p.next_reset <= statement_timestamp()
     ORDER BY p.next_reset LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    RETURN pandora.reset_if_due(due.project_id, due.service_id);
END
$$;
