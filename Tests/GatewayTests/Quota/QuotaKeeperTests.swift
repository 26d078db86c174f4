import Foundation
import GatewayCore
import TestKit
import Testing

@Suite struct QuotaKeeperTests {
    let row = QuotaRow(environmentID: 1, serviceID: 1)

    func want(_ units: Int64 = 1, _ outage: OutageRule = .deny) -> QuotaWant {
        QuotaWant(environmentID: 1, serviceID: 1, units: units, limited: true, outage: outage)
    }

    /// Waits until the row's numbers are these.
    func settles(_ database: TestDatabase, at expected: String) async throws {
        var numbers = ""
        do {
            try await eventually("the numbers are \(expected)") {
                numbers = try await database.numbers()
                return numbers == expected
            }
        } catch let error as NeverHappened {
            Issue.record("\(error), but \(numbers)")
        }
    }

    @Test func aThousandUnitsAdmitExactlyAThousandRequestsOverThreeNodes() async throws {
        let database = try await TestDatabase.withQuota(1_000)
        var nodes: [KeeperNode] = []
        for _ in 0..<3 { nodes.append(try await KeeperNode(database)) }
        let answers = try await withThrowingTaskGroup(of: (Int, [Admission]).self) { group in
            for (index, node) in nodes.enumerated() {
                group.addTask { (index, try await node.admit(index == 0 ? 1_666 : 1_667, want())) }
            }
            return try await group.reduce(into: [[Admission]](repeating: [], count: 3)) { $0[$1.0] = $1.1 }
        }
        #expect(answers.joined().count == 5_000)
        #expect(answers.joined().compactMap(\.hold).count == 1_000)
        #expect(answers.joined().filter(\.isRefused).count == 4_000)
        #expect(try await database.numbers() == "0|1000|1000|0")
        for (node, answers) in zip(nodes, answers) {
            try await node.settle(answers.compactMap(\.hold), charge: 1, booking: database)
        }
        #expect(try await database.numbers() == "1000|0|0|1000")
        // Now nothing is held any more.
        let late = try await nodes[0].admit(1, want())[0]
        guard case .refusedUsedUp(let retryAfter, let view) = late else {
            Issue.record("\(late)")
            return
        }
        #expect(retryAfter > 0 && retryAfter <= 86_400)
        #expect(view.limit == 1_000 && view.remaining == 0 && view.resetSeconds == retryAfter)
        for node in nodes { try await node.close() }
    }

    @Test func requestsCostNoRoundTripWhileUnitsAreFree() async throws {
        let database = try await TestDatabase.withQuota(1_000_000)
        let node = try await KeeperNode(database, limits: .hoarding)
        for _ in 0..<100 {
            let holds = try await node.admit(100, want()).compactMap(\.hold)
            #expect(holds.count == 100)
            try await node.settle(holds, charge: 1, booking: database)
        }
        let counters = try await node.counters()
        #expect(counters.asks + counters.returns + counters.recalls <= 200)
        #expect(try await node.view(row)?.remaining == 990_000)
        try await node.close()
        #expect(try await database.numbers() == "10000|990000|0|10000")
    }

    @Test func whatTheUpstreamDidNotTakeServesWhoWaitsAtOnce() async throws {
        let database = try await TestDatabase.withQuota(10)
        var limits = LeaseLimits.patient
        // Nobody is refused before this test gives units back.
        limits.recallWait = 100_000_000
        let node = try await KeeperNode(database, limits: limits)
        var hold = try #require(try await node.admit(1, want(10))[0].hold)
        async let waiting = node.admit(1, want(6))
        try await eventually("it asked") { try await node.counters().asks > 1 }
        try await node.reduce(hold, to: 4)
        let second = try #require(try await waiting[0].hold)
        hold.units = 4
        try await node.settle([hold], charge: 4, booking: database)
        try await node.settle([second], charge: 6, booking: database)
        #expect(try await database.numbers() == "10|0|0|10")
        try await node.close()
    }

    @Test func idleUnitsGoBack() async throws {
        let database = try await TestDatabase.withQuota(100)
        let node = try await KeeperNode(database)
        let hold = try #require(try await node.admit(1, want(5))[0].hold)
        try await node.settle([hold], charge: 2, booking: database)
        try await settles(database, at: "2|98|0|2")
        try await node.close()
    }

    @Test func idleUnitsOfOneNodeServeTheRequestOfAnother() async throws {
        let database = try await TestDatabase.withQuota(100)
        let holder = try await KeeperNode(database, limits: .hoarding)
        var limits = LeaseLimits.patient
        limits.recallWait = 100_000_000
        let (other, late) = (try await KeeperNode(database, limits: limits), try await KeeperNode(database))
        let small = try #require(try await holder.admit(1, want(1))[0].hold)
        // The holder took more than it needs; it gives that back when it hears of the other's wait.
        let large = try #require(try await other.admit(1, want(99))[0].hold)
        let refusal = try await late.admit(1, want(1))[0]
        guard case .refusedHeld(let retryAfter, _) = refusal else {
            Issue.record("\(refusal)")
            return
        }
        #expect(retryAfter == 1)
        try await holder.settle([small], charge: 0, booking: database)
        try await other.settle([large], charge: 99, booking: database)
        try await holder.close()
        try await other.close()
        try await late.close()
        #expect(try await database.numbers() == "99|1|0|99")
    }

