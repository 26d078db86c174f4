internal import NIOCore
public import Postgres

/// Brings a database to the schema that this binary knows.
///
/// May be used from any task. Files are applied in order, each in one transaction with its row in
/// `pandora.schema_migrations`, under an advisory lock: processes that migrate at once take turns, and whoever comes
/// second finds nothing left to do.
public struct Migrator: Sendable {
    private let client: PostgresClient
    private let known: [Migration]

    /// - Parameter client: of role `session`.
    public init(_ client: PostgresClient, migrations: [Migration] = Migration.embedded) {
        precondition(client.role == .session, "migrations need a client of role session")
        self.client = client
        known = migrations
    }

    /// Applies what is missing. Harmless when repeated.
    ///
    /// - Parameter applied: called after each file that was applied.
    /// - Throws: a refusal before anything was changed, or the file that failed: those before it stay applied.
    /// - Returns: what was applied.
    @discardableResult
    public func migrate(applied: (Migration) -> Void = { _ in }) async throws(MigrationError) -> [Migration] {
        try await checkServer()
        // Another process may be at it for as long as its files take.
        do { try await client.query(Self.lock, deadline: Self.patience) } catch { throw .database(error) }
        let outcome: Result<[Migration], MigrationError>
        do throws(MigrationError) {
            outcome = .success(try await applyMissing(applied))
        } catch {
            outcome = .failure(error)
        }
        // A connection that is gone holds no lock.
        _ = try? await client.query(Self.unlock)
        return try outcome.get()
    }

    /// How the schema stands; changes nothing.
    public func state() async throws(MigrationError) -> SchemaState {
        do {
            let found = try await client.query(Self.find)[0]
            var applied: [AppliedMigration] = []
            if found.bool(1) {
                applied = try await client.query(Self.read).map { row in
                    AppliedMigration(version: row.int32(0), name: row.string(1), checksum: row.bytes(2))
                }
            }
            return SchemaState(applied: applied, hasSchema: found.bool(0), known: known)
        } catch {
            throw .database(error)
        }
    }

    private func applyMissing(_ applied: (Migration) -> Void) async throws(MigrationError) -> [Migration] {
        let version: Int32
        switch try await state() {
        case .current: return []
        case .behind(let reached, _): version = reached
        case let state: throw .refused(state)
        }
        let missing = known.filter { $0.version > version }
        for migration in missing {
            do {
                // Commands of one message are one transaction unless they say otherwise.
                try await client.script(Self.script(migration), name: "migration", deadline: Self.patience)
            } catch {
                throw .failed(migration.name, error)
            }
            applied(migration)
        }
        return missing
    }

    private func checkServer() async throws(MigrationError) {
        let version: Int32
        do { version = try await client.query(Self.serverVersion)[0].int32(0) } catch { throw .database(error) }
        if version < 150_000 { throw .oldServer("\(version / 10_000)") }
    }

    private static func script(_ migration: Migration) -> String {
        let checksum = migration.checksum.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
        let name = migration.name.replacing("'", with: "''")
        return """
            \(migration.sql)
            ;INSERT INTO pandora.schema_migrations (version, name, checksum)
            VALUES (\(migration.version), '\(name)', '\\x\(checksum)')
            """
    }

    /// For one file, and for the turn of another process.
    private static let patience = TimeAmount.minutes(10)

    private static let lock = Statement(
        name: "migrate_lock", sql: "SELECT pg_advisory_lock(hashtextextended('pandora.migrate', 0))", isPrepared: false)
    private static let unlock = Statement(
        name: "migrate_unlock", sql: "SELECT pg_advisory_unlock(hashtextextended('pandora.migrate', 0))", isPrepared: false)
    private static let serverVersion = Statement(
        name: "migrate_server", sql: "SELECT current_setting('server_version_num')::integer", isPrepared: false)
    private static let find = Statement(
        name: "schema_find",
        sql: "SELECT to_regnamespace('pandora') IS NOT NULL, to_regclass('pandora.schema_migrations') IS NOT NULL",
        isPrepared: false)
    private static let read = Statement(
        name: "schema_read", sql: "SELECT version, name, checksum FROM pandora.schema_migrations ORDER BY version", isPrepared: false)
}

/// Why a database was not migrated, for an operator to read.
public enum MigrationError: Error, Sendable, Equatable, CustomStringConvertible {
    /// The schema is ahead of this binary, or none of its making.
    case refused(SchemaState)
    /// The server did not take a file; nothing of it remains.
    case failed(String, PostgresError)
    /// PostgreSQL of that version is too old.
    case oldServer(String)
    case database(PostgresError)

    public var description: String {
        switch self {
        case .refused(let state): state.description
        case .failed(let name, let error):
            "migration \(name) failed, nothing of it was applied: \(error)" + (error.detail.map { "; \($0)" } ?? "")
        case .oldServer(let version): "the server is PostgreSQL \(version); Pandora needs PostgreSQL 15 or newer"
        case .database(let error): error.description
        }
    }
}
