import GatewayCore
import GatewayStore
import Glibc
import NIOCore
import Postgres
import PrivateCluster
import Reactor

/// The folder of `pandora dev`: cluster, spool, configuration, and the demo key, which can be shown only because it is kept
/// here.
struct DevHome {
    let path: String

    var configurationFile: String { path + "/pandora.yaml" }
    private var keyFile: String { path + "/demo-key" }
    /// What a shell needs to talk to all this: `. .pandora/env`.
    private var shellFile: String { path + "/env" }

    struct Problem: Error, CustomStringConvertible {
        let description: String
    }

    /// Makes the folder if it is missing.
    init(_ directory: String) throws {
        var here = [CChar](repeating: 0, count: Int(PATH_MAX))
        guard getcwd(&here, here.count) != nil else { throw Problem(description: "no working directory") }
        let current = String(decoding: here.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
        path = directory.hasPrefix("/") ? directory : current + "/" + directory
        guard mkdir(path, 0o755) == 0 || errno == EEXIST else {
            throw Problem(description: "cannot make \(path): \(String(cString: strerror(errno)))")
        }
        if access(configurationFile, F_OK) != 0 { try Self.write(Self.configuration, to: configurationFile, mode: 0o644) }
    }

    // MARK: Database

    func startCluster() throws -> PrivateCluster {
        let cluster = try PrivateCluster.create(in: path + "/postgresql")
        try cluster.start()
        return cluster
    }

    func url(_ cluster: PrivateCluster) -> String { cluster.url(database: "pandora") }

    /// Database, schema, tenant and key; whatever is there already stays. Returns the key.
    func prepareDatabase(_ cluster: PrivateCluster) async throws -> String {
        let reactor = try Reactor.start(name: "prepare")
        defer { reactor.stop() }
        let server = try await PostgresClient.connect(PostgresConfiguration(url: cluster.url(database: "postgres")), on: reactor)
        do throws(PostgresError) {
            try await server.script("CREATE DATABASE pandora")
        } catch {
            // duplicate_database: from an earlier start.
            guard error.sqlState == "42P04" else { throw error }
        }
        await server.shutdown()
        let client = try await PostgresClient.connect(PostgresConfiguration(url: url(cluster)), on: reactor)
        _ = try await Migrator(client).migrate()
        let key = try await demoKey(Administration(client, actor: "pandora dev"))
        await client.shutdown()
        return key
    }

    /// The key of an earlier start if it is still good; else a new one, with the tenant that it needs.
    private func demoKey(_ admin: Administration) async throws -> String {
        if let kept = Self.read(keyFile)?.split(separator: "\n"), kept.count == 2, let found = try? await admin.key(String(kept[0])),
            found.status == "enabled", !found.isExpired
        {
            return String(kept[1])
        }
        let environment = try await demoEnvironment(admin)
        let (key, secret) = try await admin.createKey(environment: environment.id, name: "demo")
        try Self.write("\(key.id)\n\(secret.text)\n", to: keyFile, mode: 0o600)
        return secret.text
    }

    private func demoEnvironment(_ admin: Administration) async throws -> EnvironmentRecord {
        if let found = try? await admin.environment("demo/shop/test") { return found }
        let client = try await admin.createClient(name: "demo", type: "developer", email: nil)
        let project = try await admin.createProject(client: client.id, name: "shop", status: "enabled")
        let environment = try await admin.createEnvironment(project: project.id, name: "test", status: "enabled")
        let service = try await admin.createService(name: "hello", version: "1", status: "enabled")
        var quota = ProjectQuotaEdit()
        (quota.limit, quota.frequency) = (.set(10_000), .set(.daily))
        _ = try await admin.setQuota(project: project, service: service, quota)
        _ = try await admin.setQuota(environment: environment, service: service, limit: 1_000)
        return environment
    }

    // MARK: Configuration

    /// What the configuration refers to. A variable that is set already stays: the file can be pointed elsewhere.
    func export(database: String, listen: String, upstream: SocketAddress) {
        setenv("PANDORA_DATABASE_URL", database, 1)
        setenv("PANDORA_DEV_LISTEN", listen, 1)
        setenv("PANDORA_DEV_UPSTREAM", upstream.hostAndPort, 1)
        setenv("PANDORA_DEV_SPOOL", path + "/spool", 1)
    }

    private static let configuration = """
        # The routes of `pandora dev`. Edit them and send SIGHUP, or start again; config/pandora.yaml shows everything there is.
        # The variables are set by `pandora dev`.
        listen: ${PANDORA_DEV_LISTEN}
        database:
          url: ${PANDORA_DATABASE_URL}
        spool:
          directory: ${PANDORA_DEV_SPOOL}
        log:
          level: notice
          format: text
        upstreams:
          demo:
            targets: ["${PANDORA_DEV_UPSTREAM}"]
        routes:
          - name: hello
            match: {prefix: /hello}
            service: hello
            upstream: demo
          # A process of several calls that costs one unit, and only when it succeeds.
          - {name: checkout, match: {path: /checkout, methods: [POST]}, service: hello, upstream: demo}
          - {name: pay, match: {prefix: /checkout/pay, methods: [POST]}, service: hello, upstream: demo}
          - {name: confirm, match: {prefix: /checkout/confirm, methods: [POST]}, service: hello, upstream: demo}
        flows:
          checkout:
            start: checkout
            steps: [pay]
            finish: confirm
            ttl: 5m

        """

    /// What to do now. The shell file gets what the text refers to.
    func welcome(_ address: String, _ key: String, database: String) throws -> String {
        let lines = """
            export PANDORA_DATABASE_URL='\(database)' PANDORA_ADDRESS='\(address)' PANDORA_KEY='\(key)'
            pandora() { '\(Self.program)' "$@"; }

            """
        try Self.write(lines, to: shellFile, mode: 0o600)
        return """

            Pandora is running. Try it:

              curl -i http://\(address)/hello -H 'X-API-Key: \(key)'

            And in another terminal:

              . \(shellFile)
              pandora logs --follow

            Routes: \(configurationFile)   Ctrl-C stops everything.

            """
    }

    /// The path under which this program was started, so that what is printed works when pasted.
    private static var program: String {
        var path = [CChar](repeating: 0, count: Int(PATH_MAX))
        let length = readlink("/proc/self/exe", &path, path.count - 1)
        return length > 0 ? String(decoding: path[..<length].map(UInt8.init(bitPattern:)), as: UTF8.self) : "pandora"
    }

    // MARK: Files

    private static func write(_ text: String, to path: String, mode: mode_t) throws {
        let file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode)
        guard file >= 0 else { throw Problem(description: "cannot write \(path): \(String(cString: strerror(errno)))") }
        defer { close(file) }
        guard Output.write(text, to: file) else { throw Problem(description: "cannot write \(path)") }
    }

    private static func read(_ path: String) -> String? {
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return nil }
        defer { close(file) }
        var bytes = [UInt8](repeating: 0, count: 4_096)
        let count = Glibc.read(file, &bytes, bytes.count)
        return count > 0 ? String(decoding: bytes[..<count], as: UTF8.self) : nil
    }
}
