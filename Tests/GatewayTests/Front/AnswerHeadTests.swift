import NIOCore
import Testing

@testable import Curl
@testable import Gateway
@testable import GatewayCore

@Suite struct AnswerHeadTests {
    private let id = RequestID(UUIDBits(high: 0x0190_0000_0000_7000, low: 0x8000_0000_0000_0001))

    /// The head of an upstream's answer.
    private func head(_ status: Int, _ lines: [String]) -> TransferHead {
        var head = TransferHead()
        head.status = status
        head.bytes = Array("HTTP/1.1 \(status) Fine".utf8)
        head.reason = 13..<17
        for line in lines {
            let base = head.bytes.count
            let colon = line.utf8.prefix { $0 != UInt8(ascii: ":") }.count
            let value = line.utf8.dropFirst(colon + 1).drop { $0 == 0x20 }.count
            head.bytes += Array(line.utf8)
            head.fields.append(HeaderField(name: base..<base + colon, value: base + line.utf8.count - value..<base + line.utf8.count))
        }
        return head
    }

    private func own(closes: Bool = false, isHTTP11: Bool = true, quota: QuotaView? = nil) -> AnswerHead.Own {
        AnswerHead.Own(requestID: id, startPoint: Array("start".utf8), quota: quota, closes: closes, isHTTP11: isHTTP11)
    }

    private func lines(_ answer: AnswerHead) -> [String] { String(buffer: answer.bytes).split(separator: "\r\n").map(String.init) }

    private func answer(
        _ status: Int = 200, _ fields: [String] = [], isHead: Bool = false, _ own: AnswerHead.Own? = nil
    ) -> (lines: [String], framing: AnswerFraming) {
        let answer = AnswerHead(head(status, fields), isHead: isHead, own: own ?? self.own(), allocator: ByteBufferAllocator())
        #expect(String(buffer: answer.bytes).hasSuffix("\r\n\r\n"))
        return (lines(answer), answer.framing)
    }

