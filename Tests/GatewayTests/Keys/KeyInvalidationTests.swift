import Foundation
import GatewayCore
import NIOCore
import TestKit
import Testing

@testable import Gateway

/// What an administrator changes takes effect on every node, by what the database announces.
@Suite struct KeyInvalidationTests {
    /// Entries are believed for as long as the test runs, unless something announced concerns them.
    private static func believe(_ limits: inout KeyCache.Limits) { limits.unprovenFor = 600_000_000_000 }

    /// Two nodes know the key; after the change both say something else.
    private func take(_ change: String, from before: String = "ok", to after: String, prepare: String? = nil) async throws {
        let database = try await TestDatabase.withQuota(100)
        let tenant = try await Tenant(database)
        if let prepare { try await database.psql(prepare) }
        let nodes = [try await KeyNode(database.url, Self.believe), try await KeyNode(database.url, Self.believe)]
        for node in nodes {
            #expect(try await node.ask(tenant.secret) == before)
            // From the cache.
            let questions = try await node.counters().questions
            #expect(try await node.ask(tenant.secret) == before)
            #expect(try await node.counters().questions == questions)
        }
        try await database.psql(change)
        for node in nodes {
            try await eventually("\(before) becomes \(after)") { try await node.ask(tenant.secret) == after }
            #expect(try await node.counters().stale == 0)
        }
        for node in nodes { try await node.close() }
    }

    @Test(arguments: [
        ("UPDATE pandora.api_key SET status = 'disabled'", "KEY_DISABLED"),
        ("UPDATE pandora.api_key SET expires_at = clock_timestamp() - interval '1 s'", "KEY_EXPIRED"),
        ("UPDATE pandora.environment SET status = 'disabled'", "ENVIRONMENT_DISABLED"),
        ("UPDATE pandora.project SET status = 'disabled'", "PROJECT_DISABLED"),
        ("UPDATE pandora.service SET status = 'disabled'", "SERVICE_DISABLED"),
        ("UPDATE pandora.service SET status = 'deprecated'", "SERVICE_DEPRECATED"),
        ("UPDATE pandora.service SET version = '2'", "SERVICE_NOT_ASSIGNED"),
        ("DELETE FROM pandora.environment_service", "SERVICE_NOT_ASSIGNED"),
        ("DELETE FROM pandora.api_key", "unknown"),
        ("UPDATE pandora.api_key SET key = sha256('other')", "unknown"),
    ])
    func aChangeTakesEffectOnEveryNode(_ change: String, _ after: String) async throws { try await take(change, to: after) }

    @Test(arguments: [
        ("UPDATE pandora.api_key SET status = 'disabled'", "UPDATE pandora.api_key SET status = 'enabled'", "KEY_DISABLED"),
        (
            "UPDATE pandora.api_key SET expires_at = clock_timestamp() - interval '1 s'",
            "UPDATE pandora.api_key SET expires_at = NULL", "KEY_EXPIRED"
        ),
        (
            "DELETE FROM pandora.environment_service",
            "INSERT INTO pandora.environment_service (environment_id, service_id, max_request) VALUES (1, 1, 5)",
            "SERVICE_NOT_ASSIGNED"
        ),
    ])
    func whatIsGrantedTakesEffectToo(_ prepare: String, _ change: String, _ before: String) async throws {
        try await take(change, from: before, to: "ok", prepare: prepare)
    }

    @Test func aKeyThatMovesTakesItsNewEnvironmentsStanding() async throws {
        try await take(
            "UPDATE pandora.api_key SET environment_id = 2", to: "ENVIRONMENT_DISABLED",
            prepare: "INSERT INTO pandora.environment (project_id, name, status) VALUES (1, 'f', 'disabled')")
    }

