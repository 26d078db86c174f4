import Foundation
public import PrivateCluster

/// A database of its own for one test, on the one cluster that all tests of the process share.
///
/// The cluster starts when the first test asks for it, without fsync, and is removed with everything in it when the process
/// ends, however it ends.
public struct TestDatabase: Sendable {
    public let cluster: PrivateCluster
    public let name: String

    /// `postgres://postgres@/name?host=/socket/directory`
    public var url: String { cluster.url(database: name) }

    /// An empty database, or a copy of what a template makes. A template is made once per process, by the first test that
    /// asks for it.
    public static func create(from template: Template? = nil) async throws -> TestDatabase {
        try await factory.create(from: template)
    }

    /// The cluster of the process, running.
    public static func sharedCluster() async throws -> PrivateCluster {
        try await factory.sharedCluster()
    }

    /// What a database holds before its test begins, for instance the schema. Make one of each, for ever.
    public struct Template: Sendable {
        let name: String
        let prepare: @Sendable (TestDatabase) async throws -> Void

        /// - Parameters:
        ///   - name: unique in the process; lower-case letters and underscores.
        ///   - prepare: fills the database, and closes every connection to it before it returns.
        public init(_ name: String, prepare: @escaping @Sendable (TestDatabase) async throws -> Void) {
            self.name = name
            self.prepare = prepare
        }
    }

    /// Runs a script with psql and returns its rows, columns separated by `|`; the first error ends it.
    @discardableResult
    public func psql(_ script: String) async throws -> [String] {
        try await cluster.psql(script, database: name)
    }

    private static let factory = Factory()

    private actor Factory {
        private var starting: Task<PrivateCluster, any Error>?
        private var templates: [String: Task<TestDatabase, any Error>] = [:]
        private var count = 0

        func sharedCluster() async throws -> PrivateCluster {
            let task =
                starting
                ?? Task {
                    try await offTheCooperativePool {
                        var options = PrivateCluster.Options()
                        options.isDurable = false
                        options.settings = ["max_connections": "300", "shared_buffers": "64MB", "max_wal_size": "4GB"]
                        return try PrivateCluster.temporary(options: options)
                    }
                }
            starting = task
            return try await task.value
        }

        func create(from template: Template?) async throws -> TestDatabase {
            guard let template else { return try await copy(of: "template0") }
            let task =
                templates[template.name]
                ?? Task {
                    let database = try await copy(of: "template0")
                    try await template.prepare(database)
                    return database
                }
            templates[template.name] = task
            return try await copy(of: task.value.name)
        }

        private func copy(of source: String) async throws -> TestDatabase {
            let cluster = try await sharedCluster()
            count += 1
            let name = "test_\(count)"
            try await cluster.psql("CREATE DATABASE \(name) TEMPLATE \(source) STRATEGY file_copy", database: "postgres")
            return TestDatabase(cluster: cluster, name: name)
        }
    }
}

/// Why psql gave up.
public struct PsqlError: Error, CustomStringConvertible {
    public let description: String
}

extension PrivateCluster {
    /// Runs a script with psql and returns its rows, columns separated by `|`; the first error ends it.
    @discardableResult
    public func psql(_ script: String, database: String) async throws -> [String] {
        let outcome = try await Command.run(
            PostgresBinaries.find().path("psql"),
            ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", socketDirectory, "-U", user, "-d", database, "-f", "-"], input: script)
        guard outcome.status == 0 else { throw PsqlError(description: outcome.errors) }
        return outcome.text.split(separator: "\n").map(String.init)
    }
}

/// Runs what blocks on a thread of its own: a queue's threads are few, and blocked ones hold up everybody else's work.
public func offTheCooperativePool<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) async throws -> Value {
    try await withCheckedThrowingContinuation { continuation in
        Thread.detachNewThread { continuation.resume(with: Result { try body() }) }
    }
}
