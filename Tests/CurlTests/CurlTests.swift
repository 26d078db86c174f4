import Curl
import NIOCore
import Reactor
import TestKit
import Testing

/// Collects what one transfer delivers. Used on its reactor only; the test reads it after `ended`.
final class Recorder: TransferDelegate, @unchecked Sendable {
    var informational: [Int] = []
    var head: TransferHead?
    var body: [UInt8] = []
    var trailers: TransferHead?
    var onHead: ((Transfer) -> Void)?
    var onBody: ((Transfer, ByteBuffer) -> Void)?
    var onNeedsBody: ((Transfer) -> Void)?
    let ended: EventLoopPromise<TransferResult>

    init(_ reactor: Reactor) { ended = reactor.makePromise() }

    func transferInformational(_ transfer: Transfer, _ head: TransferHead) { informational.append(head.status) }
    func transferHead(_ transfer: Transfer, _ head: TransferHead) {
        self.head = head
        onHead?(transfer)
    }
    func transferBody(_ transfer: Transfer, _ bytes: ByteBuffer) {
        if let onBody { onBody(transfer, bytes) } else { body += bytes.readableBytesView }
    }
    func transferTrailers(_ transfer: Transfer, _ trailers: TransferHead) { self.trailers = trailers }
    func transferNeedsBody(_ transfer: Transfer) { onNeedsBody?(transfer) }
    func transferEnded(_ transfer: Transfer, _ result: TransferResult) { ended.succeed(result) }
}

/// A reactor with a client on it, stopped at the end of the test.
final class Bench: @unchecked Sendable {
    // Sendable: `client` is touched on the reactor alone.
    let reactor: Reactor
    private(set) var client: CurlClient!

    init(_ configuration: CurlConfiguration = CurlConfiguration()) throws {
        reactor = try Reactor.start(name: "curl-test")
        let loop = reactor
        try loop.submit { [self] in client = try CurlClient(on: loop, configuration: configuration) }.wait()
    }

    deinit {
        let (loop, last) = (reactor, client!)
        loop._executeIsolatedUnsafeUnchecked {
            last.shutdown()
            loop.stop()
        }
    }

    func onLoop<T: Sendable>(_ body: @escaping @Sendable (CurlClient) throws -> T) async throws -> T {
        try await reactor.submit { [self] in try body(client) }.get()
    }

    @discardableResult
    func run(
        _ port: Int, _ method: String = "GET", _ target: String = "/", headers: [(String, String)] = [], body: [UInt8]? = nil,
        framing: BodyFraming? = nil, timeouts: TransferTimeouts = TransferTimeouts(), resend: ResendRule = .never,
        prepare: @escaping @Sendable (Recorder) -> Void = { _ in }
    ) async throws -> (Recorder, TransferResult) {
        let recorder = Recorder(reactor)
        prepare(recorder)
        try await onLoop { client in
            let destination = Destination(scheme: .http, host: "service.test", port: port, address: "127.0.0.1")!
            var fields = TransferHeaders()
            fields.add(name: "Host", value: "service.test")
            for (name, value) in headers { fields.add(name: name, value: value) }
            let framing = framing ?? body.map { .length(Int64($0.count)) } ?? .none
            let transfer = try client.start(
                TransferRequest(
                    destination: destination, method: method, target: Array(target.utf8), headers: fields, body: framing,
                    timeouts: timeouts, resend: resend), delegate: recorder)
            if let body {
                transfer.send(ByteBuffer(bytes: body))
                transfer.finishSending()
            }
        }
        return (recorder, try await recorder.ended.futureResult.get())
    }
}

func succeeded(_ result: TransferResult) -> Bool {
    if case .success = result { true } else { false }
}

func kind(_ result: TransferResult) -> TransferError.Kind? {
    if case .failure(let error) = result { error.kind } else { nil }
}

