-- Who may call: clients, their projects and environments, the services, and the keys.

CREATE TABLE pandora.service (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       pandora.slug NOT NULL,
    version    text        COLLATE "C" NOT NULL DEFAULT '1' CHECK (version ~ '^[A-Za-z0-9._-]{1,25}$'),
    status     text        NOT NULL DEFAULT 'enabled' CHECK (status IN ('enabled', 'disabled', 'deprecated')),
    revision   bigint      NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (name, version)
);

CREATE TABLE pandora.client (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    type       text        NOT NULL DEFAULT 'organization' CHECK (type IN ('organization', 'developer')),
    name       text        NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 200),
    email      text        CHECK (email ~ '^[^@[:space:]]+@[^@[:space:]]+$' AND length(email) <= 320),
    revision   bigint      NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE pandora.project (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    client_id  bigint      NOT NULL REFERENCES pandora.client (id),
    name       pandora.slug NOT NULL,
    status     text        NOT NULL DEFAULT 'enabled' CHECK (status IN ('enabled', 'disabled')),
    revision   bigint      NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (client_id, name)
);

CREATE TABLE pandora.environment (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id bigint      NOT NULL REFERENCES pandora.project (id),
    name       pandora.slug NOT NULL,
    status     text        NOT NULL DEFAULT 'enabled' CHECK (status IN ('enabled', 'disabled')),
    revision   bigint      NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (project_id, name),
    -- What environment_service refers to, so that an assignment cannot leave its project.
    UNIQUE (id, project_id)
);

-- `last_used` is written to this table in batches: some room on every page keeps those updates off the indexes.
CREATE TABLE pandora.api_key (
    id             text        COLLATE "C" PRIMARY KEY DEFAULT pandora.new_typeid('key')
                               CHECK (id ~ '^key_[0-7][0-9a-hjkmnp-tv-z]{25}$'),
    environment_id bigint      NOT NULL REFERENCES pandora.environment (id),
    key            bytea       NOT NULL UNIQUE CHECK (octet_length(key) = 32),
    prefix         text        COLLATE "C" NOT NULL CHECK (length(prefix) BETWEEN 1 AND 16),
    name           text        CHECK (length(name) BETWEEN 1 AND 200),
    status         text        NOT NULL DEFAULT 'enabled' CHECK (status IN ('enabled', 'disabled')),
    expires_at     timestamptz,
    last_used      timestamptz,
    revision       bigint      NOT NULL DEFAULT 1,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at     timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 85);

COMMENT ON COLUMN pandora.api_key.key IS 'SHA-256 of the secret; the secret itself is shown once and stored nowhere';
COMMENT ON COLUMN pandora.api_key.prefix IS 'first characters of the secret, for people to tell keys apart';

CREATE INDEX project_client ON pandora.project (client_id);
CREATE INDEX api_key_environment ON pandora.api_key (environment_id);

CREATE TRIGGER touch BEFORE UPDATE ON pandora.service FOR EACH ROW EXECUTE FUNCTION pandora.touch();
CREATE TRIGGER touch BEFORE UPDATE ON pandora.client FOR EACH ROW EXECUTE FUNCTION pandora.touch();
CREATE TRIGGER touch BEFORE UPDATE ON pandora.project FOR EACH ROW EXECUTE FUNCTION pandora.touch();
CREATE TRIGGER touch BEFORE UPDATE ON pandora.environment FOR EACH ROW EXECUTE FUNCTION pandora.touch();
CREATE TRIGGER touch BEFORE UPDATE ON pandora.api_key FOR EACH ROW EXECUTE FUNCTION pandora.touch();

CREATE TRIGGER touch_revise BEFORE UPDATE ON pandora.service FOR EACH ROW
    WHEN ((OLD.name, OLD.version, OLD.status) IS DISTINCT FROM (NEW.name, NEW.version, NEW.status))
    EXECUTE FUNCTION pandora.revise();
