-- The schema, the record of applied migrations, identifiers, and the triggers that every configuration
-- table shares.  Every name is written with its schema, so that a file applies and a trigger fires
-- whatever the search_path of the session is.

CREATE SCHEMA pandora;

COMMENT ON SCHEMA pandora IS 'Pandora, an API-key gateway: tenants, keys, quota, flows, and the log of hops';

-- Written by `pandora migrate`; a file applied with psql alone leaves no row.
CREATE TABLE pandora.schema_migrations (
    version    integer     PRIMARY KEY CHECK (version > 0),
    name       text        NOT NULL,
    checksum   bytea       NOT NULL CHECK (octet_length(checksum) = 32),
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON COLUMN pandora.schema_migrations.checksum IS 'SHA-256 of the bytes of the migration file';

-- What all nodes of one database share.  The secret authenticates start points (Pandora-Start-Point).
CREATE TABLE pandora.cluster_settings (
    singleton  boolean     PRIMARY KEY DEFAULT true CHECK (singleton),
    secret     bytea       NOT NULL CHECK (octet_length(secret) = 32),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Three version 4 UUIDs carry 366 bits from the server's strong generator; SHA-256 folds them into 256.
INSERT INTO pandora.cluster_settings (secret)
VALUES (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));


-- Identifiers.  A TypeID is a prefix, an underscore and a UUIDv7 (RFC 9562, section 5.7) in 26 characters of
-- Crockford's base32, lower case, most significant bits first, two zero bits in front (TypeID specification 0.3).

CREATE FUNCTION pandora.uuid_v7(at timestamptz) RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    -- 48 bits of Unix milliseconds over a version 4 UUID; bits 52 and 53 turn version 4 into version 7.
    SELECT encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid())
                    PLACING substring(int8send(floor(extract(epoch FROM at) * 1000)::bigint) FROM 3)
                    FROM 1 FOR 6),
            52, 1), 53, 1),
        'hex')::uuid
$$;

CREATE FUNCTION pandora.typeid(prefix text, value uuid) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT prefix || '_' || string_agg(
        substr('0123456789abcdefghjkmnpqrstvwxyz', substring(bits FROM 1 + 5 * i FOR 5)::bit(5)::integer + 1, 1),
        '' ORDER BY i)
    FROM (SELECT B'00' || ('x' || replace(value::text, '-', ''))::bit(128) AS bits) AS padded,
         generate_series(0, 25) AS i
$$;

CREATE FUNCTION pandora.new_typeid(prefix text) RETURNS text
LANGUAGE sql VOLATILE STRICT PARALLEL SAFE AS $$
    SELECT pandora.typeid(prefix, pandora.uuid_v7(clock_timestamp()))
$$;

-- The smallest identifier that a moment can have: bounds of partitions and of searches by time.
CREATE FUNCTION pandora.typeid_floor(prefix text, at timestamptz) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT pandora.typeid(prefix,
        (encode(substring(int8send(floor(extract(epoch FROM at) * 1000)::bigint) FROM 3), 'hex')
            || '00000000000000000000')::uuid)
$$;

-- Names that appear in URLs, headers and metrics.
CREATE DOMAIN pandora.slug AS text COLLATE "C"
    CONSTRAINT slug_shape CHECK (VALUE ~ '^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$');


-- Shared triggers.  BEFORE triggers run in the order of their names: touch, then revise.

-- `revision` is not the writer's to choose: it goes up in revise() and nowhere else.
CREATE FUNCTION pandora.touch() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := clock_timestamp();
    NEW.revision := OLD.revision;
    RETURN NEW;
END
$$;

-- Attached with a WHEN clause that names the configuration columns of its table: quota movements and
-- last_used leave the revision alone, so caches and ETags stay valid under traffic.
CREATE FUNCTION pandora.revise() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.revision := OLD.revision + 1;
    RETURN NEW;
END
$$;

-- NOTIFY pandora_config, 'kind:id'.  Arguments: the kind, and the column that holds the id.  Attached to
-- inserts, deletes and changes of `revision`: a NOTIFY makes commits wait for each other, so quota movements
-- must never send one.
CREATE FUNCTION pandora.announce() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    row_value jsonb := CASE TG_OP WHEN 'DELETE' THEN to_jsonb(OLD) ELSE to_jsonb(NEW) END;
BEGIN
    PERFORM pg_notify('pandora_config', TG_ARGV[0] || ':' || (row_value ->> TG_ARGV[1]));
    RETURN NULL;
END
$$;
