internal import Glibc
internal import Synchronization

/// A PostgreSQL server of one's own: a data folder, a unix socket and nothing else. `pandora dev` and the tests stand on it.
///
/// The folder belongs to the user that runs the server (mode 0700) and everybody who reaches the socket is trusted, so only
/// that user and root get in. There is no TCP port unless the options ask for one; any number of clusters run side by side. A
/// small shell watches the process that started the cluster and stops the server when that process ends, however it ends.
///
/// Thread-safe; every call blocks, so keep it off event loops.
public final class PrivateCluster: Sendable {
    public struct Options: Sendable {
        /// Off: no fsync, no synchronous commit, for data that nobody misses after a crash of the machine.
        public var isDurable = true
        /// Removes the folder once the server has stopped, also when the process that started it was killed.
        public var isTemporary = false
        /// Lines of postgresql.conf, by name.
        public var settings: [String: String] = [:]
        /// Lines put before the rules of pg_hba.conf, for instance `local all guest scram-sha-256`.
        public var authenticationRules: [String] = []
        /// How long `start` and `stop` wait for the server.
        public var patience: Duration = .seconds(60)

        public init() {}
    }

    /// The folder of everything.
    public let directory: String
    /// Where the socket is: give it to libpq as `host`.
    public let socketDirectory: String
    /// The superuser of the cluster.
    public let user = "postgres"
    public let options: Options

    let binaries: PostgresBinaries
    private let server = Mutex<Watchdog?>(nil)

    private let remover: Mutex<Watchdog?>

    private init(directory: String, socketDirectory: String, options: Options, binaries: PostgresBinaries) throws {
        self.directory = directory
        self.socketDirectory = socketDirectory
        self.options = options
        self.binaries = binaries
        remover = Mutex(
            options.isTemporary
                ? try Watchdog(script: Watchdog.remover, arguments: [directory, socketDirectory], logFile: "/dev/null") : nil)
    }

    deinit {
        try? stop()
        remover.withLock { $0.take()?.end() }
    }

    public var dataDirectory: String { directory + "/data" }
    /// What the server says, in text.
    public var logFile: String { directory + "/log" }

    /// Makes the cluster if the folder does not have one yet; does not start it.
    ///
    /// - Parameter directory: an absolute path. It is made if it is missing and given to the user that runs the server.
    /// - Throws: ``PrivateClusterError``.
    public static func create(in directory: String, options: Options = Options()) throws -> PrivateCluster {
        guard directory.hasPrefix("/") else { throw PrivateClusterError("\(directory) is not an absolute path") }
        let binaries = try PostgresBinaries.find()
        let owner = try Account.ofServer()
        try makeDirectory(directory, for: owner)
        let socketDirectory = try socketDirectory(in: directory, for: owner)
        let cluster = try PrivateCluster(
            directory: directory, socketDirectory: socketDirectory, options: options, binaries: binaries)
        if !isFile(cluster.dataDirectory + "/PG_VERSION") { try cluster.initialize(owner) }
        return cluster
    }