CREATE TRIGGER touch_revise BEFORE UPDATE ON pandora.client FOR EACH ROW
    WHEN ((OLD.type, OLD.name, OLD.email) IS DISTINCT FROM (NEW.type, NEW.name, NEW.email))
    EXECUTE FUNCTION pandora.revise();
CREATE TRIGGER touch_revise BEFORE UPDATE ON pandora.project FOR EACH ROW
    WHEN ((OLD.client_id, OLD.name, OLD.status) IS DISTINCT FROM (NEW.client_id, NEW.name, NEW.status))
    EXECUTE FUNCTION pandora.revise();
CREATE TRIGGER touch_revise BEFORE UPDATE ON pandora.environment FOR EACH ROW
    WHEN ((OLD.project_id, OLD.name, OLD.status) IS DISTINCT FROM (NEW.project_id, NEW.name, NEW.status))
    EXECUTE FUNCTION pandora.revise();
CREATE TRIGGER touch_revise BEFORE UPDATE ON pandora.api_key FOR EACH ROW
    WHEN ((OLD.environment_id, OLD.key, OLD.prefix, OLD.name, OLD.status, OLD.expires_at)
          IS DISTINCT FROM (NEW.environment_id, NEW.key, NEW.prefix, NEW.name, NEW.status, NEW.expires_at))
    EXECUTE FUNCTION pandora.revise();

CREATE TRIGGER announce AFTER INSERT OR DELETE ON pandora.service FOR EACH ROW
    EXECUTE FUNCTION pandora.announce('service', 'id');
CREATE TRIGGER announce AFTER INSERT OR DELETE ON pandora.client FOR EACH ROW
    EXECUTE FUNCTION pandora.announce('client', 'id');
CREATE TRIGGER announce AFTER INSERT OR DELETE ON pandora.project FOR EACH ROW
    EXECUTE FUNCTION pandora.announce('project', 'id');
CREATE TRIGGER announce AFTER INSERT OR DELETE ON pandora.environment FOR EACH ROW
    EXECUTE FUNCTION pandora.announce('environment', 'id');
CREATE TRIGGER announce AFTER INSERT OR DELETE ON pandora.api_key FOR EACH ROW
    EXECUTE FUNCTION pandora.announce('api_key', 'id');

CREATE TRIGGER announce_change AFTER UPDATE ON pandora.service FOR EACH ROW
    WHEN (OLD.revision <> NEW.revision) EXECUTE FUNCTION pandora.announce('service', 'id');
CREATE TRIGGER announce_change AFTER UPDATE ON pandora.client FOR EACH ROW
    WHEN (OLD.revision <> NEW.revision) EXECUTE FUNCTION pandora.announce('client', 'id');
CREATE TRIGGER announce_change AFTER UPDATE ON pandora.project FOR EACH ROW
    WHEN (OLD.revision <> NEW.revision) EXECUTE FUNCTION pandora.announce('project', 'id');
CREATE TRIGGER announce_change AFTER UPDATE ON pandora.environment FOR EACH ROW
    WHEN (OLD.revision <> NEW.revision) EXECUTE FUNCTION pandora.announce('environment', 'id');
CREATE TRIGGER announce_change AFTER UPDATE ON pandora.api_key FOR EACH ROW
    WHEN (OLD.revision <> NEW.revision) EXECUTE FUNCTION pandora.announce('api_key', 'id');

-- An environment's name is part of what was agreed with its client and of what its logs are read by.
CREATE FUNCTION pandora.refuse_environment_rename() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the name of environment % ("%") cannot be changed', OLD.id, OLD.name
        USING ERRCODE = 'PN001',
              HINT = 'Create an environment with the new name, move its keys, then disable this one.';
END
$$;

CREATE TRIGGER refuse_rename BEFORE UPDATE ON pandora.environment FOR EACH ROW
    WHEN (OLD.name IS DISTINCT FROM NEW.name) EXECUTE FUNCTION pandora.refuse_environment_rename();
