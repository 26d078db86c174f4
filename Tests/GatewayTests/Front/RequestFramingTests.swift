import Curl
import NIOCore
import NIOEmbedded
import NIOHTTP1
import QuotaModel
import Testing

@testable import Gateway
@testable import GatewayCore

/// Where a request ends, and whether HTTP goes on behind it: what the head says and what NIO's decoder does must be one, or one
/// client's body is another's request.
@Suite struct RequestFramingTests {
    private typealias Fields = [(name: String, value: [UInt8])]

    /// Good as two bodies: of six bytes, and of one chunk with its end.
    private static let body = "3\r\nabc\r\n0\r\n\r\n"
    private static let next = "GET /next HTTP/1.1\r\nHost: n\r\n\r\n"

    /// What came of a stream of bytes, in order. A body is one, however many pieces it had.
    private enum Event: Equatable { case head(String), body([UInt8]), end, fault, left([UInt8]) }

    /// All that NIO's decoder makes of the bytes, and what it leaves where it stopped.
    private static func decode(_ bytes: [UInt8]) throws -> (events: [Event], first: HTTPRequestHead?) {
        let handler = ByteToMessageHandler(HTTPRequestDecoder(leftOverBytesStrategy: .forwardBytes))
        let channel = EmbeddedChannel(handler: handler)
        var (events, first, isFaulty) = ([Event](), HTTPRequestHead?.none, false)
        do { try channel.writeInbound(ByteBuffer(bytes: bytes)) } catch is HTTPParserError { isFaulty = true }
        while let part = try channel.readInbound(as: HTTPServerRequestPart.self) {
            switch part {
            case .head(let head):
                first = first ?? head
                events.append(.head("\(head.method) \(head.uri) \(head.headers)"))
            case .body(let piece):
                if case .body(let before)? = events.last { events[events.count - 1] = .body(before + piece.readableBytesView) } else {
                    events.append(.body(Array(piece.readableBytesView)))
                }
            case .end: events.append(.end)
            }
        }
        if isFaulty { return (events + [.fault], first) }
        let removed = channel.pipeline.syncOperations.removeHandler(handler)
        channel.embeddedEventLoop.run()
        try removed.wait()
        if let left = try channel.readInbound(as: ByteBuffer.self), left.readableBytes > 0 {
            events.append(.left(Array(left.readableBytesView)))
        }
        _ = try channel.finish()
        return (events, first)
    }

    private enum Outcome { case ends, goesOn, holds }

    /// Reads the head as we do, and demands that NIO's decoder has taken the same body and has gone on, or stopped, at the same
    /// byte.
    private static func compare(_ fields: Fields, version: String = "1.1", _ note: Comment) throws -> Outcome {
        var head = Array("POST /a HTTP/\(version)\r\nHost: a\r\n".utf8)
        for field in fields { head += Array("\(field.name): ".utf8) + field.value + Array("\r\n".utf8) }
        head += Array("\r\n".utf8)
        let tail = Array((body + next).utf8)
        let (events, first) = try decode(head + tail)
        // What NIO's decoder refuses ends the connection, as does what we refuse.
        guard let first else {
            #expect(events == [.fault], note)
            return .ends
        }
        let ours: RequestHead
        do throws(RequestHead.Fault) { ours = try RequestHead(first, limits: LimitSettings()) } catch {
            #expect([.requestMalformed, .codingRefused].contains(error.refusal), note)
            return .ends
        }
        let (taken, content): (Int, [UInt8])
        switch ours.body {
        case .none: (taken, content) = (0, [])
        case .length(let length): (taken, content) = (Int(length), Array(tail.prefix(Int(length))))
        case .chunked: (taken, content) = (body.utf8.count, Array("abc".utf8))
        }
        var expected = [events[0]]
        if !content.isEmpty { expected.append(.body(content)) }
        guard taken <= tail.count else {
            #expect(events == expected, note)
            return .goesOn
        }
        expected.append(.end)
        let rest = Array(tail.dropFirst(taken))
        if ours.endsDecoding {
            #expect(events == expected + (rest.isEmpty ? [] : [.left(rest)]), note)
            return .holds
        }
        guard ours.keepsAlive else {
            #expect(Array(events.prefix(expected.count)) == expected, note)
            return .ends
        }
        #expect(try events == expected + decode(rest).events, note)
        return .goesOn
    }

