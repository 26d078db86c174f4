import Curl
import Glibc
import NIOCore
import Reactor
import TestKit
import Testing

@Suite(.timeLimit(.minutes(10))) struct LimitTests {
    @Test func transfersHaveALimit() async throws {
        let silent = ScriptedUpstream { try $0.waitForEnd() }
        defer { silent.close() }
        var configuration = CurlConfiguration()
        configuration.maxTransfers = 3
        let bench = try Bench(configuration)
        let recorder = Recorder()
        try await bench.onLoop { client in
            var running: [Transfer] = []
            for _ in 0..<3 { running.append(try client.start(Ask(silent.port).request(), delegate: recorder)) }
            do {
                _ = try client.start(Ask(silent.port).request(), delegate: recorder)
                Issue.record("a fourth one was taken")
            } catch {
                let error = error as? TransferError
                #expect(error?.kind == .overloaded && error?.source == .local && error?.isRetrySafe == true)
            }
            running[0].cancel()
            running[0].cancel()
            #expect(client.activeTransfers == 2)
            _ = try client.start(Ask(silent.port).request(), delegate: recorder)
        }
        #expect(recorder.ends == 0)
    }

    @Test func aDestinationHasItsConnectionsAndItsQueue() async throws {
        let gate = Locked(false)
        let upstream = ScriptedUpstream { connection in
            while try connection.readRequest() != nil {
                while !gate.withLock({ $0 }) { _ = usleep(1_000) }
                try connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            }
        }
        defer { upstream.close() }
        let bench = try Bench(CurlConfiguration())
        let recorders = (0..<6).map { _ in Recorder() }
        var ask = Ask(upstream.port)
        (ask.transfersMax, ask.waitingMax) = (2, 4)
        let final = ask
        let transfers = try await bench.onLoop { client in
            let destination = final.destination()
            let transfers = try recorders.map { try client.start(final.request(to: destination), delegate: $0) }
            #expect(throws: TransferError.self) { try client.start(final.request(to: destination), delegate: recorders[0]) }
            return NIOLoopBound(transfers, eventLoop: bench.reactor)
        }
        try await eventually("two are under way") { upstream.requests.count == 2 }
        // One that waits is taken back, one that runs too: the next one gets its place.
        try await bench.onLoop { _ in
            transfers.value[3].cancel()
            transfers.value[0].cancel()
        }
        try await eventually("a third is under way") { upstream.requests.count == 3 }
        gate.withLock { $0 = true }
        for index in [1, 2, 4, 5] { #expect(try await recorders[index].result().isSuccess) }
        #expect(recorders[0].ends == 0 && recorders[3].ends == 0)
        #expect(upstream.requests.count == 5)
    }

    @Test func waitingForADestinationEnds() async throws {
        let silent = ScriptedUpstream { try $0.waitForEnd() }
        defer { silent.close() }
        let bench = try Bench(CurlConfiguration())
        let (first, second) = (Recorder(), Recorder())
        var patient = Ask(silent.port)
        patient.transfersMax = 1
        var hasty = patient
        hasty.timeouts.connect = short
        try await bench.onLoop { [patient, hasty] client in
            let destination = patient.destination()
            _ = try client.start(patient.request(to: destination), delegate: first)
            _ = try client.start(hasty.request(to: destination), delegate: second)
        }
        let error = try #require(try await second.result().error)
        #expect(error.kind == .overloaded && error.source == .local && error.isRetrySafe && error.attempts == 0)
    }

    @Test func manyAtOnceOverSeveralMultiHandles() async throws {
        let upstream = ScriptedUpstream.answering {
            "HTTP/1.1 200 OK\r\nContent-Length: \($0.requestLine.utf8.count)\r\n\r\n\($0.requestLine)"
        }
        defer { upstream.close() }
        var configuration = CurlConfiguration()
        configuration.transfersPerMulti = 8
        let bench = try Bench(configuration)
        try await withThrowingTaskGroup { group in
            for number in 0..<100 {
                group.addTask {
                    var ask = Ask(upstream.port)
                    ask.target = Array("/\(number)".utf8)
                    let (recorder, result) = try await bench.run(ask)
                    #expect(result.isSuccess, "\(result)")
                    #expect(String(decoding: recorder.body, as: UTF8.self) == "GET /\(number) HTTP/1.1")
                }
            }
            try await group.waitForAll()
        }
        #expect(upstream.requests.count == 100)
    }

    /// CURLMOPT_MAXCONNECTS: without it every connection of a burst would stay.
    @Test func idleConnectionsAreFew() async throws {
        let gate = Locked(false)
        let upstream = ScriptedUpstream { connection in
            while try connection.readRequest() != nil {
                while !gate.withLock({ $0 }) { _ = usleep(1_000) }
                try connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            }
        }
        defer {
            gate.withLock { $0 = true }
            upstream.close()
        }
        var configuration = CurlConfiguration()
        configuration.idleConnectionsPerMulti = 3
        let bench = try Bench(configuration)
        let recorders = (0..<10).map { _ in Recorder() }
        try await bench.onLoop { client in
            for recorder in recorders { _ = try client.start(Ask(upstream.port).request(), delegate: recorder) }
        }
        try await eventually("all are under way") { upstream.requests.count == 10 }
        #expect(upstream.openConnections == 10)
        gate.withLock { $0 = true }
        for recorder in recorders { #expect(try await recorder.result().isSuccess) }
        try await eventually("most are closed") { upstream.openConnections <= 3 }
        // One of those that stayed serves the next request.
        #expect(try await bench.run(Ask(upstream.port)).1.isSuccess)
        #expect(upstream.connections == 10 && upstream.openConnections > 0)
    }

    /// The next transfer starts inside the end of the one before: nothing but the turn's own collecting may be needed to see
    /// what completes meanwhile.
    @Test func aChainOfTransfersOnOneConnection() async throws {
        let upstream = ScriptedUpstream.answering(body: "")
        defer { upstream.close() }
        let bench = try Bench()
        let ask = Ask(upstream.port)
        let done = bench.reactor.makePromise(of: Int.self)
        try await bench.onLoop { client in try Chain(client, ask, 300, done).next() }
        #expect(try await done.futureResult.get() == 300)
        #expect(upstream.connections == 1 && upstream.requests.count == 300)
    }

    @Test func cancellingWhileConnectingDoesNotBlock() async throws {
        let silent = SilentListener()
        let upstream = ScriptedUpstream.answering(body: "")
        defer { upstream.close() }
        let bench = try Bench()
        let recorder = Recorder()
        let transfers = try await bench.onLoop { client in
            NIOLoopBound(
                try (0..<20).map { _ in try client.start(Ask(silent.port).request(), delegate: recorder) }, eventLoop: bench.reactor)
        }
        try await eventually("connecting") { try silent.connecting() >= 20 }
        // Were one of them to wait for its connect timeout, the test would run into its own limit.
        try await bench.onLoop { client in
            for transfer in transfers.value { transfer.cancel() }
            #expect(client.activeTransfers == 0)
        }
        try await eventually("its sockets are closed") { try silent.connecting() == 0 }
        #expect(recorder.ends == 0)
        // Their descriptors' numbers serve others now.
        for _ in 0..<5 { #expect(try await bench.run(Ask(upstream.port)).1.isSuccess) }
    }

    @Test func aTransferThatIsOverTouchesNobody() async throws {
        let upstream = ScriptedUpstream { connection in
            guard let request = try connection.readHead() else { return }
            try connection.send("HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n")
            try connection.send([UInt8](repeating: request.requestLine.contains("/a") ? 97 : 98, count: 300_000))
        }
        defer { upstream.close() }
        let bench = try Bench()
        var first = Ask(upstream.port)
        first.target = Array("/a".utf8)
        let (ask, recorder) = (first, Recorder())
        recorder.onHead = { $0.pauseReceiving() }
        let old = try await bench.onLoop { client in
            NIOLoopBound(try client.start(ask.request(), delegate: recorder), eventLoop: bench.reactor)
        }
        try await eventually("paused") { try await bench.onLoop { _ in old.value.hasHead } }
        try await bench.onLoop { _ in old.value.cancel() }
        let touch: @Sendable (Transfer) -> Void = { _ in
            old.value.resumeReceiving()
            old.value.send(ByteBuffer(string: "x"))
            old.value.finishSending()
            old.value.cancel()
        }
        let (second, result) = try await bench.run(Ask(upstream.port), begin: touch)
        #expect(result.isSuccess && second.body == [UInt8](repeating: 98, count: 300_000))
        #expect(recorder.ends == 0 && recorder.body.isEmpty)
    }

    @Test func shutdownClosesEverything() async throws {
        let upstream = ScriptedUpstream.answering(body: "")
        let silent = ScriptedUpstream { try $0.waitForEnd() }
        defer {
            upstream.close()
            silent.close()
        }
        let bench = try Bench()
        for _ in 0..<3 { try await bench.run(Ask(upstream.port)) }
        let recorder = Recorder()
        try await bench.onLoop { client in _ = try client.start(Ask(silent.port).request(), delegate: recorder) }
        try await eventually("both are connected") { upstream.openConnections == 1 && silent.openConnections == 1 }
        try await bench.onLoop { client in
            client.shutdown()
            client.shutdown()
            #expect(client.activeTransfers == 0)
            #expect(throws: TransferError.self) { try client.start(Ask(upstream.port).request(), delegate: recorder) }
        }
        try await eventually("both are closed") { upstream.openConnections == 0 && silent.openConnections == 0 }
        #expect(recorder.ends == 0)
    }
}

/// Starts one transfer after the other, each from the end of the one before. On the reactor.
private final class Chain {
    private let (client, ask, wanted, done): (CurlClient, Ask, Int, EventLoopPromise<Int>)
    private let destination: Destination
    private var count = 0
    private var current: Recorder?

    init(_ client: CurlClient, _ ask: Ask, _ wanted: Int, _ done: EventLoopPromise<Int>) {
        (self.client, self.ask, self.wanted, self.done) = (client, ask, wanted, done)
        destination = ask.destination()
    }

    func next() throws {
        guard count < wanted else { return done.succeed(count) }
        let recorder = Recorder()
        recorder.onEnd = { [self] result in
            guard result.isSuccess else { return done.fail(result.error!) }
            count += 1
            do { try next() } catch { done.fail(error) }
        }
        current = recorder
        _ = try client.start(ask.request(to: destination), delegate: recorder)
    }
}
