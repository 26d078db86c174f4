import ArgumentParser
import GatewayCore
import GatewayStore
import Glibc
import Postgres
import Reactor

/// Which database a command talks to.
struct DatabaseOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "The database, postgres://user:password@host/name. Where it holds a password, the environment variable is the safer place.",
            valueName: "url"))
    var database: String?

    @Option(
        help: ArgumentHelp("Take the database from this configuration file.", valueName: "file"),
        completion: .file(extensions: ["yaml", "yml"]))
    var config: String?

    /// What was said first counts: `--database`, `--config`, `PANDORA_DATABASE_URL`.
    func configuration() throws -> PostgresConfiguration {
        guard let url = try url() else {
            throw ValidationError("Say which database: --database URL, --config FILE, or the environment variable PANDORA_DATABASE_URL.")
        }
        do throws(PostgresConfiguration.URLError) {
            var configuration = try PostgresConfiguration(url: url)
            if configuration.applicationName == PostgresConfiguration().applicationName { configuration.applicationName = "pandora-cli" }
            return configuration
        } catch {
            throw ValidationError(error.description)
        }
    }

    private func url() throws -> String? {
        if let database { return database }
        guard let config else { return getenv("PANDORA_DATABASE_URL").map { String(cString: $0) } }
        let secret: Secret?
        do throws(ConfigurationErrors) {
            secret = try Configuration.load(path: config).boot.database
        } catch {
            Output.error(error.description)
            throw ExitCode(1)
        }
        guard let secret else { throw ValidationError("\(config) says nothing of a database.") }
        return secret.reveal()
    }

    /// Runs the body with a connection of its own; what goes wrong is said on standard error and ends the command with 1.
    func withClient<Value>(_ body: (PostgresClient, Reactor) async throws -> Value) async throws -> Value {
        let configuration = try configuration()
        let reactor = try Reactor.start(name: "database")
        let client = PostgresClient(configuration, role: .session, on: reactor)
        let outcome: Result<Value, any Error>
        do {
            try await client.ready()
            outcome = .success(try await body(client, reactor))
        } catch {
            outcome = .failure(error)
        }
        await client.shutdown()
        reactor.stop()
        return try Failure.reporting { try outcome.get() }
    }

    func administer<Value>(_ body: (Administration) async throws -> Value) async throws -> Value {
        try await withClient { client, _ in try await body(Administration(client, actor: Self.actor)) }
    }

    /// `cli:` and the name of the user who runs the command.
    static var actor: String {
        let id = getuid()
        guard let account = getpwuid(id) else { return "cli:\(id)" }
        return "cli:\(String(cString: account.pointee.pw_name))"
    }
}

/// What a command says when it could not do what it was told.
enum Failure {
    /// Says what the body throws in words for a person, and turns it into an exit code.
    static func reporting<Value>(_ body: () throws -> Value) throws -> Value {
        do {
            return try body()
        } catch let error as AdministrationError {
            throw say(error.message, error.hint)
        } catch let error as PostgresError {
            throw say(error.description, nil)
        } catch let error as MigrationError {
            throw say(error.description, nil)
        }
    }

    private static func say(_ message: String, _ hint: String?) -> ExitCode {
        Output.error("error: \(Table.printable(message))")
        if let hint { Output.error("hint: \(Table.printable(hint))") }
        return ExitCode(1)
    }
}