    @Test(arguments: [
        [("Connection", "upgrade"), ("Upgrade", "websocket")], [("Upgrade", "x"), ("Connection", "keep-alive, Upgrade")],
        [("Connection", "upgrade")], [("Upgrade", "websocket")], [("connection", "UPGRADE,close"), ("upgrade", "h2c")],
        [("Connection", "upgrade"), ("Upgrade", "")], [("Connection", "upgrade"), ("Upgrade", "\t")],
        [("Connection", "upgrade"), ("Upgrade", ""), ("Upgrade", "a")], [("Connection", "\tupgrade"), ("Upgrade", "a")],
        [("Connection", "a,  upgrade  "), ("Upgrade", "a")], [("Connection", "a , upgrade , b"), ("Upgrade", "a")],
        [("Connection", "upgrade x"), ("Upgrade", "a")], [("Connection", "xupgrade"), ("Upgrade", "a")],
        [("Connection", "upgrades"), ("Upgrade", "a")], [("Connection", "keep-alive"), ("Connection", "upgrade"), ("Upgrade", "a")],
        [("Connection", ",, upgrade ,"), ("Upgrade", "a")], [("Connection", "\"upgrade\""), ("Upgrade", "a")],
        [("Connection", "upgrade;q=1"), ("Upgrade", "a")], [("Proxy-Connection", "upgrade"), ("Upgrade", "x")],
        [("Proxy-Connection", "keep-alive"), ("Connection", "upgrade"), ("Upgrade", "x")], [("Proxy-Connection", "close")],
        [("Transfer-Encoding", "chunked")], [("Transfer-Encoding", "Chunked  ")], [("Transfer-Encoding", "\tchunked")],
        [("Connection", "Upgrade"), ("Upgrade", "h2c"), ("Transfer-Encoding", "chunked")],
        [("Connection", "Upgrade"), ("Upgrade", "h2c"), ("Transfer-Encoding", "\tchunked ")],
        [("Connection", "Upgrade"), ("Upgrade", "h2c"), ("Content-Length", "6")],
        [("Connection", "Upgrade"), ("Upgrade", "h2c"), ("Content-Length", "00")], [("Content-Length", "6 ")], [("Content-Length", "13")],
        [("Connection", "Upgrade"), ("Upgrade", "h2c"), ("Content-Length", "1000")],
    ]) func theDecoderStopsWhereTheHeadSaysSo(_ fields: [(String, String)]) throws {
        let outcome = try Self.compare(fields.map { ($0, Array($1.utf8)) }, "\(fields)")
        let isClosing = fields.contains { $0.0.hasSuffix("onnection") && $0.1 == "close" }
        #expect((outcome == .ends) == isClosing, "it is taken")
    }

