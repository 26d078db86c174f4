import ArgumentParser
import GatewayStore

enum ClientType: String, ExpressibleByArgument, CaseIterable { case organization, developer }

struct ClientCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "client", abstract: "Those who are given access: organizations and developers.",
        subcommands: [Create.self, List.self, Show.self, Update.self])

    struct Create: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Create a client.")

        @Argument(help: "Unique among clients.") var name: String
        @Option(help: "\(ClientType.allCases.map(\.rawValue).joined(separator: " or ")).") var type = ClientType.organization
        @Option(help: "Whom to write to.") var email: String?
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                result.show(try await admin.createClient(name: name, type: type.rawValue, email: email).fields)
            }
        }
    }

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List the clients.")

        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                result.list(try await admin.clients().map(\.fields), columns: ["id", "name", "type", "email", "created_at"])
            }
        }
    }

    struct Show: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show a client.")

        @Argument(help: "Its name or id.") var client: String
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in result.show(try await admin.client(client).fields) }
        }
    }

    struct Update: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Change a client.")

        @Argument(help: "Its name or id.") var client: String
        @Option(help: "A new name.") var name: String?
        @Option(help: "A new type.") var type: ClientType?
        @Option(help: "A new address; an empty one removes it.") var email: String?
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func validate() throws {
            if name == nil, type == nil, email == nil { throw ValidationError("Say what to change: --name, --type or --email.") }
        }

        func run() async throws {
            try await database.administer { admin in
                let edit: Edit<String?> = email.map { .set($0.isEmpty ? nil : $0) } ?? .keep
                let found = try await admin.client(client)
                result.show(try await admin.updateClient(found.id, name: name, type: type?.rawValue, email: edit).fields)
            }
        }
    }
}

extension ClientRecord {
    var fields: [Field] {
        [
            Field("id", id), Field("name", name), Field("type", type), Field("email", email),
            Field("created_at", moment: createdAt), Field("updated_at", moment: updatedAt),
        ]
    }
}
