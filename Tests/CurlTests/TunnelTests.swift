import Curl
import NIOCore
import Reactor
import TestKit
import Testing

/// Connections that change their protocol, on libcurl's CURLOPT_CONNECT_ONLY (facts.md 8).
@Suite(.timeLimit(.minutes(10))) struct TunnelTests {
    /// Answers with 101, then sends back what comes.
    private static func echo() -> ScriptedUpstream {
        ScriptedUpstream { connection in
            guard let request = try connection.readHead() else { return }
            connection.record(request)
            try connection.send(switching)
            while case let bytes = try connection.read(65_536), !bytes.isEmpty { try connection.send(bytes) }
        }
    }

    @Test func theRequestIsWrittenAsGivenAndBytesGoBothWays() async throws {
        let upstream = Self.echo()
        defer { upstream.close() }
        var ask = Ask(upstream.port)
        ask.target = Array("/a%2e/b?x=%zz&&".utf8)
        ask.headers = [("X-One", "1"), ("X-Empty", ""), ("x-semi", "a;b;"), ("X-One", "2"), ("Sec-WebSocket-Key", "dGhlIHNhbXBsZQ==")]
        let (recorder, error) = try await Bench().tunnel(ask) { recorder in
            recorder.onBytes = { tunnel, bytes in
                recorder.bytes += bytes.readableBytesView
                if recorder.text == "hello" { tunnel.finishSending() }
            }
        } begin: { $0.send(ByteBuffer(string: "hello")) }
        #expect(error == nil && recorder.status == 101 && recorder.text == "hello" && recorder.hasEnd && recorder.ends == 1)
        let request = try #require(upstream.requests.first)
        #expect(
            String(decoding: request.head, as: UTF8.self) == """
                GET /a%2e/b?x=%zz&& HTTP/1.1\r\nHost: service.test\r\nX-One: 1\r\nX-Empty:\r\nx-semi: a;b;\r\nX-One: 2\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n
                """)
    }

    @Test(arguments: ["/a b", "/a\r\nX: y", "", "/\u{7f}"]) func aTargetThatWouldNotArriveAsOneIsRefused(_ target: String) async throws {
        let bench = try Bench()
        try await bench.onLoop { client in
            var ask = Ask(1)
            ask.target = Array(target.utf8)
            #expect(throws: TransferError.self) { try client.open(ask.request(), upgrade: "websocket", delegate: TunnelRecorder()) }
            #expect(client.activeTransfers == 0)
        }
    }

    @Test(arguments: [true, false]) func whatComesWithTheHeadComesFirst(_ isSlow: Bool) async throws {
        let upstream = ScriptedUpstream { connection in
            // It does not even wait for the request.
            let text = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + switching + "first\nHTTP/1.1 200 OK\r\n\r\n"
            if isSlow { try connection.sendSlowly(text) } else { try connection.send(text) }
            try connection.waitForEnd()
        }
        defer { upstream.close() }
        let (recorder, error) = try await Bench().tunnel(Ask(upstream.port)) { recorder in
            recorder.onBytes = { tunnel, bytes in
                recorder.bytes += bytes.readableBytesView
                if recorder.text.hasSuffix("\r\n\r\n") { tunnel.finishSending() }
            }
        }
        #expect(error == nil && recorder.heads.map(\.status) == [103, 101])
        #expect(recorder.text == "first\nHTTP/1.1 200 OK\r\n\r\n")
    }

    // MARK: Upstreams that misbehave

    @Test(arguments: [
        ("", TransferError.Kind.closedBeforeHead), ("HTTP/1.1 101 Swit", .closedBeforeHead), ("SSH-2.0-OpenSSH\r\n", .protocolError),
        ("HTTP/2 101\r\nUpgrade: websocket\r\n\r\n", .protocolError), ("\r\n\(switching)", .protocolError),
        ("HTTP/1.1 101 Switching\r\n\r\n", .protocolError), ("HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n", .protocolError),
        ("HTTP/1.1 101 S\r\nUpgrade: websocket\r\n folded\r\n\r\n", .protocolError),
        ("HTTP/1.1 400 Bad\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", .protocolError),
        ("HTTP/1.1 400 Bad\r\nTransfer-Encoding: gzip\r\n\r\n", .protocolError),
        ("HTTP/1.1 400 Bad\r\nContent-Length: 9223372036854775808\r\n\r\n", .protocolError),
        ("HTTP/1.1 400 Bad\r\nX: \(String(repeating: "x", count: 140_000))", .headTooLarge),
    ]) func answersThatAreNone(_ text: String, _ kind: TransferError.Kind) async throws {
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readHead()
            try connection.send(text)
        }
        defer { upstream.close() }
        let (recorder, error) = try await Bench().tunnel(Ask(upstream.port))
        #expect(error?.kind == kind && error?.attempts == 1 && error?.isRetrySafe == false, "\(String(describing: error))")
        #expect(recorder.heads.isEmpty && recorder.ends == 1)
    }

    @Test func resetsAreErrors() async throws {
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readHead()
            if connection.number == 1 { try connection.send(switching + "half") }
            if connection.number == 1 { _ = try connection.read(1) }
            connection.reset()
        }
        defer { upstream.close() }
        let bench = try Bench()
        let (_, before) = try await bench.tunnel(Ask(upstream.port))
        #expect(before?.kind == .closedBeforeHead, "\(String(describing: before))")
        let (recorder, after) = try await bench.tunnel(Ask(upstream.port)) { recorder in
            recorder.onBytes = { tunnel, bytes in
                recorder.bytes += bytes.readableBytesView
                tunnel.send(ByteBuffer(string: "x"))
            }
        }
        #expect(after?.kind == .diedMidBody && recorder.text == "half", "\(String(describing: after))")
    }

    @Test func aConnectionThatIsRefusedMayBeTriedElsewhere() async throws {
        let closed = ScriptedUpstream { _ in }
        closed.close()
        let (_, refused) = try await Bench().tunnel(Ask(closed.port))
        #expect(refused?.kind == .refused && refused?.isRetrySafe == true && refused?.attempts == 0)
        let silent = SilentListener()
        var ask = Ask(silent.port)
        ask.timeouts.connect = short
        let (_, late) = try await Bench().tunnel(ask)
        #expect(late?.kind == .connectTimeout && late?.isRetrySafe == true)
        try await eventually("its sockets are closed") { try silent.connecting() == 0 }
    }

    @Test func whoStallsIsGivenUp() async throws {
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readHead()
            if connection.number > 0 { try connection.send(switching + "then nothing") }
            try connection.waitForEnd()
        }
        defer { upstream.close() }
        let bench = try Bench()
        var ask = Ask(upstream.port)
        ask.timeouts.firstByte = short
        #expect(try await bench.tunnel(ask).1?.kind == .firstByteTimeout)
        ask.timeouts = TransferTimeouts(connect: .seconds(120), firstByte: .seconds(120), idle: short)
        let (recorder, error) = try await bench.tunnel(ask)
        #expect(error?.kind == .idleTimeout && recorder.text == "then nothing")
        try await eventually("both are closed") { upstream.openConnections == 0 }
    }

    @Test func ourOwnPauseIsNoIdlenessOfTheUpstream() async throws {
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readHead()
            try connection.send(switching + "meanwhile")
            try connection.waitForEnd()
        }
        defer { upstream.close() }
        let bench = try Bench()
        var ask = Ask(upstream.port)
        ask.timeouts = TransferTimeouts(connect: .seconds(120), firstByte: .seconds(120), idle: short)
        let (recorder, tunnel) = try await bench.open(ask) { $0.onHead = { $0.pauseReceiving() } }
        try await eventually("it is paused") { try await bench.onLoop { _ in recorder.status == 101 } }
        try await Task.sleep(for: .nanoseconds(short.nanoseconds) * 2 + .milliseconds(300))
        let resumed = try await bench.onLoop { _ in
            #expect(recorder.ends == 0 && recorder.bytes.isEmpty)
            tunnel.value.resumeReceiving()
            return NIODeadline.now()
        }
        // From here on it is the upstream's.
        #expect(try await recorder.end()?.kind == .idleTimeout)
        #expect(recorder.text == "meanwhile" && .now() - resumed >= .nanoseconds(short.nanoseconds / 2))
    }

    @Test func aTunnelOutlivesTheTimeForTheAnswer() async throws {
        let upstream = Self.echo()
        defer { upstream.close() }
        let bench = try Bench()
        var (ask, total) = (Ask(upstream.port), short)
        while true {
            ask.timeouts.total = total
            let (recorder, tunnel) = try await bench.open(ask)
            try await eventually("it has begun or is late") { try await bench.onLoop { _ in recorder.status == 101 || recorder.ends == 1 } }
            if try await bench.onLoop({ _ in recorder.status == 101 }) {
                try await Task.sleep(for: .nanoseconds(total.nanoseconds) + .milliseconds(200))
                try await bench.onLoop { _ in
                    #expect(recorder.ends == 0)
                    tunnel.value.cancel()
                }
                return
            }
            // This machine is slower than that.
            #expect(try await recorder.end()?.kind == .totalTimeout)
            total = total * 2
        }
    }

    // MARK: Upgrades that are declined

    @Test(arguments: [
        ("Content-Length: 5\r\n\r\nwhole, and what follows is not read", "whole"), ("Content-Length: 0\r\n\r\nx", ""),
        ("\r\nall of it", "all of it"),
        ("Transfer-Encoding: Chunked\r\n\r\n5\r\nwhole\r\n00A;ext=1\r\n, in parts\r\n0\r\nX-Sum: 1\r\n\r\nmore", "whole, in parts"),
    ]) func aDeclinedUpgradeIsAnAnswer(_ rest: String, _ body: String) async throws {
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readHead()
            let text = "HTTP/1.1 403 Forbidden\r\n" + rest
            if connection.number == 0 { try connection.send(text) } else { try connection.sendSlowly(text, pauseSeconds: 0) }
            // Only where its end is the end of the answer does it close.
            if !rest.hasPrefix("\r\n") { try connection.waitForEnd() }
        }
        defer { upstream.close() }
        let bench = try Bench()
        for _ in 0..<2 {
            let (recorder, error) = try await bench.tunnel(Ask(upstream.port))
            #expect(error == nil && recorder.status == 403 && recorder.text == body && recorder.ends == 1)
        }
        try await eventually("closed") { upstream.openConnections == 0 }
    }

    @Test(arguments: [
        "Content-Length: 5\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n5\r\nhalf",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n4\r\nhalfx\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n4\nhalf\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n 4\r\nhalf\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n-4\r\nhalf\r\n",
        "Transfer-Encoding: chunked\r\n\r\n1234567890123456\r\nhalf",
        "Transfer-Encoding: chunked\r\n\r\n0\r\nX: \(String(repeating: "x", count: 5_000))",
    ]) func aDeclinedUpgradeThatIsCutIsNoAnswer(_ rest: String) async throws {
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readHead()
            try connection.send("HTTP/1.1 403 Forbidden\r\n" + rest)
        }
        defer { upstream.close() }
        let (recorder, error) = try await Bench().tunnel(Ask(upstream.port))
        #expect(error?.kind == .diedMidBody && recorder.status == 403, "\(String(describing: error))")
    }

    // MARK: Ends

    @Test func eachSideMayEndFirst() async throws {
        let last = Locked("")
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readHead()
            try connection.send(switching)
            if connection.number == 0 {
                // Answers when everything is there.
                var count = 0
                while case let bytes = try connection.read(65_536), !bytes.isEmpty { count += bytes.count }
                try connection.send("\(count) bytes")
            } else {
                try connection.send("bye")
                connection.finishSending()
                let bytes = try connection.read(100)
                last.withLock { $0 = String(decoding: bytes, as: UTF8.self) }
            }
        }
        defer { upstream.close() }
        let bench = try Bench()
        let (first, ours) = try await bench.tunnel(Ask(upstream.port), begin: { tunnel in
            tunnel.send(ByteBuffer(repeating: 7, count: 300_000))
            tunnel.finishSending()
        })
        #expect(ours == nil && first.text == "300000 bytes" && first.hasEnd)
        let (second, theirs) = try await bench.tunnel(Ask(upstream.port)) { recorder in
            recorder.onEnd = { tunnel in
                tunnel.send(ByteBuffer(string: "goodbye"))
                tunnel.finishSending()
            }
        }
        #expect(theirs == nil && second.text == "bye")
        try await eventually("what was sent after the upstream's end has arrived") { last.withLock { $0 } == "goodbye" }
    }

    @Test func whoeverPausedGetsEverythingBeforeTheEnd() async throws {
        let upstream = ScriptedUpstream { connection in
            _ = try connection.readHead()
            try connection.send(switching)
            try connection.send([UInt8](repeating: 7, count: 200_000))
        }
        defer { upstream.close() }
        let bench = try Bench()
        let (recorder, tunnel) = try await bench.open(Ask(upstream.port)) { $0.onHead = { $0.pauseReceiving() } }
        try await eventually("the upstream is gone") { upstream.openConnections == 0 && upstream.connections == 1 }
        try await bench.onLoop { _ in
            #expect(recorder.ends == 0 && recorder.bytes.isEmpty && !recorder.hasEnd)
            tunnel.value.resumeReceiving()
            tunnel.value.finishSending()
        }
        #expect(try await recorder.end() == nil)
        #expect(recorder.bytes == [UInt8](repeating: 7, count: 200_000))
    }

    @Test func aCancelledTunnelIsClosedAndItsPlaceIsFree() async throws {
        let upstream = ScriptedUpstream { connection in
            while let request = try connection.readHead() {
                let isTunnel = request.values(of: "upgrade") == ["websocket"]
                try connection.send(isTunnel ? switching : "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            }
        }
        defer { upstream.close() }
        let bench = try Bench()
        let recorder = TunnelRecorder(), transfer = Recorder()
        let tunnel = try await bench.onLoop { client in
            var ask = Ask(upstream.port)
            ask.transfersMax = 1
            let destination = ask.destination()
            let tunnel = try client.open(ask.request(to: destination), upgrade: "websocket", delegate: recorder)
            _ = try client.start(ask.request(to: destination), delegate: transfer)
            return NIOLoopBound(tunnel, eventLoop: bench.reactor)
        }
        try await eventually("101") { try await bench.onLoop { _ in recorder.status == 101 } }
        #expect(upstream.connections == 1)
        try await bench.onLoop { _ in tunnel.value.cancel() }
        #expect(try await transfer.result().isSuccess)
        #expect(upstream.connections == 2 && recorder.ends == 0)
        try await eventually("closed") { upstream.openConnections == 1 }
        let (_, open) = try await bench.open(Ask(upstream.port))
        try await bench.onLoop { client in
            client.shutdown()
            open.value.cancel()
            #expect(client.activeTransfers == 0)
        }
        try await eventually("closed") { upstream.openConnections == 0 }
    }

    // MARK: Beside transfers

    /// libcurl keeps the connection among those that it reuses, closes when they are too many, and looks for dead ones once a
    /// second: of all of that a tunnel must feel nothing.
    @Test func aTunnelIsNotTakenForAnIdleConnection() async throws {
        let upstream = ScriptedUpstream { connection in
            while let request = try connection.readHead() {
                let isTunnel = request.values(of: "upgrade") == ["websocket"]
                try connection.send(isTunnel ? switching : "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                if isTunnel { while case let bytes = try connection.read(100), !bytes.isEmpty { try connection.send(bytes) } }
            }
        }
        defer { upstream.close() }
        var configuration = CurlConfiguration()
        configuration.idleConnectionsPerMulti = 2
        let bench = try Bench(configuration)
        let (recorder, tunnel) = try await bench.open(Ask(upstream.port))
        try await eventually("101") { try await bench.onLoop { _ in recorder.status == 101 } }
        let end = ContinuousClock.now + .milliseconds(2_500)
        var number = 0
        while ContinuousClock.now < end {
            // Hosts of their own: connections of their own, and more than may be idle.
            let results = try await withThrowingTaskGroup(of: Bool.self) { group in
                for _ in 0..<4 {
                    number += 1
                    var ask = Ask(upstream.port)
                    ask.host = number % 2 == 0 ? "service.test" : "h\(number).test"
                    let asked = ask
                    group.addTask { try await bench.run(asked).1.isSuccess }
                }
                return try await group.reduce(into: [Bool]()) { $0.append($1) }
            }
            #expect(results.allSatisfy { $0 })
            try await Task.sleep(for: .milliseconds(100))
        }
        try await bench.onLoop { _ in _ = tunnel.value.send(ByteBuffer(string: "still there")) }
        try await eventually("the echo") { try await bench.onLoop { _ in recorder.text == "still there" } }
        #expect(recorder.ends == 0)
    }

    // MARK: Much of it

    private static let total = 10 << 20

    @Test func tenMegabytesBothWays() async throws {
        let upstream = Self.echo()
        defer { upstream.close() }
        try await pump(Ask(upstream.port), Bench())
    }

    @Test func tenMegabytesBothWaysOverTLS() async throws {
        try await withReactor { reactor in
            let server = try await TLSEcho(on: reactor)
            var (ask, configuration) = (Ask(server.port), CurlConfiguration())
            ask.scheme = .https
            configuration.certificateBundle = server.bundle
            try await pump(ask, Bench(configuration))
        }
    }

    private func pump(_ ask: Ask, _ bench: Bench) async throws {
        let pump = try await bench.onLoop { _ in NIOLoopBound(TunnelPump(bench.reactor, Self.total), eventLoop: bench.reactor) }
        let (recorder, error) = try await bench.tunnel(ask) { recorder in
            recorder.onHead = { pump.value.feed($0) }
            recorder.onRoom = { pump.value.feed($0) }
            recorder.onBytes = { pump.value.take($0, $1) }
        }
        #expect(error == nil && recorder.status == 101)
        try await bench.onLoop { _ in
            #expect(pump.value.isRight && pump.value.received == Self.total)
            #expect(pump.value.mostUnsent <= 65_536 + 65_521 && pump.value.largestPiece <= 65_536)
        }
    }

    @Test(arguments: [TLSEcho.Manner.closesAtOnce, .closesAfterHead, .speaksFirst]) func overTLS(_ manner: TLSEcho.Manner) async throws {
        try await withReactor { reactor in
            let server = try await TLSEcho(on: reactor, manner)
            var (ask, configuration) = (Ask(server.port), CurlConfiguration())
            ask.scheme = .https
            configuration.certificateBundle = server.bundle
            let bench = try Bench(configuration)
            let (recorder, error) = try await bench.tunnel(ask) { recorder in
                recorder.onEnd = { $0.finishSending() }
                recorder.onBytes = { tunnel, bytes in
                    recorder.bytes += bytes.readableBytesView
                    if recorder.text == "first hello" { tunnel.finishSending() }
                }
            } begin: { if manner == .speaksFirst { $0.send(ByteBuffer(string: "hello")) } }
            switch manner {
            case .closesAtOnce: #expect(error?.kind == .closedBeforeHead, "\(String(describing: error))")
            case .closesAfterHead: #expect(error == nil && recorder.status == 101 && recorder.hasEnd, "\(String(describing: error))")
            default: #expect(error == nil && recorder.text == "first hello", "\(String(describing: error))")
            }
            ask.host = "other.test"
            let (_, stranger) = try await bench.tunnel(ask)
            #expect(stranger?.kind == .tls && stranger?.isRetrySafe == true)
        }
    }
}
