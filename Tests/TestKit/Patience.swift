public import NIOCore
public import Postgres
public import Reactor

/// How long a test waits for what only a wrong program never does. It says nothing about how long a loaded machine may take.
public let patience = TimeAmount.seconds(120)

extension PostgresConfiguration {
    /// Of a test: what the server answers is asked, not how fast a busy machine is.
    public static func patient(_ url: String) throws -> PostgresConfiguration {
        var configuration = try PostgresConfiguration(url: url)
        (configuration.statementDeadline, configuration.transactionDeadline) = (patience, patience)
        // Well below it: an attempt that came to nothing is followed by another.
        configuration.connectTimeout = .seconds(30)
        return configuration
    }
}

extension PostgresClient {
    /// A patient client that is ready.
    public static func connect(to url: String, role: Role = .session, on reactor: Reactor) async throws -> PostgresClient {
        try await connect(.patient(url), role: role, on: reactor, within: patience)
    }
}