    @Test func aProcessThatDiedLeavesNothingHeld() async throws {
        let database = try await TestDatabase.withQuota(100)
        let first = try await KeeperNode(database)
        _ = try await first.admit(10, want())
        try await first.die()
        #expect(try await database.numbers() != "0|100|0|0")
        let second = try await KeeperNode(database, spool: first.spool)
        try await settles(database, at: "0|100|0|0")
        #expect(try await second.admit(1, want(100))[0].hold != nil)
        try await second.die()
    }

    @Test func aSecondProcessOnTheSpoolFencesTheFirst() async throws {
        let database = try await TestDatabase.withQuota(100)
        let first = try await KeeperNode(database)
        let second = try await KeeperNode(database, spool: first.spool)
        #expect(try await first.admit(1, want())[0] == .unavailable(retryAfter: 2))
        #expect(try await first.isFenced())
        #expect(try await second.admit(1, want())[0].hold != nil)
        try await first.die()
        try await second.die()
    }

    @Test func withoutTheStoreLeasedUnitsServeAndThenTheRuleDecides() async throws {
        let database = try await TestDatabase.withQuota(1_000)
        let node = try await KeeperNode(database, limits: .hoarding)
        var holds = try await node.admit(1, want()).compactMap(\.hold)
        let admin = try await TestDatabase.create()
        try await admin.psql(
            """
            ALTER DATABASE \(database.name) ALLOW_CONNECTIONS false;
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '\(database.name)';
            """)
        // What was leased ahead of traffic is still good; after it the route's rule applies.
        let answers = try await node.admit(200, want())
        holds += answers.compactMap(\.hold)
        #expect(holds.count > 1)
        #expect(answers.allSatisfy { $0.hold != nil || $0 == .unavailable(retryAfter: 2) })
        #expect(answers.last == .unavailable(retryAfter: 2))
        let allowed = try #require(try await node.admit(1, want(1, .allow))[0].hold)
        #expect(allowed.outage && !allowed.leased)
        try await admin.psql("ALTER DATABASE \(database.name) ALLOW_CONNECTIONS true")
        var again: QuotaHold?
        try await eventually("the store serves again") {
            again = try await node.admit(1, want())[0].hold
            return again != nil
        }
        holds.append(try #require(again))
        try await node.settle(holds + [allowed], charge: 1, booking: database)
        try await node.close()
        let used = holds.count + 1
        #expect(try await database.numbers() == "\(used)|\(1_000 - used)|0|\(used)")
    }

    @Test func anUnlimitedRowNeedsNoLease() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let node = try await KeeperNode(database)
        let hold = try #require(try await node.admit(1, want())[0].hold)
        #expect(!hold.leased && hold.period == 0)
        try await node.settle([hold], charge: 1, booking: database)
        #expect(try await database.numbers() == "1||0|1")
        try await node.close()
    }

    @Test func aServiceThatIsNotAssignedIsRefused() async throws {
        let database = try await TestDatabase.withQuota(10)
        let node = try await KeeperNode(database)
        var foreign = want()
        foreign.row.serviceID = 77
        #expect(try await node.admit(1, foreign)[0] == .notAssigned)
        try await node.close()
    }

    @Test func aDueResetHappensBeforeARefusal() async throws {
        let database = try await TestDatabase.withQuota(10)
        let node = try await KeeperNode(database)
        let holds = try await node.admit(10, want()).compactMap(\.hold)
        #expect(holds.count == 10)
        try await database.psql("UPDATE pandora.project_service SET next_reset = clock_timestamp() - interval '1 s'")
        let next = try await node.admit(10, want()).compactMap(\.hold)
        #expect(next.count == 10 && next.allSatisfy { $0.period == 2 })
        // The old period's holds touch nothing of the new one.
        try await node.settle(holds, charge: 1, booking: database)
        #expect(try await database.numbers() == "0|10|10|0")
        try await node.settle(next, charge: 0, booking: database)
        try await node.close()
        #expect(try await database.numbers() == "0|10|0|0")
    }

    /// A reset that was not due when the question was asked is done before the next one.
    @Test func aPeriodThatEndsWhileAQuestionWaitsForItsRowRefusesNobody() async throws {
        let database = try await TestDatabase.withQuota(1)
        let (first, second) = (try await KeeperNode(database, limits: .hoarding), try await KeeperNode(database))
        let hold = try #require(try await first.admit(1, want())[0].hold)
        try await first.settle([hold], charge: 1, booking: database)
        async let ended: Void = database.endPeriodUnderAWait()
        try await database.isLocked()
        let next = try #require(try await second.admit(1, want())[0].hold)
        #expect(next.period == 2)
        try await ended
        try await second.settle([next], charge: 1, booking: database)
        #expect(try await database.numbers() == "1|0|0|1")
        try await first.close()
        try await second.close()
    }

    /// Nothing new is admitted beyond it, although the holder has units and would keep them for long.
    @Test func aLoweredLimitTakesIdleUnitsBackAtOnce() async throws {
        let database = try await TestDatabase.withQuota(100)
        let node = try await KeeperNode(database, limits: .hoarding)
        let holds = try await node.admit(3, want()).compactMap(\.hold)
        #expect(holds.count == 3)
        #expect(try await database.numbers() != "0|100|3|0")
        try await database.psql("UPDATE pandora.environment_service SET max_request = 2")
        try await settles(database, at: "0|2|3|0")
        #expect(try await node.admit(1, want())[0].isRefused)
        // What was admitted before is charged all the same.
        try await node.settle(holds, charge: 1, booking: database)
        #expect(try await database.numbers() == "3|-1|0|3")
        try await node.close()
    }
}