    @Test func endToEndFieldsStayInOrderWithTheirDuplicates() {
        let (lines, _) = answer(200, ["Set-Cookie: a=1", "ETag: \"x\"", "Set-Cookie: b=2", "Empty:", "Content-Length: 3"])
        #expect(
            Array(lines.prefix(6)) == [
                "HTTP/1.1 200 Fine", "Set-Cookie: a=1", "ETag: \"x\"", "Set-Cookie: b=2", "Empty: ", "Content-Length: 3",
            ])
        #expect(Array(lines.dropFirst(6)) == ["Via: 1.1 pandora", "Pandora-Request-Id: \(id)", "Pandora-Start-Point: start"])
    }

    @Test func whatIsOfTheUpstreamsConnectionOrTheGatewaysNameStops() {
        let (lines, _) = answer(
            200,
            [
                "Connection: close, X-Hop", "x-hop: 1", "Keep-Alive: timeout=5", "Transfer-Encoding: chunked", "Upgrade: h2c", "TE: x",
                "Pandora-Request-Id: forged", "Proxy-Connection: close", "Kept: 1",
            ])
        #expect(Array(lines.prefix(3)) == ["HTTP/1.1 200 Fine", "Kept: 1", "Via: 1.1 pandora"])
        #expect(!lines.contains { $0.contains("forged") })
    }

    @Test func whatIsForTheGatewayAloneStops() {
        let own = Array("x-units".utf8)
        let fields = ["X-Units: 3", "X-Units-2: 4", "x-UNITS: 5", "Content-Length: 0"]
        let final = AnswerHead(head(200, fields), isHead: false, own: self.own(), hiding: own, allocator: ByteBufferAllocator())
        #expect(Array(lines(final).prefix(3)) == ["HTTP/1.1 200 Fine", "X-Units-2: 4", "Content-Length: 0"])
        let interim = AnswerHead(informational: head(103, fields), hiding: own, allocator: ByteBufferAllocator())
        #expect(lines(interim) == ["HTTP/1.1 103 Fine", "X-Units-2: 4"])
        let end = AnswerHead.lastChunk(head(200, fields), hiding: own, allocator: ByteBufferAllocator())
        #expect(String(buffer: end) == "0\r\nX-Units-2: 4\r\n\r\n")
        #expect(head(200, fields).values(of: own).map(Array.init) == [Array("3".utf8), Array("5".utf8)])
    }

    @Test func framingFollowsTheClient() {
        #expect(answer(200, ["Content-Length: 12"]).framing == .length(12))
        let twice = answer(200, ["Content-Length: 12", "content-length: 12"]).lines
        #expect(twice.filter { $0.lowercased().hasPrefix("content-length") }.count == 1)
        let chunked = answer(200)
        #expect(chunked.framing == .chunked && chunked.lines.contains("Transfer-Encoding: chunked"))
        let old = answer(200, [], own(isHTTP11: false))
        #expect(old.framing == .close && old.lines.contains("Connection: close") && !old.lines.contains("Transfer-Encoding: chunked"))
        #expect(answer(204).framing == .empty && answer(304, ["Content-Length: 5"]).framing == .empty)
        let toHead = answer(200, ["Content-Length: 12"], isHead: true)
        #expect(toHead.framing == .empty && toHead.lines.contains("Content-Length: 12"))
        #expect(answer(200, ["Content-Length: 99999999999999999999"]).framing == .chunked)
    }

    @Test func aChangeOfProtocolSaysSoAndNothingOfFraming() {
        let fields = [
            "Upgrade: WebSocket", "Connection: upgrade", "Content-Length: 5", "Transfer-Encoding: chunked", "Sec-WebSocket-Accept: x",
        ]
        let (lines, framing) = answer(101, fields, own(closes: true))
        #expect(framing == .tunnel && lines.first == "HTTP/1.1 101 Fine")
        #expect(Array(lines[1...2]) == ["Sec-WebSocket-Accept: x", "Via: 1.1 pandora"])
        #expect(lines.suffix(2) == ["Connection: Upgrade", "Upgrade: websocket"])
    }

    @Test func theConnectionsFutureIsSaid() {
        #expect(answer(200, ["Content-Length: 1"], own(closes: true)).lines.contains("Connection: close"))
        #expect(answer(200, ["Content-Length: 1"], own(isHTTP11: false)).lines.contains("Connection: keep-alive"))
        #expect(!answer(200, ["Content-Length: 1"]).lines.contains { $0.hasPrefix("Connection") })
    }

    @Test func quotaIsSaidByTheGatewayWhereItKnowsIt() {
        let upstream = ["RateLimit: \"theirs\";r=1", "RateLimit-Policy: \"theirs\";q=1"]
        #expect(answer(200, upstream).lines.contains("RateLimit: \"theirs\";r=1"))
        let view = QuotaView(limit: 100, remaining: -3, resetSeconds: 60)
        let lines = answer(200, upstream, own(quota: view)).lines
        #expect(lines.contains("RateLimit-Policy: \"quota\";q=100") && lines.contains("RateLimit: \"quota\";r=0;t=60"))
        #expect(!lines.contains { $0.contains("theirs") })
        #expect(
            answer(200, [], own(quota: QuotaView(limit: 7, remaining: 12, resetSeconds: nil))).lines.contains("RateLimit: \"quota\";r=12"))
    }

    @Test func aProblemIsCompleteInItself() throws {
        let reason = ExchangeMachine.Reason(.quotaExceeded, retryAfter: 12)
        let answer = AnswerHead(
            problem: reason, requestID: id, own: own(), date: Array("now".utf8), isHead: false, allocator: ByteBufferAllocator())
        let parts = String(buffer: answer.bytes).split(separator: "\r\n\r\n", maxSplits: 1).map(String.init)
        let lines = parts[0].split(separator: "\r\n").map(String.init)
        #expect(lines[0] == "HTTP/1.1 429 Quota used up")
        #expect(
            lines.contains("Content-Length: \(parts[1].utf8.count)") && lines.contains("Retry-After: 12") && lines.contains("Date: now"))
        #expect(parts[1].contains("\"code\":\"QUOTA_EXCEEDED\"") && parts[1].contains("\"retry_after\":12"))
        let bare = AnswerHead(
            problem: .init(.keyMissing), requestID: id, own: own(), date: [], isHead: true, allocator: ByteBufferAllocator())
        #expect(String(buffer: bare.bytes).hasSuffix("\r\n\r\n"))
        #expect(self.lines(bare).contains("WWW-Authenticate: Bearer realm=\"pandora\""))
    }

    @Test func chunksAndNumbers() {
        for (length, text) in [(1, "1\r\n"), (15, "f\r\n"), (16, "10\r\n"), (65_536, "10000\r\n")] {
            var buffer = ByteBuffer()
            buffer.writeChunkHead(length)
            #expect(String(buffer: buffer) == text)
        }
        for number in [Int64(0), 9, 10, 1_234_567_890_123, -5, .max, .min] {
            var buffer = ByteBuffer()
            buffer.writeDecimal(number)
            #expect(String(buffer: buffer) == "\(number)")
        }
        #expect(String(buffer: AnswerHead.lastChunk(nil, allocator: ByteBufferAllocator())) == "0\r\n\r\n")
        var trailers = head(0, ["X-Sum: 1", "Connection: x"])
        trailers.status = 0
        #expect(String(buffer: AnswerHead.lastChunk(trailers, allocator: ByteBufferAllocator())) == "0\r\nX-Sum: 1\r\n\r\n")
    }

    @Test func aDateIsFormattedOnceASecond() {
        var field = DateField()
        #expect(String(decoding: field.value(at: 784_111_777), as: UTF8.self) == "Sun, 06 Nov 1994 08:49:37 GMT")
        #expect(String(decoding: field.value(at: 784_111_778), as: UTF8.self) == "Sun, 06 Nov 1994 08:49:38 GMT")
    }
}
