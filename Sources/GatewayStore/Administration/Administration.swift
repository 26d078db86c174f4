public import Postgres

/// Creates, shows and changes tenants, services, keys and quota; the command line and the admin API stand on it.
///
/// May be used from any task. Every change and its row in `audit_log` are one statement: both happen or neither. What the
/// schema refuses is said in words for a person (``AdministrationError``).
public struct Administration: Sendable {
    let client: PostgresClient
    let actor: String

    /// - Parameter actor: who is responsible, as the audit log names them, for instance `cli:alice`.
    public init(_ client: PostgresClient, actor: String) { (self.client, self.actor) = (client, actor) }

    /// Rows that a list gives at most.
    public static let listMax: Int64 = 10_000
    /// A statement that lost a deadlock or a serialization conflict is executed again, so often at most.
    private static let attempts = 5

    func read(
        _ statement: Statement, _ fill: (inout Parameters) -> Void = { _ in }
    ) async throws(AdministrationError) -> Rows {
        var parameters = Parameters()
        fill(&parameters)
        return try await run(statement, parameters)
    }

    /// `$1` of the statement is the actor.
    func change(_ statement: Statement, _ fill: (inout Parameters) -> Void) async throws(AdministrationError) -> Rows {
        var parameters = Parameters()
        parameters.append(actor)
        fill(&parameters)
        return try await run(statement, parameters)
    }

    private func run(_ statement: Statement, _ parameters: Parameters) async throws(AdministrationError) -> Rows {
        var attempt = 1
        while true {
            do throws(PostgresError) {
                return try await client.query(statement, parameters)
            } catch {
                guard error.isRetryable, attempt < Self.attempts else { throw AdministrationError(error) }
                attempt += 1
            }
        }
    }
}

/// What an update does with a value that may itself be nothing.
public enum Edit<Value: Sendable>: Sendable {
    case keep
    case set(Value)

    var isSet: Bool { if case .set = self { true } else { false } }
}

/// SQL of changes that write their row in `audit_log` themselves. `$1` is the actor.
enum Audited {
    /// Secrets' digests, and what every change or all traffic moves.
    private static let unsaid = """
        '{key,revision,created_at,updated_at,last_used,used_request,available_request,held_request,period}'::text[]
        """

    /// - Parameters:
    ///   - insert: an INSERT without RETURNING.
    ///   - select: reads the new row from `changed`.
    static func create(_ kind: String, insert: String, select: String) -> String {
        """
        WITH changed AS (\(insert) RETURNING *),
        audited AS (
            INSERT INTO pandora.audit_log (actor, action, object_kind, object_id, detail)
            SELECT $1, 'create', '\(kind)', n.id::text, to_jsonb(n) - \(unsaid) FROM changed n)
        \(select)
        """
    }

    /// - Parameters:
    ///   - kind: the table, too. `$2` is the row's id.
    ///   - set: assignments; the old row is `o`.
    ///   - idType: of the column id.
    static func update(_ kind: String, set: String, select: String) -> String {
        """
        WITH before AS MATERIALIZED (SELECT * FROM pandora.\(kind) WHERE id = $2 FOR NO KEY UPDATE),
        changed AS (UPDATE pandora.\(kind) t SET \(set) FROM before o WHERE t.id = o.id RETURNING t.*),
        audited AS (
            INSERT INTO pandora.audit_log (actor, action, object_kind, object_id, detail)
            SELECT $1, 'update', '\(kind)', n.id::text, \(difference) FROM changed n JOIN before o ON o.id = n.id)
        \(select)
        """
    }

    /// What `n` has otherwise than `o`: `{"status": {"from": "enabled", "to": "disabled"}}`.
    static let difference = """
        (SELECT coalesce(jsonb_object_agg(key, jsonb_build_object('from', was.value, 'to', became.value)), '{}')
           FROM jsonb_each(to_jsonb(o) - \(unsaid)) AS was JOIN jsonb_each(to_jsonb(n) - \(unsaid)) AS became USING (key)
          WHERE was.value <> became.value)
        """

    /// The whole row `n`.
    static let row = "to_jsonb(n) - \(unsaid)"
}
