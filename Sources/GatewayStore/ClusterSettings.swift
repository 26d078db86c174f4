public import Postgres

/// What all nodes of one database share.
public struct ClusterSettings: Sendable {
    /// 32 bytes; authenticates start points. Never shown.
    public let secret: [UInt8]

    /// Reads them over a client of any role. Fails with the server's error where the schema is not there.
    public static func read(_ client: PostgresClient) async throws(PostgresError) -> ClusterSettings {
        let rows = try await client.query(statement)
        return ClusterSettings(secret: rows[0].bytes(0))
    }

    private static let statement = Statement(
        name: "cluster_settings", sql: "SELECT secret FROM pandora.cluster_settings", parameterTypes: [])
}
