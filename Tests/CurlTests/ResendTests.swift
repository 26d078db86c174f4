import Curl
import NIOCore
import TestKit
import Testing

/// libcurl repeats a request by itself when a kept connection is closed under it.
@Suite(.timeLimit(.minutes(10))) struct ResendTests {
    /// Answers the first request of each connection and closes on the second one.
    private func onceUpstream() -> ScriptedUpstream {
        ScriptedUpstream { connection in
            guard try connection.readRequest() != nil else { return }
            try connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            _ = try connection.readRequest()
        }
    }

    @Test(arguments: ["POST", "GET"]) func aRequestWithoutABodyIsSentOnce(_ method: String) async throws {
        let upstream = onceUpstream()
        defer { upstream.close() }
        let bench = try Bench()
        let (_, first) = try await bench.run(Ask(upstream.port, method))
        #expect(first.timings?.attempts == 1)
        let (_, second) = try await bench.run(Ask(upstream.port, method))
        let error = try #require(second.error)
        #expect(error.kind == .closedBeforeHead && error.attempts == 1 && !error.isRetrySafe && error.source == .upstream)
        #expect(upstream.requests.count == 2)
        // The handle that was refused works again.
        let (_, third) = try await bench.run(Ask(upstream.port, method))
        #expect(third.isSuccess && upstream.requests.count == 3)
    }

    @Test(arguments: [BodyFraming.length(4), .chunked, .length(0)], [ResendRule.never, .allowed])
    func aStreamedBodyIsSentOnce(_ framing: BodyFraming, _ rule: ResendRule) async throws {
        let upstream = onceUpstream()
        defer { upstream.close() }
        let bench = try Bench()
        var ask = Ask(upstream.port, "POST")
        ask.resend = rule
        _ = try await bench.run(ask)
        ask.body = framing
        let (_, result) = try await bench.run(ask, body: framing == .length(0) ? "" : "body")
        if framing == .length(0), rule == .allowed {
            #expect(result.timings?.attempts == 2)
        } else {
            #expect(result.error?.kind == .closedBeforeHead, "\(result)")
            #expect(upstream.requests.count == 2)
        }
    }

    @Test func allowedAttemptsAreCounted() async throws {
        let upstream = onceUpstream()
        defer { upstream.close() }
        let bench = try Bench()
        var ask = Ask(upstream.port)
        ask.resend = .allowed
        try await bench.run(ask)
        let (_, second) = try await bench.run(ask)
        #expect(second.timings?.attempts == 2)
        #expect(upstream.requests.count == 3)
    }

    @Test func aConnectionClosedWhileIdleIsNotUsed() async throws {
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readRequest()
            try connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        }
        defer { upstream.close() }
        let bench = try Bench()
        for count in 1...5 {
            let (_, result) = try await bench.run(Ask(upstream.port, "POST"))
            #expect(result.isSuccess, "\(result)")
            #expect(upstream.connections == count)
            try await eventually("our side has heard of the end") { try SocketTable.count(.closeWait, peerPort: upstream.port) == 1 }
        }
    }
}
