import NIOCore
import Reactor
import Testing

@testable import Postgres

@Suite struct ConfigurationTests {
    @Test func aURLIsTakenApart() throws {
        let url =
            "postgresql://ann%40x:s%3Acr%2Ft@db1:5433,[::1]:5434,db3/shop%20db?sslmode=verify-full&sslrootcert=/etc/ca.pem"
            + "&application_name=cli&connect_timeout=7&target_session_attrs=any"
        let configuration = try PostgresConfiguration(url: url)
        #expect(
            configuration.hosts == [
                .init(name: "db1", port: 5433), .init(name: "::1", port: 5434), .init(name: "db3", port: 5432),
            ])
        #expect(configuration.user == "ann@x" && configuration.password?.value == "s:cr/t")
        #expect(configuration.database == "shop db" && configuration.applicationName == "cli")
        #expect(configuration.tlsMode == "verify-full" && configuration.tlsRootCertificate == "/etc/ca.pem")
        #expect(configuration.connectTimeout == .seconds(7) && !configuration.needsWritable)
        let socket = try PostgresConfiguration(url: "postgres:///db?host=/run/a,/run/b&port=1,2&user=u&password=p&dbname=other")
        #expect(socket.hosts == [.init(name: "/run/a", port: 1), .init(name: "/run/b", port: 2)])
        #expect(socket.user == "u" && socket.password?.value == "p" && socket.database == "other")
    }

    @Test(arguments: [
        "mysql://h/db", "postgres://h:0/db", "postgres://h:+5/db", "postgres://h:99999/db", "postgres://u:secret%zz@h/db",
        "postgres://u:secret%+f@h/db", "postgres://h/db?colour=red", "postgres://h/db?sslmode=maybe", "postgres://[::1/db",
        "postgres://h/db?host", "postgres://a,,b/db", "postgres://h/db?port=1,2", "postgres://h/db%00",
        "postgres://h/db?target_session_attrs=standby", "postgres://h/db?connect_timeout=-1", "postgres://u:secret@h:x/db?password=secret",
    ])
    func aWrongURLIsRefusedWithoutRepeatingIt(_ url: String) {
        #expect { try PostgresConfiguration(url: url) } throws: { error in
            let text = "\(error)\(String(reflecting: error))"
            return error is PostgresConfiguration.URLError && !text.contains("secret") && text.contains("database URL")
        }
    }

    @Test func thePasswordIsNeverPrinted() throws {
        let configuration = try PostgresConfiguration(url: "postgres://u:hunter2hunter2@h/db")
        var dumped = ""
        dump(configuration, to: &dumped)
        for text in ["\(configuration)", String(reflecting: configuration), dumped, "\(configuration.password as Any)"] {
            #expect(!text.contains("hunter2"))
        }
    }

    /// Without hostaddr libpq would resolve the name, and block the loop.
    @Test func libpqNeverGetsANameAlone() throws {
        var configuration = PostgresConfiguration()
        configuration.hosts = [.init(name: "127.0.0.1"), .init(name: "::1"), .init(name: "/run/postgresql")]
        let targets = try #require(Resolver.literalTargets(configuration.hosts))
        #expect(targets.map(\.address) == ["127.0.0.1", "::1", nil])
        for target in targets where !target.host.name.hasPrefix("/") {
            let parameters = configuration.parameters(for: target)
            #expect(parameters.contains { $0.name == "hostaddr" && HostLookup.isLiteral($0.value) })
        }
        configuration.hosts.append(.init(name: "localhost"))
        #expect(Resolver.literalTargets(configuration.hosts) == nil)
        for name in ["127.1", "1.2.3", "::1%", "0x7f000001", "localhost", ""] { #expect(!HostLookup.isLiteral(name)) }
    }

    @Test func settingsOfTheSessionAreEscaped() async throws {
        try await withClient(role: .pipeline, {
            $0.searchPath = "\"odd name\", public"
            $0.applicationName = "it's a \\ test"
        }) { client, _ in
            let row = try await client.value(
                "SELECT current_setting('search_path'), current_setting('application_name'), current_setting('timezone')")
            #expect(row.string(0) == "\"odd name\", public" && row.string(1) == "it's a \\ test" && row.string(2) == "UTC")
        }
    }

    @Test func theStateIsFoundInAVerboseMessage() {
        let refused = "connection to server on socket \"/a:  b\" failed: FATAL:  28P01: password authentication failed\nLOCATION:  auth.c:1"
        #expect(Connection.sqlState(in: refused) == .invalidPassword)
        for text in ["", ":  ", "FATAL:  28P0", "FATAL:  28p01: x", "connection refused"] { #expect(Connection.sqlState(in: text) == nil) }
    }

    @Test func errorsSayWhatTheyAre() {
        let error = PostgresError(.server("23505"), "duplicate", statement: "insert")
        #expect("\(error)" == "insert: duplicate (SQLSTATE 23505)" && error.label == "server" && error.sqlState?.errorClass == "23")
        #expect(PostgresError(.server("57P01"), "").isConnectionLoss && !PostgresError(.server(.queryCanceled), "").isConnectionLoss)
        #expect(PostgresError(.unavailable, "").isConnectionLoss && !PostgresError(.overloaded, "").isConnectionLoss)
    }
}
