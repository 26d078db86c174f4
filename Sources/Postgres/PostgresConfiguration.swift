public import NIOCore

/// How to reach a database, and the bounds of a connection to it.
public struct PostgresConfiguration: Sendable {
    /// One server of several that hold the same database; they are tried in order.
    public struct Host: Sendable, Equatable {
        /// A name, an IP literal, or the directory of a unix socket (begins with `/`).
        public var name: String
        public var port: Int

        public init(name: String, port: Int = 5432) { (self.name, self.port) = (name, port) }
    }

    /// A secret that no description, dump or mirror shows.
    public struct Password: Sendable, CustomStringConvertible, CustomDebugStringConvertible, CustomReflectable {
        let value: String
        public init(_ value: String) { self.value = value }
        public var description: String { "(hidden)" }
        public var debugDescription: String { "(hidden)" }
        public var customMirror: Mirror { Mirror(self, children: [:]) }
    }

    public var hosts: [Host] = [Host(name: "/var/run/postgresql")]
    public var database = "pandora"
    public var user = "pandora"
    public var password: Password?
    /// libpq's sslmode and sslrootcert.
    public var tlsMode = "prefer"
    public var tlsRootCertificate: String?
    public var applicationName = "pandora"
    public var searchPath = "pandora,public"
    /// Further settings of the session. The server looks once a second whether a client that waits is still there, so that a
    /// statement given up at its deadline ends even when its cancellation is lost (only servers on Linux can); and it ends a
    /// session that sits in a transaction.
    public var settings = [
        "timezone": "UTC", "datestyle": "ISO", "intervalstyle": "postgres", "client_connection_check_interval": "1000",
        "idle_in_transaction_session_timeout": "60000",
    ]
    /// Only a server that takes writes will do (libpq's target_session_attrs=read-write); a connection whose server has become
    /// read-only is given up.
    public var needsWritable = true

    /// For one address; the next one is tried after it.
    public var connectTimeout: TimeAmount = .seconds(3)
    /// For a statement that names none, from the call to its answer.
    public var statementDeadline: TimeAmount = .seconds(10)
    /// For a transaction that names none, from the call to the answer to its COMMIT.
    public var transactionDeadline: TimeAmount = .seconds(60)
    /// After every address has failed once: doubled up to the maximum, with up to a random half taken off.
    public var backoff: TimeAmount = .milliseconds(50)
    public var backoffMax: TimeAmount = .seconds(2)
    /// Statements that wait on one connection; one more fails at once as overloaded.
    public var waitingMax = 10_000

    public init() {}

    /// What libpq is told, for one server at one numeric address (nil for the directory of a socket). Without an address libpq
    /// would look the name up, and block.
    func parameters(for target: Target) -> [(name: String, value: String)] {
        var list = [
            ("host", target.host.name), ("port", "\(target.host.port)"), ("dbname", database), ("user", user),
            ("sslmode", tlsMode), ("application_name", applicationName), ("client_encoding", "UTF8"), ("gssencmode", "disable"),
            ("target_session_attrs", needsWritable ? "read-write" : "any"), ("options", options),
            // A peer that vanished is noticed within 20 s even when nobody waits for an answer.
            ("keepalives_idle", "10"), ("keepalives_interval", "5"), ("keepalives_count", "2"), ("tcp_user_timeout", "20000"),
        ]
        if let address = target.address { list.append(("hostaddr", address)) }
        if let password { list.append(("password", password.value)) }
        if let tlsRootCertificate { list.append(("sslrootcert", tlsRootCertificate)) }
        return list.map { (name: $0.0, value: $0.1) }
    }

    private var options: String {
        let all = [(key: "search_path", value: searchPath)] + settings.sorted { $0.key < $1.key }
        return all.map { "-c \($0.key)=\(PostgresConfiguration.escaped($0.value))" }.joined(separator: " ")
    }

    /// A backslash keeps white space and backslashes together (PostgreSQL manual, 34.1.2, options).
    private static func escaped(_ value: String) -> String {
        String(value.flatMap { $0.isWhitespace || $0 == "\\" ? ["\\", $0] : [$0] })
    }
}

/// Where one attempt to connect goes.
struct Target: Sendable, Equatable {
    var host: PostgresConfiguration.Host
    /// An IP literal, or nil for the directory of a socket.
    var address: String?
}
