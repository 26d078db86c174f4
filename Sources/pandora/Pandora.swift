import ArgumentParser

@main
struct Pandora: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pandora", abstract: "An API-key gateway with exact quota and a log of every hop.",
        subcommands: [Check.self, Serve.self])
}
