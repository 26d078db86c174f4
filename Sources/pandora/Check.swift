import ArgumentParser
import GatewayCore

struct Check: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Say what is wrong with a configuration file.",
        discussion: """
            Every fault is one line on standard error, as compilers write them: file:line:column: error: message.
            Exits with 0 where there is none and with 1 otherwise. Nothing is started and no database is asked.
            """)

    @Argument(help: "The configuration file.", completion: .file(extensions: ["yaml", "yml"]))
    var file: String

    @Flag(name: .shortAndLong, help: "Say nothing where the file is right.")
    var quiet = false

    func run() throws {
        do throws(ConfigurationErrors) {
            let configuration = try Configuration.load(path: file)
            if !quiet { print("\(file): \(Self.summary(of: configuration))") }
        } catch {
            Output.error(error.description)
            throw ExitCode(1)
        }
    }

    static func summary(of configuration: Configuration) -> String {
        let traffic = configuration.traffic
        let targets = traffic.upstreams.reduce(0) { $0 + $1.targets.count }
        let parts = [
            counted(traffic.routes.routes.count, "route"), counted(traffic.upstreams.count, "upstream"),
            counted(targets, "target"), counted(traffic.flows.count, "flow"),
        ]
        return "correct: " + parts.joined(separator: ", ")
    }

    private static func counted(_ number: Int, _ noun: String) -> String { "\(number) \(noun)\(number == 1 ? "" : "s")" }
}
