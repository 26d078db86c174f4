import Curl
import NIOCore
import TestKit
import Testing

@Suite(.timeLimit(.minutes(10))) struct RequestTests {
    @Test func bytesOfTheRequestAreKept() async throws {
        let upstream = ScriptedUpstream.answering(body: "hello")
        defer { upstream.close() }
        var ask = Ask(upstream.port)
        ask.target = Array("/a/../b//./c%2f%2E?x=1&&y=".utf8) + [0xc3, 0xa9, 0xff] + Array("&=;?[]{}|\\^`\"#".utf8)
        ask.headers = [
            ("X-Two", "1"), ("X-Empty", ""), ("x-two", " 2\t"), ("Accept-Encoding", "gzip"), ("X-Blank", "  "), ("X-Colon", "a: b;"),
        ]
        let (recorder, result) = try await Bench().run(ask)
        #expect(result.isSuccess)
        #expect(recorder.head?.status == 200)
        #expect(recorder.body == Array("hello".utf8))
        let fields = "Host: service.test|X-Two: 1|X-Empty:|x-two: 2|Accept-Encoding: gzip|X-Blank:|X-Colon: a: b;||"
        let wanted = Array("GET ".utf8) + ask.target + Array(" HTTP/1.1|\(fields)".replacing("|", with: "\r\n").utf8)
        #expect(upstream.requests.map(\.head) == [wanted])
    }

    @Test func aConnectionIsReusedAndHandlesChangeMethods() async throws {
        let upstream = ScriptedUpstream.answering { request in
            let isHead = request.requestLine.hasPrefix("HEAD")
            return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\(isHead ? "" : "ok")"
        }
        defer { upstream.close() }
        let bench = try Bench()
        let methods = ["GET", "HEAD", "POST", "GET", "DELETE", "PUT", "HEAD", "HEAD", "PUT", "OPTIONS", "BREW", "GET"]
        for method in methods {
            let hasBody = method == "POST" || method == "PUT"
            let (recorder, result) =
                hasBody ? try await bench.run(Ask(upstream.port, method), body: "body") : try await bench.run(Ask(upstream.port, method))
            #expect(result.isSuccess, "\(method): \(result)")
            #expect(recorder.body.count == (method == "HEAD" ? 0 : 2))
        }
        #expect(upstream.connections == 1)
        #expect(upstream.requests.map { $0.requestLine.split(separator: " ")[0] } == methods.map { Substring($0) })
        #expect(upstream.requests.map(\.body.count) == methods.map { $0 == "POST" || $0 == "PUT" ? 4 : 0 })
        for request in upstream.requests {
            #expect(request.values(of: "content-length") == (request.body.isEmpty ? [] : ["4"]))
            #expect(request.values(of: "expect") == [] && request.values(of: "accept") == [])
        }
    }

    @Test func bodiesAreFramedAsAsked() async throws {
        let upstream = ScriptedUpstream.answering(body: "")
        defer { upstream.close() }
        let bench = try Bench()
        var ask = Ask(upstream.port, "POST")
        ask.body = .length(0)
        try await bench.run(ask)
        ask.body = .chunked
        try await bench.run(ask, body: "some")
        try await bench.run(ask, body: "")
        ask.body = .none
        try await bench.run(ask)
        let requests = upstream.requests
        #expect(requests.map { $0.values(of: "content-length") } == [["0"], [], [], []])
        #expect(requests.map { $0.values(of: "transfer-encoding") } == [[], ["chunked"], ["chunked"], []])
        #expect(requests.map(\.body.count) == [0, 4, 0, 0])
        #expect(upstream.connections == 1)
    }

    /// libcurl's own order: Host first, then Transfer-Encoding; Content-Length is the last one.
    @Test(arguments: [BodyFraming.length(4), .chunked])
    func theOrderOfFieldsIsKeptBetweenHostAndLength(_ framing: BodyFraming) async throws {
        let upstream = ScriptedUpstream.answering(body: "")
        defer { upstream.close() }
        let bench = try Bench()
        var ask = Ask(upstream.port, "PUT")
        ask.headers = [("X-One", "1"), ("X-Empty", ""), ("X-Two", "2")]
        ask.body = framing
        try await bench.run(ask, body: "body")
        let names = upstream.requests[0].lines.dropFirst().map { $0.prefix { $0 != ":" }.lowercased() }
        let own = ["x-one", "x-empty", "x-two"]
        #expect(names == (framing == .chunked ? ["host", "transfer-encoding"] + own : ["host"] + own + ["content-length"]))
        // HTTP/2 upstreams would have to be asked for.
        #expect(upstream.requests[0].requestLine == "PUT / HTTP/1.1")
    }

    @Test func aBodyThatIsNotAsLongAsAnnouncedEndsTheTransfer() async throws {
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readHead()
            try connection.waitForEnd()
        }
        defer { upstream.close() }
        let bench = try Bench()
        var ask = Ask(upstream.port, "POST")
        ask.body = .length(5)
        let (_, tooLong) = try await bench.run(ask, body: "123456GET / HTTP/1.1")
        let (_, tooShort) = try await bench.run(ask, body: "1234")
        ask.body = .length(0)
        let (_, unasked) = try await bench.run(ask, body: "1")
        for error in [tooLong.error, tooShort.error, unasked.error] {
            #expect(error?.kind == .bodyMismatch && error?.source == .local)
        }
    }

    @Test func fieldsThatWouldEndEarlyAreRefused() {
        var fields = TransferHeaders()
        for (name, value) in [
            ("", "a"), ("a b", "c"), ("a:b", "c"), ("a\r\nb", "c"), ("a", "b\r\nc: d"), ("a", "b\nc"), ("a", "b\0c"), ("ä", "b"),
        ] {
            let isTaken = fields.add(name: name, value: value)
            #expect(!isTaken)
        }
        let isWhole = fields.add("a") { $0.append(contentsOf: "b\r\nc: d".utf8) }
        #expect(!isWhole && fields.count == 0)
        let isTaken = fields.add("a") { $0.append(contentsOf: "ü\u{7f}".utf8) }
        #expect(isTaken && fields.count == 1)
    }

    @Test func aFieldNameIsOfTokenBytes() {
        let tokens = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
        var fields = TransferHeaders()
        for byte in UInt8.min...UInt8.max {
            let isTaken = withUnsafeBytes(of: byte) { fields.add(name: $0, value: UnsafeRawBufferPointer(start: nil, count: 0)) }
            #expect(isTaken == tokens.utf8.contains(byte))
        }
    }

    @Test func destinationsAreAddresses() {
        #expect(Destination(scheme: .http, host: "a.test", port: 80, address: "a.test") == nil)
        #expect(Destination(scheme: .http, host: "a.test", port: 80, address: "") == nil)
        #expect(Destination(scheme: .http, host: "a.test/x", port: 80, address: "::1") == nil)
        #expect(Destination(scheme: .https, host: "::1", port: 443, address: "::1") != nil)
    }
}
