import Foundation
import NIOCore
import Reactor
import TestKit
import Testing

@Suite(.timeLimit(.minutes(10))) struct ConnectTests {
    /// Connects; the diary is the channel's. The second value is how it ended.
    private func connect(
        _ reactor: Reactor, _ port: Int, timeout: TimeAmount = .minutes(1), _ react: @escaping Script.Reaction = { _, _ in }
    ) async throws -> (Diary, Result<any Channel, any Error>) {
        let diary = Diary()
        let future = try await reactor.run {
            reactor.connect(to: try SocketAddress(ipAddress: "127.0.0.1", port: port), timeout: timeout) { channel in
                try channel.pipeline.syncOperations.addHandler(Script(diary, react))
            }
        }
        do { return (diary, .success(try await future.get())) } catch { return (diary, .failure(error)) }
    }

    @Test func bothSidesKnowTheirAddresses() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor) { event, context in
                guard case .read = event else { return }
                let (local, remote) = (context.localAddress?.port ?? 0, context.remoteAddress?.port ?? 0)
                context.writeAndFlush(NIOAny(ByteBuffer(string: "\(local) \(remote)")), promise: nil)
            }
            let (diary, result) = try await connect(reactor, host.port) { event, context in
                if event == .active { context.writeAndFlush(NIOAny(ByteBuffer(string: "?")), promise: nil) }
            }
            let channel = try result.get()
            #expect(channel.isActive && channel.isWritable && channel.remoteAddress?.port == host.port)
            let own = try #require(channel.localAddress?.port)
            try await diary.waits(for: .read("\(host.port) \(own)"))
            #expect(diary.events.first == .active)
            try await channel.close()
            // Known to the end: whoever logs the connection asks late.
            #expect(channel.remoteAddress?.port == host.port)
        }
    }

    @Test func refusedAndTooSlow() async throws {
        let closed = ScriptedUpstream { _ in }
        closed.close()
        let silent = SilentListener()
        try await withReactor { reactor in
            let (refused, refusal) = try await connect(reactor, closed.port)
            #expect { try refusal.get() } throws: { ($0 as? IOError)?.errnoCode == ECONNREFUSED }
            let (late, lateness) = try await connect(reactor, silent.port, timeout: .milliseconds(50))
            #expect { try lateness.get() } throws: {
                if case .connectTimeout? = $0 as? ChannelError { true } else { false }
            }
            for diary in [refused, late] {
                try await diary.waits(for: .removed)
                #expect(diary.events == [.unregistered, .removed])
            }
            #expect(try await reactor.run { reactor.pendingTimers } == 0)
            try await eventually("its socket is closed") { try silent.connecting() == 0 }
        }
    }

    @Test func closingWhileConnectingFailsTheConnect() async throws {
        struct Refused: Error {}
        let silent = SilentListener()
        let upstream = ScriptedUpstream { try $0.waitForEnd() }
        defer { upstream.close() }
        try await withReactor { reactor in
            let channels = Locked<[any Channel]>([])
            let endings = try await reactor.run {
                let address = try SocketAddress(ipAddress: "127.0.0.1", port: silent.port)
                let limit = TimeAmount.minutes(2)
                // Later; within the initializer; by the initializer's failure.
                let later = reactor.connect(to: address, timeout: limit) { channel in channels.withLock { $0.append(channel) } }
                let within = reactor.connect(to: address, timeout: limit) { $0.close(promise: nil) }
                let thrown = reactor.connect(to: address, timeout: limit) { _ in throw Refused() }
                return [Ending(later), Ending(within), Ending(thrown)]
            }
            try await channels.withLock { $0[0] }.close()
            try await eventually("all ended") { endings.allSatisfy { $0.text != nil } }
            #expect(endings.allSatisfy { $0.text != "done" } && endings[2].text == "\(Refused())")
            #expect(try await reactor.run { reactor.pendingTimers } == 0)
            // In the very first event of the connection.
            let (diary, _) = try await connect(reactor, upstream.port) { event, context in
                if event == .active { context.close(promise: nil) }
            }
            try await diary.waits(for: .removed)
            #expect(diary.events == [.active, .inactive, .unregistered, .removed])
            try await eventually("the upstream sees the end") { upstream.connections == 1 && upstream.openConnections == 0 }
        }
    }
}

@Suite(.timeLimit(.minutes(10))) struct OptionTests {
    @Test func whatHandlersAskForIsThere() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor)
            let (peer, channel, _) = try await host.connect()
            defer { peer.close() }
            #expect(try await channel.getOption(.autoRead).get())
            #expect(try await channel.getOption(.allowRemoteHalfClosure).get() == false)
            #expect(try await channel.getOption(.tcpOption(.tcp_nodelay)).get() == 1)
            let marks = ChannelOptions.Types.WriteBufferWaterMark(low: 1, high: 2)
            try await channel.setOption(.writeBufferWaterMark, value: marks).get()
            let read = try await channel.getOption(.writeBufferWaterMark).get()
            #expect(read.low == 1 && read.high == 2)
            try await channel.setOption(.maxMessagesPerRead, value: 1).get()
            #expect(try await channel.getOption(.maxMessagesPerRead).get() == 1)
            // On the loop, without a future.
            let waiting = try await reactor.run {
                channel.write(ByteBuffer(string: "abc"), promise: nil)
                return try channel.syncOptions!.getOption(.bufferedWritableBytes)
            }
            #expect(waiting == 3)
        }
    }

    @Test func anUnknownOptionIsAnError() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor)
            let (peer, channel, _) = try await host.connect()
            defer { peer.close() }
            await #expect(throws: ChannelError.operationUnsupported) { try await channel.setOption(.backlog, value: 1).get() }
            await #expect(throws: ChannelError.operationUnsupported) { try await channel.getOption(.connectTimeout).get() }
            await #expect(throws: IOError.self) {
                try await channel.setOption(.socketOption(.init(rawValue: 12_345)), value: 1).get()
            }
            let address = try #require(channel.localAddress)
            await #expect(throws: ChannelError.operationUnsupported) { try await channel.bind(to: address) }
            await #expect(throws: ChannelError.operationUnsupported) { try await channel.connect(to: address) }
            #expect(channel.isActive)
        }
    }
}
