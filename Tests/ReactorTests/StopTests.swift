import CLinux
import NIOCore
import TestKit
import Testing

@testable import Reactor

/// What `stop()` leaves behind: nothing.
@Suite(.timeLimit(.minutes(10))) struct StopTests {
    /// A reactor that is seen to be gone.
    private final class Remains: Sendable {
        private let state = Locked<Weak>(Weak())
        private struct Weak { weak var reactor: Reactor? }
        init(_ reactor: Reactor) { state.withLock { $0.reactor = reactor } }
        var isGone: Bool { state.withLock { $0.reactor == nil } }
    }

    @Test func stoppingClosesEverything() async throws {
        let remains = try await runAndStop()
        try await eventually("nothing holds the reactor") { remains.isGone }
    }

    private func runAndStop() async throws -> Remains {
        let reactor = try Reactor.start(name: "test")
        let host = try await Host.start(on: reactor)
        let (peer, channel, diary) = try await host.connect()
        let upstream = ScriptedUpstream { try $0.waitForEnd() }
        let silent = SilentListener()
        defer { upstream.close() }
        let outgoing = Diary()
        let connected = try await reactor.flatSubmit {
            let address = try! SocketAddress(ipAddress: "127.0.0.1", port: upstream.port)
            return reactor.connect(to: address) { try $0.pipeline.syncOperations.addHandler(Script(outgoing) { _, _ in }) }
        }.get()
        let (paused, endings) = try await reactor.run {
            let address = try SocketAddress(ipAddress: "127.0.0.1", port: 0)
            let paused = try reactor.listen(on: address) { _ in }
            paused.mayAccept = { false }
            let nowhere = try SocketAddress(ipAddress: "127.0.0.1", port: silent.port)
            let connecting = reactor.connect(to: nowhere, timeout: .minutes(2)) { _ in }
            _ = reactor.startTimer(in: .hours(1)) { _ = paused }
            let scheduled = reactor.scheduleTask(in: .hours(1)) {}
            return (
                Confined(paused),
                [
                    Ending(connecting), Ending(scheduled.futureResult), Ending(channel.closeFuture), Ending(connected.closeFuture),
                ]
            )
        }
        // One waits in the queue of the listener that has been told to pause.
        let waiting = try Peer(port: paused.value.localAddress.port!)
        try await eventually("the listener has paused") { try await reactor.run { paused.value.isPaused } }
        #expect(endings.allSatisfy { $0.text == nil })
        try await reactor.end()
        let shutdown = "\(EventLoopError.shutdown)"
        #expect(endings.map(\.text) == [shutdown, shutdown, "done", "done"])
        for diary in [diary, outgoing] {
            #expect(diary.events.suffix(3) == [.inactive, .unregistered, .removed], "\(diary.events)")
        }
        #expect(try await peer.receiveAll().isEmpty)
        #expect(try await waiting.receiveAll().isEmpty)
        try await eventually("the upstream sees the end") { upstream.openConnections == 0 }
        for port in [host.port, paused.value.localAddress.port!] { #expect(throws: (any Error).self) { try Peer(port: port) } }
        #expect(!reactor.inEventLoop && !channel.isActive && !connected.isActive)
        let remains = Remains(reactor)
        reactor.execute { Issue.record("ran after the end") }
        return remains
    }

    /// A future is never left open by the end.
    @Test func whatTheEndLeadsToIsDone() async throws {
        let log = Confined<[String]>([])
        let reactor = try Reactor.start(name: "test")
        let host = try await Host.start(on: reactor) { event, context in
            guard event == .inactive else { return }
            let loop = context.eventLoop
            loop.execute {
                loop.scheduleTask(in: .hours(1)) {}.futureResult.whenFailure { _ in
                    loop.execute { log.value.append("task of a timer of a task") }
                }
            }
        }
        _ = try await host.connect()
        try await reactor.end()
        #expect(log.value == ["task of a timer of a task"])
    }

    @Test func everyTaskThatWasTakenIsRunHoweverTheEndRaces() async throws {
        for _ in 0..<50 {
            let reactor = try Reactor.start(name: "test")
            let counts = Locked((given: 0, run: 0))
            async let giving: Void = offTheCooperativePool {
                for _ in 0..<200 {
                    // The last ones come too late and are dropped: what they hold is let go.
                    reactor.execute { counts.withLock { $0.run += 1 } }
                    counts.withLock { $0.given += 1 }
                }
            }
            try await eventually("some are given") { counts.withLock { $0.given } > 0 }
            let given = counts.withLock { $0.given }
            try await reactor.end()
            #expect(counts.withLock { $0.run } >= given)
            try await giving
        }
    }

    /// What repeats itself for ever is cut off.
    @Test func aTaskThatRepeatsItselfDoesNotHinderTheEnd() async throws {
        let reactor = try Reactor.start(name: "test")
        try await reactor.run {
            @Sendable func again() { reactor.execute { again() } }
            again()
        }
        try await reactor.end()
    }
}
