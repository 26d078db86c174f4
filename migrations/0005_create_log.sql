-- The log of hops, and how far each spool has been shipped into it.

-- One row a spool: the nodes' write-ahead logs of hops.  A batch moves `shipped_to` from where it was cut to
-- its end, in its own transaction; if the mark is elsewhere, somebody else shipped those bytes.  The epoch
-- goes up each time a process opens the spool: a second process on a copy of the same disk is fenced.
CREATE TABLE pandora.log_spool (
    id         uuid        PRIMARY KEY,
    epoch      bigint      NOT NULL DEFAULT 1 CHECK (epoch > 0),
    shipped_to bigint      NOT NULL DEFAULT 0 CHECK (shipped_to >= 0),
    node       text        NOT NULL,
    opened_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    shipped_at timestamptz
) WITH (fillfactor = 50);

COMMENT ON COLUMN pandora.log_spool.node IS 'a label for people; the id is the identity';

CREATE FUNCTION pandora.require_spool(of_spool uuid, of_epoch bigint) RETURNS void
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pandora.log_spool s WHERE s.id = of_spool AND s.epoch = of_epoch) THEN
        RAISE EXCEPTION 'spool % was opened by another process after epoch %', of_spool, of_epoch
            USING ERRCODE = 'PN004',
                  HINT = 'Two nodes run on copies of one spool directory; stop the older one.';
    END IF;
END
$$;

-- One row a hop, refused requests included.  The id is time-ordered, so inserts are local in the indexes and
-- the table is partitioned by it; a filter by time is a filter by id.
-- There is no foreign key: nodes ship out of order, partitions are dropped whole, and a batch must never fail
-- because of what it says.  Texts are valid, free of NUL and cut to size before they get here.
CREATE TABLE pandora.request_logs (
    id                  text        COLLATE "C" NOT NULL DEFAULT pandora.new_typeid('req'),
    start_point         text        COLLATE "C",
    request_time        timestamptz NOT NULL DEFAULT clock_timestamp(),
    execution_status    text        NOT NULL CHECK (execution_status IN
        ('success', 'client_error', 'server_error', 'upstream_error', 'client_aborted', 'unauthorized')),
    unauthorized_reason text,
    status_code         smallint,
    environment_id      bigint,
    service_id          bigint,
    api_key             text        COLLATE "C",
    reservation_id      text        COLLATE "C",
    units               bigint      NOT NULL DEFAULT 0 CHECK (units >= 0),
    period              bigint,
    outage              boolean     NOT NULL DEFAULT false,
    route               text,
    target              text,
    attempts            smallint    NOT NULL DEFAULT 0,
    repeats             integer     NOT NULL DEFAULT 1 CHECK (repeats > 0),
    method              text,
    host                text,
    path                text,
    duration_us         bigint,
    first_byte_us       bigint,
    bytes_in            bigint,
    bytes_out           bigint,
    remote_address      inet,
    trace_id            text        COLLATE "C",
    node                text,
    spool_id            uuid,
    PRIMARY KEY (id),
    CHECK (execution_status <> 'unauthorized' OR unauthorized_reason IS NOT NULL)
) PARTITION BY RANGE (id);

COMMENT ON COLUMN pandora.request_logs.start_point IS 'id of the first hop of the chain; NULL on a hop that starts one or stands alone';
COMMENT ON COLUMN pandora.request_logs.api_key IS 'public id of the key (key_...), never its secret';
COMMENT ON COLUMN pandora.request_logs.units IS 'units charged for this hop';
COMMENT ON COLUMN pandora.request_logs.period IS 'quota period they were charged in; NULL where no lease was needed';
COMMENT ON COLUMN pandora.request_logs.outage IS 'admitted without a lease while PostgreSQL was away';
COMMENT ON COLUMN pandora.request_logs.repeats IS 'refused requests that this row stands for';
COMMENT ON COLUMN pandora.request_logs.attempts IS 'times the request was sent upstream';

CREATE INDEX request_logs_api_key ON pandora.request_logs (api_key, id);
CREATE INDEX request_logs_start_point ON pandora.request_logs (start_point) WHERE start_point IS NOT NULL;

-- Catches what belongs to no day: a clock far off, a node that comes back after its day was dropped.
CREATE TABLE pandora.request_logs_default PARTITION OF pandora.request_logs DEFAULT;

-- One partition a day, bounds in UTC.  Rows of that day that the DEFAULT partition caught meanwhile move over.
-- Returns whether the partition was made.
CREATE FUNCTION pandora.ensure_log_partition(day date) RETURNS boolean
LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
DECLARE
    partition text := 'request_logs_' || to_char(day, 'YYYYMMDD');
    low       text := pandora.typeid_floor('req', day::timestamp AT TIME ZONE 'UTC');
    high      text := pandora.typeid_floor('req', (day + 1)::timestamp AT TIME ZONE 'UTC');
BEGIN
    IF to_regclass('pandora.' || partition) IS NOT NULL THEN
        RETURN false;
    END IF;
    -- Nodes that start together must not race; the second finds the partition made.
    PERFORM pg_advisory_xact_lock(hashtextextended('pandora.ensure_log_partition', 0));
    IF to_regclass('pandora.' || partition) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE pandora.%I (LIKE pandora.request_logs INCLUDING ALL)', partition);
    -- Once attached, the DEFAULT partition must hold none of the range; nobody may add one in between.
    LOCK TABLE pandora.request_logs_default IN ACCESS EXCLUSIVE MODE;
    EXECUTE format(
        'WITH moved AS (DELETE FROM pandora.request_logs_default WHERE id >= %L AND id < %L RETURNING *)
         INSERT INTO pandora.%I SELECT * FROM moved', low, high, partition);
    EXECUTE format(
        'ALTER TABLE pandora.request_logs ATTACH PARTITION pandora.%I FOR VALUES FROM (%L) TO (%L)',
        partition, low, high);
    RETURN true;
END
$$;

-- Yesterday (spools may be late), today, and as many days ahead as asked.  Returns how many were made.
CREATE FUNCTION pandora.ensure_log_partitions(days_ahead integer) RETURNS integer
LANGUAGE sql VOLATILE AS $$
    SELECT count(*) FILTER (WHERE pandora.ensure_log_partition(
        (clock_timestamp() AT TIME ZONE 'UTC')::date + offset_days))::integer
    FROM generate_series(-1, days_ahead) AS offset_days
$$;

-- Retention: drops the partitions of all days that end at or before the given moment.
CREATE FUNCTION pandora.drop_log_partitions(before timestamptz) RETURNS integer
LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
DECLARE
    doomed  text;
    dropped integer := 0;
BEGIN
    FOR doomed IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'pandora.request_logs'::regclass AND c.relname ~ '^request_logs_[0-9]{8}$'
           AND (to_date(right(c.relname, 8), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' <= before
         ORDER BY c.relname
    LOOP
        EXECUTE format('DROP TABLE pandora.%I', doomed);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;

SELECT pandora.ensure_log_partitions(7);
