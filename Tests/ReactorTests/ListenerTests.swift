import Foundation
import NIOCore
import TestKit
import Testing

@testable import Reactor

@Suite(.timeLimit(.minutes(10))) struct ListenerTests {
    private static func address(_ port: Int) throws -> SocketAddress { try SocketAddress(ipAddress: "127.0.0.1", port: port) }

    @Test func twoReactorsShareAPort() async throws {
        try await withReactor("one") { one in
            try await withReactor("two") { two in
                let first = try await one.run { Confined(try one.listen(on: Self.address(0)) { _ in }) }
                // The kernel chose a port.
                let port = try #require(first.value.localAddress.port)
                #expect(port > 0)
                let second = try await two.run { Confined(try two.listen(on: Self.address(port)) { _ in }) }
                #expect(second.value.localAddress.port == port)
                // The kernel deals by a hash of the addresses: 64 to one side would be a wonder.
                let peers = try (0..<64).map { _ in try Peer(port: port) }
                var counts = (0, 0)
                try await eventually("all were accepted") {
                    counts = (try await one.run { first.value.accepted }, try await two.run { second.value.accepted })
                    return counts.0 + counts.1 == 64
                }
                #expect(counts.0 > 0 && counts.1 > 0, "\(counts)")
                _ = peers
            }
        }
    }

    @Test func anAddressInUseIsAnError() async throws {
        try await withReactor { reactor in
            let code = try await reactor.run {
                let first = try reactor.listen(on: Self.address(0)) { _ in }
                var options = ListenOptions()
                options.reusePort = false
                do {
                    _ = try reactor.listen(on: first.localAddress, options: options) { _ in }
                    return CInt(0)
                } catch { return (error as? IOError)?.errnoCode ?? -1 }
            }
            #expect(code == EADDRINUSE)
            await #expect(throws: IOError.self) {
                // TEST-NET-1 (RFC 5737) is nobody's.
                try await reactor.run { _ = try reactor.listen(on: SocketAddress(ipAddress: "192.0.2.1", port: 0)) { _ in } }
            }
        }
    }

    @Test func connectionsWaitInTheQueueWhileNoneMayBeAccepted() async throws {
        try await withReactor { reactor in
            let room = Confined(2)
            let listener = try await reactor.run {
                let listener = try reactor.listen(on: Self.address(0)) { channel in
                    room.value -= 1
                    channel.closeFuture.whenComplete { _ in room.value += 1 }
                }
                listener.mayAccept = { room.value > 0 }
                return Confined(listener)
            }
            let peers = try (0..<5).map { _ in try Peer(port: listener.value.localAddress.port!) }
            try await eventually("two are in, the listener rests") {
                try await reactor.run { listener.value.accepted == 2 && listener.value.isPaused }
            }
            // Nobody looks at the queue until somebody says so.
            try peers[0].send("x")
            peers[0].close()
            try await eventually("there is room") { try await reactor.run { room.value } == 1 }
            #expect(try await reactor.run { listener.value.accepted } == 2)
            try await reactor.run {
                listener.value.resumeAccepting()
                listener.value.resumeAccepting()
            }
            try await eventually("the next one is in") { try await reactor.run { listener.value.accepted } == 3 }
            #expect(try await reactor.run { listener.value.isPaused })
            try await reactor.run {
                room.value = 100
                listener.value.resumeAccepting()
            }
            try await eventually("all are in") { try await reactor.run { listener.value.accepted } == 5 }
        }
    }

    /// A connection whose client has been told that it stands is served, not reset.
    @Test func stoppingServesTheQueueFirst() async throws {
        try await withReactor { reactor in
            let (listener, refusing) = try await reactor.run {
                let listener = try reactor.listen(on: Self.address(0)) { channel in
                    try channel.pipeline.syncOperations.addHandler(
                        Script(Diary()) { event, context in
                            if event == .active { context.writeAndFlush(NIOAny(ByteBuffer(string: "served")), promise: nil) }
                        })
                }
                listener.mayAccept = { false }
                return (Confined(listener), listener.localAddress.port!)
            }
            let peers = try (0..<20).map { _ in try Peer(port: refusing) }
            try await eventually("the listener rests") { try await reactor.run { listener.value.isPaused } }
            try await reactor.run { listener.value.stopAccepting() }
            for peer in peers { #expect(try await peer.text(6) == "served") }
            #expect(throws: (any Error).self) { try Peer(port: refusing) }
            try await reactor.run {
                // Harmless now.
                listener.value.stopAccepting()
                listener.value.resumeAccepting()
                listener.value.close()
            }
        }
    }

    @Test func aListenerMayCloseItselfWhileItAccepts() async throws {
        try await withReactor { reactor in
            let closing = Confined<Listener?>(nil)
            let port = try await reactor.run {
                closing.value = try reactor.listen(on: Self.address(0)) { _ in closing.value?.close() }
                return closing.value!.localAddress.port!
            }
            let peer = try Peer(port: port)
            try await eventually("one was accepted") { try await reactor.run { closing.value?.accepted } == 1 }
            try peer.send("still there")
            try await eventually("nobody listens") { (try? Peer(port: port)) == nil }
        }
    }
}
