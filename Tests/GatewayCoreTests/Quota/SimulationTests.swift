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

    @Test(arguments: seeds) func unitsAreNeverSoldTwice(_ seed: UInt64) throws {
        let simulation = Simulation(seed: seed)
        try simulation.run(steps: Self.steps)
        // Others may be nothing but misfortune.
        guard Self.always.contains(seed) else { return }
        #expect(simulation.admitted > 0 && simulation.refused > 0)
        #expect(simulation.flowsStarted > 0 && simulation.flowsCommitted > 0)
    }

    @Test(arguments: seeds) func aFailoverIsBookedAsOverrun(_ seed: UInt64) throws {
        var options = Simulation.Options()
        options.failovers = true
        try Simulation(seed: seed, options: options).run(steps: Self.steps)
    }

    @Test(arguments: seeds) func aHolderThatWasWrittenOffReturns(_ seed: UInt64) throws {
        var options = Simulation.Options()
        options.writeOffAfter = 15_000_000
        options.failovers = seed.isMultiple(of: 2)
        try Simulation(seed: seed, options: options).run(steps: Self.steps)
    }

    /// Whatever a spool holds is booked once, and what was sold twice for it is booked as overrun.
    @Test(arguments: seeds) func aDiskThatIsCopiedOrSetBackBooksNothingTwice(_ seed: UInt64) throws {
        var options = Simulation.Options()
        options.copies = true
        options.writeOffAfter = 15_000_000
        options.chaosGap = 100_000
        let simulation = Simulation(seed: seed, options: options)
        try simulation.run(steps: Self.steps)
        guard Self.always.contains(seed) else { return }
        #expect(simulation.spoolsAdopted > 0)
    }

    @Test(arguments: seeds) func quotasThatAreNeverResetEndUsed(_ seed: UInt64) throws {
        var options = Simulation.Options()
        options.periodLength = nil
        options.limits = [300, 3_000]
        options.nodes = 5
        try Simulation(seed: seed, options: options).run(steps: Self.steps)
    }

    @Test(arguments: seeds) func flowsAloneAreChargedOnce(_ seed: UInt64) throws {
        var options = Simulation.Options()
        options.arrivalGap = 400_000
        options.flowGap = 12_000
        options.chaosGap = 150_000
        options.limits = [12, 100, 5_000, nil]
        options.periodLength = seed.isMultiple(of: 2) ? nil : 20_000_000
        let simulation = Simulation(seed: seed, options: options)
        try simulation.run(steps: Self.steps)
        guard Self.always.contains(seed) else { return }
        #expect(simulation.flowsStarted > 0 && simulation.flowsCommitted > 0 && simulation.flowsRefused > 0)
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
