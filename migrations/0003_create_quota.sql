-- Which project and which environment may use which service, how much of it, and when a period ends.

-- Boundary k of a project's periods: the anchor plus k periods on the wall clock of the time zone.  Counting
-- from the anchor each time keeps month ends: 31 January, 28 February, 31 March.
CREATE FUNCTION pandora.period_boundary(anchor timestamp, frequency text, time_zone text, k bigint)
RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT (anchor + k * CASE frequency
        WHEN 'daily' THEN interval '1 day'
        WHEN 'weekly' THEN interval '7 days'
        WHEN 'biweekly' THEN interval '14 days'
        WHEN 'monthly' THEN interval '1 month'
    END) AT TIME ZONE time_zone
$$;

-- The first boundary after a moment, however long ago the last one was reset; NULL without a frequency.
CREATE FUNCTION pandora.next_boundary(anchor timestamp, frequency text, time_zone text, after timestamptz)
RETURNS timestamptz
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
DECLARE
    wall     timestamp := after AT TIME ZONE time_zone;
    k        bigint;
    boundary timestamptz;
BEGIN
    IF frequency IS NULL THEN
        RETURN NULL;
    END IF;
    -- One period early, so that neither a clamped month end nor an hour of summer time is stepped over.
    k := CASE frequency
        WHEN 'monthly' THEN
            (extract(year FROM wall) - extract(year FROM anchor)) * 12
                + extract(month FROM wall) - extract(month FROM anchor)
        ELSE
            floor(extract(epoch FROM wall - anchor)
                / (86400 * CASE frequency WHEN 'daily' THEN 1 WHEN 'weekly' THEN 7 ELSE 14 END))
    END - 1;
    LOOP
        boundary := pandora.period_boundary(anchor, frequency, time_zone, k);
        -- NULL: no such frequency, which the table's CHECK says better.
        EXIT WHEN boundary > after OR boundary IS NULL;
        k := k + 1;
    END LOOP;
    RETURN boundary;
END
$$;

-- `anchor` is wall-clock time in `time_zone`.  Its default was a Monday and the first of a month: days begin
-- at midnight, weeks on Monday, months on the first.
CREATE TABLE pandora.project_service (
    project_id      bigint      NOT NULL REFERENCES pandora.project (id),
    service_id      bigint      NOT NULL REFERENCES pandora.service (id),
    max_request     bigint      CHECK (max_request >= 0),
    reset_frequency text        CHECK (reset_frequency IN ('daily', 'weekly', 'biweekly', 'monthly')),
    anchor          timestamp   NOT NULL DEFAULT '2024-01-01 00:00' CHECK (isfinite(anchor)),
    time_zone       text        NOT NULL DEFAULT 'UTC',
    next_reset      timestamptz,
    revision        bigint      NOT NULL DEFAULT 1,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, service_id),
    CHECK ((reset_frequency IS NULL) = (next_reset IS NULL))
) WITH (fillfactor = 70);

COMMENT ON COLUMN pandora.project_service.max_request IS 'units a period; NULL is unlimited';
COMMENT ON COLUMN pandora.project_service.reset_frequency IS 'NULL: the quota is never reset';

CREATE INDEX project_service_service ON pandora.project_service (service_id);
CREATE INDEX project_service_due ON pandora.project_service (next_reset) WHERE next_reset IS NOT NULL;

-- The hottest rows of the schema: no index on what traffic changes, and half of every page free, so that an
-- update stays on its page (HOT).
CREATE TABLE pandora.environment_service (
    environment_id    bigint      NOT NULL,
    service_id        bigint      NOT NULL,
    project_id        bigint      NOT NULL,
    max_request       bigint      CHECK (max_request >= 0),
    used_request      bigint      NOT NULL DEFAULT 0 CHECK (used_request >= 0),
    available_request bigint,
    held_request      bigint      NOT NULL DEFAULT 0 CHECK (held_request >= 0),
    period            bigint      NOT NULL CHECK (period > 0),
    revision          bigint      NOT NULL DEFAULT 1,
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (environment_id, service_id),
    FOREIGN KEY (environment_id, project_id) REFERENCES pandora.environment (id, project_id),
    FOREIGN KEY (project_id, service_id) REFERENCES pandora.project_service (project_id, service_id),
    CONSTRAINT available_is_max_minus_used
        CHECK (available_request IS NOT DISTINCT FROM max_request - used_request)
) WITH (fillfactor = 50);

COMMENT ON COLUMN pandora.environment_service.available_request IS
    'max_request - used_request; negative after a limit was lowered below what is used, NULL is unlimited';
COMMENT ON COLUMN pandora.environment_service.held_request IS
    'units in leases and reservations of this period: taken, not yet used; free = available - held';

CREATE INDEX environment_service_project ON pandora.environment_service (project_id, service_id);

-- Explains every unit: per (environment, service, period) the used units are the sum of used_delta and the
-- limit (0 where unlimited) is the sum of limit_delta.  Append-only; nothing refers to tenants, so history
-- outlives them and a batch of the log never waits for their rows.
CREATE TABLE pandora.quota_ledger (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    environment_id bigint      NOT NULL,
    service_id     bigint      NOT NULL,
    period         bigint      NOT NULL,
    kind           text        NOT NULL CHECK (kind IN
        ('opened', 'hops', 'flow', 'lost', 'refund', 'overrun', 'adjust', 'limit')),
    used_delta     bigint      NOT NULL DEFAULT 0,
    limit_delta    bigint      NOT NULL DEFAULT 0,
    reservation_id text        COLLATE "C",
    outcome        text        CHECK (outcome IN ('committed', 'rolled_back', 'expired')),
    spool_id       uuid,
    frames         bigint,
    at             timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (limit_delta = 0 OR kind IN ('opened', 'limit')),
    CHECK (kind <> 'refund' OR used_delta <= 0),
    CHECK (kind NOT IN ('hops', 'flow', 'lost', 'overrun') OR used_delta >= 0),
    CHECK ((kind = 'flow') = (outcome IS NOT NULL)),
    CHECK (kind <> 'flow' OR reservation_id IS NOT NULL),
    CHECK (reservation_id IS NULL OR kind IN ('flow', 'overrun')),
    CHECK (outcome IS NULL OR outcome = 'committed' OR used_delta = 0)
);

CREATE INDEX quota_ledger_row ON pandora.quota_ledger (environment_id, service_id, period);

-- A flow ends once, and is charged at most once after it expired.
CREATE UNIQUE INDEX quota_ledger_flow ON pandora.quota_ledger (reservation_id, kind) WHERE reservation_id IS NOT NULL;

CREATE FUNCTION pandora.refuse_ledger_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the quota ledger is append-only'
        USING ERRCODE = 'PN006', HINT = 'Book the correction as a row of kind "adjust".';
END
$$;

CREATE TRIGGER append_only BEFORE UPDATE ON pandora.quota_ledger FOR EACH ROW
    EXECUTE FUNCTION pandora.refuse_ledger_change();
