import Foundation
import Postgres
import Reactor
import TestKit
import Testing

@testable import GatewayStore

@Suite struct MigrationTests {
    private let latest = Migration.embedded.last!.version
    private let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("../../migrations")

    private func withEmptyDatabase(_ body: (PostgresClient, Store) async throws -> Void) async throws {
        let database = try await TestDatabase.create()
        try await withClient(of: database) { client, reactor in
            try await body(client, Store(database: database, reactor: reactor, client: client))
        }
    }

    private func files() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: folder.path).filter { $0.hasSuffix(".sql") }.sorted()
    }

    @Test func theBinaryHoldsEveryFileByteForByte() throws {
        #expect(try files() == Migration.embedded.map(\.name))
        for migration in Migration.embedded {
            #expect(try Data(contentsOf: folder.appendingPathComponent(migration.name)) == Data(migration.sql.utf8))
        }
        #expect(Migration.embedded.map(\.version) == Array(1...latest))
    }

    @Test func aChecksumIsTheSHA256OfTheFile() {
        let checksum = Migration(name: "1_x.sql", sql: "abc").checksum
        #expect(checksum.prefix(4) == [0xba, 0x78, 0x16, 0xbf] && checksum.suffix(2) == [0x15, 0xad])
    }

    @Test func migratesAnEmptyDatabaseOnce() async throws {
        try await withEmptyDatabase { client, store in
            let migrator = Migrator(client)
            #expect(try await migrator.state() == .behind(version: 0, known: latest))
            var told: [String] = []
            let applied = try await migrator.migrate { told.append($0.name) }
            #expect(applied == Migration.embedded && told == applied.map(\.name))
            #expect(try await migrator.state() == .current(version: latest))
            #expect(try await migrator.migrate() == [])
            let rows = try await store.run("SELECT version, name, checksum FROM schema_migrations ORDER BY version")
            #expect(rows.count == Migration.embedded.count && rows[0].hasPrefix("1|0001_create_schema.sql|\\x"))
        }
    }

    @Test func processesThatMigrateAtOnceTakeTurns() async throws {
        try await withEmptyDatabase { _, store in
            var clients: [PostgresClient] = []
            for _ in 0..<4 { clients.append(try await store.connect()) }
            let counts = try await withThrowingTaskGroup(of: Int.self) { group in
                for client in clients { group.addTask { try await Migrator(client).migrate().count } }
                return try await group.reduce(into: []) { $0.append($1) }
            }
            #expect(counts.sorted() == [0, 0, 0, Migration.embedded.count])
            // Nobody keeps the lock.
            #expect(
                try await store.run(
                    """
                    SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                     WHERE l.locktype = 'advisory' AND d.datname = current_database()
                    """)
                    == ["0"])
            for client in clients { await client.shutdown() }
        }
    }

    @Test func aFileThatWasAppliedMustStayAsItIs() async throws {
        try await withEmptyDatabase { client, store in
            try await Migrator(client).migrate()
            var changed = Migration.embedded
            changed[2] = Migration(name: changed[2].name, sql: changed[2].sql + "\n-- edited")
            changed.append(Migration(name: "0099_add.sql", sql: "CREATE TABLE pandora.added ()"))
            let migrator = Migrator(client, migrations: changed)
            let error = await #expect(throws: MigrationError.self) { try await migrator.migrate() }
            guard case .refused(.foreign(let reason)) = error else { return #expect(Bool(false), "\(String(describing: error))") }
            #expect(reason.contains("0003_create_quota.sql has changed since it was applied"))
            #expect(try await store.run("SELECT to_regclass('pandora.added')") == [""])
        }
    }

    @Test func aNewerSchemaIsRefused() async throws {
        try await withEmptyDatabase { client, _ in
            try await Migrator(client).migrate()
            let older = Migrator(client, migrations: Array(Migration.embedded.dropLast()))
            #expect(try await older.state() == .ahead(version: latest, known: latest - 1))
            await #expect(throws: MigrationError.refused(.ahead(version: latest, known: latest - 1))) { try await older.migrate() }
        }
    }

    @Test func anOlderSchemaIsBehindAndMigratedOn() async throws {
        try await withEmptyDatabase { client, _ in
            try await Migrator(client, migrations: Array(Migration.embedded.prefix(3))).migrate()
            #expect(try await Migrator(client).state() == .behind(version: 3, known: latest))
            #expect(try await Migrator(client).migrate().map(\.version) == Array(4...latest))
        }
    }

    @Test func aFileThatFailsLeavesNothing() async throws {
        try await withEmptyDatabase { client, store in
            let bad = Migration(name: "0099_fail.sql", sql: "CREATE TABLE pandora.half (); SELECT 1 / 0;")
            let migrator = Migrator(client, migrations: Migration.embedded + [bad])
            let error = await #expect(throws: MigrationError.self) { try await migrator.migrate() }
            guard case .failed("0099_fail.sql", let cause) = error else { return #expect(Bool(false), "\(String(describing: error))") }
            #expect(cause.sqlState == "22012")
            #expect(try await store.run("SELECT to_regclass('pandora.half')") == [""])
            #expect(try await migrator.state() == .behind(version: latest, known: 99))
            // The lock was given back.
            let other = try await store.connect()
            #expect(try await Migrator(other).migrate() == [])
            await other.shutdown()
        }
    }

    @Test func everyFileAppliesWithPsqlAloneAndMakesTheSameSchema() async throws {
        let byHand = try await TestDatabase.create()
        for file in try files() {
            try await byHand.psql(String(contentsOf: folder.appendingPathComponent(file), encoding: .utf8))
        }
        let byMigrator = try await TestDatabase.create(from: .schema)
        let objects = """
            SELECT 'column', attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute
              JOIN pg_class c ON c.oid = attrelid WHERE relnamespace = 'pandora'::regnamespace AND attnum > 0
            UNION ALL SELECT 'function', oid::regprocedure::text, md5(prosrc), '', true FROM pg_proc
             WHERE pronamespace = 'pandora'::regnamespace
            UNION ALL SELECT 'trigger', tgrelid::regclass::text, pg_get_triggerdef(oid), '', true FROM pg_trigger
             WHERE NOT tgisinternal
            UNION ALL SELECT 'constraint', conrelid::regclass::text, pg_get_constraintdef(oid), '', true FROM pg_constraint
             WHERE connamespace = 'pandora'::regnamespace
            ORDER BY 1, 2, 3
            """
        let expected = try await byMigrator.psql(objects)
        #expect(expected.count > 200)
        #expect(try await byHand.psql(objects) == expected)
        // Without a record nobody can tell what was applied.
        try await withClient(of: byHand) { client, _ in
            guard case .foreign(let reason) = try await Migrator(client).state() else { return #expect(Bool(false)) }
            #expect(reason.contains("no record"))
            await #expect(throws: MigrationError.self) { try await Migrator(client).migrate() }
        }
    }
}
