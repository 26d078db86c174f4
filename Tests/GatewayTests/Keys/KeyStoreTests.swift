import Foundation
import NIOCore
import PrivateCluster
import TestKit
import Testing

@testable import Gateway
@testable import GatewayCore

/// The resolver and its store: few questions, true answers, and service while the store is away.
@Suite struct KeyStoreTests {
    @Test func everythingThatDecidesComesInOneAnswer() async throws {
        let database = try await TestDatabase.withQuota(100)
        let tenant = try await Tenant(database)
        try await database.psql(
            """
            SET search_path = pandora;
            INSERT INTO service (name, version, status) VALUES ('t', '2.1', 'deprecated'), ('u', '1', 'disabled');
            INSERT INTO project_service (project_id, service_id) VALUES (1, 2), (1, 3);
            INSERT INTO environment_service (environment_id, service_id) VALUES (1, 2);
            UPDATE api_key SET expires_at = '2100-01-02 03:04:05.678901+00';
            """)
        let node = try await KeyNode(database.url)
        let entry = try #require(try await node.entry(tenant.secret))
        #expect("\(entry.keyID)" == tenant.keyID && entry.status == .enabled)
        #expect(entry.expiresAt == 4_102_542_245_678_901)
        #expect(entry.environmentID == 1 && entry.environmentName == "e" && entry.environmentStatus == .enabled)
        #expect(entry.projectID == 1 && entry.projectName == "p" && entry.projectStatus == .enabled && entry.clientID == 1)
        #expect(
            entry.grants == [
                .init(serviceID: 1, name: "s", version: "1", status: .enabled, limited: true),
                .init(serviceID: 2, name: "t", version: "2.1", status: .deprecated, limited: false),
            ])
        // An environment without services is known all the same.
        try await database.psql("DELETE FROM pandora.environment_service")
        try await eventually("nothing granted") { try await node.entry(tenant.secret)?.grants == [] }
        try await node.close()
    }

    @Test func aBurstOfMissesOfOneKeyIsOneQuestion() async throws {
        let database = try await TestDatabase.withQuota(100)
        let tenant = try await Tenant(database)
        let node = try await KeyNode(database.url) { $0.unprovenFor = 600_000_000_000 }
        node.holdAnswers()
        async let first = node.ask([KeyDigest](repeating: tenant.secret.digest, count: 500))
        try await eventually("asked") { node.heldAnswers == 1 }
        async let second = node.ask([KeyDigest](repeating: tenant.secret.digest, count: 500))
        try await node.releaseAnswers()
        #expect(try await (first + second) == [String](repeating: "ok", count: 1_000))
        let counters = try await node.counters()
        #expect(counters.questions == 1 && counters.failures == 0)
        try await node.close()
    }

    @Test func aKeyExpiresByTheClockAlone() async throws {
        let database = try await TestDatabase.withQuota(100)
        let tenant = try await Tenant(database)
        try await database.psql("UPDATE pandora.api_key SET expires_at = clock_timestamp() + interval '700 ms'")
        let node = try await KeyNode(database.url)
        let answer = try await node.ask(tenant.secret)
        #expect(answer == "ok" || answer == "KEY_EXPIRED")
        try await eventually("expired") { try await node.ask(tenant.secret) == "KEY_EXPIRED" }
        try await node.close()
    }

    @Test func theCacheIsBounded() async throws {
        let database = try await TestDatabase.withQuota(100)
        let node = try await KeyNode(database.url) { ($0.entries, $0.absent) = (10, 10) }
        var random = SystemRandomNumberGenerator()
        let secrets = (0..<60).map { _ in KeySecret(random: &random) }
        try await database.psql(secrets.prefix(30).map(Tenant.key).joined(separator: ";"))
        for secret in secrets { _ = try await node.ask(secret) }
        // Known keys and unknown ones, each beyond what is kept: they are right still, and asked for again.
        let questions = try await node.counters().questions
        let answers = try await node.ask(secrets.map(\.digest))
        #expect(answers.filter { $0 == "ok" }.count == 30 && answers.filter { $0 == "unknown" }.count == 30)
        #expect(try await node.counters().questions >= questions + 40)
        try await node.close()
    }

    @Test func tooManyQuestionsAtOnceAreRefusedForNow() async throws {
        let database = try await TestDatabase.withQuota(100)
        let node = try await KeyNode(database.url) { $0.questions = 5 }
        var random = SystemRandomNumberGenerator()
        let secrets = (0..<8).map { _ in KeySecret(random: &random) }
        let answers = try await node.ask(secrets.map(\.digest))
        #expect(answers.filter { $0 == "unavailable" }.count == 3 && answers.filter { $0 == "unknown" }.count == 5)
        #expect(try await node.counters().unavailable == 3)
        try await node.close()
    }

    // MARK: - Last used

    @Test func lastUsedIsWrittenInBatchesAndTheNewestWins() async throws {
        let database = try await TestDatabase.withQuota(100)
        let (one, two) = (try await Tenant(database), try await Tenant(database))
        let nodes = [try await KeyNode(database.url), try await KeyNode(database.url)]
        func use(_ node: KeyNode, _ tenant: Tenant, _ moment: Int64) async throws {
            let entry = try #require(try await node.entry(tenant.secret))
            try await node.on { $0.noteUsed(entry, at: moment) }
        }
        for moment in stride(from: Int64(1_700_000_001_000_000), through: 1_700_000_009_000_000, by: 1_000_000) {
            try await use(nodes[0], one, moment)
            // Out of order.
            try await use(nodes[1], one, 1_700_000_012_000_000 - moment % 1_000_000_000)
            try await use(nodes[1], two, moment + 500_000)
        }
        // Requests write nothing.
        #expect(try await database.number("SELECT count(last_used) FROM pandora.api_key") == 0)
        try await nodes[0].flushUsed()
        try await use(nodes[0], one, 1_700_000_002_000_000)
        try await nodes[1].flushUsed()
        try await nodes[0].flushUsed()
        let order = "CASE id WHEN '\(one.keyID)' THEN 1 ELSE 2 END"
        #expect(
            try await database.psql("SELECT (extract(epoch FROM last_used) * 10)::bigint, revision FROM pandora.api_key ORDER BY \(order)")
                == ["17000000110|1", "17000000095|1"])
        for node in nodes { try await node.close() }
    }

    @Test func whatTheStoreDidNotTakeIsWrittenLater() async throws {
        let database = try await TestDatabase.withQuota(100)
        let tenant = try await Tenant(database)
        let node = try await KeyNode(database.url)
        let entry = try #require(try await node.entry(tenant.secret))
        try await node.on { $0.noteUsed(entry, at: 1_700_000_000_000_000) }
        try await database.psql("ALTER TABLE pandora.api_key RENAME TO elsewhere")
        try await node.flushUsed()
        try await database.psql("ALTER TABLE pandora.elsewhere RENAME TO api_key")
        #expect(try await database.number("SELECT count(last_used) FROM pandora.api_key") == 0)
        try await node.flushUsed()
        #expect(try await database.number("SELECT extract(epoch FROM last_used)::bigint FROM pandora.api_key") == 1_700_000_000)
        try await node.close()
    }

    // MARK: - The store is away

    private func withCluster(_ body: (PrivateCluster, Tenant) async throws -> Void) async throws {
        let cluster = try await offTheCooperativePool {
            var options = PrivateCluster.Options()
            options.isDurable = false
            return try PrivateCluster.temporary(options: options)
        }
        try await cluster.psql(TestDatabase.schemaScript(), database: "postgres")
        try await cluster.psql(
            """
            SET search_path = pandora;
            INSERT INTO client (name) VALUES ('c');
            INSERT INTO project (client_id, name) VALUES (1, 'p');
            INSERT INTO environment (project_id, name) VALUES (1, 'e');
            INSERT INTO service (name) VALUES ('s');
            INSERT INTO project_service (project_id, service_id) VALUES (1, 1);
            INSERT INTO environment_service (environment_id, service_id) VALUES (1, 1);
            """, database: "postgres")
        try await body(cluster, Tenant(on: cluster, "postgres"))
        try await offTheCooperativePool { try cluster.stop() }
    }

    @Test func cachedKeysServeWhileTheDatabaseIsAwayAndUnknownOnesAreNotRefused() async throws {
        try await withCluster { cluster, tenant in
            let node = try await KeyNode(cluster.url())
            let brief = try await KeyNode(cluster.url()) { $0.staleMax = 1 }
            #expect(try await node.ask(tenant.secret) == "ok")
            #expect(try await brief.ask(tenant.secret) == "ok")
            var random = SystemRandomNumberGenerator()
            let other = KeySecret(random: &random)
            try await offTheCooperativePool { try cluster.stop() }
            try await eventually("the loss is known") { node.heard.withLock { $0.contains(.lost) } }
            try await eventually("stale entries serve") {
                #expect(try await node.ask(tenant.secret) == "ok")
                return try await node.counters().stale > 0
            }
            #expect(try await node.ask(other) == "unavailable")
            // Where stale ones may not be used any more.
            try await eventually("too old") { try await brief.ask(tenant.secret) == "unavailable" }
            try await offTheCooperativePool { try cluster.start() }
            // What changes while nobody listens is seen at the reconnection.
            try await cluster.psql("UPDATE pandora.api_key SET status = 'disabled'", database: "postgres")
            for node in [node, brief] {
                try await eventually("back") { try await node.ask(tenant.secret) == "KEY_DISABLED" }
            }
            try await eventually("unknown is said again") { try await node.ask(other) == "unknown" }
            try await node.close()
            try await brief.close()
        }
    }

    @Test func aReconnectionHasEverythingAskedAgain() async throws {
        let database = try await TestDatabase.withQuota(100)
        let tenant = try await Tenant(database)
        let node = try await KeyNode(database.url)
        #expect(try await node.ask(tenant.secret) == "ok")
        let count = node.heard.withLock { $0.count { if case .listening = $0 { true } else { false } } }
        try await database.psql(
            """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'listener'
            """)
        try await eventually("listening again") {
            node.heard.withLock { $0.count { if case .listening = $0 { true } else { false } } } > count
        }
        let questions = try await node.counters().questions
        try await eventually("asked again") {
            #expect(try await node.ask(tenant.secret) == "ok")
            return try await node.counters().questions > questions
        }
        try await node.close()
    }

    @Test func aListenConnectionThatIsDeadWithoutAWordIsNotBelieved() async throws {
        let database = try await TestDatabase.withQuota(100)
        let tenant = try await Tenant(database)
        let node = try await KeyNode(database.url)
        #expect(try await node.ask(tenant.secret) == "ok")
        let backend = Int32(
            try await database.psql(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'listener'")[0])!
        #expect(kill(backend, SIGSTOP) == 0)
        defer { kill(backend, SIGCONT) }
        try await database.psql("UPDATE pandora.api_key SET status = 'disabled'")
        // Nobody says so, yet the entry is not believed for long.
        try await eventually("disabled") { try await node.ask(tenant.secret) == "KEY_DISABLED" }
        // The connection is given up, and a new one listens.
        try await eventually("listening again") {
            node.heard.withLock { $0.count { if case .listening = $0 { true } else { false } } } > 1
        }
        try await database.psql("UPDATE pandora.api_key SET status = 'enabled'")
        try await eventually("enabled") { try await node.ask(tenant.secret) == "ok" }
        // The dead connection told of no change.
        let heard = node.heard.withLock { $0 }
        let first = try #require(heard.firstIndex(of: .changed(.key(KeyID(tenant.keyID)!))))
        #expect(heard[..<first].count { if case .listening = $0 { true } else { false } } > 1)
        try await node.close()
    }

    @Test func withoutAListenConnectionEntriesAreBelievedForAMomentOnly() async throws {
        let database = try await TestDatabase.withQuota(100)
        let tenant = try await Tenant(database)
        let node = try await KeyNode(database.url, listens: false)
        #expect(try await node.ask(tenant.secret) == "ok")
        try await database.psql("UPDATE pandora.api_key SET status = 'disabled'")
        try await eventually("disabled") { try await node.ask(tenant.secret) == "KEY_DISABLED" }
        try await node.close()
    }

    @Test func aStoreThatHangsHoldsNobodyUpWhoHasAStaleEntry() async throws {
        let database = try await TestDatabase.withQuota(100)
        let tenant = try await Tenant(database)
        let node = try await KeyNode(database.url, listens: false) { $0.unprovenFor = 0 }
        #expect(try await node.ask(tenant.secret) == "ok")
        node.holdAnswers()
        // The first one waits for as long as patience lasts, those after it not at all: also when the pause is over.
        for _ in 0..<3 {
            #expect(try await node.ask(tenant.secret) == "ok")
            try await Task.sleep(for: .milliseconds(300))
        }
        #expect(node.heldAnswers == 1)
        #expect(try await node.counters().stale >= 3)
        try await node.releaseAnswers()
        try await node.close()
    }
}

@Suite struct RequestIDTests {
    @Test func idsRiseAndTellTheTime() {
        var ids = RequestIDs()
        let before = UInt64(WallClock.microseconds) / 1_000
        var last = ids.next()
        #expect(last.uuid.milliseconds >= before && last.uuid.milliseconds <= UInt64(WallClock.microseconds) / 1_000)
        var lows: Set<UInt64> = [last.uuid.low]
        for _ in 0..<10_000 {
            let next = ids.next()
            #expect(last < next)
            lows.insert(next.uuid.low)
            last = next
        }
        #expect(lows.count == 10_001)
        // Two workers never make the same.
        var other = RequestIDs()
        #expect(other.next().uuid.low != last.uuid.low)
    }

    @Test func randomWordsDoNotRepeat() {
        var random = BufferedRandom()
        #expect(Set((0..<1_000).map { _ in random.next() }).count == 1_000)
    }
}
