import Foundation

/// A self-signed certificate and its key (PEM), made by openssl(1).
public struct TestCertificate: Sendable {
    public let certificate: String
    public let key: String

    /// Makes `certificate.pem` and `key.pem` in the folder.
    ///
    /// - Parameter names: as in subjectAltName, for instance `DNS:service.test` or `IP:127.0.0.1`.
    public init(for names: String, in folder: String) async throws {
        (certificate, key) = (folder + "/certificate.pem", folder + "/key.pem")
        let outcome = try await Command.run(
            "/usr/bin/openssl",
            [
                "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
                "/CN=pandora test",
                "-addext", "subjectAltName=\(names)", "-keyout", key, "-out", certificate,
            ])
        guard outcome.status == 0 else { throw NeverHappened(description: outcome.errors) }
    }
}

/// A folder that is removed with its last reference.
public final class TemporaryFolder: Sendable {
    public let path: String

    public init(_ name: String) throws {
        path = FileManager.default.temporaryDirectory.appendingPathComponent("pandora-\(name)-\(UUID().uuidString)").path
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    public func file(_ name: String) -> String { path + "/" + name }
}
