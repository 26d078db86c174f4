import NIOCore
import Reactor
import TestKit
import Testing

@Suite(.timeLimit(.minutes(10))) struct WriteTests {
    /// Small buffers on both sides, so that nearly every write is a partial one.
    private static let smallBuffer: @Sendable (any Channel) throws -> Void = {
        try $0.syncOptions!.setOption(.socketOption(.so_sndbuf), value: 8_192)
    }

    @Test func aSlowReaderGetsEveryByteInOrder() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor, prepare: Self.smallBuffer)
            let (peer, channel, _) = try await host.connect(receiveBuffer: 32_768)
            let written = Confined<[Int]>([])
            let (total, count, waiting) = try await reactor.run {
                var pattern = BytePattern()
                let sizes = [1, 40_000, 0, 777, 65_521, 16_384, 3]
                let count = 200
                for number in 0..<count {
                    let promise = reactor.makePromise(of: Void.self)
                    promise.futureResult.whenSuccess { written.value.append(number) }
                    channel.write(ByteBuffer(bytes: pattern.next(sizes[number % sizes.count])), promise: promise)
                }
                channel.flush()
                return (pattern.position, count, (channel as! StreamChannel).pendingBytes)
            }
            #expect(waiting > total / 2)
            var pattern = BytePattern()
            for size in [1, 10_000, 3, total - 10_004] {
                let bytes = try await peer.receive(size)
                #expect(bytes.count == size && bytes.withUnsafeBytes { pattern.matches($0) })
            }
            try await eventually("all promises are kept") { try await reactor.run { written.value.count } == count }
            #expect(try await reactor.run { written.value } == Array(0..<count))
            #expect((channel as? StreamChannel)?.pendingBytes == 0)
        }
    }

    @Test func waterMarksMakeOneEventEach() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor) { channel in
                try Self.smallBuffer(channel)
                try channel.syncOptions!.setOption(.writeBufferWaterMark, value: .init(low: 50_000, high: 100_000))
            }
            let (peer, channel, diary) = try await host.connect(receiveBuffer: 32_768)
            let steps = try await reactor.run {
                var steps = [channel.isWritable]
                channel.write(ByteBuffer(repeating: 1, count: 100_000), promise: nil)
                steps.append(channel.isWritable)
                // Bytes that are not flushed count, too.
                channel.write(ByteBuffer(repeating: 1, count: 1), promise: nil)
                steps.append(channel.isWritable)
                channel.write(ByteBuffer(repeating: 1, count: 400_000), promise: nil)
                channel.flush()
                return steps + [channel.isWritable]
            }
            #expect(steps == [true, true, false, false])
            #expect(try await peer.receive(500_001).count == 500_001)
            try await diary.waits(for: .writable(true))
            // `writable` notes what the channel says at that moment.
            #expect(diary.events == [.active, .writable(false), .writable(true)])
        }
    }

    @Test func eventsAndPromisesMayWriteMore() async throws {
        try await withReactor { reactor in
            let left = Confined(20)
            let host = try await Host.start(on: reactor, prepare: Self.smallBuffer) { event, context in
                guard case .writable = event, left.value > 0 else { return }
                left.value -= 1
                let channel = context.channel
                channel.writeAndFlush(ByteBuffer(repeating: 7, count: 70_000)).whenSuccess {
                    channel.writeAndFlush(ByteBuffer(repeating: 7, count: 10), promise: nil)
                }
            }
            let (peer, channel, _) = try await host.connect(receiveBuffer: 32_768)
            channel.writeAndFlush(ByteBuffer(repeating: 7, count: 70_000), promise: nil)
            let wanted = 70_000 + 20 * 70_010
            let bytes = try await peer.receive(wanted)
            #expect(bytes.count == wanted && bytes.allSatisfy { $0 == 7 })
            #expect(try await reactor.run { left.value } == 0)
        }
    }

    @Test func emptyWritesKeepTheirPromises() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor)
            let (peer, channel, _) = try await host.connect()
            let kept = Confined(0)
            try await reactor.run {
                for number in 0..<30_000 {
                    let promise = reactor.makePromise(of: Void.self)
                    promise.futureResult.whenSuccess { kept.value += 1 }
                    if number % 2 == 0 {
                        channel.write(ByteBuffer(), promise: promise)
                    } else {
                        channel.write(IOData.byteBuffer(ByteBuffer()), promise: promise)
                    }
                }
                channel.write(IOData.byteBuffer(ByteBuffer(string: "the end")), promise: nil)
                channel.flush()
            }
            #expect(try await peer.text(7) == "the end")
            try await eventually("all promises are kept") { try await reactor.run { kept.value } == 30_000 }
            // Alone, too.
            try await channel.writeAndFlush(ByteBuffer())
        }
    }

    /// A reader that keeps up with a writer that never stops: the kernel always takes the next byte.
    @Test func aWriterWithoutEndStarvesNobody() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor)
            let (peer, channel, _) = try await host.connect()
            let isOver = Confined(false)
            async let everything = peer.receiveAll()
            try await reactor.run {
                @Sendable func again() {
                    guard !isOver.value else { return channel.close(promise: nil) }
                    let promise = reactor.makePromise(of: Void.self)
                    promise.futureResult.whenSuccess { again() }
                    channel.writeAndFlush(ByteBuffer(string: "x"), promise: promise)
                }
                again()
            }
            try await reactor.run { isOver.value = true }
            #expect(try await everything.count > 0)
        }
    }

    @Test func whatCannotBeWrittenFails() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor)
            let (peer, channel, _) = try await host.connect()
            let answers = try await reactor.run {
                let file = NIOFileHandle(_deprecatedTakingOwnershipOfDescriptor: -1)
                _ = try? file.takeDescriptorOwnership()
                var answers: [EventLoopFuture<Void>] = []
                answers.append(channel.writeAndFlush(IOData.fileRegion(FileRegion(fileHandle: file, readerIndex: 0, endIndex: 1))))
                answers.append(channel.writeAndFlush("a string"))
                answers.append(channel.close(mode: .output))
                answers.append(channel.writeAndFlush(ByteBuffer(string: "late")))
                answers.append(channel.close())
                answers.append(channel.writeAndFlush(ByteBuffer(string: "later")))
                return answers.map(Ending.init)
            }
            try await eventually("all ended") { answers.allSatisfy { $0.text != nil } }
            #expect(
                answers.map { $0.text! } == [
                    "\(ChannelError.operationUnsupported)", "\(ChannelError.operationUnsupported)", "done",
                    "\(ChannelError.outputClosed)", "done",
                    "\(ChannelError.ioOnClosedChannel)",
                ])
            #expect(try await peer.receiveAll().isEmpty)
        }
    }

    @Test(arguments: ["close", "reset", "stop"]) func everyPromiseEndsWithTheChannel(_ how: String) async throws {
        let reactor = try Reactor.start(name: "test")
        let host = try await Host.start(on: reactor, prepare: Self.smallBuffer)
        let (peer, channel, diary) = try await host.connect(receiveBuffer: 4_096)
        let endings = try await reactor.run {
            var endings: [Ending] = []
            for number in 0..<100 {
                endings.append(Ending(channel.write(ByteBuffer(repeating: 1, count: number % 3 * 30_000))))
                if number == 50 { channel.flush() }
            }
            endings.append(Ending(channel.closeFuture))
            return endings
        }
        #expect(endings.contains { $0.text == nil })
        switch how {
        case "close": try await channel.close()
        case "reset": peer.reset()
        default: try await reactor.end()
        }
        try await eventually("all ended") { endings.allSatisfy { $0.text != nil } }
        #expect(endings.last?.text == "done" && endings[99].text != "done")
        try await diary.waits(for: .removed)
        if how != "stop" { try await reactor.end() }
    }
}
