import ArgumentParser
import Gateway
import GatewayCore
import GatewayStore
import Glibc
import NIOCore
import Postgres
import PrivateCluster
import Reactor

struct Dev: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Run everything at once, to look around: a private PostgreSQL, a demo tenant, a demo service and the gateway.",
        discussion: """
            All of it lives in one folder and listens on this machine alone. Ctrl-C stops it; the next start reuses it. \
            Delete the folder to begin anew. The routes are in its file pandora.yaml, which is yours to edit: the next start, or a \
            SIGHUP, reads it.
            """)

    @Option(help: "The folder of everything.") var directory = ".pandora"
    @Option(help: "Where the gateway listens; port 0 takes any that is free.") var listen = "127.0.0.1:8080"
    @Flag(help: "Send a request, find its row in the log, stop; exits with 0 when that worked.") var check = false

    func run() async throws {
        let signals = Signals([SIGTERM, SIGINT, SIGHUP])
        let home = try DevHome(directory)
        let cluster = try Self.said { try home.startCluster() }
        let upstream = try await DemoUpstream(on: SocketAddress(ipAddress: "127.0.0.1", port: 0))
        let key: String
        do {
            key = try await home.prepareDatabase(cluster)
        } catch {
            Output.error("pandora: \(error)")
            throw ExitCode(1)
        }
        home.export(database: home.url(cluster), listen: check ? "127.0.0.1:0" : listen, upstream: upstream.address)
        let configuration = try Serve.load(home.configurationFile)
        let log = ProcessLog.logger(configuration.boot.log)
        let node = Node(configuration, database: try Serve.database(configuration.boot.database!), report: { log.log($0) })
        do {
            try await node.start()
        } catch {
            Output.error("pandora: \(error)")
            throw ExitCode(1)
        }
        signals.isOrderly = true
        let address = node.addresses[0].hostAndPort
        var succeeded = true
        if check {
            succeeded = await DevCheck(address: address, key: key, database: home.url(cluster)).run()
        } else {
            print(try home.welcome(address, key, database: home.url(cluster)))
            fflush(nil)
            _ = await Serve.follow(signals, node, log, file: home.configurationFile)
        }
        await node.stop()
        upstream.stop()
        try? cluster.stop()
        if !succeeded { throw ExitCode(1) }
    }

    private static func said<Value>(_ body: () throws -> Value) throws -> Value {
        do {
            return try body()
        } catch {
            Output.error("pandora: \(error)")
            throw ExitCode(1)
        }
    }
}
