import ArgumentParser
import GatewayStore

struct QuotaCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "quota", abstract: "Which project and which environment may use which service, and how much of it.",
        discussion: """
            A service is assigned to a project first, then to its environments, which share what the project has:

              pandora quota set --project acme/shop --service orders --max 1000 --reset monthly
              pandora quota set --environment acme/shop/prod --service orders --max 800
            """,
        subcommands: [Set.self, Unset.self, Show.self, List.self])

    struct Set: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Assign a service, or edit what was assigned.")

        @OptionGroup var place: Place
        @Option(help: "NAME, NAME/VERSION or an id.") var service: String
        @Option(help: ArgumentHelp("Units a period, or unlimited.", valueName: "units"), transform: UnitsArgument.init)
        var max: UnitsArgument?
        @Option(help: "daily, weekly, biweekly, monthly or never: how often the project's quota begins anew.") var reset: ResetArgument?
        @Option(
            help: ArgumentHelp(
                "Periods are counted from this wall-clock time; otherwise days begin at midnight, weeks on Monday, months on the first.",
                valueName: "2026-01-31 06:00"))
        var anchor: String?
        @Option(help: ArgumentHelp("The time zone of the anchor; UTC where none is given.", valueName: "Europe/Madrid"))
        var timeZone: String?
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func validate() throws {
            try place.validate()
            if place.environment != nil {
                if max == nil { throw ValidationError("An environment needs --max, a number of units or unlimited.") }
                if reset != nil || anchor != nil || timeZone != nil {
                    throw ValidationError("--reset, --anchor and --time-zone belong to a project: its environments begin anew together.")
                }
            } else if max == nil, reset == nil, anchor == nil, timeZone == nil {
                throw ValidationError("Say what to set: --max, --reset, --anchor or --time-zone.")
            }
            // No Z: it is wall-clock time.
            if let anchor, Moment.parse(anchor) == nil || anchor.hasSuffix("Z") {
                throw ValidationError("An anchor is wall-clock time such as 2026-01-31 06:00, found '\(anchor)'.")
            }
        }

        func run() async throws {
            try await database.administer { admin in
                if let environment = place.environment {
                    let environment = try await admin.environment(environment)
                    let service = try await admin.service(service)
                    let quota = try await admin.setQuota(environment: environment, service: service, limit: max!.limit)
                    return result.show(quota.fields)
                }
                let project = try await admin.project(place.project!)
                let service = try await admin.service(service)
                var edit = ProjectQuotaEdit()
                if let max { edit.limit = .set(max.limit) }
                if let reset { edit.frequency = .set(ResetFrequency(rawValue: reset.rawValue)) }
                (edit.anchor, edit.timeZone) = (anchor, timeZone)
                result.show(try await admin.setQuota(project: project, service: service, edit).fields)
            }
        }
    }

    struct Unset: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Take a service away.", discussion: "What was used stays in the ledger. Environments come before their project.")

        @OptionGroup var place: Place
        @Option(help: "NAME, NAME/VERSION or an id.") var service: String
        @OptionGroup var database: DatabaseOptions

        func validate() throws { try place.validate() }

        func run() async throws {
            try await database.administer { admin in
                if let environment = place.environment {
                    let environment = try await admin.environment(environment)
                    return try await admin.unsetQuota(environment: environment, service: try await admin.service(service))
                }
                let project = try await admin.project(place.project!)
                try await admin.unsetQuota(project: project, service: try await admin.service(service))
            }
        }
    }

    struct Show: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Show how quota stands.",
            discussion: """
                available is the limit less what is used; free is what of it is not held: leased to gateways for requests, or \
                reserved by open flows. \
                Overcommitted: the limit was lowered below what is used, so nothing more is admitted until the next period.
                """)

        @OptionGroup var place: Place
        @Option(help: "Of this service alone: NAME, NAME/VERSION or an id.") var service: String?
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func validate() throws { try place.validate() }

        func run() async throws {
            try await database.administer { admin in
                if let environment = place.environment {
                    let environment = try await admin.environment(environment)
                    if let service {
                        let service = try await admin.service(service)
                        return result.show(try await admin.quota(environment: environment, service: service).fields)
                    }
                    return result.list(try await admin.quotas(environment: environment.id).map(\.fields), columns: EnvironmentQuota.columns)
                }
                let project = try await admin.project(place.project!)
                if let service {
                    return result.show(try await admin.quota(project: project, service: try await admin.service(service)).fields)
                }
                result.list(try await admin.quotas(project: project.id).map(\.fields), columns: ProjectQuota.columns)
            }
        }
    }

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List the quota of environments, or of projects.")

        @Option(help: "Of this project alone, CLIENT/PROJECT or an id.") var project: String?
        @Option(help: "Of this service alone: NAME, NAME/VERSION or an id.") var service: String?
        @Flag(help: "What projects have, instead of what their environments have.") var projects = false
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                var (projectID, serviceID) = (Int64?.none, Int64?.none)
                if let project { projectID = try await admin.project(project).id }
                if let service { serviceID = try await admin.service(service).id }
                if projects {
                    return result.list(
                        try await admin.quotas(project: projectID, service: serviceID).map(\.fields), columns: ProjectQuota.columns)
                }
                result.list(
                    try await admin.quotas(inProject: projectID, service: serviceID).map(\.fields), columns: EnvironmentQuota.columns)
            }
        }
    }
}

