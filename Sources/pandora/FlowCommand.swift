import ArgumentParser
import GatewayCore
import GatewayStore

enum FlowStateArgument: String, ExpressibleByArgument, CaseIterable { case open, finishing }

struct FlowCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "flow", abstract: "Flows: reservations over several requests, open ones and what became of the others.",
        subcommands: [List.self, Show.self, Commit.self, Rollback.self])

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List open flows, the oldest first.")

        @Option(help: "Of this environment alone, CLIENT/PROJECT/ENVIRONMENT or an id.") var environment: String?
        @Option(help: "Of this name alone, as the configuration file has it.") var flow: String?
        @Option(help: "open or finishing.") var state: FlowStateArgument?
        @Option(help: ArgumentHelp("Started at least this long ago.", valueName: "10m"), transform: Moment.duration) var older: Int64?
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                var filter = FlowFilter()
                if let environment { filter.environmentID = try await admin.environment(environment).id }
                (filter.flow, filter.state, filter.age) = (flow, state?.rawValue, older)
                result.list(
                    try await admin.flows(filter).map(\.fields),
                    columns: ["id", "flow", "environment", "service", "state", "units", "hops", "started_at", "expires_at"])
            }
        }
    }

    struct Show: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Show a flow and its hops.", discussion: "Of a flow that has ended the ledger knows how, and the log its hops.")

        @OptionGroup var flow: FlowArgument
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.withClient { client, _ in
                let record = try await Administration(client, actor: DatabaseOptions.actor).flow(flow.id)
                let hops = try await LogReader(client).hops(of: flow.id)
                if result.json {
                    let field = Field("hops_logged", .array(hops.map(\.fields.json)), text: "")
                    return Output.line((record.fields + [field]).json.text)
                }
                result.show(record.fields)
                guard !hops.isEmpty else { return }
                Output.line("")
                for line in LogTable.lines(hops) { Output.line(line) }
            }
        }
    }

    struct Commit: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "End an open flow and charge what it holds.")

        @OptionGroup var flow: FlowArgument
        @Flag(help: "Also where a hop was finishing it and its claim is void.") var force = false
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                result.show(try await admin.endFlow(flow.id, commits: true, force: force).fields)
            }
        }
    }

    struct Rollback: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "End an open flow and give back what it holds.")

        @OptionGroup var flow: FlowArgument
        @Flag(help: "Also where a hop was finishing it and its claim is void.") var force = false
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                result.show(try await admin.endFlow(flow.id, commits: false, force: force).fields)
            }
        }
    }
}

struct FlowArgument: ParsableArguments {
    @Argument(help: ArgumentHelp("Its id, as answers have it in Pandora-Flow.", valueName: "rsv_…"), transform: Self.parse)
    var id: ReservationID

    private static func parse(_ text: String) throws -> ReservationID {
        guard let id = ReservationID(text) else { throw ValidationError("expected rsv_ and 26 characters, found '\(text)'") }
        return id
    }
}

extension FlowRecord {
    var fields: [Field] {
        [
            Field("id", id), Field("flow", flow), Field("environment_id", environmentID), Field("environment", environmentPath),
            Field("service_id", serviceID), Field("service", servicePath), Field("state", state),
            Field("units", JSON(units), text: isOpen ? "\(units) held" : "\(units) charged"), Field("period", period),
            Field("hops", JSON(hops), text: hops.map { "\($0)" } ?? "-"), Field("api_key", apiKey), Field("start_point", startPoint),
            Field("finishing_hop", finishingHop), Field("started_at", moment: startedAt), Field("expires_at", moment: expiresAt),
            Field("ended_at", moment: endedAt),
        ]
    }
}
