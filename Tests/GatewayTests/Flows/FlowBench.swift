import Foundation
import GatewayCore
import TestKit
import Testing

/// A measurement, not a test: `PANDORA_FLOW_BENCH=SECONDS` runs it.  Flows of three statements (start, claim, settle) on one
/// hot row, PostgreSQL and the keepers on the same machine.
@Suite(.serialized) struct FlowBench {
    static let seconds = ProcessInfo.processInfo.environment["PANDORA_FLOW_BENCH"].flatMap { Double($0) }

    @Test(.enabled(if: seconds != nil), arguments: [(1, 16), (1, 64), (1, 256), (2, 64)])
    func pairsOnOneHotRow(_ keepers: Int, _ concurrency: Int) async throws {
        let database = try await TestDatabase.withQuota(1_000_000_000)
        var nodes: [FlowNode] = []
        for _ in 0..<keepers { nodes.append(try await FlowNode(database)) }
        for node in nodes { _ = try await node.runMany(500) }
        var backends: [Int32] = []
        for node in nodes { backends.append(try #require(try await node.backendPID())) }
        let before = clock()
        let backendBefore = backends.reduce(0) { $0 + Self.cpu(of: $1) }
        let runs = try await withThrowingTaskGroup(of: [Double].self) { group in
            for node in nodes { group.addTask { try await Self.run(node, concurrency, Self.seconds!) } }
            return try await group.reduce(into: [Double]()) { $0 += $1 }
        }
        let cpu = Double(clock() - before) / Double(CLOCKS_PER_SEC)
        let backendCPU = backends.reduce(0) { $0 + Self.cpu(of: $1) } - backendBefore
        let sorted = runs.sorted()
        func quantile(_ q: Double) -> String { String(format: "%.1f ms", sorted[Int(Double(sorted.count - 1) * q)] * 1_000) }
        var turns = 0
        for node in nodes { turns += try await node.counters().turns }
        print(
            "flows: \(keepers) keepers x \(concurrency) open: \(Int(Double(runs.count) / Self.seconds!)) pairs/s, p50 \(quantile(0.5)), "
                + "p99 \(quantile(0.99)), \(String(format: "%.0f", cpu / Double(runs.count) * 1e6)) us of this process and "
                + "\(String(format: "%.0f", backendCPU / Double(runs.count) * 1e6)) us of PostgreSQL a pair, "
                + String(format: "%.1f requests a turn", 3 * Double(runs.count) / Double(turns)))
        #expect(try await database.psql("SELECT held_request FROM pandora.environment_service")[0] == "0")
        for node in nodes { try await node.close() }
    }

    /// Seconds of CPU that a process took (proc(5), stat, fields 14 and 15).
    private static func cpu(of process: Int32) -> Double {
        let stat = (try? String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8)) ?? ""
        let fields = stat.split(separator: ")").last?.split(separator: " ") ?? []
        guard fields.count > 12, let user = Double(fields[11]), let system = Double(fields[12]) else { return 0 }
        return (user + system) / Double(sysconf(Int32(_SC_CLK_TCK)))
    }

    /// Keeps so many flows under way; returns how long each took.
    private static func run(_ node: FlowNode, _ concurrency: Int, _ seconds: Double) async throws -> [Double] {
        try await node.ask { node, keeper, done in
            let end = DispatchTime.now().uptimeNanoseconds + UInt64(seconds * 1e9)
            var times: [Double] = []
            var running = concurrency
            func next() {
                let begun = DispatchTime.now().uptimeNanoseconds
                guard begun < end else {
                    running -= 1
                    if running == 0 { done(times) }
                    return
                }
                node.run(keeper) { result in
                    if case .success(.ended(.committed)) = result {
                        times.append(Double(DispatchTime.now().uptimeNanoseconds - begun) / 1e9)
                    }
                    next()
                }
            }
            for _ in 0..<concurrency { next() }
        }
    }
}
