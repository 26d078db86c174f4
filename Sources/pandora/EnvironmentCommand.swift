import ArgumentParser
import GatewayStore

struct EnvironmentCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "environment", abstract: "Where a project runs, for instance prod: keys and quota belong to environments.",
        subcommands: [Create.self, List.self, Show.self, Update.self])

    struct Create: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Create an environment. Its name is for ever.")

        @Argument(help: "CLIENT/PROJECT/ENVIRONMENT.") var environment: String
        @Option(help: "enabled or disabled.") var status = StatusArgument.enabled
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                let (parent, name) = try Administration.split(environment, "a new environment is CLIENT/PROJECT/ENVIRONMENT")
                let project = try await admin.project(parent)
                result.show(try await admin.createEnvironment(project: project.id, name: name, status: status.rawValue).fields)
            }
        }
    }

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List environments.")

        @Option(help: "Of this project alone, CLIENT/PROJECT or an id.") var project: String?
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                var id: Int64?
                if let project { id = try await admin.project(project).id }
                result.list(try await admin.environments(project: id).map(\.fields), columns: ["id", "path", "status", "created_at"])
            }
        }
    }

    struct Show: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show an environment.")

        @Argument(help: "CLIENT/PROJECT/ENVIRONMENT or an id.") var environment: String
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in result.show(try await admin.environment(environment).fields) }
        }
    }

    struct Update: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Change an environment. A disabled environment's keys are refused.")

        @Argument(help: "CLIENT/PROJECT/ENVIRONMENT or an id.") var environment: String
        @Option(help: "enabled or disabled.") var status: StatusArgument?
        @Option(help: ArgumentHelp("Refused: an environment keeps its name.", visibility: .hidden)) var name: String?
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func validate() throws {
            if name == nil, status == nil { throw ValidationError("Say what to change: --status.") }
        }

        func run() async throws {
            try await database.administer { admin in
                let found = try await admin.environment(environment)
                result.show(try await admin.updateEnvironment(found.id, name: name, status: status?.rawValue).fields)
            }
        }
    }
}

extension EnvironmentRecord {
    var fields: [Field] {
        [
            Field("id", id), Field("path", path), Field("name", name), Field("project_id", projectID),
            Field("project", projectName), Field("client", clientName), Field("status", status),
            Field("created_at", moment: createdAt), Field("updated_at", moment: updatedAt),
        ]
    }
}
