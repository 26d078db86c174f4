public import GatewayCore
internal import Postgres

public struct KeyRecord: Sendable, Equatable {
    /// `key_…`
    public var id: String
    public var environmentID: Int64
    /// `client/project/environment`
    public var environmentPath: String
    /// First characters of the secret.
    public var prefix: String
    public var name: String?
    /// `enabled` or `disabled`.
    public var status: String
    /// By the server's clock.
    public var isExpired: Bool
    /// Microseconds since 1970, as all moments here; nil: never.
    public var expiresAt: Int64?
    public var lastUsed: Int64?
    public var revision: Int64
    public var createdAt: Int64
    public var updatedAt: Int64
}

/// When a key stops to be taken.
public enum KeyExpiry: Sendable, Equatable {
    case never
    /// Microseconds since 1970.
    case at(Int64)
    /// Microseconds from now, by the server's clock.
    case after(Int64)
}

extension Administration {
    /// A new key with its secret, which is stored nowhere: whoever asked must keep it.
    public func createKey(
        environment: Int64, name: String?, expires: KeyExpiry = .never
    ) async throws(AdministrationError) -> (key: KeyRecord, secret: KeySecret) {
        let secret = Self.newSecret()
        let rows = try await change(KeySQL.create) {
            $0.append(environment)
            $0.append(bytes: secret.digest.bytes)
            $0.append(secret.prefix)
            $0.append(name)
            $0.append(expires)
        }
        guard let row = rows.first else { throw Self.expiredAlready }
        return (KeyRecord(row), secret)
    }

    /// The newest first; at most ``listMax``.
    ///
    /// - Parameter environment: of this one alone, unless nil.
    public func keys(environment: Int64? = nil) async throws(AdministrationError) -> [KeyRecord] {
        try await read(KeySQL.list) { $0.append(environment) }.map(KeyRecord.init)
    }

    /// - Parameter reference: an id, `key_…`.
    public func key(_ reference: String) async throws(AdministrationError) -> KeyRecord {
        guard let id = KeyID(reference) else {
            // Not shown: it may well be a secret.
            throw AdministrationError(
                .invalidValue, "a key is named by its public id, key_ and 26 characters", hint: "pandora key list shows all")
        }
        let rows = try await read(KeySQL.find) { $0.append("\(id)") }
        return try Self.one(rows.map(KeyRecord.init), "key", id)
    }

    /// What is nil stays as it is.
    public func updateKey(
        _ id: String, name: Edit<String?> = .keep, status: String? = nil, expires: KeyExpiry? = nil
    ) async throws(AdministrationError) -> KeyRecord {
        let rows = try await change(KeySQL.update) {
            $0.append(id)
            $0.append(name.isSet)
            if case .set(let text) = name { $0.append(text) } else { $0.append(String?.none) }
            $0.append(status)
            $0.append(expires != nil)
            $0.append(expires ?? .never)
        }
        return try Self.one(rows.map(KeyRecord.init), "key", id)
    }

    /// Makes a key that takes another one's place; the old one expires after the grace, unless it does so earlier.
    ///
    /// - Parameters:
    ///   - grace: microseconds, ≥ 0.
    ///   - expires: of the new key. Nil is enough where the old one never expires; otherwise it must be said, so that neither
    ///     a key for ever nor one that ends tomorrow is made by mistake.
    public func rotateKey(
        _ id: String, grace: Int64, expires: KeyExpiry? = nil
    ) async throws(AdministrationError) -> (key: KeyRecord, old: KeyRecord, secret: KeySecret) {
        let old = try await key(id)
        if old.status != "enabled" {
            throw AdministrationError(.conflict, "the key \(id) is disabled", hint: "enable it first, or create a new key")
        }
        if expires == nil, old.expiresAt != nil {
            throw AdministrationError(
                .conflict, "the key \(id) expires, so it must be said when the new one does", hint: "--expires 90d, or --expires never")
        }
        let secret = Self.newSecret()
        let rows = try await change(KeySQL.rotate) {
            $0.append(id)
            $0.append(bytes: secret.digest.bytes)
            $0.append(secret.prefix)
            $0.append(grace)
            $0.append(expires ?? .never)
        }
        guard rows.count == 2 else { throw Self.expiredAlready }
        return (KeyRecord(rows[0]), KeyRecord(rows[1]), secret)
    }

    private static func newSecret() -> KeySecret {
        var random = SystemRandomNumberGenerator()
        return KeySecret(random: &random)
    }

    private static var expiredAlready: AdministrationError {
        AdministrationError(.invalidValue, "the key would be expired already", hint: "give a moment to come")
    }
}

