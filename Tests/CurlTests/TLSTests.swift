import Curl
import Foundation
import TestKit
import Testing

/// A TLS server with a certificate of its own: `openssl s_server -www`, which answers one request per connection.
private final class TLSServer: @unchecked Sendable {
    // Sendable: nothing changes after init.
    let port: Int
    /// The bundle to give to a client; nobody else opens it.
    var bundle: String { folder.file("bundle.pem") }
    private let folder: TemporaryFolder
    private let process: Process
    private let input = Pipe()

    static func start() async throws -> TLSServer {
        let folder = try TemporaryFolder("curl-tls")
        let made = try await TestCertificate(for: "DNS:service.test", in: folder.path)
        try FileManager.default.copyItem(atPath: made.certificate, toPath: folder.file("bundle.pem"))
        return try await offTheCooperativePool { try TLSServer(folder, made) }
    }

    private init(_ folder: TemporaryFolder, _ made: TestCertificate) throws {
        self.folder = folder
        process = Process()
        let output = Pipe()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/openssl")
        process.arguments = ["s_server", "-accept", "127.0.0.1:0", "-cert", made.certificate, "-key", made.key, "-www"]
        (process.standardInput, process.standardOutput, process.standardError) = (input, output, FileHandle.nullDevice)
        try Command.start(process)
        // "ACCEPT 127.0.0.1:40123"
        var text = ""
        while !text.contains("\n") || !text.contains("ACCEPT ") {
            let more = output.fileHandleForReading.availableData
            guard !more.isEmpty else { throw CocoaError(.fileReadUnknown) }
            text += String(decoding: more, as: UTF8.self)
        }
        let line = text.split(separator: "\n").first { $0.hasPrefix("ACCEPT ") }
        port = line.flatMap { $0.split(separator: ":").last }.flatMap { Int($0) } ?? 0
        output.fileHandleForReading.readabilityHandler = { if $0.availableData.isEmpty { $0.readabilityHandler = nil } }
    }

    deinit { kill(process.processIdentifier, SIGKILL) }
}

/// Counts how often a file is opened (inotify(7)).
private final class OpenCounter {
    private let descriptor = inotify_init1(Int32(IN_NONBLOCK))
    private(set) var opens = 0

    init(_ path: String) { inotify_add_watch(descriptor, path, UInt32(IN_OPEN)) }
    deinit { close(descriptor) }

    func count() -> Int {
        var events = [UInt8](repeating: 0, count: 65_536)
        while case let length = read(descriptor, &events, events.count), length > 0 {
            // A watch on a file, not a folder: events without a name.
            opens += length / MemoryLayout<inotify_event>.size
        }
        return opens
    }
}

@Suite(.timeLimit(.minutes(10)), .enabled(if: FileManager.default.isExecutableFile(atPath: "/usr/bin/openssl"))) struct TLSTests {
    @Test func theBundleIsOpenedOnceForManyConnections() async throws {
        let server = try await TLSServer.start()
        let counter = OpenCounter(server.bundle)
        var configuration = CurlConfiguration()
        configuration.certificateBundle = server.bundle
        let bench = try Bench(configuration)
        var ask = Ask(server.port)
        ask.scheme = .https
        for _ in 0..<5 {
            let (recorder, result) = try await bench.run(ask)
            #expect(result.isSuccess, "\(result)")
            #expect(recorder.head?.status == 200)
        }
        #expect(counter.count() == 1)
    }

    @Test func strangersAreNotTrusted() async throws {
        let server = try await TLSServer.start()
        var ask = Ask(server.port)
        ask.scheme = .https
        let (_, unknown) = try await Bench().run(ask)
        #expect(unknown.error?.kind == .tls && unknown.error?.isRetrySafe == true, "\(unknown)")
        var configuration = CurlConfiguration()
        configuration.certificateBundle = server.bundle
        ask.host = "other.test"
        let (_, wrongName) = try await Bench(configuration).run(ask)
        #expect(wrongName.error?.kind == .tls && wrongName.error?.attempts == 0, "\(wrongName)")
        configuration.certificateBundle = server.bundle + ".absent"
        ask.host = "service.test"
        let (_, noBundle) = try await Bench(configuration).run(ask)
        #expect(noBundle.error?.kind == .tls, "\(noBundle)")
    }

    @Test func plainTextIsNotTLS() async throws {
        let plain = ScriptedUpstream { connection in
            _ = try connection.read(1)
            try connection.send("HTTP/1.1 400 Bad Request\r\n\r\n")
        }
        defer { plain.close() }
        var ask = Ask(plain.port)
        ask.scheme = .https
        #expect(try await Bench().run(ask).1.error?.kind == .tls)
    }
}

@Suite struct ShimTests {
    /// curl's own type checks of variadic options work with gcc only, and only on bodies that are emitted.
    @Test(.enabled(if: FileManager.default.isExecutableFile(atPath: "/usr/bin/gcc")))
    func optionsHaveTheTypesThatCurlReads() async throws {
        let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        let header = folder.appendingPathComponent("../../Sources/CLibcurl/shim.h").path
        let outcome = try await Command.run(
            "/usr/bin/gcc", ["-x", "c", "-DPCURL_INLINE=", "-O1", "-Wall", "-Wsystem-headers", "-c", "-o", "/dev/null", header])
        #expect(outcome.status == 0 && !outcome.errors.contains("shim.h"), "\(outcome.errors)")
    }
}
