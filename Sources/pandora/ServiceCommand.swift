import ArgumentParser
import GatewayStore

struct ServiceCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "service", abstract: "What is behind the gateway, by name and version; routes lead to services.",
        subcommands: [Create.self, List.self, Show.self, Update.self])

    struct Create: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Create a service.")

        @Argument(help: "Lower-case letters, digits, '.', '_' and '-'.") var name: String
        @Option(help: "Letters, digits, '.', '_' and '-'.") var version = "1"
        @Option(help: "enabled, disabled or deprecated.") var status = ServiceStatusArgument.enabled
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                result.show(try await admin.createService(name: name, version: version, status: status.rawValue).fields)
            }
        }
    }

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List the services.")

        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                result.list(try await admin.services().map(\.fields), columns: ["id", "name", "version", "status", "created_at"])
            }
        }
    }

    struct Show: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show a service.")

        @Argument(help: "NAME, NAME/VERSION or an id.") var service: String
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in result.show(try await admin.service(service).fields) }
        }
    }

    struct Update: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Change a service's status.",
            discussion: """
                A deprecated service answers, except on routes that refuse it. Routes name a service by name and version, so these \
                stay.
                """)

        @Argument(help: "NAME, NAME/VERSION or an id.") var service: String
        @Option(help: "enabled, disabled or deprecated.") var status: ServiceStatusArgument
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                let found = try await admin.service(service)
                result.show(try await admin.updateService(found.id, status: status.rawValue).fields)
            }
        }
    }
}

extension ServiceRecord {
    var fields: [Field] {
        [
            Field("id", id), Field("name", name), Field("version", version), Field("status", status),
            Field("created_at", moment: createdAt), Field("updated_at", moment: updatedAt),
        ]
    }
}