extension Parameters {
    /// Two parameters: microseconds from now, and a moment.
    fileprivate mutating func append(_ expires: KeyExpiry) {
        switch expires {
        case .never:
            append(Int64?.none)
            append(timestampMicroseconds: nil)
        case .after(let microseconds):
            append(microseconds)
            append(timestampMicroseconds: nil)
        case .at(let moment):
            append(Int64?.none)
            append(timestampMicroseconds: moment)
        }
    }
}

extension KeyRecord {
    fileprivate init(_ row: Row) {
        self.init(
            id: row.string(0), environmentID: row.int64(1), environmentPath: row.string(2), prefix: row.string(3),
            name: row.string(4), status: row.string(5), isExpired: row.bool(6), expiresAt: row.timestampMicroseconds(7),
            lastUsed: row.timestampMicroseconds(8), revision: row.int64(9), createdAt: row.timestampMicroseconds(10),
            updatedAt: row.timestampMicroseconds(11))
    }
}

private enum KeySQL {
    private static let columns = """
        k.id, k.environment_id, c.name || '/' || p.name || '/' || e.name, k.prefix, k.name, k.status,
        coalesce(k.expires_at <= clock_timestamp(), false), k.expires_at, k.last_used, k.revision, k.created_at, k.updated_at
        """
    private static let parents = """
        JOIN pandora.environment e ON e.id = k.environment_id
        JOIN pandora.project p ON p.id = e.project_id JOIN pandora.client c ON c.id = p.client_id
        """

    private static func expiry(_ after: String, _ at: String) -> String {
        "CASE WHEN \(after) IS NULL THEN \(at) ELSE clock_timestamp() + \(after) * interval '1 microsecond' END"
    }

    static let create = Statement(
        name: "key_create",
        sql: Audited.create(
            "api_key",
            insert: """
                INSERT INTO pandora.api_key (environment_id, key, prefix, name, expires_at)
                SELECT $2, $3, $4, $5, x.at FROM (SELECT \(expiry("$6", "$7"))) AS x (at)
                 WHERE x.at IS NULL OR x.at > clock_timestamp()
                """,
            select: "SELECT \(columns) FROM changed k \(parents)"),
        parameterTypes: [.text, .int8, .bytea, .text, .text, .int8, .timestamptz])

    static let list = Statement(
        name: "key_list",
        sql: """
            SELECT \(columns) FROM pandora.api_key k \(parents) WHERE $1 IS NULL OR k.environment_id = $1
             ORDER BY k.id DESC LIMIT \(Administration.listMax)
            """,
        parameterTypes: [.int8])

    static let find = Statement(
        name: "key_find", sql: "SELECT \(columns) FROM pandora.api_key k \(parents) WHERE k.id = $1", parameterTypes: [.text])

    static let update = Statement(
        name: "key_update",
        sql: Audited.update(
            "api_key",
            set: """
                name = CASE WHEN $3 THEN $4 ELSE o.name END, status = coalesce($5, o.status),
                expires_at = CASE WHEN $6 THEN \(expiry("$7", "$8")) ELSE o.expires_at END
                """,
            select: "SELECT \(columns) FROM changed k \(parents)"),
        parameterTypes: [.text, .text, .bool, .text, .text, .bool, .int8, .timestamptz])

    /// The new key, then the old one; nothing where the new one would be expired already.
    static let rotate = Statement(
        name: "key_rotate",
        sql: """
            WITH before AS MATERIALIZED (SELECT * FROM pandora.api_key WHERE id = $2 FOR NO KEY UPDATE),
            made AS (
                INSERT INTO pandora.api_key (environment_id, key, prefix, name, expires_at)
                SELECT o.environment_id, $3, $4, o.name, x.at FROM before o, (SELECT \(expiry("$6", "$7"))) AS x (at)
                 WHERE x.at IS NULL OR x.at > clock_timestamp() RETURNING *),
            retired AS (
                UPDATE pandora.api_key t SET expires_at = least(t.expires_at, clock_timestamp() + $5 * interval '1 microsecond')
                  FROM before o, made WHERE t.id = o.id RETURNING t.*),
            audited AS (
                INSERT INTO pandora.audit_log (actor, action, object_kind, object_id, detail)
                SELECT $1, 'create', 'api_key', n.id, \(Audited.row) || jsonb_build_object('replaces', $2) FROM made n
                UNION ALL
                SELECT $1, 'rotate', 'api_key', n.id, \(Audited.difference) || jsonb_build_object('replaced_by', m.id)
                  FROM retired n JOIN before o ON o.id = n.id, made m)
            SELECT \(columns) FROM (SELECT 0 AS place, * FROM made UNION ALL SELECT 1, * FROM retired) AS k \(parents)
             ORDER BY k.place
            """,
        parameterTypes: [.text, .text, .bytea, .text, .int8, .int8, .timestamptz])
}