    /// Where the two would not agree, no request is taken.
    @Test(arguments: [
        [("Transfer-Encoding", "chunked\t"), ("Connection", "Upgrade"), ("Upgrade", "h2c")],
        [("Transfer-Encoding", "chunked\t")], [("Transfer-Encoding", "chunked \t ")], [("Transfer-Encoding", "chunked\u{600} ")],
        [("Transfer-Encoding", "chunked,"), ("Connection", "Upgrade"), ("Upgrade", "h2c")], [("Transfer-Encoding", "chunked, chunked")],
        [("Transfer-Encoding", "identity"), ("Connection", "Upgrade"), ("Upgrade", "h2c")], [("Transfer-Encoding", "")],
        [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "x"), ("Connection", "Upgrade"), ("Upgrade", "h2c")],
        [("Transfer-Encoding", "chunked"), ("Content-Length", "6"), ("Connection", "Upgrade"), ("Upgrade", "h2c")],
        [("Connection", "x, \u{301}upgrade"), ("Upgrade", "x")], [("Connection", "upgrade\u{600} "), ("Upgrade", "x")],
        [("Connection", "upgrade,\u{301}"), ("Upgrade", "x")], [("Connection", "upgrade"), ("Upgrade", "\u{600} ")],
        [("Connection", "upgrade\t"), ("Upgrade", "a")], [("Connection", "a,\tupgrade"), ("Upgrade", "a")],
        [("Connection", "upgrade\t,b"), ("Upgrade", "a")], [("Proxy-Connection", "upgrade\t"), ("Upgrade", "a")],
        [("Content-Length", "6\t")], [("Content-Length", "6, 6")], [("Content-Length", "6"), ("Content-Length", "6")],
    ]) func whatTwoCouldReadInTwoWaysEndsTheConnection(_ fields: [(String, String)]) throws {
        #expect(try Self.compare(fields.map { ($0, Array($1.utf8)) }, "\(fields)") == .ends)
    }

    @Test func whateverTheFieldsAreBothReadThemAlike() throws {
        var random = SeededRandom(seed: 0x5eed)
        let names = ["Connection", "Proxy-Connection", "Upgrade", "Transfer-Encoding", "Content-Length"]
        let marks: [[UInt8]] = ["\u{301}", "\u{600}", "\t"].map { Array($0.utf8) } + [[0xcc]]
        let words = [" ", " ", ",", ",", ";", "upgrade", "Upgrade", "close", "keep-alive", "chunked", "h2c", "websocket", "x", "6", "0"]
        var seen: [Outcome: Int] = [:]
        for round in 0..<6_000 {
            // Heads with something odd in them mostly end there: every other one has nothing of the kind.
            let isOdd = round % 2 == 0
            var fields: Fields = []
            // Two heads in three ask for an upgrade, many with a body.
            if Int.random(in: 0..<3, using: &random) > 0 {
                let body = Int.random(in: 0..<3, using: &random)
                fields = [(names[Int.random(in: 0...1, using: &random)], Array("upgrade".utf8)), ("Upgrade", Array("h2c".utf8))]
                if body < 2 { fields.append((names[3 + body], Array(["chunked", "6"][body].utf8))) }
            } else {
                for _ in 0..<Int.random(in: 1...4, using: &random) { fields.append((names.randomElement(using: &random)!, [])) }
            }
            for index in fields.indices where fields[index].value.isEmpty || Int.random(in: 0..<3, using: &random) == 0 {
                for _ in 0..<Int.random(in: fields[index].value.isEmpty ? 0...5 : 1...2, using: &random) {
                    let isMark = isOdd && Bool.random(using: &random)
                    let atom = isMark ? marks.randomElement(using: &random)! : Array(words.randomElement(using: &random)!.utf8)
                    // Before, behind, or somewhere within what is there.
                    let count = fields[index].value.count
                    let place = [0, count, count, Int.random(in: 0...count, using: &random)].randomElement(using: &random)!
                    fields[index].value.insert(contentsOf: atom, at: place)
                }
            }
            let version = Int.random(in: 0..<8, using: &random) == 0 ? "1.0" : "1.1"
            let note = fields.map { "\($0.name): \($0.value.map { String($0, radix: 16) })" }
            seen[try Self.compare(fields, version: version, "round \(round): \(version) \(note)"), default: 0] += 1
        }
        for outcome in [Outcome.ends, .goesOn, .holds] { #expect(seen[outcome, default: 0] > 200, "\(seen)") }
    }

    // MARK: What lies undecoded is bounded

    private static func decoder() -> RequestDecoder {
        var limits = NIOHTTPDecoderLimitConfiguration()
        limits.maxHeaderFieldSize = 1_000
        return RequestDecoder(limits, blanksMax: 100)
    }

    /// Writes pieces until the decoder has had enough of them; nil where it has not after a hundred.
    private static func flood(_ start: String, _ piece: String) throws -> Int? {
        let decoder = decoder()
        let channel = EmbeddedChannel(handler: ByteToMessageHandler(decoder))
        try channel.writeInbound(ByteBuffer(string: start))
        for number in 1...100 {
            do { try channel.writeInbound(ByteBuffer(string: piece)) } catch HTTPParserError.headerOverflow { return number }
            #expect(decoder.undecodedBytes <= 1_100 + piece.utf8.count)
        }
        return nil
    }

    /// Where a decoder has stopped and nobody has noticed, nothing is kept without end.
    @Test func aDecoderThatIsStuckFails() throws {
        let stuck = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
        #expect(try Self.flood(stuck, String(repeating: "x", count: 500)) == 4)
    }

    @Test func blanksInAHeadAreBounded() throws {
        let blanks = String(repeating: " ", count: 500)
        #expect(try Self.flood("GET / HTTP/1.1\r\nX:", blanks) == 4)
        #expect(try Self.flood("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX:", blanks) == 4)
    }

    @Test func aBodyIsNotWhatLiesUndecoded() throws {
        let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
        #expect(try Self.flood(post, String(repeating: "x", count: 500)) == nil)
    }

    /// What is held until it is known what it is, is its owner's to bound.
    @Test func whatIsHeldIsCountedAndComesAfterwards() throws {
        let decoder = Self.decoder()
        let channel = EmbeddedChannel(handler: ByteToMessageHandler(decoder))
        try channel.writeInbound(ByteBuffer(string: "GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"))
        while case .some = try channel.readInbound(as: HTTPServerRequestPart.self) {}
        decoder.hold()
        let post = "POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
        try channel.writeInbound(ByteBuffer(string: post))
        for _ in 0..<10 { try channel.writeInbound(ByteBuffer(string: String(repeating: "x", count: 500))) }
        #expect(decoder.isHolding && decoder.hasStopped && decoder.undecodedBytes == post.utf8.count + 5_000)
        decoder.goOn(raw: false)
        try channel.writeInbound(ByteBuffer())
        guard case .head(let head)? = try channel.readInbound(as: HTTPServerRequestPart.self) else {
            Issue.record("no head")
            return
        }
        #expect(head.uri == "/b" && decoder.undecodedBytes == 0 && !decoder.hasStopped)
    }
}
