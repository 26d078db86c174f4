import NIOCore
import Reactor
import TestKit
import Testing

@Suite(.timeLimit(.minutes(10))) struct CloseTests {
    private static let end: [Event] = [.inactive, .unregistered, .removed]

    /// Whatever was going on: nothing but the end is fired after a close, the end once, and nobody holds the channel.
    @Test(arguments: [Event.active, .read("hello"), .readComplete, .writable(false), .writable(true), .inputClosed, .outputClosed])
    func closingWithinAnEventIsTheLastThing(_ moment: Event) async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor) { channel in
                try channel.syncOptions!.setOption(.allowRemoteHalfClosure, value: true)
            } _: { event, context in
                if event == moment {
                    context.close(promise: nil)
                    // The second one is refused, not a second end.
                    return context.close(promise: nil)
                }
                guard event == .readComplete else { return }
                // Makes the later moments come.
                context.writeAndFlush(NIOAny(ByteBuffer(repeating: 1, count: 100_000)), promise: nil)
                if moment == .outputClosed { context.close(mode: .output, promise: nil) }
            }
            let (peer, diary) = try await host.visit()
            try peer.send("hello")
            if moment == .inputClosed { peer.finishSending() }
            _ = try await peer.receiveAll()
            try await diary.waits(for: .removed)
            let from = try #require(diary.events.firstIndex(of: moment), "\(diary.events)")
            #expect(Array(diary.events[(from + 1)...]) == Self.end, "\(diary.events)")
            try await eventually("nobody holds the channel") { host.channels == 0 }
        }
    }

    @Test func closingWithinTheInitializerOrItsFailureEndsTheConnection() async throws {
        struct Refused: Error {}
        try await withReactor { reactor in
            for how in 0..<2 {
                let host = try await Host.start(on: reactor) { channel in
                    if how == 0 { channel.close(promise: nil) } else { throw Refused() }
                }
                let (peer, diary) = try await host.visit()
                #expect(try await peer.receiveAll().isEmpty)
                try await diary.waits(for: .removed)
                #expect(diary.events == [.unregistered, .removed])
                try await eventually("nobody holds the channel") { host.channels == 0 }
            }
        }
    }

    @Test func closingWithinAWritePromise() async throws {
        try await withReactor { reactor in
            let endings = Confined<[Ending]>([])
            let host = try await Host.start(on: reactor) { event, context in
                guard event == .active else { return }
                let channel = context.channel
                for number in 0..<10 {
                    let written = channel.write(ByteBuffer(string: "\(number)"))
                    if number == 4 { written.whenSuccess { channel.close(promise: nil) } }
                    endings.value.append(Ending(written))
                }
                channel.flush()
                // After the flush: these were not given to the kernel.
                endings.value.append(Ending(channel.write(ByteBuffer(string: "unflushed"))))
            }
            let (peer, diary) = try await host.visit()
            // One writev took all ten before the first promise was kept.
            #expect(String(decoding: try await peer.receiveAll(), as: UTF8.self) == "0123456789")
            try await diary.waits(for: .removed)
            #expect(diary.events == [.active] + Self.end)
            let texts = try await reactor.run { endings.value.map(\.text) }
            #expect(texts.dropLast() == ArraySlice([String?](repeating: "done", count: 10)))
            #expect(texts.last == "\(ChannelError.ioOnClosedChannel)")
            try await eventually("nobody holds the channel") { host.channels == 0 }
        }
    }

    @Test func closingTwiceAndFromAnotherThread() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor)
            let (peer, channel, diary) = try await host.connect()
            try await channel.close()
            #expect(!channel.isActive && !channel.isWritable)
            await #expect(throws: ChannelError.alreadyClosed) { try await channel.close() }
            try await channel.closeFuture.get()
            #expect(try await peer.receiveAll().isEmpty)
            try await diary.waits(for: .removed)
            #expect(diary.events == [.active] + Self.end)
            // What comes after is harmless.
            channel.read()
            channel.flush()
            await #expect(throws: ChannelError.ioOnClosedChannel) { try await channel.setOption(.autoRead, value: true).get() }
            await #expect(throws: ChannelError.ioOnClosedChannel) { try await channel.getOption(.autoRead).get() }
            await #expect(throws: ChannelError.self) { try await channel.close(mode: .output) }
            await #expect(throws: ChannelError.self) { try await channel.writeAndFlush(ByteBuffer(string: "late")) }
        }
    }

    // MARK: Half-close

    @Test func withoutHalfClosureThePeersEndIsTheEnd() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor)
            let (peer, diary) = try await host.visit()
            try peer.send("bye")
            peer.finishSending()
            #expect(try await peer.receiveAll().isEmpty)
            try await diary.waits(for: .removed)
            #expect(diary.events.filter { $0 != .readComplete } == [.active, .read("bye")] + Self.end)
        }
    }

    @Test func withHalfClosureTheAnswerFollowsThePeersEnd() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor) { channel in
                try channel.syncOptions!.setOption(.allowRemoteHalfClosure, value: true)
            } _: { event, context in
                guard event == .inputClosed else { return }
                context.write(NIOAny(ByteBuffer(repeating: 1, count: 3_000_000)), promise: nil)
                // Waits for what is queued, flushed or not.
                context.close(mode: .output, promise: nil)
            }
            let (peer, diary) = try await host.visit()
            try peer.send("question")
            peer.finishSending()
            #expect(try await peer.receiveAll().count == 3_000_000)
            try await diary.waits(for: .removed)
            let events = diary.events.filter { $0 != .readComplete && $0 != .writable(false) && $0 != .writable(true) }
            #expect(events == [.active, .read("question"), .inputClosed, .outputClosed] + Self.end)
        }
    }

    @Test func afterItsOwnEndAChannelStillReads() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor)
            let (peer, channel, diary) = try await host.connect()
            let (written, closed) = try await reactor.run {
                (Ending(channel.write(ByteBuffer(repeating: 1, count: 1_000_000))), Ending(channel.close(mode: .output)))
            }
            #expect(try await peer.receiveAll().count == 1_000_000)
            try await diary.waits(for: .outputClosed)
            #expect(written.text == "done" && closed.text == "done" && channel.isActive)
            await #expect(throws: ChannelError.outputClosed) { try await channel.close(mode: .output) }
            try peer.send("more")
            try await diary.waits(for: .read("more"))
            peer.close()
            try await diary.waits(for: .removed)
            #expect(diary.events.suffix(3) == Self.end[...])
        }
    }

    @Test func aClosedInputReadsNoMore() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor)
            let (peer, channel, diary) = try await host.connect()
            try await channel.close(mode: .input)
            await #expect(throws: ChannelError.inputClosed) { try await channel.close(mode: .input) }
            try peer.send("unheard")
            try await channel.writeAndFlush(ByteBuffer(string: "heard"))
            #expect(try await peer.text(5) == "heard")
            #expect(diary.events == [.active, .inputClosed])
            try await channel.close(mode: .output)
            try await diary.waits(for: .removed)
            #expect(diary.events == [.active, .inputClosed, .outputClosed] + Self.end)
        }
    }

    /// No read tells of it, and the kernel reports it in every turn.
    @Test func aResetAfterThePeersEndClosesTheChannel() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor) { channel in
                try channel.syncOptions!.setOption(.allowRemoteHalfClosure, value: true)
            }
            let (peer, channel, diary) = try await host.connect()
            peer.finishSending()
            try await diary.waits(for: .inputClosed)
            peer.reset()
            try await diary.waits(for: .removed)
            #expect(!channel.isActive && diary.events.suffix(3) == Self.end[...])
        }
    }
}
