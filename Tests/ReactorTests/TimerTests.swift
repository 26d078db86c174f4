import NIOCore
import TestKit
import Testing

@testable import Reactor

@Suite(.timeLimit(.minutes(10))) struct TimerTests {
    @Test func timersFireByDeadlineThenByStart() async throws {
        let log = Confined<[String]>([])
        try await withReactor { reactor in
            try await reactor.run {
                let now = NIODeadline.now()
                for (name, milliseconds) in [("c", 3), ("a1", 1), ("d", 4), ("a2", 1), ("b", 2), ("a3", 1)] {
                    _ = reactor.startTimer(at: now + .milliseconds(Int64(milliseconds))) {
                        log.value.append(NIODeadline.now() >= now + .milliseconds(Int64(milliseconds)) ? name : "early \(name)")
                    }
                }
            }
            try await eventually("all fired") { try await reactor.run { log.value.count } == 6 }
            #expect(try await reactor.run { log.value } == ["a1", "a2", "a3", "b", "c", "d"])
            #expect(try await reactor.run { reactor.pendingTimers } == 0)
        }
    }

    @Test func aCancelledTimerDoesNotFire() async throws {
        let log = Confined<[String]>([])
        try await withReactor { reactor in
            try await reactor.run {
                let never = reactor.startTimer(in: .zero) { log.value.append("never") }
                reactor.cancelTimer(never)
                reactor.cancelTimer(never)
                // Its slot serves another, which an old token does not touch.
                _ = reactor.startTimer(in: .zero) { log.value.append("heir") }
                reactor.cancelTimer(never)
                // Both are due in the same turn: the first takes back the second.
                let now = NIODeadline.now()
                var second: Reactor.Timer?
                let first = reactor.startTimer(at: now) {
                    log.value.append("first")
                    reactor.cancelTimer(second!)
                }
                second = reactor.startTimer(at: now) { log.value.append("second") }
                _ = reactor.startTimer(in: .milliseconds(1)) {
                    log.value.append("last")
                    reactor.cancelTimer(first)
                }
            }
            try await eventually("the last fired") { try await reactor.run { log.value.last } == "last" }
            #expect(try await reactor.run { log.value } == ["heir", "first", "last"])
            #expect(try await reactor.run { reactor.pendingTimers } == 0)
        }
    }

    @Test func aTimerThatStartsItselfStarvesNobody() async throws {
        try await withReactor { reactor in
            let isOver = Confined(false)
            try await reactor.run {
                func again() {
                    // Always overdue.
                    _ = reactor.startTimer(at: .distantPast) { if !isOver.value { again() } }
                }
                again()
            }
            #expect(try await reactor.run { reactor.pendingTimers } == 1)
            try await reactor.run { isOver.value = true }
            try await eventually("it ended") { try await reactor.run { reactor.pendingTimers } == 0 }
        }
    }

    @Test func scheduledTasksEndInEveryWay() async throws {
        struct Refused: Error {}
        let ran = Locked<[String]>([])
        try await withReactor { reactor in
            #expect(try await reactor.scheduleTask(in: .milliseconds(1)) { 7 }.futureResult.get() == 7)
            await #expect(throws: Refused.self) {
                try await reactor.scheduleTask(in: .zero) { () throws -> Int in throw Refused() }.futureResult.get()
            }
            // Taken back from another thread, at once and later, and from the loop.
            let hasty = reactor.scheduleTask(in: .hours(1)) { ran.withLock { $0.append("hasty") } }
            hasty.cancel()
            let late = reactor.scheduleTask(in: .hours(1)) { ran.withLock { $0.append("late") } }
            try await reactor.run {}
            late.cancel()
            let own = try await reactor.run {
                let scheduled = reactor.scheduleTask(in: .hours(1)) { ran.withLock { $0.append("own") } }
                scheduled.cancel()
                return scheduled.futureResult
            }
            for future in [hasty.futureResult, late.futureResult, own] {
                await #expect(throws: EventLoopError.self) { try await future.get() }
            }
            try await eventually("no timer is left") { try await reactor.run { reactor.pendingTimers } == 0 }
            let done = reactor.scheduleTask(in: .zero) { "done" }
            #expect(try await done.futureResult.get() == "done")
            done.cancel()
            #expect(ran.withLock { $0 }.isEmpty)
        }
    }

    @Test func repeatedTasksAndCallbacksOfNIO() async throws {
        final class Callback: NIOScheduledCallbackHandler, Sendable {
            let calls = Confined<[String]>([])
            func handleScheduledCallback(eventLoop: some EventLoop) { calls.value.append("fired") }
            func didCancelScheduledCallback(eventLoop: some EventLoop) { calls.value.append("cancelled") }
        }
        try await withReactor { reactor in
            let count = Confined(0)
            let ended = reactor.makePromise(of: Void.self)
            reactor.scheduleRepeatedTask(initialDelay: .zero, delay: .milliseconds(1), notifying: ended) { task in
                count.value += 1
                if count.value == 5 { task.cancel() }
            }
            try await ended.futureResult.get()
            #expect(try await reactor.run { count.value } == 5)
            let calls = try await reactor.run {
                let callback = Callback()
                try reactor.scheduleCallback(in: .hours(1), handler: callback).cancel()
                try reactor.scheduleCallback(in: .zero, handler: callback)
                return callback.calls
            }
            try await eventually("both ended") { try await reactor.run { calls.value } == ["cancelled", "fired"] }
            #expect(try await reactor.run { reactor.pendingTimers } == 0)
        }
    }
}

