import ArgumentParser
import GatewayCore
import GatewayStore

struct KeyCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "key", abstract: "API keys. A key's secret is shown once, when it is made.",
        subcommands: [Create.self, List.self, Show.self, Update.self, Rotate.self, Disable.self, Enable.self])

    struct Create: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Make a key. Its secret is shown now and never again.")

        @Option(help: "CLIENT/PROJECT/ENVIRONMENT or an id.") var environment: String
        @Option(help: "For people to tell keys apart.") var name: String?
        @Option(help: "30d, 2027-01-31, 2027-01-31T18:00 (UTC) or never.", transform: Moment.expiry) var expires = KeyExpiry.never
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                let environment = try await admin.environment(environment)
                let (key, secret) = try await admin.createKey(environment: environment.id, name: name, expires: expires)
                result.show(key.fields + [secret.field])
            }
        }
    }

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List keys, the newest first.")

        @Option(help: "Of this environment alone, CLIENT/PROJECT/ENVIRONMENT or an id.") var environment: String?
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                var id: Int64?
                if let environment { id = try await admin.environment(environment).id }
                result.list(
                    try await admin.keys(environment: id).map(\.fields),
                    columns: ["id", "prefix", "name", "environment", "status", "expires_at", "last_used"])
            }
        }
    }

    struct Show: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show a key.")

        @Argument(help: "Its public id, key_….") var key: String
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in result.show(try await admin.key(key).fields) }
        }
    }

    struct Update: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Change a key's name or expiry.")

        @Argument(help: "Its public id, key_….") var key: String
        @Option(help: "A new name; an empty one removes it.") var name: String?
        @Option(help: "30d (from now), 2027-01-31, 2027-01-31T18:00 (UTC) or never.", transform: Moment.expiry) var expires: KeyExpiry?
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func validate() throws {
            if name == nil, expires == nil { throw ValidationError("Say what to change: --name or --expires.") }
        }

        func run() async throws {
            try await database.administer { admin in
                let edit: Edit<String?> = name.map { .set($0.isEmpty ? nil : $0) } ?? .keep
                let found = try await admin.key(key)
                result.show(try await admin.updateKey(found.id, name: edit, expires: expires).fields)
            }
        }
    }

    struct Rotate: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make a key that takes another one's place.",
            discussion: "The new key has the name and the environment of the old one. The old one works on for the grace, then it expires.")

        @Argument(help: "The old key's public id, key_….") var key: String
        @Option(help: "How long the old key still works; 0s ends it at once.", transform: Moment.duration)
        var grace: Int64 = 24 * 3_600_000_000
        @Option(help: "When the new key expires; must be said where the old one does.", transform: Moment.expiry) var expires: KeyExpiry?
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                let found = try await admin.key(key)
                let (key, old, secret) = try await admin.rotateKey(found.id, grace: grace, expires: expires)
                let replaced = [Field("replaces", old.id), Field("old_expires_at", moment: old.expiresAt)]
                result.show(key.fields + replaced + [secret.field])
            }
        }
    }

    struct Disable: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Refuse a key from now on, on every node within a second.")

        @Argument(help: "Its public id, key_….") var key: String
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws { try await setStatus(.disabled, of: key, database, result) }
    }

    struct Enable: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Take a disabled key again.")

        @Argument(help: "Its public id, key_….") var key: String
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws { try await setStatus(.enabled, of: key, database, result) }
    }

    private static func setStatus(
        _ status: StatusArgument, of key: String, _ database: DatabaseOptions, _ result: ResultOptions
    ) async throws {
        try await database.administer { admin in
            let found = try await admin.key(key)
            result.show(try await admin.updateKey(found.id, status: status.rawValue).fields)
        }
    }
}

extension KeyRecord {
    var fields: [Field] {
        let state = isExpired ? (status == "enabled" ? "expired" : "\(status), expired") : status
        return [
            Field("id", id), Field("prefix", prefix), Field("name", name), Field("environment_id", environmentID),
            Field("environment", environmentPath), Field("status", .string(status), text: state), Field("expired", isExpired),
            Field("expires_at", moment: expiresAt, absent: "never"), Field("last_used", moment: lastUsed, absent: "never"),
            Field("created_at", moment: createdAt), Field("updated_at", moment: updatedAt),
        ]
    }
}

extension KeySecret {
    /// The one place where a secret is shown.
    fileprivate var field: Field { Field("secret", .string(text), text: "\(text)  (shown once: keep it)") }
}
