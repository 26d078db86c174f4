import Curl
import Foundation
import NIOCore
import Reactor
import TestKit
import Testing

/// Bodies under backpressure: no byte is lost or comes twice, and neither side runs ahead of the other.
@Suite(.timeLimit(.minutes(10))) struct StreamingTests {
    private static let total = 50 << 20

    /// Sends the pattern as the window allows, in pieces of many sizes, with a rest now and then.
    private final class Producer {
        private var pattern = BytePattern()
        private let total: Int
        private let reactor: Reactor
        private(set) var mostUnsent: Int64 = 0
        private var pieces = 0

        init(_ reactor: Reactor, _ total: Int) { (self.reactor, self.total) = (reactor, total) }

        func feed(_ transfer: Transfer) {
            while pattern.position < total {
                pieces += 1
                let count = min([1, 40_000, 777, 65_521, 16_384][pieces % 5], total - pattern.position)
                let hasRoom = transfer.send(ByteBuffer(bytes: pattern.next(count)))
                mostUnsent = max(mostUnsent, Int64(pattern.position) - transfer.bytesSent)
                if !hasRoom { return }
                if pieces % 200 == 0 {
                    _ = reactor.startTimer(in: .milliseconds(1)) { self.feed(transfer) }
                    return
                }
            }
            transfer.finishSending()
        }
    }

    /// Checks the pattern and stops reading now and then.
    private final class Consumer {
        private var pattern = BytePattern()
        private let reactor: Reactor
        private(set) var isRight = true
        private(set) var largestPiece = 0
        private var pieces = 0
        var count: Int { pattern.position }

        init(_ reactor: Reactor) { self.reactor = reactor }

        func take(_ transfer: Transfer, _ bytes: ByteBuffer) {
            isRight = bytes.withUnsafeReadableBytes { pattern.matches($0) } && isRight
            largestPiece = max(largestPiece, bytes.readableBytes)
            pieces += 1
            if pieces % 10 == 0 {
                transfer.pauseReceiving()
                _ = reactor.startTimer(in: .milliseconds(1)) { transfer.resumeReceiving() }
            }
        }
    }

    @Test(arguments: [BodyFraming.length(Int64(total)), .chunked]) func bothWaysAtOnce(_ framing: BodyFraming) async throws {
        let isChunked = framing == .chunked
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readHead()
            try connection.send(
                "HTTP/1.1 200 OK\r\n"
                    + (isChunked ? "Transfer-Encoding: chunked\r\n\r\n" : "Content-Length: \(StreamingTests.total)\r\n\r\n"))
            var left = StreamingTests.total
            while left > 0 {
                let piece = isChunked ? try connection.readChunk() : try connection.read(65_536)
                guard !piece.isEmpty else { return }
                if isChunked { try connection.send(String(piece.count, radix: 16) + "\r\n") }
                try connection.send(isChunked ? piece + [13, 10] : piece)
                left -= piece.count
            }
            // Closing before the request's last chunk is read would reset the connection.
            if isChunked { _ = try connection.readChunk() }
            if isChunked { try connection.send("0\r\n\r\n") }
        }
        defer { upstream.close() }
        let bench = try Bench()
        let (consumer, producer) = try await bench.onLoop { _ in
            (
                NIOLoopBound(Consumer(bench.reactor), eventLoop: bench.reactor),
                NIOLoopBound(Producer(bench.reactor, StreamingTests.total), eventLoop: bench.reactor)
            )
        }
        var ask = Ask(upstream.port, "POST")
        ask.body = framing
        let (_, result) = try await bench.run(ask) { recorder in
            recorder.onBody = { consumer.value.take($0, $1) }
            recorder.onNeedsBody = { producer.value.feed($0) }
        } begin: { transfer in
            producer.value.feed(transfer)
        }
        let timings = try #require(result.timings, "\(result)")
        #expect(timings.bytesSent == Int64(StreamingTests.total) && timings.bytesReceived == Int64(StreamingTests.total))
        try await bench.onLoop { _ in
            #expect(consumer.value.isRight && consumer.value.count == StreamingTests.total)
            // One piece of the producer may lie over the window's edge, one of libcurl's over the consumer's.
            #expect(producer.value.mostUnsent <= 65_536 + 65_521)
            #expect(consumer.value.largestPiece <= 65_536 + 16_384)
        }
    }

    @Test func aPausedTransferHoldsTheUpstreamBack() async throws {
        let sent = Locked(0)
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readRequest()
            try connection.send("HTTP/1.1 200 OK\r\nContent-Length: \(StreamingTests.total)\r\n\r\n")
            let piece = [UInt8](repeating: 7, count: 65_536)
            for _ in 0..<(StreamingTests.total / piece.count) {
                try connection.send(piece)
                sent.withLock { $0 += piece.count }
            }
        }
        defer { upstream.close() }
        let bench = try Bench()
        let recorder = Recorder()
        recorder.onBody = { transfer, _ in transfer.pauseReceiving() }
        let transfer = try await bench.onLoop { client in
            NIOLoopBound(try client.start(Ask(upstream.port).request(), delegate: recorder), eventLoop: bench.reactor)
        }
        // The kernel's own buffers fill first.
        var last = -1
        try await eventually("the upstream stands still") {
            try await Task.sleep(for: .milliseconds(100))
            let now = sent.withLock { $0 }
            defer { last = now }
            return now > 0 && now == last
        }
        #expect(last < StreamingTests.total / 2)
        let received = try await bench.onLoop { _ in transfer.value.bytesReceived }
        #expect(received <= 2 * (65_536 + 16_384))
        recorder.onBody = { _, _ in }
        try await bench.onLoop { _ in transfer.value.resumeReceiving() }
        let result = try await recorder.result()
        #expect(result.timings?.bytesReceived == Int64(StreamingTests.total))
    }
}
