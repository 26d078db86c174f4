import NIOCore
import Reactor
import TestKit
import Testing

@Suite(.timeLimit(.minutes(10))) struct LoopTests {
    @Test func tasksOfOneThreadRunInTheirOrder() async throws {
        let seen = Confined([[Int]](repeating: [], count: 4))
        try await withReactor { reactor in
            try await withThrowingTaskGroup { group in
                for thread in 0..<4 {
                    group.addTask {
                        try await offTheCooperativePool {
                            for number in 0..<5_000 { reactor.execute { seen.value[thread].append(number) } }
                        }
                    }
                }
                try await group.waitForAll()
            }
            #expect(try await reactor.run { seen.value } == [[Int]](repeating: Array(0..<5_000), count: 4))
        }
    }

    @Test func whatTasksAddRunsInTheNextTurn() async throws {
        let log = Confined<[String]>([])
        let hook = Confined(Hook())
        try await withReactor { reactor in
            try await reactor.run {
                reactor.addTurnHook(.flush, hook.value)
                let first = hook.value.turns
                let note: @Sendable (String) -> Void = { log.value.append("\($0) \(hook.value.turns - first)") }
                for name in ["a", "b"] {
                    reactor.execute {
                        note(name)
                        reactor.execute { note(name + name) }
                    }
                }
            }
            try await eventually("all ran") { try await reactor.run { log.value.count } == 4 }
            // What another thread's task adds is the loop's own, and that comes after the others' in the same turn.
            #expect(try await reactor.run { log.value } == ["a 0", "b 0", "aa 1", "bb 1"])
        }
    }

    @Test func aTaskThatRepeatsItselfStarvesNobody() async throws {
        try await withReactor { reactor in
            let rounds = Confined(0)
            let isOver = Confined(false)
            try await reactor.run {
                @Sendable func again() {
                    rounds.value += 1
                    if !isOver.value { reactor.execute { again() } }
                }
                again()
            }
            // A descriptor, a timer and another thread's task get their turn.
            let pair = try DescriptorPair()
            let watched = reactor.makePromise(of: Void.self)
            let watch = try await reactor.run {
                Confined(try reactor.watch(pair.ours, for: .read) { _ in if pair.drain() == "x" { watched.succeed() } })
            }
            pair.write()
            try await watched.futureResult.get()
            try await reactor.scheduleTask(in: .milliseconds(1)) {}.futureResult.get()
            #expect(try await reactor.run { rounds.value } > 0)
            try await reactor.run {
                isOver.value = true
                watch.value.cancel()
            }
        }
    }

    /// Descriptors, timers, tasks, then the hooks by phase, within a phase in the order of adding.
    @Test func aTurnHasItsOrder() async throws {
        let log = Confined<[String]>([])
        let pair = try DescriptorPair()
        try await withReactor { reactor in
            let watch = Confined<Watch?>(nil)
            @Sendable func prepare() {
                let hooks: [(TurnPhase, String)] = [
                    (.flush, "flush"), (.collect, "collect 1"), (.persist, "persist"), (.collect, "collect 2"),
                ]
                for (phase, name) in hooks { reactor.addTurnHook(phase, Hook { _ in log.value.append(name) }) }
                pair.write()
                reactor.execute { log.value.append("task") }
                _ = reactor.startTimer(in: .zero) { log.value.append("timer") }
                watch.value = try? reactor.watch(pair.ours, for: .read) { _ in
                    _ = pair.drain()
                    log.value.append("descriptor")
                }
            }
            // As the loop's own task, so that the task that it gives is one for the next turn.
            try await reactor.run { reactor.execute { prepare() } }
            try await eventually("a whole turn") { try await reactor.run { log.value.contains("task") } }
            let turn = try await reactor.run {
                watch.value?.cancel()
                return log.value.drop { $0 != "descriptor" }.prefix(7)
            }
            #expect(Array(turn) == ["descriptor", "timer", "task", "collect 1", "collect 2", "persist", "flush"])
        }
    }

    @Test func theLoopWakesForAHooksDeadlineAndSleepsUntilThen() async throws {
        try await withReactor { reactor in
            let woken = reactor.makePromise(of: NIODeadline.self)
            let deadline = NIODeadline.now() + .milliseconds(200)
            let hook = Confined(
                Hook { hook in
                    guard let deadline = hook.nextDeadline, deadline <= .now() else { return }
                    hook.nextDeadline = nil
                    woken.succeed(.now())
                })
            let before = try await reactor.run {
                hook.value.nextDeadline = deadline
                reactor.addTurnHook(.persist, hook.value)
                return hook.value.turns
            }
            #expect(try await woken.futureResult.get() >= deadline)
            let turns = try await reactor.run { hook.value.turns - before }
            // The turn that added it, the one of the deadline, the one that asks.
            #expect(turns <= 4)
        }
    }

    @Test func aRequestedTurnComesAtOnce() async throws {
        try await withReactor { reactor in
            let done = reactor.makePromise(of: Void.self)
            let hook = Confined(
                Hook { hook in
                    if hook.turns < 1_000 { reactor.requestTurn() } else if hook.turns == 1_000 { done.succeed() }
                })
            try await reactor.run { reactor.addTurnHook(.collect, hook.value) }
            try await done.futureResult.get()
            // Removed from within its own call, too.
            let last = Confined(Hook { reactor.removeTurnHook($0) })
            try await reactor.run { reactor.addTurnHook(.flush, last.value) }
            for _ in 0..<10 { try await reactor.run {} }
            #expect(try await reactor.run { last.value.turns } == 1)
        }
    }

    @Test func futuresAndActorsRunOnIt() async throws {
        try await withReactor { reactor in
            struct Refused: Error {}
            #expect(!reactor.inEventLoop)
            #expect(try await reactor.run { reactor.inEventLoop })
            await #expect(throws: Refused.self) { try await reactor.run { throw Refused() } }
            // The default of NIO's protocol would call itself for ever (both ways).
            try await reactor.makeSucceededVoidFuture().get()
            #expect(try await reactor.run { reactor.makeSucceededVoidFuture() === reactor.makeSucceededVoidFuture() })
            #expect(await Guest(reactor).isOnTheLoop())
        }
    }

    /// An actor that lives on the loop.
    private actor Guest {
        private nonisolated let reactor: Reactor
        init(_ reactor: Reactor) { self.reactor = reactor }
        nonisolated var unownedExecutor: UnownedSerialExecutor { reactor.executor.asUnownedSerialExecutor() }
        func isOnTheLoop() -> Bool { reactor.inEventLoop }
    }
}
