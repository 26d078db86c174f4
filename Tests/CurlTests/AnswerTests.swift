import Curl
import NIOCore
import TestKit
import Testing

private let head = "HTTP/1.1 200 OK\r\n"

@Suite(.timeLimit(.minutes(10))) struct AnswerTests {
    /// What the upstream sends before it closes, and how that must end.
    private func run(_ bytes: String, _ method: String = "GET") async throws -> (Recorder, TransferResult) {
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readRequest()
            try connection.send(bytes)
        }
        defer { upstream.close() }
        return try await Bench().run(Ask(upstream.port, method))
    }

    @Test(arguments: [
        "\(head)Content-Length: 100\r\n\r\n0123456789", "\(head)Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n",
        "\(head)Transfer-Encoding: chunked\r\n\r\nc\r\n0123456789", "\(head)Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n",
        "\(head)Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\nzz\r\n",
    ])
    func anAnswerCutShortIsNotComplete(_ bytes: String) async throws {
        let (recorder, result) = try await run(bytes)
        #expect(recorder.head?.status == 200)
        #expect(recorder.body == Array("0123456789".utf8))
        #expect(recorder.ends == 1 && recorder.heads == 1)
        let error = try #require(result.error)
        #expect(error.kind == .diedMidBody && error.source == .upstream && !error.isRetrySafe)
    }

    @Test(arguments: [
        "", "HTTP", "HTTP/1.1 200", "\(head)Content-Le", "\(head)Content-Length: 0\r\n", "HTTP/1.1 103 Early\r\nA: b\r\n\r\n",
    ])
    func anAnswerWithoutAWholeHeadIsNone(_ bytes: String) async throws {
        let (recorder, result) = try await run(bytes)
        #expect(recorder.head == nil)
        #expect([.closedBeforeHead, .protocolError].contains(result.error?.kind), "\(result)")
        if !bytes.hasPrefix("HTTP") || bytes.contains("\r\n") { #expect(result.error?.kind == .closedBeforeHead, "\(result)") }
    }

    @Test(arguments: [
        "SSH-2.0-OpenSSH_9\r\n", "HTTP/1.1 99 Low\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "\(head) folded\r\n\r\n",
        "\(head)A: b\r\n c\r\n\r\n", "\(head)A : b\r\n\r\n", "\(head)no colon\r\n\r\n", "\(head): b\r\n\r\n", "\(head)A: b\rc: d\r\n\r\n",
        "\(head)A: b\0c\r\n\r\n", "\(head)Content-Length: 1\r\nContent-Length: 2\r\n\r\n1", "\(head)Content-Length: 1, 1\r\n\r\n1",
        "\(head)Content-Length: +1\r\n\r\n1", "\(head)Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    ])
    func anAnswerThatCannotBeHandedOnIsRefused(_ bytes: String) async throws {
        let (recorder, result) = try await run(bytes)
        #expect(recorder.head == nil)
        #expect(result.error?.kind == .protocolError, "\(result)")
    }

    @Test(arguments: [
        ("HEAD", "\(head)Content-Length: 10\r\n\r\n", ""), ("HEAD", "\(head)Transfer-Encoding: chunked\r\n\r\n", ""),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", ""), ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", ""),
        ("GET", "\(head)\r\nto the end", "to the end"), ("GET", "HTTP/1.0 200 OK\r\n\r\nold", "old"), ("GET", "HTTP/1.1 200\r\n\r\n", ""),
        ("GET", "\(head)Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", "abc"),
        ("GET", "\(head)Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\n\r\n", "abc"),
        ("GET", "HTTP/1.1 302 Found\r\nLocation: http://elsewhere.test/\r\nContent-Length: 0\r\n\r\n", ""),
        ("GET", "\(head)Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope", "nope"),
    ])
    func completeAnswers(_ method: String, _ bytes: String, _ body: String) async throws {
        let (recorder, result) = try await run(bytes, method)
        #expect(result.isSuccess, "\(result)")
        #expect(recorder.head != nil && recorder.heads == 1 && recorder.ends == 1)
        #expect(String(decoding: recorder.body, as: UTF8.self) == body)
    }

    @Test func informationalHeadsAndTrailers() async throws {
        let (recorder, result) = try await run(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 Fine, is it\r\n"
                + "Transfer-Encoding: chunked\r\n"
                + "Trailer: X-Sum\r\nSet-Cookie: a\r\nset-cookie:b \r\nX-Empty:\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\nX-More: 8\r\n\r\n")
        #expect(result.isSuccess)
        #expect(recorder.informational == [103])
        let head = try #require(recorder.head)
        #expect(String(decoding: head.bytes[head.reason], as: UTF8.self) == "Fine, is it")
        let cookies = head.fields.filter { head.isNamed($0, "set-cookie") }
        #expect(cookies.map { String(decoding: head.bytes[$0.value], as: UTF8.self) } == ["a", "b"])
        #expect(cookies.map { String(decoding: head.bytes[$0.name], as: UTF8.self) } == ["Set-Cookie", "set-cookie"])
        #expect(head.value(of: "x-empty")?.isEmpty == true && head.value(of: "link") == nil)
        let trailers = try #require(recorder.trailers)
        #expect(trailers.fields.count == 2)
        #expect(trailers.value(of: "x-sum").map { String(decoding: $0, as: UTF8.self) } == "7")
    }

    @Test func anAnswerByteByByte() async throws {
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readRequest()
            try connection.sendSlowly("\(head)Content-Length: 5\r\nA: b\r\n\r\nhello")
        }
        defer { upstream.close() }
        let (recorder, result) = try await Bench().run(Ask(upstream.port))
        #expect(result.isSuccess && recorder.body == Array("hello".utf8))
        #expect(recorder.head?.value(of: "a").map(Array.init) == Array("b".utf8))
    }

    @Test func resetsAreNotAnswers() async throws {
        let early = ScriptedUpstream { connection in
            _ = try connection.readRequest()
            connection.reset()
        }
        let late = ScriptedUpstream { connection in
            _ = try connection.readHead()
            try connection.send("\(head)Content-Length: 10\r\n\r\n0")
            _ = try connection.read(1)
            connection.reset()
        }
        defer {
            early.close()
            late.close()
        }
        let bench = try Bench()
        let (_, before) = try await bench.run(Ask(early.port))
        #expect(before.error?.kind == .closedBeforeHead)
        var ask = Ask(late.port, "POST")
        ask.body = .chunked
        // The body goes on after the head has come, and meets the reset.
        let (recorder, within) = try await bench.run(ask, prepare: { $0.onHead = { $0.send(ByteBuffer(string: "x")) } })
        #expect(recorder.head?.status == 200)
        #expect(within.error?.kind == .diedMidBody)
    }

    @Test func aRefusalMayComeBeforeTheBodyIsSent() async throws {
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readHead()
            try connection.send("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
            try connection.waitForEnd()
        }
        defer { upstream.close() }
        var ask = Ask(upstream.port, "POST")
        ask.body = .length(1_000_000)
        let (recorder, result) = try await Bench().run(ask, begin: { $0.send(ByteBuffer(string: "the beginning")) })
        #expect(result.isSuccess, "\(result)")
        #expect(recorder.head?.status == 413 && recorder.body == Array("no".utf8))
    }

    @Test func aHeadHasALimit() async throws {
        var configuration = CurlConfiguration()
        configuration.headBytesMax = 4_096
        let upstream = ScriptedUpstream.answering { _ in "\(head)A: \(String(repeating: "a", count: 5_000))\r\nContent-Length: 0\r\n\r\n" }
        defer { upstream.close() }
        let (recorder, result) = try await Bench(configuration).run(Ask(upstream.port))
        #expect(recorder.head == nil && result.error?.kind == .headTooLarge)
    }
}
