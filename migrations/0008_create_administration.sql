-- Who may administer, and what they did.

CREATE TABLE pandora.admin_token (
    id         text        COLLATE "C" PRIMARY KEY DEFAULT pandora.new_typeid('adm'),
    name       text        NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 200),
    token      bytea       NOT NULL UNIQUE CHECK (octet_length(token) = 32),
    role       text        NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    status     text        NOT NULL DEFAULT 'enabled' CHECK (status IN ('enabled', 'disabled')),
    expires_at timestamptz,
    last_used  timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON COLUMN pandora.admin_token.token IS 'SHA-256 of the secret';

-- One row a change, written in the transaction of the change.
CREATE TABLE pandora.audit_log (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor       text        NOT NULL,
    action      text        NOT NULL,
    object_kind text        NOT NULL,
    object_id   text        NOT NULL,
    detail      jsonb       NOT NULL DEFAULT '{}'
);

CREATE INDEX audit_log_object ON pandora.audit_log (object_kind, object_id);

CREATE FUNCTION pandora.refuse_audit_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'PN006';
END
$$;

CREATE TRIGGER append_only BEFORE UPDATE ON pandora.audit_log FOR EACH ROW
    EXECUTE FUNCTION pandora.refuse_audit_change();
