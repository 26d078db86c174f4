/// How a database's schema stands to what a binary knows.
public enum SchemaState: Sendable, Equatable, CustomStringConvertible {
    /// Exactly what the binary knows.
    case current(version: Int32)
    /// Migrations are missing; version 0: there is no schema at all.
    case behind(version: Int32, known: Int32)
    /// A newer binary has migrated the database.
    case ahead(version: Int32, known: Int32)
    /// Not made by the migrations of this binary; the text says why.
    case foreign(String)

    public var isCurrent: Bool { if case .current = self { true } else { false } }

    /// For an operator, with what to do about it.
    public var description: String {
        switch self {
        case .current(let version): "the schema is at version \(version), as it should be"
        case .behind(0, let known): "the database has no schema of Pandora yet (this binary knows version \(known)): run pandora migrate"
        case .behind(let version, let known):
            "the schema is at version \(version), this binary needs version \(known): run pandora migrate"
        case .ahead(let version, let known):
            "the schema is at version \(version), but this binary knows only version \(known): run a newer pandora"
        case .foreign(let reason): reason
        }
    }

    /// - Parameters:
    ///   - applied: rows of `schema_migrations` in the order of their versions.
    ///   - hasSchema: whether there is a schema `pandora`.
    init(applied: [AppliedMigration], hasSchema: Bool, known: [Migration]) {
        let latest = known.last?.version ?? 0
        guard let last = applied.last else {
            self =
                hasSchema
                ? .foreign(
                    "the database has a schema pandora but no record of the migrations that made it "
                        + "(files applied with psql leave none): use a new database")
                : .behind(version: 0, known: latest)
            return
        }
        for (position, row) in applied.enumerated() where row.version <= latest {
            guard position < known.count, known[position].version == row.version else {
                self = .foreign("migration \(row.name) was applied without one that comes before it, or is none of this binary")
                return
            }
            guard known[position].checksum == row.checksum else {
                self = .foreign(
                    "migration \(row.name) has changed since it was applied: its checksum was \(hex(row.checksum)), "
                        + "this binary has \(hex(known[position].checksum)); a file that was applied must stay as it is")
                return
            }
        }
        if last.version > latest {
            self = .ahead(version: last.version, known: latest)
        } else if last.version < latest {
            self = .behind(version: last.version, known: latest)
        } else {
            self = .current(version: latest)
        }
    }
}

/// A row of `schema_migrations`.
struct AppliedMigration: Equatable {
    var version: Int32
    var name: String
    var checksum: [UInt8]
}

/// The first bytes are enough for people to compare.
private func hex(_ bytes: [UInt8]) -> String {
    bytes.prefix(6).map { byte in String(byte >> 4, radix: 16) + String(byte & 15, radix: 16) }.joined() + "…"
}
