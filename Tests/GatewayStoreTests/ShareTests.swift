import Postgres
import TestKit
import Testing

@testable import GatewayStore

/// The environments of a project share what the project has.
@Suite struct ShareTests {
    @Test func theSumOfTheEnvironmentsStaysWithinTheProject() async throws {
        try await withStore { store in
            try await store.seed(limit: 100, environments: 2)
            try await store.run("INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 60)")
            #expect(
                try await store.refusal(
                    of: "INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (2, 1, 41)") == "PN002")
            #expect(
                try await store.refusal(
                    of: "INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (2, 1, 40)") == nil)
            #expect(try await store.refusal(of: "UPDATE environment_service SET max_request = 61 WHERE environment_id = 1") == "PN002")
            // Both in one statement: the sum at its end counts.
            #expect(
                try await store.refusal(
                    of: "UPDATE environment_service SET max_request = CASE environment_id WHEN 1 THEN 90 ELSE 10 END") == nil)
            #expect(try await store.refusal(of: "UPDATE project_service SET max_request = 99") == "PN002")
            #expect(try await store.refusal(of: "UPDATE project_service SET max_request = 100, reset_frequency = 'daily'") == nil)
            // Sums beyond 64 bits are compared as they are.
            #expect(try await store.refusal(of: "UPDATE environment_service SET max_request = 9223372036854775807") == "PN002")
        }
    }

    @Test func everyProjectSharesEachServiceByItself() async throws {
        try await withStore { store in
            try await store.seed(limit: 100)
            try await store.seedNeighbours()
            try await store.run(
                """
                INSERT INTO project_service (project_id, service_id, max_request) VALUES (1, 2, 70), (2, 1, 80);
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 100), (1, 2, 70), (2, 1, 80);
                """)
            for (environment, service, limit) in [(1, 1, 101), (1, 2, 71), (2, 1, 81)] {
                let place = "(environment_id, service_id) = (\(environment), \(service))"
                #expect(
                    try await store.refusal(of: "UPDATE environment_service SET max_request = \(limit) WHERE \(place)") == "PN002")
                #expect(
                    try await store.refusal(of: "UPDATE environment_service SET max_request = \(limit - 9) WHERE \(place)") == nil)
            }
        }
    }

    @Test func nothingUnlimitedInALimitedProject() async throws {
        try await withStore { store in
            try await store.seed(limit: 100)
            #expect(try await store.refusal(of: "INSERT INTO environment_service (environment_id, service_id) VALUES (1, 1)") == "PN003")
            try await store.run(
                """
                UPDATE project_service SET max_request = NULL;
                INSERT INTO environment_service (environment_id, service_id) VALUES (1, 1)
                """)
            #expect(try await store.refusal(of: "UPDATE project_service SET max_request = 1000") == "PN003")
            try await store.run("UPDATE environment_service SET max_request = 10; UPDATE project_service SET max_request = 10")
            #expect(try await store.refusal(of: "UPDATE environment_service SET max_request = NULL") == "PN003")
        }
    }

    @Test func aSnapshotThatCannotSeeTheOthersIsRefused() async throws {
        try await withStore { store in
            try await store.seed(limit: 100)
            try await store.run("INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 10)")
            #expect(
                try await store.refusal(
                    of: "BEGIN ISOLATION LEVEL REPEATABLE READ; UPDATE environment_service SET max_request = 20; COMMIT") == "PN005")
            try await store.client.script("ROLLBACK")
            #expect(
                try await store.refusal(
                    of: "BEGIN ISOLATION LEVEL SERIALIZABLE; UPDATE environment_service SET max_request = 20; COMMIT") == nil)
        }
    }

    /// Twelve connections raise the limits of twelve environments at once, and another one moves the limit of the project,
    /// by plain SQL and by way of the administration: at no moment is there more than the project has.
    @Test func editorsAtOnceNeverExceedTheProject() async throws {
        let environments = 12
        try await withStore { store in
            try await store.seed(limit: 100, environments: environments)
            let project = try await store.admin.project("c/p")
            let service = try await store.admin.service("s")
            let outcomes = Locked<[String: Int]>([:])
            let count: @Sendable (String) -> Void = { outcome in outcomes.withLock { $0[outcome, default: 0] += 1 } }
            let isDone = Locked(false)
            let editors = try await (1...environments).asyncMap { number in (number, try await store.connect()) }
            let (projectEditor, observer) = (try await store.connect(), try await store.connect())
            let watching = Task {
                var looks = 0
                while !isDone.withLock({ $0 }) {
                    let over = try await observer.script(
                        """
                        SELECT count(*) FROM pandora.project_service p WHERE p.max_request <
                            (SELECT coalesce(sum(max_request), 0) FROM pandora.environment_service)
                        """)
                    #expect(over[0].string(0) == "0")
                    looks += 1
                }
                return looks
            }
            try await withThrowingTaskGroup(of: Void.self) { group in
                for (number, client) in editors {
                    group.addTask {
                        let admin = Administration(client, actor: "test")
                        let environment = try await admin.environment("c/p/e\(number)")
                        for step in 1...15 {
                            let limit = Int64((step * 7 + number * 5) % 23)
                            do throws(AdministrationError) {
                                if number.isMultiple(of: 2) {
                                    try await Self.setPlainly(limit, of: number, client)
                                } else {
                                    _ = try await admin.setQuota(environment: environment, service: service, limit: limit)
                                }
                                count("set")
                            } catch {
                                count(error.code.rawValue)
                            }
                        }
                    }
                }
                group.addTask {
                    let admin = Administration(projectEditor, actor: "test")
                    for step in 1...20 {
                        var edit = ProjectQuotaEdit()
                        edit.limit = .set(step.isMultiple(of: 2) ? 100 : 140)
                        do throws(AdministrationError) {
                            _ = try await admin.setQuota(project: project, service: service, edit)
                            count("project")
                        } catch {
                            count(error.code.rawValue)
                        }
                    }
                }
                try await group.waitForAll()
            }
            isDone.withLock { $0 = true }
            #expect(try await watching.value > 0)
            // Some went through, some were refused, and none for another reason.
            let seen = outcomes.withLock { $0 }
            #expect(Set(seen.keys).isSubset(of: ["set", "project", "SHARE_EXCEEDED"]), "\(seen)")
            #expect((seen["set"] ?? 0) > 0 && (seen["SHARE_EXCEEDED"] ?? 0) > 0, "\(seen)")
            // The ledger has followed every edit.
            #expect(
                try await store.run(
                    """
                    SELECT count(*) FROM environment_service e WHERE max_request <>
                        (SELECT sum(limit_delta) FROM quota_ledger l
                          WHERE (l.environment_id, l.service_id, l.period) = (e.environment_id, 1, 1))
                    """) == ["0"])
            for (_, client) in editors { await client.shutdown() }
            await projectEditor.shutdown()
            await observer.shutdown()
        }
    }

    /// As somebody with psql would, without the administration's locks.
    private static func setPlainly(_ limit: Int64, of environment: Int, _ client: PostgresClient) async throws(AdministrationError) {
        do {
            try await client.script(
                """
                INSERT INTO pandora.environment_service (environment_id, service_id, max_request) VALUES (\(environment), 1, \(limit))
                ON CONFLICT (environment_id, service_id) DO UPDATE SET max_request = excluded.max_request
                """)
        } catch {
            throw AdministrationError(error)
        }
    }
}

extension Sequence {
    fileprivate func asyncMap<Value>(_ body: (Element) async throws -> Value) async throws -> [Value] {
        var values: [Value] = []
        for element in self { values.append(try await body(element)) }
        return values
    }
}
