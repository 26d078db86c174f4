import Curl
import NIOCore
import Reactor
import TestKit
import Testing

/// No delegate is called from inside libcurl (facts.md 24): there libcurl refuses calls (CURLM_RECURSIVE_API_CALL), and Swift
/// ends the process at an access that overlaps (facts.md 18).
@Suite(.timeLimit(.minutes(10))) struct CallbackTests {
    /// In every call that a delegate gets, transfers are started, paused, resumed and cancelled.
    @Test func whatIsDecidedWhereSomethingArrivesActsAfterLibcurl() async throws {
        let upstream = ScriptedUpstream { connection in
            while let request = try connection.readRequest() {
                try connection.send("HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n")
                try connection.send([UInt8](repeating: request.requestLine.hasPrefix("POST") ? 98 : 97, count: 300_000))
            }
        }
        defer { upstream.close() }
        let bench = try Bench()
        let cancelled = Locked(0)
        let starter = try await bench.onLoop { client in
            NIOLoopBound(Starter(client, Ask(upstream.port), cancelled), eventLoop: bench.reactor)
        }
        var ask = Ask(upstream.port, "POST")
        ask.body = .length(200_000)
        let (recorder, result) = try await bench.run(ask) { recorder in
            recorder.onHead = { transfer in
                starter.value.meddle()
                transfer.pauseReceiving()
                transfer.resumeReceiving()
            }
            recorder.onBody = { transfer, bytes in
                starter.value.meddle()
                recorder.body += bytes.readableBytesView
                transfer.pauseReceiving()
                _ = bench.reactor.startTimer(in: .milliseconds(1)) { transfer.resumeReceiving() }
            }
            recorder.onNeedsBody = { transfer in
                starter.value.meddle()
                // Both pieces are larger than the window: it is told so twice.
                if transfer.bytesSent <= 100_000 { transfer.send(ByteBuffer(repeating: 120, count: 100_000)) }
            }
            recorder.onEnd = { _ in starter.value.meddle() }
        } begin: { $0.send(ByteBuffer(repeating: 120, count: 100_000)) }
        #expect(result.isSuccess && recorder.body == [UInt8](repeating: 98, count: 300_000), "\(result)")
        #expect(upstream.requests.first { !$0.body.isEmpty }?.body.count == 200_000)
        try await bench.onLoop { _ in
            #expect(starter.value.failures == 0 && starter.value.calls > 5)
        }
        try await eventually("all others were cancelled from their own heads") {
            cancelled.withLock { $0 } == (try await bench.onLoop { _ in starter.value.calls })
        }
        try await bench.onLoop { client in #expect(client.activeTransfers == 0) }
    }

    /// Starts a transfer that cancels itself with its head. On the reactor.
    private final class Starter {
        private let (client, ask, cancelled): (CurlClient, Ask, Locked<Int>)
        private(set) var calls = 0
        private(set) var failures = 0
        private var others: [Recorder] = []

        init(_ client: CurlClient, _ ask: Ask, _ cancelled: Locked<Int>) {
            (self.client, self.ask, self.cancelled) = (client, ask, cancelled)
        }

        func meddle() {
            calls += 1
            let other = Recorder()
            other.onHead = { [cancelled] transfer in
                transfer.cancel()
                cancelled.withLock { $0 += 1 }
            }
            others.append(other)
            do { _ = try client.start(ask.request(), delegate: other) } catch { failures += 1 }
        }
    }
}
