import Foundation
import GatewayCore
import GatewayStore
import NIOCore
import Postgres
import QuotaModel
import Reactor
import TestKit
import Testing

@testable import Gateway

/// What hops charge is booked with their rows, in the period and out of the lease that they belong to.
@Suite struct ShippedQuotaTests {
    private func want(_ units: Int64, environment: Int64 = 1, limited: Bool = true) -> QuotaWant {
        QuotaWant(environmentID: environment, serviceID: 1, units: units, limited: limited, outage: .deny)
    }

    private func frame(_ hops: inout Hops, _ units: Int64, period: Int64, leased: Bool) -> HopRecord {
        var hop = hops.plain(units: units)
        (hop.period, hop.leased) = (period, leased)
        return hop
    }

    @Test func hopsOfARowWithoutALimitCountToo() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let node = try await ServingNode(database, root, seed: 1)
        let charged = try await node.serve((0..<50).map { _ in (want(3, limited: false), 2) })
        #expect(charged == 100)
        try await node.close()
        #expect(try await database.numbers() == "100||0|100")
        #expect(try await database.unexplained() == [])
    }

    @Test func lateHopsAreBookedInThePeriodTheyBelongTo() async throws {
        let database = try await TestDatabase.withQuota(1_000)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let node = try await LogNode(database.url)
        try await node.attach(worker)
        try await eventually("opened") { !node.opened.isEmpty }
        try await database.psql(
            """
            SELECT pandora.lease_acquire('\(worker.id)', 1, '{1}', '{1}', '{100}', '{100}');
            UPDATE pandora.project_service SET next_reset = clock_timestamp() - interval '1 s';
            SELECT pandora.lease_acquire('\(worker.id)', 1, '{1}', '{1}', '{50}', '{50}');
            """)
        var hops = Hops()
        // Both periods in one batch, and what belongs to whichever is current.
        var records = (0..<30).map { _ in frame(&hops, 1, period: 1, leased: true) }
        records += (0..<20).map { _ in frame(&hops, 1, period: 2, leased: true) }
        records += (0..<5).map { _ in frame(&hops, 1, period: 0, leased: false) }
        try await worker.append(records)
        try await node.drain()
        #expect(try await database.numbers() == "25|975|30|25")
        #expect(
            try await database.psql(
                "SELECT period, sum(used_delta), sum(frames) FROM pandora.quota_ledger WHERE kind = 'hops' GROUP BY 1 ORDER BY 1")
                == ["1|30|30", "2|25|25"])
        #expect(try await node.counters().moved == 1)
        try await node.end()
        try await worker.close()
    }

    @Test func unitsOfALeaseThatTheDatabaseDoesNotKnowAreAnOverrun() async throws {
        let database = try await TestDatabase.withQuota(1_000)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let node = try await LogNode(database.url)
        try await node.attach(worker)
        var hops = Hops()
        try await worker.append((0..<10).map { _ in frame(&hops, 2, period: 1, leased: true) })
        try await node.drain()
        #expect(try await node.counters().overrun == 20)
        #expect(try await database.numbers() == "20|980|0|20")
        #expect(try await database.psql("SELECT kind, used_delta FROM pandora.quota_ledger WHERE used_delta > 0") == ["overrun|20"])
        #expect(try await database.unexplained() == [])
        try await node.end()
        try await worker.close()
    }

    /// Its hops count against the write-off, and what it never used comes back.
    @Test func aHolderThatWasWrittenOffAndReturnsIsRefunded() async throws {
        let database = try await TestDatabase.withQuota(1_000)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let node = try await LogNode(database.url)
        try await node.attach(worker)
        try await eventually("opened") { !node.opened.isEmpty }
        try await database.psql("SELECT pandora.lease_acquire('\(worker.id)', 1, '{1}', '{1}', '{100}', '{100}')")
        try await node.end()
        var hops = Hops()
        try await worker.append((0..<30).map { _ in frame(&hops, 1, period: 1, leased: true) })
        try await worker.close()
        try await database.psql(
            """
            UPDATE pandora.quota_lease SET heard_at = now() - interval '1 h';
            SELECT pandora.write_off_silent('10 min', '0', 10);
            """)
        #expect(try await database.numbers() == "100|900|0|100")
        for round in 1...2 {
            let heir = try await LogNode(database.url)
            let disk = try root.copy()
            try await heir.adopt(disk)
            try await eventually("adopted, time \(round)") { heir.events == [.adopted(worker.id)] }
            #expect(try await database.numbers() == "30|970|0|30")
            try await heir.end()
            withExtendedLifetime(disk) {}
        }
        #expect(
            try await database.psql("SELECT kind, used_delta FROM pandora.quota_ledger WHERE used_delta <> 0 ORDER BY id")
                == ["lost|100", "hops|30", "refund|-30", "refund|-70"])
    }

    @Test func aServiceThatWasTakenAwayHindersNothing() async throws {
        let database = try await TestDatabase.withQuota(1_000)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let node = try await LogNode(database.url)
        try await node.attach(worker)
        try await node.drain()
        try await database.psql("DELETE FROM pandora.environment_service")
        var hops = Hops()
        let records = (0..<10).map { _ in frame(&hops, 1, period: 1, leased: true) } + hops.plain(5, units: 1)
        try await worker.append(records)
        try await node.drain()
        #expect(try await database.loggedIDs() == records.map(\.id).sorted())
        #expect(try await database.number("SELECT sum(used_delta) FROM pandora.quota_ledger") == 15)
        #expect(try await node.counters().rejected == 0)
        try await node.end()
        try await worker.close()
    }

    @Test(arguments: 1...4 as ClosedRange<UInt64>)
    func theLedgerExplainsEveryUnitOfRandomTraffic(_ seed: UInt64) async throws {
        var random = SeededRandom(seed: seed)
        let database = try await TestDatabase.withQuota(400)
        try await database.psql(
            """
            SET search_path = pandora;
            UPDATE project_service SET max_request = 1000;
            INSERT INTO environment (project_id, name) VALUES (1, 'f');
            INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (2, 1, 600);
            """)
        let root = TemporaryFolder()
        var nodes: [ServingNode] = []
        for index in 0..<3 { nodes.append(try await ServingNode(database, root, seed: seed * 10 + UInt64(index))) }
        var charged: Int64 = 0
        for round in 0..<8 {
            let batches = nodes.map { _ in
                (0..<random.pick(1...60)).map { _ in
                    (want(random.pick(0...4), environment: random.pick(1...2)), random.pick(0...5))
                }
            }
            charged += try await withThrowingTaskGroup(of: Int64.self) { group in
                for (node, batch) in zip(nodes, batches) { group.addTask { try await node.serve(batch) } }
                return try await group.reduce(0, +)
            }
            switch random.pick(0...3) {
            case 0: try await database.psql("UPDATE pandora.project_service SET next_reset = clock_timestamp() - interval '1 s'")
            case 1: try await nodes[Int(random.pick(0...2))].log.cutOff(database)
            case 2 where round > 2:
                // One dies with hops that were not shipped, and another adopts what it left.
                let victim = nodes.remove(at: 0)
                try await victim.die()
                let copy = try root.copy(of: victim.worker.id)
                nodes.append(try await ServingNode(database, root, seed: seed * 100 + UInt64(round)))
                let heir = nodes[0].log
                try await heir.adopt(copy)
                try await eventually("adopted") { heir.events.contains(.adopted(victim.worker.id)) }
            default: break
            }
            #expect(try await database.number("SELECT count(*) FROM pandora.environment_service WHERE used_request > max_request") == 0)
        }
        for node in nodes { try await node.close() }
        #expect(try await database.unexplained() == [])
        #expect(try await database.number("SELECT sum(units) FROM pandora.request_logs") == charged)
        #expect(try await database.number("SELECT sum(used_delta) FROM pandora.quota_ledger") == charged)
        #expect(try await database.number("SELECT sum(held_request) FROM pandora.environment_service") == 0)
        #expect(try await database.number("SELECT count(*) FROM pandora.quota_ledger WHERE kind NOT IN ('opened', 'hops', 'limit')") == 0)
    }
}