@Suite(.timeLimit(.minutes(1))) struct CurlTests {
    @Test func bytesOfTheRequestAreKept() async throws {
        let upstream = ScriptedUpstream.answering(body: "hello")
        defer { upstream.close() }
        let bench = try Bench()
        let target = "/a/../b//c%2f?x=1&&y=%c3%a9&=;#"
        let (recorder, result) = try await bench.run(
            upstream.port, "GET", target, headers: [("X-Two", "1"), ("X-Empty", ""), ("x-two", "2"), ("Accept-Encoding", "gzip")])
        #expect(succeeded(result))
        #expect(recorder.head?.status == 200)
        #expect(recorder.body == Array("hello".utf8))
        #expect(
            upstream.requests.map(\.lines) == [
                ["GET \(target) HTTP/1.1", "Host: service.test", "X-Two: 1", "X-Empty:", "x-two: 2", "Accept-Encoding: gzip"]
            ])
    }

    @Test func aConnectionIsReusedAndHandlesChangeMethods() async throws {
        let upstream = ScriptedUpstream.answering { request in
            let isHead = request.requestLine.hasPrefix("HEAD")
            return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\(isHead ? "" : "ok")"
        }
        defer { upstream.close() }
        let bench = try Bench()
        for method in ["GET", "HEAD", "POST", "GET", "DELETE", "PUT", "HEAD", "GET"] {
            let body: [UInt8]? = method == "POST" || method == "PUT" ? Array("body".utf8) : nil
            let (recorder, result) = try await bench.run(upstream.port, method, body: body)
            #expect(succeeded(result), "\(method): \(result)")
            #expect(recorder.body.count == (method == "HEAD" ? 0 : 2))
        }
        #expect(upstream.connections == 1)
        #expect(upstream.requests.map(\.body.count) == [0, 0, 4, 0, 0, 4, 0, 0])
        #expect(upstream.requests[2].values(of: "content-length") == ["4"])
        #expect(upstream.requests[2].values(of: "expect") == [])
    }

    @Test func aPostIsNeverSentTwice() async throws {
        // Answers the first request of each connection and closes on the second one.
        let upstream = ScriptedUpstream { connection in
            guard try connection.readRequest() != nil else { return }
            try connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            _ = try connection.readRequest()
        }
        defer { upstream.close() }
        let bench = try Bench()
        let (_, first) = try await bench.run(upstream.port, "POST")
        #expect(succeeded(first))
        let (_, bodyless) = try await bench.run(upstream.port, "POST")
        #expect(kind(bodyless) == .closedBeforeHead)
        #expect(upstream.requests.count == 2)
        _ = try await bench.run(upstream.port, "POST")
        let (_, streamed) = try await bench.run(upstream.port, "POST", body: Array("body".utf8))
        #expect(kind(streamed) == .closedBeforeHead)
        #expect(upstream.requests.count == 4)
        _ = try await bench.run(upstream.port, "GET")
        let (_, repeated) = try await bench.run(upstream.port, "GET", resend: .allowed)
        guard case .success(let timings) = repeated else { throw repeated.error! }
        #expect(timings.attempts == 2)
    }

    @Test(arguments: ["Content-Length: 100\r\n\r\n0123456789", "Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n"])
    func anAnswerCutShortIsNotComplete(_ rest: String) async throws {
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readRequest()
            try connection.send("HTTP/1.1 200 OK\r\n\(rest)")
        }
        defer { upstream.close() }
        let (recorder, result) = try await Bench().run(upstream.port)
        #expect(recorder.head?.status == 200)
        #expect(recorder.body == Array("0123456789".utf8))
        #expect(kind(result) == .diedMidBody)
    }

    @Test func timeoutsSayWhichOneTheyWere() async throws {
        let silent = ScriptedUpstream { try $0.waitForEnd() }
        let stalled = ScriptedUpstream { connection in
            _ = try connection.readRequest()
            try connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0")
            try connection.waitForEnd()
        }
        defer {
            silent.close()
            stalled.close()
        }
        let bench = try Bench()
        let short = TimeAmount.milliseconds(200)
        let (_, first) = try await bench.run(silent.port, timeouts: TransferTimeouts(firstByte: short))
        #expect(kind(first) == .firstByteTimeout)
        let (_, idle) = try await bench.run(stalled.port, timeouts: TransferTimeouts(idle: short))
        #expect(kind(idle) == .idleTimeout)
        let (_, total) = try await bench.run(stalled.port, timeouts: TransferTimeouts(total: short))
        #expect(kind(total) == .totalTimeout)
    }

    @Test func connectionsThatCannotBeMade() async throws {
        let closed = ScriptedUpstream { _ in }
        closed.close()
        let bench = try Bench()
        let (_, refused) = try await bench.run(closed.port)
        #expect(kind(refused) == .refused)
        guard case .failure(let error) = refused else { return }
        #expect(error.isRetrySafe)
    }

    @Test func informationalHeadsAndTrailers() async throws {
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readRequest()
            try connection.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
            try connection.send("HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nSet-Cookie: a\r\nset-cookie: b\r\nX-Empty:\r\n\r\n")
            try connection.send("3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n")
        }
        defer { upstream.close() }
        let (recorder, result) = try await Bench().run(upstream.port)
        #expect(succeeded(result))
        #expect(recorder.informational == [103])
        let head = try #require(recorder.head)
        #expect(String(decoding: head.bytes[head.reason], as: UTF8.self) == "Fine")
        let cookies = head.fields.filter { head.isNamed($0, "set-cookie") }.map { String(decoding: head.bytes[$0.value], as: UTF8.self) }
        #expect(cookies == ["a", "b"])
        #expect(head.value(of: "x-empty")?.isEmpty == true)
        let trailers = try #require(recorder.trailers)
        #expect(trailers.value(of: "x-sum").map { String(decoding: $0, as: UTF8.self) } == "7")
    }
}

extension TransferResult {
    var error: TransferError? {
        if case .failure(let error) = self { error } else { nil }
    }
}