/// Knuth's linear congruential generator: the same seed gives the same run.
private struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64
    init(_ seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return state ^ (state >> 33)
    }
}

/// The heap alone.
@Suite struct TimerHeapTests {
    /// A model: a list that is searched.
    @Test(arguments: 1...5) func theHeapIsASortedList(_ seed: UInt64) {
        var random = SeededGenerator(seed)
        var (timers, model): (Timers, [(deadline: UInt64, number: Int, token: Timers.Token)]) = (Timers(), [])
        var fired: [Int] = []
        for number in 0..<20_000 {
            switch UInt8.random(in: 0..<8, using: &random) {
            case 0..<4:
                let deadline = UInt64.random(in: 0..<1_000, using: &random)
                model.append((deadline, number, timers.start(at: deadline) { fired.append(number) }))
            case 4..<7:
                guard let index = model.indices.randomElement(using: &random) else { continue }
                timers.cancel(model.remove(at: index).token)
            default:
                let now = UInt64.random(in: 0..<1_000, using: &random)
                fired.removeAll()
                while let handler = timers.popDue(now, limit: timers.started) { handler() }
                let due = model.filter { $0.deadline <= now }.sorted { ($0.deadline, $0.number) < ($1.deadline, $1.number) }
                #expect(fired == due.map(\.number))
                model.removeAll { $0.deadline <= now }
            }
            guard timers.count == model.count, timers.earliest() == model.map(\.deadline).min() else {
                Issue.record("\(timers.count) timers instead of \(model.count) after \(number)")
                return
            }
        }
    }

    /// What a busy proxy does: nearly every timer is taken back long before it is due.
    @Test func aHundredThousandTakeNoRoomOnceTakenBack() {
        var timers = Timers()
        let tokens = (0..<100_000).map { timers.start(at: UInt64($0 * 7_919 % 100_000)) {} }
        #expect(timers.count == 100_000 && timers.entries == 100_000)
        for token in tokens.dropLast(100) {
            timers.cancel(token)
            guard timers.entries <= 2 * timers.count + 65 else {
                Issue.record("\(timers.entries) entries for \(timers.count) timers")
                return
            }
        }
        #expect(timers.count == 100)
        // A million that come and go use the same few slots.
        for number in 0..<1_000_000 { timers.cancel(timers.start(at: UInt64(number)) {}) }
        #expect(timers.count == 100 && timers.entries <= 265 && timers.slotCount <= 100_001)
        var last: UInt64 = 0
        while let next = timers.earliest() {
            #expect(next >= last)
            last = next
            timers.popDue(next, limit: .max)?()
        }
        #expect(timers.count == 0 && timers.entries == 0)
    }
}
