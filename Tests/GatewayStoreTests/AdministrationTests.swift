import GatewayCore
import Postgres
import TestKit
import Testing

@testable import GatewayStore

@Suite struct AdministrationTests {
    /// acme/shop/prod with the service orders/1, which is assigned to nothing.
    private func withTenants(_ body: (Store, EnvironmentRecord, ServiceRecord) async throws -> Void) async throws {
        try await withStore { store in
            let client = try await store.admin.createClient(name: "acme", type: "organization", email: "ops@acme.example")
            let project = try await store.admin.createProject(client: client.id, name: "shop", status: "enabled")
            let environment = try await store.admin.createEnvironment(project: project.id, name: "prod", status: "enabled")
            let service = try await store.admin.createService(name: "orders", version: "1", status: "enabled")
            try await body(store, environment, service)
        }
    }

    private func limit(_ units: Int64?) -> ProjectQuotaEdit {
        var edit = ProjectQuotaEdit()
        edit.limit = .set(units)
        return edit
    }

    // MARK: References

    @Test func tenantsAreFoundByPathAndById() async throws {
        try await withTenants { store, environment, service in
            let admin = store.admin
            #expect(environment.path == "acme/shop/prod" && service.path == "orders/1")
            for reference in ["acme/shop/prod", "\(environment.id)", "\(environment.projectID)/prod"] {
                #expect(try await admin.environment(reference) == environment, "\(reference)")
            }
            let project = try await admin.project("acme/shop")
            #expect(try await admin.project("\(project.id)") == project && project.path == "acme/shop")
            #expect(try await admin.project("\(project.clientID)/shop") == project)
            #expect(try await admin.client("acme").id == project.clientID)
            // Only a client's name may have a slash.
            let odd = try await admin.createClient(name: "a/b c", type: "developer", email: nil)
            _ = try await admin.createProject(client: odd.id, name: "p", status: "disabled")
            #expect(try await admin.project("a/b c/p").clientName == "a/b c")
            #expect(try await admin.projects(client: odd.id).map(\.path) == ["a/b c/p"])
            #expect(try await admin.projects().map(\.path) == ["a/b c/p", "acme/shop"])
            #expect(try await admin.environments().map(\.path) == ["acme/shop/prod"])
        }
    }

    @Test func whatIsNotFoundIsNamed() async throws {
        try await withTenants { store, _, _ in
            let admin = store.admin
            let messages: [(String, () async throws -> Void)] = [
                ("there is no client 'nobody'", { _ = try await admin.environment("nobody/shop/prod") }),
                ("the client 'acme' has no project 'web'", { _ = try await admin.environment("acme/web/prod") }),
                ("the project 'acme/shop' has no environment 'test'", { _ = try await admin.environment("acme/shop/test") }),
                ("there is no environment 99", { _ = try await admin.environment("99") }),
                ("an environment is CLIENT/PROJECT/ENVIRONMENT or an id, found 'shop'", { _ = try await admin.environment("shop/prod") }),
                ("a project is CLIENT/PROJECT or an id, found 'shop'", { _ = try await admin.project("shop") }),
                ("there is no service 'orders/2'", { _ = try await admin.service("orders/2") }),
            ]
            for (message, body) in messages {
                do {
                    try await body()
                    Issue.record("found: \(message)")
                } catch let error as AdministrationError {
                    #expect(error.message == message)
                }
            }
        }
    }

    @Test func aNameWithSeveralVersionsIsAmbiguous() async throws {
        try await withTenants { store, _, service in
            #expect(try await store.admin.service("orders") == service)
            _ = try await store.admin.createService(name: "orders", version: "2.0", status: "deprecated")
            #expect(try await refusal { try await store.admin.service("orders") } == .ambiguous)
            #expect(try await store.admin.service("orders/2.0").status == "deprecated")
            #expect(try await store.admin.services(matching: "orders").map(\.version) == ["1", "2.0"])
        }
    }

    // MARK: Changes

