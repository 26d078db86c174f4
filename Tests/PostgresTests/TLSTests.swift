import Foundation
import NIOCore
import PrivateCluster
import Testing
import TestKit

@testable import Postgres

/// TLS goes over TCP only, so this server has an address of its own in 127.0.0.0/8.
@Suite(.enabled(if: FileManager.default.isExecutableFile(atPath: "/usr/bin/openssl"))) struct TLSTests {
    private static let address = "127.77.\(getpid() >> 8 & 0xff).\(getpid() & 0xff)"

    /// In the server's folder, with its owner and mode: the server wants its key for itself.
    private func makeCertificate(in directory: String) async throws -> TestCertificate {
        let made = try await TestCertificate(for: "IP:\(Self.address)", in: directory)
        var status = stat()
        #expect(stat(directory, &status) == 0)
        for file in [made.certificate, made.key] {
            chmod(file, 0o600)
            chown(file, status.st_uid, status.st_gid)
        }
        return made
    }

    /// Records are larger than what libpq reads at once: the rest waits in OpenSSL, where no descriptor tells of it.
    @Test func largeAndManyAnswersArrive() async throws {
        var options = PrivateCluster.Options()
        options.isDurable = false
        options.isTemporary = true
        options.settings = [
            "ssl": "on", "listen_addresses": Self.address, "ssl_cert_file": "certificate.pem", "ssl_key_file": "key.pem",
        ]
        options.authenticationRules = ["hostnossl all all all reject", "hostssl all all 127.0.0.0/8 trust"]
        let directory = "/tmp/pandora-tls-\(getpid())"
        let cluster = try await offTheCooperativePool { [options] in try PrivateCluster.create(in: directory, options: options) }
        let certificate = try await makeCertificate(in: cluster.dataDirectory).certificate
        try await offTheCooperativePool { try cluster.start() }
        let blob = Statement(name: "blob", sql: "SELECT repeat('x', $1)", parameterTypes: [.int4])
        try await withReactor { reactor in
            let url = "postgres://postgres@\(Self.address)/postgres?sslmode=verify-full&sslrootcert=\(certificate)"
            for role in [PostgresClient.Role.pipeline, .session] {
                let client = try await PostgresClient.connect(to: url, role: role, on: reactor)
                let usesTLS = try await client.value("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
                #expect(usesTLS.bool(0) == true)
                for length in [1, 8_000, 16_300, 16_384, 30_000, 65_536, 5_000_000] as [Int32] {
                    let rows = try await client.query(blob, parameters { $0.append(length) })
                    #expect(rows[0].withBytes(0) { $0.count } == Int(length))
                }
                let total: Int = await client.calling { client, done in
                    let total = Locked(0)
                    for number in 0..<500 {
                        client.execute(blob, parameters { $0.append(Int32(number * 37)) }) { result in
                            let count = (try? result.get())?[0].withBytes(0) { $0.count } ?? -1
                            total.withLock { $0 += count }
                            if number == 499 { done(total.withLock { $0 }) }
                        }
                    }
                }
                #expect(total == 37 * 499 * 500 / 2)
                await client.shutdown()
            }
            let error = try await refusal(of: .patient("postgres://postgres@\(Self.address)/postgres?sslmode=disable"), on: reactor)
            #expect(error.sqlState?.errorClass == "28")
        }
        try await offTheCooperativePool { try cluster.stop() }
    }
}
