import Foundation
import NIOCore
import TestKit
import Testing

@testable import Reactor

/// An error that leaves an exit test is a crash without words; an issue reaches the parent.
private func recordingErrors(_ body: () async throws -> Void) async {
    do { try await body() } catch { Issue.record(error) }
}

/// Counts descriptors, so each test is a process of its own: other tests open and close theirs at the same time.
@Suite(.timeLimit(.minutes(10))) struct LeakTests {
    private static func openDescriptors() throws -> Int { try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").count }

    /// Descriptors of the libraries' own (timers, pipes of programs that ran) come and go; a leak would be one a connection.
    private static let slack = 20

    /// Waits until no more descriptors are open than before; says which ones are left.
    private static func expectNoMore(than before: Int) async throws {
        do { try await eventually("no descriptor is left") { try openDescriptors() <= before + slack } } catch {
            let names = try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd")
            let left = names.map { (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/fd/\($0)")) ?? "?" }
            throw NeverHappened(description: "\(error): \(before) before, now \(left)")
        }
    }

    /// No descriptor gets this number or a higher one.
    private static func limitDescriptors(_ count: Int) {
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        limit.rlim_cur = min(rlim_t(count), limit.rlim_max)
        setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    }

    /// Leaves room for this many more.
    private static func leaveDescriptors(_ room: Int) throws {
        // One of them is the folder's own.
        let used = Set(try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").compactMap { Int($0) })
        var (limit, left) = (0, room)
        while left > 0 {
            if !used.contains(limit) { left -= 1 }
            limit += 1
        }
        limitDescriptors(limit)
    }

    /// libdispatch, which `Task.sleep` waits with, opens a timerfd, and aborts where it gets none.
    private static func waitWithoutDescriptors(_ what: String, _ isSo: () async throws -> Bool) async throws {
        let end = ContinuousClock.now + .seconds(120)
        while try await !isSo() {
            guard ContinuousClock.now < end else { throw NeverHappened(description: "never: \(what)") }
            try await offTheCooperativePool { _ = usleep(5_000) }
        }
    }

    /// What clients do: one in three ends in good order, one goes away amid the answer, which is a reset, one leaves the end
    /// to the server.
    private final class Visitor: ChannelInboundHandler {
        typealias InboundIn = ByteBuffer
        typealias OutboundOut = ByteBuffer
        private let number: Int
        init(_ number: Int) { self.number = number }

        func channelActive(context: ChannelHandlerContext) {
            let (length, close) = (number % 3 == 1 ? 60_000 : 10, number % 3 == 2 ? "Connection: close\r\n" : "")
            context.writeAndFlush(wrapOutboundOut(ByteBuffer(string: "GET /\(length) HTTP/1.1\r\nHost: a\r\n\(close)\r\n")), promise: nil)
            if number % 3 == 1 { context.close(promise: nil) }
        }
        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            if number % 3 == 0 { context.close(promise: nil) }
        }
    }

    @Test func thousandsOfConnectionsLeaveNothing() async {
        await #expect(processExitsWith: .success) { await recordingErrors {
            LeakTests.limitDescriptors(4_096)
            let (near, far) = (try Reactor.start(name: "server"), try Reactor.start(name: "clients"))
            let server = try await WebServer.start(on: near)
            var before = 0
            for round in 0..<3 {
                // 500 at a time.
                for batch in 0..<4 {
                    try await far.flatSubmit {
                        let address = try! SocketAddress(ipAddress: "127.0.0.1", port: server.port)
                        let ends = (0..<500).map { number in
                            far.connect(to: address, timeout: .minutes(2)) { channel in
                                try channel.pipeline.syncOperations.addHandler(Visitor(batch * 500 + number))
                            }
                                .flatMap { $0.closeFuture }
                        }
                        return EventLoopFuture.andAllSucceed(ends, on: far)
                    }.get()
                }
                try await eventually("no channel of the server is left") { server.channels == 0 }
                #expect(server.accepted == 2_000 * (round + 1))
                // What the first round made stays: queues, slots, buffers.
                if round == 0 { before = try LeakTests.openDescriptors() }
                try await LeakTests.expectNoMore(than: before)
                for reactor in [near, far] { #expect(try await reactor.run { reactor.pendingTimers } == 0) }
            }
            try await near.end()
            try await far.end()
        } }
    }

    @Test func tlsConnectionsLeaveNothing() async {
        await #expect(processExitsWith: .success) { await recordingErrors {
            let folder = try TemporaryFolder("leak")
            let certificate = try await TestCertificate(for: "IP:127.0.0.1", in: folder.path)
            let reactor = try Reactor.start(name: "server")
            let server = try await WebServer.start(on: reactor, certificate)
            var before = 0
            for round in 0..<3 {
                let arguments = [round == 1 ? "--h1" : "--npn-list=h2", "-n", "200", "-c", "100", "https://127.0.0.1:\(server.port)/10"]
                let outcome = try await Command.run("/usr/bin/h2load", arguments)
                #expect(outcome.text.contains("200 succeeded, 0 failed"), "\(outcome.text)")
                try await eventually("no channel of the server is left") { server.channels == 0 }
                if round == 0 { before = try LeakTests.openDescriptors() }
                try await LeakTests.expectNoMore(than: before)
            }
            try await reactor.end()
        } }
    }

    /// No descriptor is left for the next connection: the listener rests instead of turning in circles, and goes on.
    @Test func aListenerOutlivesTheWantOfDescriptors() async {
        await #expect(processExitsWith: .success) { await recordingErrors {
            let reactor = try Reactor.start(name: "server")
            let hook = Confined(Hook())
            let listener = try await reactor.run {
                reactor.addTurnHook(.flush, hook.value)
                var options = ListenOptions()
                options.pauseWhenExhausted = .milliseconds(20)
                return Confined(try reactor.listen(on: try SocketAddress(ipAddress: "127.0.0.1", port: 0), options: options) { _ in })
            }
            // The peers' descriptors come first, then there is room for 3 of 10 channels.
            var peers = try (0..<10).map { _ in try Peer(unconnectedTo: listener.value.localAddress.port!) }
            try LeakTests.leaveDescriptors(3)
            for peer in peers { try peer.connect() }
            try await LeakTests.waitWithoutDescriptors("it rests") { try await reactor.run { listener.value.isPaused } }
            let (turns, begun) = (try await reactor.run { hook.value.turns }, ContinuousClock.now)
            try await offTheCooperativePool { _ = usleep(200_000) }
            // A rest of 20 ms, ten times and more often where this thread sleeps longer; without rests a turn takes microseconds.
            let made = try await reactor.run { hook.value.turns } - turns
            #expect(Duration.milliseconds(2) * made < ContinuousClock.now - begun)
            #expect(try await reactor.run { listener.value.accepted } < 10)
            // Those that leave make room.
            peers.removeFirst(5)
            try await LeakTests.waitWithoutDescriptors("all were accepted") { try await reactor.run { listener.value.accepted } == 10 }
            try await reactor.end()
        } }
    }
}
