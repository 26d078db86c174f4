import Foundation
import NIOCore
import Reactor
import Testing
import TestKit

@testable import Postgres

/// A reactor and a client of a database of its own.
func withClient<Value>(
    role: PostgresClient.Role = .session, _ adjust: (inout PostgresConfiguration) -> Void = { _ in },
    _ body: (PostgresClient, TestDatabase) async throws -> Value
) async throws -> Value {
    let database = try await TestDatabase.create()
    return try await withReactor { reactor in
        var configuration = try PostgresConfiguration.patient(database.url)
        adjust(&configuration)
        let client = try await PostgresClient.connect(configuration, role: role, on: reactor, within: patience)
        do {
            let value = try await body(client, database)
            await client.shutdown()
            return value
        } catch {
            await client.shutdown()
            throw error
        }
    }
}

extension PostgresClient {
    /// Runs on the client's reactor.
    func onLoop<Value: Sendable>(_ body: @escaping @Sendable (PostgresClient) throws -> Value) async throws -> Value {
        try await reactor.submit { try body(self) }.get()
    }

    /// Runs on the client's reactor until the body calls back.
    func calling<Value: Sendable>(
        _ body: @escaping @Sendable (PostgresClient, @escaping (Value) -> Void) -> Void
    ) async -> Value {
        await withCheckedContinuation { continuation in
            reactor.execute { body(self) { continuation.resume(returning: $0) } }
        }
    }

    /// One row, one column.
    func value(_ sql: String, _ parameters: Parameters = Parameters(), types: [PostgresType] = []) async throws -> Row {
        let statement = Statement(name: "value", sql: sql, parameterTypes: types, isPrepared: false)
        return try #require(try await query(statement, parameters).first)
    }
}

/// Why no connection comes about: the client goes on trying.
func refusal(of configuration: PostgresConfiguration, on reactor: Reactor) async throws -> PostgresError {
    let client = PostgresClient(configuration, role: .session, on: reactor)
    let reason = Locked<PostgresError?>(nil)
    try await client.onLoop { client in
        client.onStateChange = { state in if case .lost(let error) = state { reason.withLock { $0 = error } } }
        client.start()
    }
    try await eventually("a round failed") { reason.withLock { $0 != nil } }
    await client.shutdown()
    return reason.withLock { $0! }
}

/// The error that the body must throw.
func postgresError(_ body: () async throws -> Void) async throws -> PostgresError {
    do { try await body() } catch let error as PostgresError { return error }
    Issue.record("no error")
    throw CancellationError()
}

func parameters(_ build: (inout Parameters) -> Void) -> Parameters {
    var parameters = Parameters()
    build(&parameters)
    return parameters
}
