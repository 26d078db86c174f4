import NIOCore
import Reactor
import TestKit
import Testing

@Suite(.timeLimit(.minutes(10))) struct ReadTests {
    private static let withoutAutoRead: @Sendable (any Channel) throws -> Void = {
        try $0.syncOptions!.setOption(.autoRead, value: false)
    }

    @Test func withoutAutoReadEachReadIsAskedFor() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor, prepare: Self.withoutAutoRead)
            let (peer, channel, diary) = try await host.connect()
            try peer.send("one")
            // What waits unread costs nothing: the loop sleeps.
            let hook = Confined(Hook())
            try await reactor.run { reactor.addTurnHook(.flush, hook.value) }
            try await Task.sleep(for: .milliseconds(100))
            #expect(try await reactor.run { hook.value.turns } < 20)
            #expect(diary.events == [.active])
            channel.read()
            try await diary.waits(for: .readComplete)
            #expect(diary.events == [.active, .read("one"), .readComplete])
            // Asked for before there is anything.
            channel.read()
            channel.read()
            try await reactor.run {}
            try peer.send("two")
            try await diary.waits(for: .read("two"))
            try peer.send("three")
            for _ in 0..<5 { try await reactor.run {} }
            #expect(diary.events == [.active, .read("one"), .readComplete, .read("two"), .readComplete])
            try await channel.setOption(.autoRead, value: true).get()
            try await diary.waits(for: .read("three"))
        }
    }

    @Test func aPausedReaderHoldsThePeerBack() async throws {
        let total = 24 << 20
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor) { event, context in
                guard case .read = event else { return }
                try? context.channel.syncOptions!.setOption(.autoRead, value: false)
            }
            let (peer, channel, diary) = try await host.connect()
            let sent = Locked(0)
            async let sending: Void = offTheCooperativePool {
                var pattern = BytePattern()
                while pattern.position < total {
                    try peer.send(Array(pattern.next(min(65_521, total - pattern.position))))
                    let position = pattern.position
                    sent.withLock { $0 = position }
                }
            }
            var last = -1
            try await eventually("the peer stands still") {
                try await Task.sleep(for: .milliseconds(50))
                let now = sent.withLock { $0 }
                defer { last = now }
                return now > 0 && now == last
            }
            #expect(last < total && diary.received <= 65_536)
            // From here on every read pauses and every completion resumes.
            while diary.received < total {
                let before = diary.received
                try await channel.setOption(.autoRead, value: true).get()
                try await eventually("more") { diary.received > before }
            }
            try await sending
            #expect(diary.received == total && diary.isPattern)
        }
    }

    /// Costs no system call and loses nothing.
    @Test func readingMayStopAndGoOnWithinARead() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor) { event, context in
                let options = context.channel.syncOptions!
                switch event {
                case .read: try? options.setOption(.autoRead, value: false)
                case .readComplete: try? options.setOption(.autoRead, value: true)
                default: break
                }
            }
            let (peer, _, diary) = try await host.connect()
            var pattern = BytePattern()
            for _ in 0..<40 {
                let piece = Array(pattern.next(50_000))
                try await offTheCooperativePool { try peer.send(piece) }
            }
            try await eventually("all came") { diary.received == 2_000_000 }
            #expect(diary.isPattern)
        }
    }

    @Test func aResetIsHeardOfWhetherAnybodyReadsOrNot() async throws {
        try await withReactor { reactor in
            let ways: [@Sendable (any Channel) throws -> Void] = [Self.withoutAutoRead, { _ in }]
            for prepare in ways {
                let host = try await Host.start(on: reactor, prepare: prepare)
                let (peer, channel, diary) = try await host.connect()
                try await diary.waits(for: .active)
                peer.reset()
                try await diary.waits(for: .removed)
                #expect(!channel.isActive)
                guard case .error = diary.events.dropFirst().first else { Issue.record("\(diary.events)"); return }
                #expect(diary.events.suffix(3) == [.inactive, .unregistered, .removed])
                #expect(diary.count(.inactive) == 1)
            }
        }
    }

    @Test func aLoudConnectionDoesNotKeepTheOthersWaiting() async throws {
        try await withReactor { reactor in
            let host = try await Host.start(on: reactor)
            let (loud, _, _) = try await host.connect()
            let (quiet, _, diary) = try await host.connect()
            let isOver = Locked(false)
            async let noise: Void = offTheCooperativePool {
                let piece = [UInt8](repeating: 0, count: 262_144)
                while !isOver.withLock({ $0 }) { try loud.send(piece) }
            }
            try quiet.send("me too")
            try await diary.waits(for: .read("me too"))
            isOver.withLock { $0 = true }
            try await noise
        }
    }
}