    /// A new folder with a cluster that is removed at its end; started. What need not be durable lies in memory where there
    /// is room: databases are made twenty times as fast there.
    public static func temporary(options: Options = Options()) throws -> PrivateCluster {
        var options = options
        options.isTemporary = true
        let parent = !options.isDurable && hasRoom("/dev/shm") ? "/dev/shm" : "/tmp"
        var template = Array("\(parent)/pandora-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw PrivateClusterError("no folder under \(parent): \(lastError())") }
        let directory = String(decoding: template.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
        let cluster = try create(in: directory, options: options)
        try cluster.start()
        return cluster
    }

    /// `postgres://postgres@/database?host=/socket/directory`
    public func url(database: String = "postgres", user: String? = nil, password: String? = nil) -> String {
        let secret = password.map { ":\($0)" } ?? ""
        return "postgres://\(user ?? self.user)\(secret)@/\(database)?host=\(socketDirectory)"
    }

    // MARK: Running

    /// The server's process, while it runs.
    public var processID: Int32? { readPostmasterFile()?.processID }

    public var isRunning: Bool { server.withLock { $0 != nil } }

    /// Returns when the server takes connections. Harmless when it runs already.
    public func start() throws {
        try server.withLock { server in
            if server == nil { server = try launchUntilReady() }
        }
    }

    /// Ends the server in good order: sessions are cut off, everything is on disk. Harmless when it does not run.
    public func stop() throws {
        server.withLock { server in
            server.take()?.end()
        }
    }

    /// kill -9 of the server, as a crash would be; `start` recovers.
    public func kill() throws {
        guard let process = processID else { return }
        Glibc.kill(process, SIGKILL)
        try stop()
    }

    public func restart() throws {
        try stop()
        try start()
    }

    private func launchUntilReady() throws -> Watchdog {
        let clock = ContinuousClock()
        let limit = clock.now + options.patience
        while true {
            var attempt = try launch()
            while !attempt.hasEnded() {
                if readPostmasterFile()?.isReady == true { return attempt }
                guard clock.now < limit else {
                    attempt.end()
                    throw PrivateClusterError("the server was not ready within \(options.patience):\n\(logTail())")
                }
                pause(.milliseconds(5))
            }
            attempt.end()
            // A server that was killed leaves its children and shared memory behind for a moment.
            guard isBlockedByLeftovers, clock.now < limit else {
                throw PrivateClusterError("the server did not start:\n\(logTail())")
            }
            pause(.milliseconds(100))
        }
    }

    private func launch() throws -> Watchdog {
        var settings = options.settings
        settings["listen_addresses"] = settings["listen_addresses"] ?? ""
        settings["unix_socket_directories"] = socketDirectory
        settings["port"] = "5432"
        if !options.isDurable {
            for name in ["fsync", "synchronous_commit", "full_page_writes"] { settings[name] = "off" }
        }
        var command = try Account.ofServer().command + [binaries.path("postgres"), "-D", dataDirectory]
        for (name, value) in settings.sorted(by: { $0.key < $1.key }) { command += ["-c", "\(name)=\(value)"] }
        try truncateLog()
        return try Watchdog(script: Watchdog.server, arguments: command, logFile: logFile)
    }

    private func truncateLog() throws {
        let log = open(logFile, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard log >= 0 else { throw PrivateClusterError("\(logFile): \(lastError())") }
        close(log)
    }

    private var isBlockedByLeftovers: Bool {
        let log = logTail()
        return log.contains("pre-existing shared memory block") || log.contains("lock file")
    }

    /// The last lines that the server wrote.
    public func logTail(lines: Int = 20) -> String {
        readFile(logFile).split(separator: "\n").suffix(lines).joined(separator: "\n")
    }

    /// postmaster.pid, as pg_ctl reads it: the process on the first line, the state on the eighth.
    private func readPostmasterFile() -> (processID: Int32, isReady: Bool)? {
        let lines = readFile(dataDirectory + "/postmaster.pid").split(separator: "\n", omittingEmptySubsequences: false)
        guard let first = lines.first, let process = Int32(first), Glibc.kill(process, 0) == 0 else { return nil }
        return (process, lines.count > 7 && lines[7].hasPrefix("ready"))
    }

    // MARK: Making

    private func initialize(_ owner: Account) throws {
        var arguments = [
            binaries.path("initdb"), "-D", dataDirectory, "-U", user, "-A", "trust", "-E", "UTF8", "--locale=C",
        ]
        if !options.isDurable { arguments.append("--no-sync") }
        let outcome = try run(owner.command + arguments)
        guard outcome.status == 0 else { throw PrivateClusterError("initdb failed:\n\(outcome.output)") }
        guard !options.authenticationRules.isEmpty else { return }
        let rules = dataDirectory + "/pg_hba.conf"
        try writeFile(rules, options.authenticationRules.joined(separator: "\n") + "\n" + readFile(rules))
    }

    /// A socket's path has at most 107 bytes (unix(7)); a folder that is too deep gets its socket under /tmp.
    private static func socketDirectory(in directory: String, for owner: Account) throws -> String {
        let near = directory + "/socket"
        if near.utf8.count + "/.s.PGSQL.5432.lock".utf8.count <= 107 {
            try makeDirectory(near, for: owner)
            return near
        }
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        for byte in directory.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
        let far = "/tmp/pandora-\(String(hash, radix: 36))"
        try makeDirectory(far, for: owner)
        return far
    }
}

/// Why a cluster could not be made, started or stopped, for an operator to read.
public struct PrivateClusterError: Error, Sendable, CustomStringConvertible {
    public let description: String
    init(_ description: String) { self.description = description }
}