    @Test func whatTheSchemaRefusesIsSaidInWords() async throws {
        try await withTenants { store, environment, service in
            let admin = store.admin
            let cases: [(AdministrationError.Code, String, () async throws -> Void)] = [
                (.alreadyExists, "a client of that name",
                 { _ = try await admin.createClient(name: "acme", type: "developer", email: nil) }),
                (.alreadyExists, "an environment of that name",
                 { _ = try await admin.createEnvironment(project: environment.projectID, name: "prod", status: "enabled") }),
                (.alreadyExists, "a project of that name",
                 { _ = try await admin.createProject(client: 1, name: "shop", status: "enabled") }),
                (.alreadyExists, "a service of that name and version",
                 { _ = try await admin.createService(name: "orders", version: "1", status: "enabled") }),
                (.invalidValue, "no name for a project", { _ = try await admin.createProject(client: 1, name: "Shop", status: "enabled") }),
                (.invalidValue, "no version", { _ = try await admin.createService(name: "orders", version: "1/2", status: "enabled") }),
                (.invalidValue, "no mail address", { _ = try await admin.updateClient(1, email: .set("nowhere")) }),
                (.invalidValue, "a client's name", { _ = try await admin.createClient(name: "", type: "developer", email: nil) }),
                (.invalidValue, "a key's name",
                 { _ = try await admin.createKey(environment: environment.id, name: String(repeating: "x", count: 201)) }),
                (.nameIsFixed, "cannot be changed", { _ = try await admin.updateEnvironment(environment.id, name: "live") }),
                (.notAssigned, "not assigned to the project 'acme/shop'",
                 { _ = try await admin.setQuota(environment: environment, service: service, limit: 1) }),
                (.notFound, "there is no project 77", { _ = try await admin.updateProject(77, status: "disabled") }),
            ]
            let before = try await store.run("SELECT count(*) FROM audit_log")
            for (code, words, body) in cases {
                do {
                    try await body()
                    Issue.record("not refused: \(words)")
                } catch let error as AdministrationError {
                    #expect(error.code == code && error.message.contains(words), "\(error)")
                }
            }
            // A refused change leaves no trace of itself.
            #expect(try await store.run("SELECT count(*) FROM audit_log") == before)
        }
    }

