import ArgumentParser
import GatewayStore

struct ProjectCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "project", abstract: "What a client does: services are assigned to projects, with quota.",
        subcommands: [Create.self, List.self, Show.self, Update.self])

    struct Create: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Create a project.")

        @Argument(help: "CLIENT/PROJECT, the client by name or id.") var project: String
        @Option(help: "enabled or disabled.") var status = StatusArgument.enabled
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                let (parent, name) = try Administration.split(project, "a new project is CLIENT/PROJECT")
                let client = try await admin.client(parent)
                result.show(try await admin.createProject(client: client.id, name: name, status: status.rawValue).fields)
            }
        }
    }

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List projects.")

        @Option(help: "Of this client alone.") var client: String?
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                var id: Int64?
                if let client { id = try await admin.client(client).id }
                result.list(try await admin.projects(client: id).map(\.fields), columns: ["id", "path", "status", "created_at"])
            }
        }
    }

    struct Show: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show a project.")

        @Argument(help: "CLIENT/PROJECT or an id.") var project: String
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in result.show(try await admin.project(project).fields) }
        }
    }

    struct Update: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Change a project. A disabled project's keys are refused.")

        @Argument(help: "CLIENT/PROJECT or an id.") var project: String
        @Option(help: "A new name.") var name: String?
        @Option(help: "enabled or disabled.") var status: StatusArgument?
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func validate() throws {
            if name == nil, status == nil { throw ValidationError("Say what to change: --status or --name.") }
        }

        func run() async throws {
            try await database.administer { admin in
                let found = try await admin.project(project)
                result.show(try await admin.updateProject(found.id, name: name, status: status?.rawValue).fields)
            }
        }
    }
}

extension ProjectRecord {
    var fields: [Field] {
        [
            Field("id", id), Field("path", path), Field("name", name), Field("client_id", clientID), Field("client", clientName),
            Field("status", status), Field("created_at", moment: createdAt), Field("updated_at", moment: updatedAt),
        ]
    }
}