/// Whose quota.
struct Place: ParsableArguments {
    @Option(help: "CLIENT/PROJECT or an id.") var project: String?
    @Option(help: "CLIENT/PROJECT/ENVIRONMENT or an id.") var environment: String?

    func validate() throws {
        if (project == nil) == (environment == nil) { throw ValidationError("Say either --project or --environment.") }
    }
}

/// A number of units, or unlimited.
struct UnitsArgument {
    let limit: Int64?

    init(_ text: String) throws {
        if text == "unlimited" {
            limit = nil
        } else if let number = Int64(text), number >= 0, text.first != "+" {
            limit = number
        } else {
            throw ValidationError("expected a number of units from 0 on, or unlimited, found '\(text)'")
        }
    }
}

enum ResetArgument: String, ExpressibleByArgument, CaseIterable { case daily, weekly, biweekly, monthly, never }

extension ResetRule {
    var fields: [Field] {
        [
            Field("reset", JSON(frequency?.rawValue), text: text), Field("anchor", anchor), Field("time_zone", timeZone),
            Field("next_reset", moment: nextReset, absent: "never"),
        ]
    }

    private var text: String {
        guard let frequency else { return "never" }
        return timeZone == "UTC" ? frequency.rawValue : "\(frequency.rawValue), \(timeZone)"
    }
}

extension ProjectQuota {
    static let columns = ["project", "service", "limit", "shared", "environments", "reset", "next_reset"]

    var fields: [Field] {
        [
            Field("project_id", projectID), Field("project", projectPath), Field("service_id", serviceID),
            Field("service", servicePath), Field("limit", units: limit), Field("shared", shared),
            Field("environments", environments),
        ] + reset.fields + [Field("created_at", moment: createdAt), Field("updated_at", moment: updatedAt)]
    }
}

extension EnvironmentQuota {
    static let columns = [
        "environment", "service", "limit", "used", "leased", "reserved", "available", "free", "period", "reset", "next_reset", "note",
    ]

    var fields: [Field] {
        [
            Field("environment_id", environmentID), Field("environment", environmentPath), Field("service_id", serviceID),
            Field("service", servicePath), Field("limit", units: limit), Field("used", used), Field("held", held),
            Field("leased", leased), Field("reserved", reserved), Field("available", units: available), Field("free", units: free),
            Field("period", period),
        ] + reset.fields + [
            Field("overcommitted", isOvercommitted), Field("reset_due", isResetDue), Field("note", JSON(note), text: note ?? "-"),
            Field("created_at", moment: createdAt), Field("updated_at", moment: updatedAt),
        ]
    }

    private var note: String? {
        let notes = [isOvercommitted ? "overcommitted" : nil, isResetDue ? "reset is due" : nil].compactMap(\.self)
        return notes.isEmpty ? nil : notes.joined(separator: ", ")
    }
}
