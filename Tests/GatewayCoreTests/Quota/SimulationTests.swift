import QuotaModel
import Testing

#if canImport(Glibc)
    import Glibc
#endif

/// Seeds that run with every suite.  `PANDORA_SIMULATION_SEEDS=FIRST-LAST` runs others, and
/// `PANDORA_SIMULATION_STEPS` more of each; a failure names seed and step and replays exactly.
@Suite struct SimulationTests {
    static let always: ClosedRange<UInt64> = 1...8
    static let seeds: ClosedRange<UInt64> = {
        guard let text = getenv("PANDORA_SIMULATION_SEEDS").map({ String(cString: $0) }) else { return always }
        let ends = text.split(separator: "-").compactMap { UInt64($0) }
        guard let first = ends.first, let last = ends.last, first <= last else { return always }
        return first...last
    }()
    static let steps = getenv("PANDORA_SIMULATION_STEPS").flatMap { Int(String(cString: $0)) } ?? 6_000
    /// Whether what the tests are about must happen: other seeds may meet nothing but misfortune.
    static let expectsAll = seeds == always

    /// Runs every seed, also after one that failed, and says how fast.
    private func simulate(
        _ test: String = #function, _ change: (inout Simulation.Options, UInt64) -> Void
    ) -> [Simulation] {
        var runs: [Simulation] = []
        let start = Self.cpuSeconds
        for seed in Self.seeds {
            var options = Simulation.Options()
            change(&options, seed)
            let simulation = Simulation(seed: seed, options: options)
            do { try simulation.run(steps: Self.steps) } catch { Issue.record(error) }
            runs.append(simulation)
        }
        let (steps, seconds) = (runs.reduce(0) { $0 + $1.steps }, Self.cpuSeconds - start)
        print("\(test): \(steps) steps, \(Int(seconds * 1_000)) ms of CPU, \(Int(Double(steps) / seconds * 60)) steps a minute")
        return runs
    }

    /// Of this thread: the suites that run beside it cost it nothing.
    private static var cpuSeconds: Double {
        var time = timespec()
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }

    private func sum(_ runs: [Simulation], _ units: (Simulation) -> Int64) -> Int64 { runs.reduce(0) { $0 + units($1) } }

    @Test func unitsAreNeverSoldTwice() {
        let runs = simulate { options, seed in
            options.chaosGap = 300_000
            // Short enough that there are resets before the steps end.
            if seed.isMultiple(of: 2) { options.periodLength = 700_000 }
        }
        guard Self.expectsAll else { return }
        #expect(runs.allSatisfy { $0.admitted > 0 && $0.refused > 0 && $0.flowsStarted > 0 && $0.flowsCommitted > 0 })
        #expect(sum(runs, \.unitsAllowed) > 0)
    }

    @Test func aFailoverIsBookedAsOverrun() {
        let runs = simulate { options, seed in
            options.failovers = true
            if seed.isMultiple(of: 4) { options.periodLength = 2_000_000 }
            options.arrivalGap = 20_000
            options.flowGap = 60_000
            options.chaosGap = 100_000
        }
        guard Self.expectsAll else { return }
        #expect(sum(runs, \.unitsOverrun) > 0)
    }

    @Test func aHolderThatWasWrittenOffReturns() {
        let runs = simulate { options, seed in
            options.writeOffAfter = 15_000_000
            // Seldom enough that the steps last longer than the silence.
            options.arrivalGap = 60_000
            options.flowGap = 200_000
            options.failovers = seed.isMultiple(of: 2)
        }
        guard Self.expectsAll else { return }
        #expect(sum(runs, \.unitsWrittenOff) > 0 && sum(runs, \.unitsUsedAfterLoss) > 0 && sum(runs, \.unitsRefunded) > 0)
    }

    /// Whatever a spool holds is booked once, and what was sold twice for it is booked as overrun.
    @Test func aDiskThatIsCopiedOrSetBackBooksNothingTwice() {
        let runs = simulate { options, _ in
            options.copies = true
            options.writeOffAfter = 15_000_000
            options.chaosGap = 100_000
        }
        guard Self.expectsAll else { return }
        #expect(runs.allSatisfy { $0.spoolsAdopted > 0 })
    }

    @Test func quotasThatAreNeverResetEndUsed() {
        let runs = simulate { options, seed in
            options.periodLength = nil
            options.limits = [60, 300]
            options.nodes = 5
            // Seldom enough that most requests end before the steps do.
            options.arrivalGap = 100_000
            // Flows that are abandoned give units back when nobody asks any more.
            options.flowGap = seed.isMultiple(of: 2) ? nil : 300_000
            options.chaosGap = 3_000_000
        }
        guard Self.expectsAll else { return }
        #expect(runs.reduce(0) { $0 + $1.rowsUsedUp } > 0)
    }

    @Test func flowsAloneAreChargedOnce() {
        let runs = simulate { options, seed in
            options.arrivalGap = 400_000
            options.flowGap = 12_000
            options.chaosGap = 150_000
            options.limits = [12, 100, 5_000, nil]
            options.periodLength = seed.isMultiple(of: 2) ? nil : 20_000_000
        }
        guard Self.expectsAll else { return }
        #expect(runs.allSatisfy { $0.flowsStarted > 0 && $0.flowsCommitted > 0 && $0.flowsRefused > 0 })
    }

    @Test func aCopyFencesItsNodeAndADiskMayBeBehind() throws {
        var options = Simulation.Options()
        options.copies = true
        options.writeOffAfter = 15_000_000
        options.chaosGap = 100_000
        var (fenced, behind) = (0, 0)
        for seed: UInt64 in 101...106 {
            let simulation = Simulation(seed: seed, options: options)
            try simulation.run(steps: 4_000)
            fenced += simulation.nodesFenced
            behind += simulation.spoolsBehind
        }
        #expect(fenced > 0 && behind > 0)
    }

    @Test func aSeedReplaysExactly() throws {
        var runs: [[Int]] = []
        for _ in 0..<2 {
            let simulation = Simulation(seed: 99)
            try simulation.run(steps: 4_000)
            runs.append([
                simulation.steps, simulation.admitted, simulation.refused, simulation.unavailable, simulation.flowsStarted,
                simulation.flowsCommitted, simulation.flowsRefused, simulation.flowsPending,
            ])
        }
        #expect(runs[0] == runs[1])
    }
}
