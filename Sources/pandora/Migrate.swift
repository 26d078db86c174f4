import ArgumentParser
import GatewayStore

struct Migrate: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Bring the database to the schema of this binary.",
        discussion: """
            Applies what is missing, each migration in a transaction of its own. Several may run at once: they take turns.
            A schema newer than this binary, or one that was changed, is refused.
            """)

    @OptionGroup var database: DatabaseOptions

    @Flag(help: "Change nothing; exit with 0 where the schema is as it should be, with 1 otherwise.")
    var check = false

    func run() async throws {
        try await database.withClient { client, _ in
            let migrator = Migrator(client)
            if check {
                let state = try await migrator.state()
                if !state.isCurrent { throw MigrationError.refused(state) }
                return Output.line(state.description)
            }
            let applied = try await migrator.migrate { Output.line("applied \($0.name)") }
            if applied.isEmpty { Output.line(try await migrator.state().description) }
        }
    }
}
