import ArgumentParser

@main
struct Pandora: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pandora", abstract: "An API-key gateway with exact quota and a log of every hop.",
        subcommands: [Serve.self, Dev.self, Check.self, Migrate.self, DoctorCommand.self],
        groupedSubcommands: [
            CommandGroup(
                name: "Administration",
                subcommands: [
                    ClientCommand.self, ProjectCommand.self, EnvironmentCommand.self, ServiceCommand.self, KeyCommand.self,
                    QuotaCommand.self, FlowCommand.self, NodeCommand.self,
                ]),
            CommandGroup(name: "The log", subcommands: [LogsCommand.self, TraceCommand.self]),
        ])
}
