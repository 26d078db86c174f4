-- Flows: a row exists exactly as long as a flow is open.  How it ended is in the ledger.

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
COMMENT ON COLUMN pandora.reservations.finishing_hop IS 'request id of the hop that claimed the finish';

CREATE INDEX reservations_expiry ON pandora.reservations (expires_at);
CREATE INDEX reservations_key ON pandora.reservations (api_key, service_id);
CREATE INDEX reservations_row ON pandora.reservations (environment_id, service_id, period);

-- A hop that is sent again with its idempotency key is the same hop.
CREATE TABLE pandora.flow_hop (
    reservation_id  text        COLLATE "C" NOT NULL REFERENCES pandora.reservations (id) ON DELETE CASCADE,
    idempotency_key text        COLLATE "C" NOT NULL CHECK (length(idempotency_key) BETWEEN 1 AND 255),
    request_id      text        COLLATE "C" NOT NULL,
    status_code     smallint,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (reservation_id, idempotency_key)
);
