import Foundation
import GatewayStore
import NIOCore
import PrivateCluster
import Reactor
import TestKit

@testable import Gateway
@testable import GatewayCore
@testable import Postgres

/// A node's key side alone: a worker with its resolver and connection, and the control reactor with the LISTEN connection.
///
/// Sendable: everything but the immutable references and what is locked is used on one of the reactors only.
final class KeyNode: @unchecked Sendable {
    let worker: Reactor
    private let control: Reactor
    private let client: PostgresClient
    private let listener: ConfigListener
    private let resolver: KeyResolver
    private let answers = Locked(Answers())
    let heard = Locked<[ConfigEvent]>([])

    /// Answers of the store that a test keeps back.
    private struct Answers {
        var areHeld = false
        var held: [() -> Void] = []
    }

    init(_ url: String, listens: Bool = true, _ adjust: (inout KeyCache.Limits) -> Void = { _ in }) async throws {
        let (worker, control) = (try Reactor.start(name: "keys"), try Reactor.start(name: "control"))
        (self.worker, self.control) = (worker, control)
        var configuration = try PostgresConfiguration.patient(url)
        configuration.applicationName = "keys"
        client = PostgresClient(configuration, role: .pipeline, on: worker)
        configuration.applicationName = "listener"
        listener = ConfigListener(configuration, on: control)
        var limits = KeyCache.Limits()
        adjust(&limits)
        let session = KeySession(client)
        resolver = KeyResolver(
            on: worker, limits: limits, usedInterval: .hours(1),
            // A loaded machine is no outage: the store may take longer than a gateway would let it.
            fetch: { [answers] digest, _, done in
                session.fetch(digest, deadline: patience) { result in
                    let isHeld = answers.withLock { answers in
                        if answers.areHeld { answers.held.append { done(result) } }
                        return answers.areHeld
                    }
                    if !isHeld { done(result) }
                }
            },
            recordUsed: { moments, done in
                session.recordLastUsed(moments, deadline: .seconds(10)) { result in
                    if case .success = result { done(true) } else { done(false) }
                }
            })
        try await worker.submit { [client] in client.start() }.get()
        if listens {
            try await control.submit { [self] in
                listener.subscribe(worker) { [self] event in
                    heard.withLock { $0.append(event) }
                    resolver.handle(event)
                }
                listener.start()
            }.get()
            try await eventually("listening") { self.heard.withLock { !$0.isEmpty } }
        }
        try await client.ready(within: patience)
    }

    /// What a request with this key for service s, version 1, is told: `ok`, a refusal's code, `unknown` or `unavailable`.
    func ask(_ secret: KeySecret) async throws -> String {
        try await ask([secret.digest])[0]
    }

    /// Requests of one turn.
    func ask(_ digests: [KeyDigest]) async throws -> [String] {
        let promise = worker.makePromise(of: [String].self)
        worker.execute { [self] in
            var answers: [String] = []
            for digest in digests {
                resolver.resolve(digest) { resolution in
                    answers.append(Self.text(resolution))
                    if answers.count == digests.count { promise.succeed(answers) }
                }
            }
        }
        return try await promise.futureResult.get()
    }

    static func text(_ resolution: KeyResolution) -> String {
        switch resolution {
        case .unknown: return "unknown"
        case .unavailable: return "unavailable"
        case .entry(let entry):
            if let refusal = entry.refusal(at: WallClock.microseconds) { return "\(refusal.code)" }
            let service = Route.ServiceReference(name: "s", version: "1")
            guard case .refused(let refusal, _) = entry.grant(for: service, deprecatedPasses: false) else { return "ok" }
            return "\(refusal.code)"
        }
    }

    func entry(_ secret: KeySecret) async throws -> KeyEntry? {
        let promise = worker.makePromise(of: KeyEntry?.self)
        worker.execute { [self] in
            resolver.resolve(secret.digest) { resolution in
                if case .entry(let entry) = resolution { promise.succeed(entry) } else { promise.succeed(nil) }
            }
        }
        return try await promise.futureResult.get()
    }

    func on<Value: Sendable>(_ body: @escaping @Sendable (KeyResolver) throws -> Value) async throws -> Value {
        try await worker.submit { [self] in try body(resolver) }.get()
    }

    func counters() async throws -> KeyResolver.Counters { try await on { $0.counters } }

    func flushUsed() async throws {
        let promise = worker.makePromise(of: Void.self)
        worker.execute { [self] in resolver.flushUsed { promise.succeed(()) } }
        try await promise.futureResult.get()
    }

    // MARK: - Answers kept back

    /// The store looks from now on, but its answers stay on the way.
    func holdAnswers() { answers.withLock { $0.areHeld = true } }

    var heldAnswers: Int { answers.withLock { $0.held.count } }

    /// Lets the answers arrive that are on the way, and those to come.
    func releaseAnswers() async throws {
        try await worker.submit { [answers] in
            let held = answers.withLock { answers in
                defer { (answers.areHeld, answers.held) = (false, []) }
                return answers.held
            }
            for answer in held { answer() }
        }.get()
    }

    func close() async throws {
        try await control.submit { [self] in listener.close() }.get()
        await client.shutdown()
        control.stop()
        worker.stop()
    }
}

/// A tenant: one environment with service s, version 1, and a key.
struct Tenant {
    let secret: KeySecret
    let keyID: String

    init(_ database: TestDatabase) async throws { self = try await Tenant(on: database.cluster, database.name) }

    init(on cluster: PrivateCluster, _ database: String) async throws {
        var random = SystemRandomNumberGenerator()
        secret = KeySecret(random: &random)
        keyID = try await cluster.psql(Self.key(secret), database: database)[0]
    }

    /// The statement that adds a key to environment 1, and returns its id.
    static func key(_ secret: KeySecret) -> String {
        let digest = secret.digest.bytes.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
        return """
            INSERT INTO pandora.api_key (environment_id, key, prefix) VALUES (1, '\\x\(digest)', '\(secret.prefix)') RETURNING id
            """
    }
}
