import Foundation
import NIOCore
import Reactor
import TestKit
import Testing

/// NIO's HTTP/1, TLS and HTTP/2 handlers on the reactor, against clients that nobody here wrote.
@Suite(.timeLimit(.minutes(10))) struct WebTests {
    /// What a client is to speak.
    enum Language: String, CaseIterable, Sendable {
        case http1 = "HTTP/1.1", http1OverTLS = "HTTP/1.1 over TLS", http2 = "HTTP/2 over TLS"

        var usesTLS: Bool { self != .http1 }
        var curl: String { self == .http2 ? "--http2" : "--http1.1" }
        var h2load: [String] { self == .http2 ? ["--npn-list=h2"] : ["--h1"] }
    }

    /// Runs the body with a server that speaks it, and looks at what is left afterwards.
    private func withServer(_ language: Language, _ body: (_ url: String, TemporaryFolder) async throws -> Void) async throws {
        let folder = try TemporaryFolder("web")
        let certificate = language.usesTLS ? try await TestCertificate(for: "IP:127.0.0.1", in: folder.path) : nil
        try await withReactor { reactor in
            let server = try await WebServer.start(on: reactor, certificate)
            try await body("\(language.usesTLS ? "https" : "http")://127.0.0.1:\(server.port)", folder)
            #expect(server.accepted > 0)
            try await eventually("no channel is left") { server.channels == 0 }
        }
    }

    private func curl(_ language: Language, _ folder: TemporaryFolder, _ arguments: [String]) async throws -> Command.Outcome {
        let trust = language.usesTLS ? ["--cacert", folder.file("certificate.pem")] : []
        return try await Command.run("/usr/bin/curl", ["-sS", "--max-time", "500", language.curl] + trust + arguments)
    }

    @Test(arguments: Language.allCases) func curlIsAnswered(_ language: Language) async throws {
        try await withServer(language) { url, folder in
            // Several on one connection, of which the client tells by the last.
            let format = "%{http_version} %{http_code} %{num_connects} %{size_download}\n"
            let outcome = try await curl(
                language, folder,
                ["-o", "/dev/null", "-o", "/dev/null", "-o", "/dev/null", "-w", format, "\(url)/0", "\(url)/1", "\(url)/60000"])
            let version = language == .http2 ? "2" : "1.1"
            #expect(outcome.text == "\(version) 200 1 0\n\(version) 200 0 1\n\(version) 200 0 60000\n", "\(outcome.errors)")
            let post = try await curl(language, folder, ["--data-binary", "what was sent", "\(url)/"])
            #expect(post.text == "what was sent", "\(post.errors)")
            // A client that does not wait for the answer leaves nothing behind.
            let broken = try await curl(language, folder, ["--range", "0-9", "--max-filesize", "100", "\(url)/50000"])
            #expect(broken.status != 0)
        }
    }

    @Test(arguments: Language.allCases) func fiftyMegabytesComeBackAsTheyWent(_ language: Language) async throws {
        try await withServer(language) { url, folder in
            let file = try FileHandle(forWritingTo: { try Data().write(to: $0); return $0 }(URL(fileURLWithPath: folder.file("sent"))))
            var pattern = BytePattern()
            while pattern.position < 50_000_000 {
                try file.write(contentsOf: Data(pattern.next(min(62_500, 50_000_000 - pattern.position))))
            }
            try file.close()
            // Both ways at once: the answer begins with the first piece of the body.
            let outcome = try await curl(
                language, folder, ["-H", "Expect:", "-T", folder.file("sent"), "-o", folder.file("received"), "\(url)/"])
            #expect(outcome.status == 0, "\(outcome.errors)")
            let same = try await Command.run("/usr/bin/cmp", [folder.file("sent"), folder.file("received")])
            #expect(same.status == 0, "\(same.text)\(same.errors)")
        }
    }

    @Test(arguments: Language.allCases) func thousandsOfRequestsAreAnswered(_ language: Language) async throws {
        try await withServer(language) { url, _ in
            let outcome = try await Command.run("/usr/bin/h2load", language.h2load + ["-n", "4000", "-c", "20", "-m", "10", "\(url)/100"])
            #expect(outcome.text.contains("4000 succeeded, 0 failed, 0 errored, 0 timeout"), "\(outcome.text)\(outcome.errors)")
            #expect(outcome.text.contains("status codes: 4000 2xx"))
            if language.usesTLS {
                #expect(outcome.text.contains("Application protocol: \(language == .http2 ? "h2" : "http/1.1")"), "\(outcome.text)")
            }
        }
    }
}
