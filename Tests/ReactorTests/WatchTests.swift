import Foundation
import NIOCore
import Reactor
import TestKit
import Testing

@Suite(.timeLimit(.minutes(10))) struct WatchTests {
    @Test func whatIsAskedForIsToldUntilItIsTakenAway() async throws {
        let pair = try DescriptorPair()
        let heard = Confined<[Readiness]>([])
        try await withReactor { reactor in
            let watch = try await reactor.run { Confined(try reactor.watch(pair.ours, for: .read) { heard.value.append($0) }) }
            for _ in 0..<5 { try await reactor.run {} }
            #expect(try await reactor.run { heard.value.isEmpty })
            pair.write()
            // Level-triggered: again and again while it is not read.
            try await eventually("several calls") { try await reactor.run { heard.value.count } > 3 }
            #expect(try await reactor.run { heard.value.allSatisfy { $0 == .read } })
            // Without interest nothing is told, with another interest something else.
            try await reactor.run {
                try watch.value.update([])
                heard.value.removeAll()
            }
            for _ in 0..<5 { try await reactor.run {} }
            #expect(try await reactor.run { heard.value.isEmpty })
            try await reactor.run { try watch.value.update([.read, .write]) }
            try await eventually("both") { try await reactor.run { heard.value.contains([.read, .write]) } }
            try await reactor.run {
                _ = pair.drain()
                try watch.value.update(.read)
                heard.value.removeAll()
            }
            // The end of the peer comes unasked.
            shutdown(pair.theirs, Int32(SHUT_RDWR))
            try await eventually("the hang-up") { try await reactor.run { heard.value.last?.contains([.read, .hangup]) == true } }
            try await reactor.run {
                watch.value.cancel()
                watch.value.cancel()
                heard.value.removeAll()
            }
            for _ in 0..<5 { try await reactor.run {} }
            #expect(try await reactor.run { heard.value.isEmpty })
        }
    }

    /// Two are ready in the same turn, and whichever is told first takes the other back.
    @Test func aCancelledWatchIsNotCalledEvenInTheSameTurn() async throws {
        let pairs = try [DescriptorPair(), DescriptorPair()]
        let calls = Confined(0)
        let watches = Confined<[Watch]>([])
        try await withReactor { reactor in
            try await reactor.run {
                watches.value = try pairs.indices.map { index in
                    try reactor.watch(pairs[index].ours, for: .read) { _ in
                        calls.value += 1
                        watches.value[1 - index].cancel()
                        watches.value[index].cancel()
                    }
                }
                for pair in pairs { pair.write() }
            }
            try await eventually("a call") { try await reactor.run { calls.value } > 0 }
            for _ in 0..<5 { try await reactor.run {} }
            #expect(try await reactor.run { calls.value } == 1)
        }
    }

    /// Two are ready in the same turn. The one that is told first closes the other's descriptor and watches a new one of the
    /// same number: the event that the turn has fetched for the old one must not reach the new owner, which has nothing to
    /// read yet.
    @Test func aStaleEventNeverReachesTheNextOwnerOfADescriptor() async throws {
        for _ in 0..<20 {
            let pairs = try [DescriptorPair(), DescriptorPair()]
            let fresh = try DescriptorPair()
            let log = Confined<[String]>([])
            let watches = Confined<[Watch]>([])
            try await withReactor { reactor in
                try await reactor.run {
                    watches.value = try pairs.indices.map { index in
                        try reactor.watch(pairs[index].ours, for: .read) { _ in
                            log.value.append("old")
                            watches.value[index].cancel()
                            let other = watches.value[1 - index]
                            other.cancel()
                            // Closes the old file and gives its number to the new one, in one step: other tests open files, too.
                            dup2(fresh.ours, other.descriptor)
                            do {
                                let heir = try reactor.watch(other.descriptor, for: .read) { _ in
                                    log.value.append("new: \(fresh.drain())")
                                }
                                watches.value.append(heir)
                            } catch {
                                log.value.append("\(error)")
                            }
                        }
                    }
                    for pair in pairs { pair.write("stale") }
                }
                try await eventually("a call") { try await reactor.run { !log.value.isEmpty } }
                for _ in 0..<5 { try await reactor.run {} }
                #expect(try await reactor.run { log.value } == ["old"])
                // Its own events do reach it.
                fresh.write("its own")
                try await eventually("the new one's event") { try await reactor.run { log.value.count } > 1 }
                #expect(try await reactor.run { log.value } == ["old", "new: its own"])
                try await reactor.run { for watch in watches.value { watch.cancel() } }
            }
        }
    }

    @Test func whatCannotBeWatchedIsAnErrorThatLeavesNothing() async throws {
        let folder = try TemporaryFolder("watch")
        let file = open(folder.file("file"), O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        defer { close(file) }
        let pair = try DescriptorPair()
        try await withReactor { reactor in
            let codes = try await reactor.run {
                // A file is always ready (EPERM), a number without a file is nothing (EBADF), twice is once too often (EEXIST).
                let first = try reactor.watch(pair.ours, for: .read) { _ in }
                defer { first.cancel() }
                return [file, -1, pair.ours].map { descriptor -> CInt in
                    do {
                        _ = try reactor.watch(descriptor, for: .read) { _ in }
                        return 0
                    } catch { return (error as? IOError)?.errnoCode ?? -1 }
                }
            }
            #expect(codes == [EPERM, EBADF, EEXIST])
            let code = try await reactor.run {
                let own = dup(pair.ours)
                let watch = try reactor.watch(own, for: .read) { _ in }
                close(own)
                defer { watch.cancel() }
                do { try watch.update(.write) } catch { return (error as? IOError)?.errnoCode }
                return nil
            }
            #expect(code == EBADF || code == ENOENT)
        }
    }

    /// libcurl and libpq let go of what a handler holds only when its watch is cancelled.
    @Test func aCancelledWatchHoldsNothing() async throws {
        final class Held: Sendable {}
        let pair = try DescriptorPair()
        try await withReactor { reactor in
            let isGone = try await reactor.run {
                var held: Held? = Held()
                weak let remains = held
                let watch = try reactor.watch(pair.ours, for: .read) { [held] _ in _ = held }
                held = nil
                guard remains != nil else { return false }
                watch.cancel()
                return remains == nil
            }
            #expect(isGone)
        }
    }
}
