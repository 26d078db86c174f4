public import GatewayCore
public import NIOCore
public import Postgres

/// Looks keys up and records when they were used. Confined to the reactor of its client, a pipeline connection.
public struct KeySession {
    private let client: PostgresClient

    public init(_ client: PostgresClient) { self.client = client }

    /// Everything that decides about a key, in one query; nil: there is no such key.
    public func fetch(
        _ digest: KeyDigest, deadline: TimeAmount, _ done: @escaping (Result<KeyEntry?, PostgresError>) -> Void
    ) {
        var parameters = Parameters()
        parameters.append(bytes: digest.bytes)
        client.execute(Self.fetchStatement, parameters, deadline: deadline) { result in
            done(result.map { rows in rows.first.flatMap { KeyEntry($0) } })
        }
    }

    /// Records when keys were last used, in microseconds since 1970; an older moment than the recorded one changes nothing.
    public func recordLastUsed(
        _ moments: [KeyID: Int64], deadline: TimeAmount, _ done: @escaping (Result<Void, PostgresError>) -> Void
    ) {
        let sorted = moments.sorted { $0.key < $1.key }
        var parameters = Parameters()
        parameters.append(sorted.map { "\($0.key)" })
        parameters.append(timestampsMicroseconds: sorted.map(\.value))
        client.execute(Self.lastUsedStatement, parameters, deadline: deadline) { done($0.map { _ in }) }
    }

    private static let fetchStatement = Statement(
        name: "key_entry",
        sql: """
            SELECT k.id, k.status, k.expires_at, e.id, e.name::text, e.status, p.id, p.name::text, p.status, p.client_id,
                   g.ids, g.names, g.versions, g.statuses, g.limited
              FROM pandora.api_key k
              JOIN pandora.environment e ON e.id = k.environment_id
              JOIN pandora.project p ON p.id = e.project_id
             CROSS JOIN LATERAL (
                   SELECT coalesce(array_agg(s.id ORDER BY s.id), '{}') AS ids,
                          coalesce(array_agg(s.name::text ORDER BY s.id), '{}') AS names,
                          coalesce(array_agg(s.version::text ORDER BY s.id), '{}') AS versions,
                          coalesce(array_agg(s.status ORDER BY s.id), '{}') AS statuses,
                          coalesce(array_agg(a.max_request IS NOT NULL ORDER BY s.id), '{}') AS limited
                     FROM pandora.environment_service a
                     JOIN pandora.service s ON s.id = a.service_id
                    WHERE a.environment_id = e.id) g
             WHERE k.key = $1
            """,
        parameterTypes: [.bytea])

    // Rows are locked in the order of their ids, so that two nodes cannot deadlock.
    private static let lastUsedStatement = Statement(
        name: "key_used",
        sql: """
            WITH used AS (SELECT * FROM unnest($1::text[], $2::timestamptz[]) AS u (id, at)),
            locked AS MATERIALIZED (
                SELECT k.id, u.at FROM pandora.api_key k JOIN used u ON u.id = k.id
                 WHERE k.last_used IS NULL OR k.last_used < u.at
                 ORDER BY k.id FOR NO KEY UPDATE OF k)
            UPDATE pandora.api_key k SET last_used = l.at FROM locked l WHERE k.id = l.id
            """,
        parameterTypes: [.textArray, .timestamptzArray])
}

extension KeyEntry {
    /// Nil where the key's id is no TypeID, which the table does not allow. A status that is not understood counts as disabled.
    fileprivate convenience init?(_ row: Row) {
        guard let id = KeyID(row.string(0)) else { return nil }
        let services: [Int64] = row.int64Array(10)
        let names: [String] = row.stringArray(11)
        let versions: [String] = row.stringArray(12)
        let statuses: [String] = row.stringArray(13)
        let limited: [Bool] = row.boolArray(14)
        self.init(
            keyID: id, status: TenantStatus(row.string(1)) ?? .disabled, expiresAt: row.timestampMicroseconds(2),
            environmentID: row.int64(3), environmentName: row.string(4),
            environmentStatus: TenantStatus(row.string(5)) ?? .disabled,
            projectID: row.int64(6), projectName: row.string(7),
            projectStatus: TenantStatus(row.string(8)) ?? .disabled,
            clientID: row.int64(9),
            grants: services.indices.map { index in
                Grant(
                    serviceID: services[index], name: names[index], version: versions[index],
                    status: ServiceStatus(statuses[index]) ?? .disabled, limited: limited[index])
            })
    }
}