    @Test func aLimitThatIsSetOrLiftedIsSeen() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let tenant = try await Tenant(database)
        let node = try await KeyNode(database.url)
        #expect(try await node.entry(tenant.secret)?.grants.map(\.limited) == [false])
        try await database.psql("UPDATE pandora.environment_service SET max_request = 5")
        try await eventually("limited") { try await node.entry(tenant.secret)?.grants.map(\.limited) == [true] }
        try await database.psql("UPDATE pandora.environment_service SET max_request = NULL")
        try await eventually("unlimited") { try await node.entry(tenant.secret)?.grants.map(\.limited) == [false] }
        try await node.close()
    }

    @Test func aKeyThatWasUnknownIsKnownOnceItIsMade() async throws {
        let database = try await TestDatabase.withQuota(100)
        let nodes = [try await KeyNode(database.url, Self.believe), try await KeyNode(database.url, Self.believe)]
        var random = SystemRandomNumberGenerator()
        let secret = KeySecret(random: &random)
        for node in nodes {
            #expect(try await node.ask(secret) == "unknown")
            let questions = try await node.counters().questions
            #expect(try await node.ask([KeyDigest](repeating: secret.digest, count: 50)) == [String](repeating: "unknown", count: 50))
            #expect(try await node.counters().questions == questions)
        }
        try await database.psql(Tenant.key(secret))
        for node in nodes { try await eventually("known") { try await node.ask(secret) == "ok" } }
        for node in nodes { try await node.close() }
    }

    @Test func trafficAnnouncesNothing() async throws {
        let database = try await TestDatabase.withQuota(100)
        let tenant = try await Tenant(database)
        let node = try await KeyNode(database.url)
        #expect(try await node.ask(tenant.secret) == "ok")
        try await database.psql(
            """
            UPDATE pandora.api_key SET last_used = clock_timestamp();
            INSERT INTO pandora.log_spool (id, node) VALUES ('00000000-0000-0000-0000-000000000001', 'n');
            SELECT pandora.lease_acquire('00000000-0000-0000-0000-000000000001', 1, '{1}', '{1}', '{5}', '{5}');
            SELECT pandora.settle_hops('00000000-0000-0000-0000-000000000001', '{1}', '{1}', '{1}', '{5}', '{5}', '{1}');
            UPDATE pandora.project_service SET next_reset = clock_timestamp();
            SELECT pandora.reset_next_due();
            """)
        // Announcements come in order: when this one is there, so would theirs be.
        try await database.psql("UPDATE pandora.client SET name = 'd'")
        try await eventually("the last one is heard") { node.heard.withLock { $0.contains(.changed(.client(1))) } }
        let changes = node.heard.withLock { $0.filter { if case .changed = $0 { true } else { false } } }
        #expect(changes == [.changed(.client(1))])
        try await node.close()
    }

    @Test func aRecallReachesTheWorkers() async throws {
        let database = try await TestDatabase.withQuota(100)
        let node = try await KeyNode(database.url)
        for payload in ["7:8", "nonsense", "1:2:3", "9:9"] { try await database.psql("NOTIFY quota_recall, '\(payload)'") }
        try await eventually("recalled") { node.heard.withLock { $0.contains(.recall(QuotaRow(environmentID: 9, serviceID: 9))) } }
        let recalls = node.heard.withLock { $0.filter { if case .recall = $0 { true } else { false } } }
        #expect(recalls.count == 2 && recalls.first == .recall(QuotaRow(environmentID: 7, serviceID: 8)))
        try await node.close()
    }

    // MARK: - Races

    @Test func anAnswerThatAChangeOvertookIsThrownAwayAndAskedAgain() async throws {
        let database = try await TestDatabase.withQuota(100)
        let tenant = try await Tenant(database)
        let node = try await KeyNode(database.url)
        node.holdAnswers()
        async let answer = node.ask(tenant.secret)
        // The store has looked, and said that the key is good.
        try await eventually("the answer is on the way") { node.heldAnswers == 1 }
        try await database.psql("UPDATE pandora.api_key SET status = 'disabled'")
        try await eventually("the change is heard") {
            node.heard.withLock { $0.contains(.changed(.key(KeyID(tenant.keyID)!))) }
        }
        try await node.releaseAnswers()
        #expect(try await answer == "KEY_DISABLED")
        #expect(try await node.counters().questions == 2)
        #expect(try await node.ask(tenant.secret) == "KEY_DISABLED")
        try await node.close()
    }

    @Test func anAbsenceThatANewKeyOvertookIsThrownAwayAndAskedAgain() async throws {
        let database = try await TestDatabase.withQuota(100)
        let node = try await KeyNode(database.url)
        var random = SystemRandomNumberGenerator()
        let secret = KeySecret(random: &random)
        node.holdAnswers()
        async let answer = node.ask(secret)
        try await eventually("the answer is on the way") { node.heldAnswers == 1 }
        let id = try await database.psql(Tenant.key(secret))[0]
        try await eventually("the key is heard of") { node.heard.withLock { $0.contains(.changed(.key(KeyID(id)!))) } }
        try await node.releaseAnswers()
        #expect(try await answer == "ok")
        try await node.close()
    }

    @Test func aChangeDuringTheAnswersOwnWayIsNeverMissed() async throws {
        // The same race without a hand on it: the key goes off and on while two nodes ask all the time.
        let database = try await TestDatabase.withQuota(100)
        let tenant = try await Tenant(database)
        let nodes = [try await KeyNode(database.url, Self.believe), try await KeyNode(database.url, Self.believe)]
        for round in 0..<15 {
            let (status, expected) = round % 2 == 0 ? ("disabled", "KEY_DISABLED") : ("enabled", "ok")
            async let change = database.psql("UPDATE pandora.api_key SET status = '\(status)'")
            for node in nodes { try await eventually(expected) { try await node.ask(tenant.secret) == expected } }
            _ = try await change
            for node in nodes { #expect(try await node.ask(tenant.secret) == expected) }
        }
        for node in nodes { try await node.close() }
    }
}
