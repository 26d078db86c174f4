import ArgumentParser
import Dispatch
import Gateway
import GatewayCore
import Glibc
import Logging
import NIOCore
import Postgres

struct Serve: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Run a gateway node.",
        discussion: """
            SIGTERM or SIGINT ends it in order: requests in flight are answered, the log is shipped, leases go back. SIGHUP reads \
            the file again; a file with faults changes nothing. The node's own messages go to standard error. Where another \
            process has taken over its spool, it ends in order, too, and exits with 1.
            """)

    @Argument(help: "The configuration file.", completion: .file(extensions: ["yaml", "yml"]))
    var file: String

    func run() async throws {
        let configuration = try Self.load(file)
        let log = ProcessLog.logger(configuration.boot.log)
        guard let url = configuration.boot.database else {
            Output.error("\(file): 'database.url' is needed to serve")
            throw ExitCode(1)
        }
        let signals = Signals([SIGTERM, SIGINT, SIGHUP])
        let node = Node(
            configuration, database: try Self.database(url),
            report: { event in
                log.log(event)
                // An end in order, but no success: whoever looks after the process starts it anew, with spools of its own.
                if case .fenced = event { signals.tellFault() }
            })
        do {
            try await node.start()
        } catch {
            Output.error("pandora: \(error)")
            throw ExitCode(1)
        }
        signals.isOrderly = true
        log.notice("ready", metadata: ["listen": "\(node.addresses.map(\.hostAndPort).joined(separator: ","))"])
        let signal = await Self.follow(signals, node, log, file: file)
        await node.stop()
        if signal == Signals.fault { throw ExitCode(1) }
    }

    static func load(_ file: String) throws -> Configuration {
        do throws(ConfigurationErrors) {
            return try Configuration.load(path: file)
        } catch {
            Output.error(error.description)
            throw ExitCode(1)
        }
    }

    static func database(_ url: Secret) throws -> PostgresConfiguration {
        do throws(PostgresConfiguration.URLError) {
            return try PostgresConfiguration(url: url.reveal())
        } catch {
            Output.error("pandora: \(error)")
            throw ExitCode(1)
        }
    }

    /// Reloads on SIGHUP; returns the first other signal.
    static func follow(_ signals: Signals, _ node: Node, _ log: Logger, file: String) async -> CInt {
        for await signal in signals.received {
            guard signal == SIGHUP else { return signal }
            do throws(ConfigurationErrors) {
                node.reload(try Configuration.load(path: file).traffic)
            } catch {
                log.log(.reloadRefused(error.description))
            }
        }
        return SIGTERM
    }
}

extension SocketAddress {
    /// `127.0.0.1:8080`, `[::1]:8080`
    var hostAndPort: String { ListenAddress(host: ipAddress ?? "", port: port ?? 0).description }
}
