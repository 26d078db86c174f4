import Curl
import Foundation
import NIOCore
import Reactor
import TestKit
import Testing

@Suite(.timeLimit(.minutes(10))) struct TimeoutTests {
    @Test(arguments: [BodyFraming.none, .length(4), .chunked, .length(0)]) func firstByte(_ framing: BodyFraming) async throws {
        let silent = ScriptedUpstream { connection in
            while try connection.readRequest() != nil {}
        }
        defer { silent.close() }
        var ask = Ask(silent.port, "POST")
        ask.timeouts.firstByte = short
        let (_, result) =
            try await framing == .none ? Bench().run(ask) : Bench().run(withBody(ask, framing), body: framing == .length(0) ? "" : "body")
        let error = try #require(result.error)
        #expect(error.kind == .firstByteTimeout && error.source == .upstream && !error.isRetrySafe && error.attempts == 1)
    }

    private func withBody(_ ask: Ask, _ framing: BodyFraming) -> Ask {
        var ask = ask
        ask.body = framing
        return ask
    }

    @Test func idleAndTotal() async throws {
        let stalled = ScriptedUpstream { connection in
            _ = try connection.readRequest()
            try connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0")
            try connection.waitForEnd()
        }
        defer { stalled.close() }
        let bench = try Bench()
        var ask = Ask(stalled.port)
        ask.timeouts.idle = short
        let (recorder, idle) = try await bench.run(ask)
        #expect(idle.error?.kind == .idleTimeout && recorder.body == [48])
        ask.timeouts.idle = .seconds(120)
        ask.timeouts.total = short
        let (_, total) = try await bench.run(ask)
        #expect(total.error?.kind == .totalTimeout)
        // Even an owner that has stopped reading hears of it.
        let (_, paused) = try await bench.run(ask, prepare: { $0.onHead = { $0.pauseReceiving() } })
        #expect(paused.error?.kind == .totalTimeout)
        try await eventually("connections end with their transfers") { stalled.openConnections == 0 }
    }

    @Test func anUpstreamThatStopsReadingIsIdle() async throws {
        let isOver = Locked(false)
        let deaf = ScriptedUpstream { connection in
            _ = try connection.readHead()
            _ = try connection.read(1)
            while !isOver.withLock({ $0 }) { usleep(1_000) }
        }
        defer {
            isOver.withLock { $0 = true }
            deaf.close()
        }
        var ask = Ask(deaf.port, "PUT")
        ask.body = .chunked
        ask.timeouts.idle = short
        let feed: @Sendable (Transfer) -> Void = { transfer in
            while transfer.send(ByteBuffer(repeating: 1, count: 32_768)) {}
        }
        let (_, result) = try await Bench().run(ask, prepare: { $0.onNeedsBody = feed }, begin: feed)
        #expect(result.error?.kind == .idleTimeout)
    }

    /// Longer than an upstream takes on a loaded machine, shorter than we take here.
    private static let patience = TimeAmount.seconds(2)

    @Test func aSlowSenderIsNotTheUpstreamsFault() async throws {
        let upstream = ScriptedUpstream.answering(body: "ok")
        defer { upstream.close() }
        let bench = try Bench()
        var ask = Ask(upstream.port, "PUT")
        ask.body = .length(2)
        ask.timeouts.idle = Self.patience
        ask.timeouts.firstByte = Self.patience
        let reactor = bench.reactor
        let sendSlowly: @Sendable (Transfer) -> Void = { transfer in
            transfer.send(ByteBuffer(string: "a"))
            _ = reactor.startTimer(in: Self.patience + .milliseconds(400)) { transfer.send(ByteBuffer(string: "b")) }
        }
        let (_, result) = try await bench.run(ask, begin: sendSlowly)
        #expect(result.isSuccess, "\(result)")
    }

    @Test func aSlowReaderIsNotTheUpstreamsFault() async throws {
        let upstream = ScriptedUpstream.answering(body: "ok")
        defer { upstream.close() }
        let bench = try Bench()
        var ask = Ask(upstream.port)
        ask.timeouts.idle = Self.patience
        let reactor = bench.reactor
        let (recorder, result) = try await bench.run(ask) { recorder in
            recorder.onHead = { transfer in
                transfer.pauseReceiving()
                _ = reactor.startTimer(in: Self.patience + .milliseconds(400)) { transfer.resumeReceiving() }
            }
        }
        #expect(result.isSuccess && recorder.body.count == 2, "\(result)")
    }

    @Test func connecting() async throws {
        let silent = SilentListener()
        var ask = Ask(silent.port)
        ask.timeouts.connect = short
        let (_, result) = try await Bench().run(ask)
        let error = try #require(result.error)
        #expect(error.kind == .connectTimeout && error.isRetrySafe && error.attempts == 0)
        try await eventually("its sockets are closed") { try silent.connecting() == 0 }
    }

    @Test func refused() async throws {
        let closed = ScriptedUpstream { _ in }
        closed.close()
        let (_, result) = try await Bench().run(Ask(closed.port))
        let error = try #require(result.error)
        #expect(error.kind == .refused && error.isRetrySafe && error.attempts == 0 && error.source == .upstream)
        #expect(error.detail.contains("127.0.0.1:\(closed.port)"))
    }
}