    @Test func everyChangeIsInTheAuditLogWithWhatItChanged() async throws {
        try await withTenants { store, environment, service in
            let admin = Administration(store.client, actor: "cli:alice")
            let project = try await admin.project("acme/shop")
            _ = try await admin.updateProject(project.id, status: "disabled")
            _ = try await admin.updateClient(project.clientID, name: "acme2", email: .set(nil))
            _ = try await admin.updateEnvironment(environment.id, status: "disabled")
            _ = try await admin.updateService(service.id, status: "deprecated")
            _ = try await admin.setQuota(project: project, service: service, limit(100))
            _ = try await admin.setQuota(project: project, service: service, limit(200))
            _ = try await admin.setQuota(environment: environment, service: service, limit: 20)
            _ = try await admin.setQuota(environment: environment, service: service, limit: 30)
            try await admin.unsetQuota(environment: environment, service: service)
            try await admin.unsetQuota(project: project, service: service)
            let rows = try await store.run(
                """
                SELECT action, object_kind, object_id,
                       CASE WHEN action = 'update' THEN detail::text END FROM audit_log WHERE actor = 'cli:alice' ORDER BY id
                """)
            #expect(rows == [
                #"update|project|1|{"status": {"to": "disabled", "from": "enabled"}}"#,
                #"update|client|1|{"name": {"to": "acme2", "from": "acme"}, "email": {"to": null, "from": "ops@acme.example"}}"#,
                #"update|environment|1|{"status": {"to": "disabled", "from": "enabled"}}"#,
                #"update|service|1|{"status": {"to": "deprecated", "from": "enabled"}}"#,
                "assign|project_service|1:1|",
                #"update|project_service|1:1|{"max_request": {"to": 200, "from": 100}}"#,
                "assign|environment_service|1:1|",
                #"update|environment_service|1:1|{"max_request": {"to": 30, "from": 20}}"#,
                "unassign|environment_service|1:1|",
                "unassign|project_service|1:1|",
            ])
            #expect(try await store.run("SELECT count(*) FROM audit_log WHERE actor = 'test' AND action = 'create'") == ["4"])
        }
    }

    // MARK: Keys

    @Test func aKeyIsStoredAsItsDigestAlone() async throws {
        try await withTenants { store, environment, _ in
            let (key, secret) = try await store.admin.createKey(environment: environment.id, name: "web")
            #expect(key.environmentPath == "acme/shop/prod" && key.status == "enabled" && !key.isExpired && key.expiresAt == nil)
            #expect(secret.text.hasPrefix("pk_\(key.prefix)"))
            let digest = secret.digest.bytes.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
            #expect(try await store.run("SELECT id, encode(key, 'hex') FROM api_key") == ["\(key.id)|\(digest)"])
            #expect(try await store.admin.key(key.id) == key)
            #expect(try await store.admin.keys(environment: environment.id) == [key])
            // Neither the secret nor its digest is in the audit log.
            let audit = try await store.run("SELECT detail FROM audit_log WHERE object_kind = 'api_key'").joined()
            #expect(audit.contains(key.prefix) && !audit.contains(secret.text) && !audit.contains(digest) && !audit.contains(#""key""#))
            // Whoever gives a secret for an id does not find it in the message.
            do {
                _ = try await store.admin.key(secret.text)
                Issue.record("found by its secret")
            } catch let error as AdministrationError {
                #expect(error.code == .invalidValue && !"\(error)".contains(secret.text))
            }
        }
    }

    @Test func aKeyExpiresByTheServersClock() async throws {
        try await withTenants { store, environment, _ in
            let hour: Int64 = 3_600_000_000
            let (key, _) = try await store.admin.createKey(environment: environment.id, name: nil, expires: .after(hour))
            #expect(
                try await store.run("SELECT expires_at BETWEEN now() + interval '59 min' AND now() + interval '61 min' FROM api_key")
                    == ["t"])
            let later = try await store.admin.updateKey(key.id, name: .set("n"), expires: .at(4_102_444_800_000_000))
            #expect(later.expiresAt == 4_102_444_800_000_000 && later.name == "n")
            #expect(try await store.run("SELECT expires_at = '2100-01-01Z' FROM api_key") == ["t"])
            #expect(try await store.admin.updateKey(key.id, expires: .never).expiresAt == nil)
            #expect(try await store.admin.updateKey(key.id, name: .set(nil), expires: .at(0)).isExpired)
            #expect(
                try await refusal { 
                    try await store.admin.createKey(environment: environment.id, name: nil, expires: .at(0))
                } == .invalidValue)
        }
    }

    @Test func rotationGivesTheOldKeyItsGrace() async throws {
        try await withTenants { store, environment, _ in
            let admin = store.admin
            let hour: Int64 = 3_600_000_000
            let (old, secret) = try await admin.createKey(environment: environment.id, name: "web")
            let rotated = try await admin.rotateKey(old.id, grace: hour)
            #expect(rotated.key.id != old.id && rotated.secret.text != secret.text)
            #expect(rotated.key.name == "web" && rotated.key.environmentID == environment.id && rotated.key.expiresAt == nil)
            #expect(rotated.old.id == old.id && rotated.old.status == "enabled" && !rotated.old.isExpired)
            #expect(try await store.run("SELECT expires_at <= now() + interval '1 h' FROM api_key WHERE id = '\(old.id)'") == ["t"])
            #expect(
                try await store.run("SELECT action, object_id, detail ->> 'replaced_by' FROM audit_log WHERE action = 'rotate'")
                    == ["rotate|\(old.id)|\(rotated.key.id)"])
            // The old one expires now, so the next rotation of it must say when the new one does; an earlier end stays.
            #expect(try await refusal { try await admin.rotateKey(old.id, grace: 0) } == .conflict)
            let again = try await admin.rotateKey(old.id, grace: 1000 * hour, expires: .after(hour))
            #expect(again.old.expiresAt == rotated.old.expiresAt && again.key.expiresAt != nil)
            // Without grace it ends at once.
            #expect(try await admin.rotateKey(rotated.key.id, grace: 0).old.isExpired)
            // A key that would be expired already is not made, and the old one stays as it was.
            let fresh = try await admin.createKey(environment: environment.id, name: nil).key
            #expect(try await refusal { try await admin.rotateKey(fresh.id, grace: 0, expires: .at(0)) } == .invalidValue)
            #expect(try await admin.key(fresh.id) == fresh)
            _ = try await admin.updateKey(fresh.id, status: "disabled")
            #expect(try await refusal { try await admin.rotateKey(fresh.id, grace: 0) } == .conflict)
        }
    }

    // MARK: Quota

    @Test func aProjectsQuotaIsAssignedAndEdited() async throws {
        try await withTenants { store, _, service in
            let admin = store.admin
            let project = try await admin.project("acme/shop")
            var edit = ProjectQuotaEdit()
            edit.frequency = .set(.daily)
            // A limit is not guessed.
            #expect(try await refusal { try await admin.setQuota(project: project, service: service, edit) } == .notAssigned)
            edit.limit = .set(1000)
            (edit.anchor, edit.timeZone) = ("2026-01-31 06:00", "Europe/Madrid")
            let quota = try await admin.setQuota(project: project, service: service, edit)
            #expect(quota.limit == 1000 && quota.shared == 0 && quota.environments == 0)
            #expect(quota.reset.frequency == .daily && quota.reset.anchor == "2026-01-31 06:00:00" && quota.reset.nextReset != nil)
            // What is not said stays.
            var monthly = ProjectQuotaEdit()
            monthly.frequency = .set(.monthly)
            let edited = try await admin.setQuota(project: project, service: service, monthly)
            #expect(edited.limit == 1000 && edited.reset.timeZone == "Europe/Madrid" && edited.reset.frequency == .monthly)
            var never = ProjectQuotaEdit()
            never.frequency = .set(nil)
            never.limit = .set(nil)
            let unlimited = try await admin.setQuota(project: project, service: service, never)
            #expect(unlimited.limit == nil && unlimited.reset.frequency == nil && unlimited.reset.nextReset == nil)
            #expect(unlimited.reset.anchor == "2026-01-31 06:00:00")
            var wrong = ProjectQuotaEdit()
            wrong.timeZone = "Mars/Olympus"
            #expect(try await refusal { try await admin.setQuota(project: project, service: service, wrong) } == .invalidValue)
            #expect(try await refusal { try await admin.setQuota(project: project, service: service, limit(-1)) } == .invalidValue)
        }
    }

    @Test func anEnvironmentsQuotaShowsHowItStands() async throws {
        try await withTenants { store, environment, service in
            let admin = store.admin
            let project = try await admin.project("acme/shop")
            _ = try await admin.setQuota(project: project, service: service, limit(1000))
            let quota = try await admin.setQuota(environment: environment, service: service, limit: 100)
            #expect(quota.limit == 100 && quota.used == 0 && quota.available == 100 && quota.free == 100 && quota.period == 1)
            #expect(quota.environmentPath == "acme/shop/prod" && quota.servicePath == "orders/1")
            try await store.run("UPDATE environment_service SET used_request = 60, available_request = 40, held_request = 15")
            let used = try await admin.quota(environment: environment, service: service)
            #expect(used.available == 40 && used.held == 15 && used.free == 25 && !used.isOvercommitted)
            let lowered = try await admin.setQuota(environment: environment, service: service, limit: 50)
            #expect(lowered.available == -10 && lowered.free == 0 && lowered.isOvercommitted)
            #expect(try await admin.quotas(inProject: project.id).count == 1)
            #expect(try await admin.quotas(project: project.id)[0].shared == 50)
            try await store.run(
                """
                UPDATE project_service SET reset_frequency = 'daily';
                UPDATE project_service SET next_reset = '2020-01-01Z'
                """)
            #expect(try await admin.quota(environment: environment, service: service).isResetDue)
            #expect(
                try await refusal { try await admin.setQuota(environment: environment, service: service, limit: 1001) }
                    == .shareExceeded)
            #expect(
                try await refusal { try await admin.setQuota(environment: environment, service: service, limit: nil) }
                    == .unlimitedShare)
            #expect(try await refusal { try await admin.unsetQuota(project: project, service: service) } == .inUse)
            try await admin.unsetQuota(environment: environment, service: service)
            #expect(try await refusal { try await admin.unsetQuota(environment: environment, service: service) } == .notAssigned)
            #expect(try await refusal { try await admin.quota(environment: environment, service: service) } == .notAssigned)
        }
    }

    @Test func refusalsOfSharesNameTheProjectAndTheService() async throws {
        try await withTenants { store, environment, service in
            let project = try await store.admin.project("acme/shop")
            _ = try await store.admin.setQuota(project: project, service: service, limit(10))
            do {
                _ = try await store.admin.setQuota(environment: environment, service: service, limit: 11)
                Issue.record("not refused")
            } catch let error as AdministrationError {
                let message =
                    #"the environments of project "acme/shop" would have 11 units of service "orders/1", but the project has 10"#
                #expect(error.message == message)
                #expect(error.hint != nil && error.cause?.sqlState == "PN002")
            }
        }
    }

    /// Edits and resets take their locks in one order, so neither fails for the other.
    @Test func editsAndResetsDoNotDeadlock() async throws {
        try await withTenants { store, environment, service in
            let project = try await store.admin.project("acme/shop")
            _ = try await store.admin.setQuota(project: project, service: service, limit(1000))
            _ = try await store.admin.setQuota(environment: environment, service: service, limit: 1)
            try await store.run("UPDATE project_service SET reset_frequency = 'daily'")
            let other = try await store.connect()
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask {
                    for limit in 1...100 {
                        _ = try await store.admin.setQuota(environment: environment, service: service, limit: Int64(limit))
                    }
                }
                group.addTask {
                    for _ in 1...100 {
                        try await other.script(
                            "UPDATE pandora.project_service SET next_reset = '2020-01-01Z'; SELECT pandora.reset_if_due(1, 1)")
                    }
                }
                try await group.waitForAll()
            }
            #expect(try await store.run("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == ["0"])
            #expect(try await store.run("SELECT max_request, period > 90 FROM environment_service") == ["100|t"])
            await other.shutdown()
        }
    }

    // MARK: Without a schema

    @Test func anUnmigratedDatabaseIsSaidToBeOne() async throws {
        let database = try await TestDatabase.create()
        try await withClient(of: database) { client, _ async throws in
            let admin = Administration(client, actor: "test")
            #expect(try await refusal { try await admin.clients() } == .schemaMismatch)
            await client.shutdown()
            #expect(try await refusal { try await admin.clients() } == .databaseUnavailable)
        }
    }
}
