import Gateway
import GatewayCore
import Postgres
import Reactor
import TestKit
import Testing

/// Flows over the wire to a real PostgreSQL.
@Suite struct FlowKeeperTests {
    @Test func aFlowIsHeldAndChargedOnceOverSeveralNodes() async throws {
        let database = try await TestDatabase.withQuota(10)
        let flow = FlowNode.flow(units: 3)
        let (first, second) = (try await FlowNode(database, flow: flow), try await FlowNode(database, flow: flow))
        let answer = try await first.start()
        guard case .started(let open, let view) = answer else { Issue.record("\(answer)"); return }
        #expect(view?.limit == 10 && view?.remaining == 7 && (view?.resetSeconds ?? 0) > 0)
        #expect(open.expiresIn > 290_000_000 && open.expiresIn <= 300_000_000)
        #expect(try await database.flowNumbers() == "0|10|3|0|1")
        let step = try #require(try await second.step(open.id).flow)
        #expect(step.startPoint == open.startPoint && step.hops == 2 && step.units == 3 && step.row == open.row)
        let shown = try #require(try await second.show(open.id))
        #expect(shown.state == .open && shown.progress?.hops == 2 && shown.progress?.startPoint == open.startPoint)
        let (claimed, settled) = try await second.finish(open.id)
        #expect(claimed.flow?.hops == 3 && settled == .ended(.committed(units: 3)))
        #expect(try await database.flowNumbers() == "3|7|0|3|0")
        // On every node, for as long as the ledger is kept.
        #expect(try await first.finish(open.id).0 == .ended(.committed(units: 3)))
        guard case .ended(.committed(units: 3), let at) = try await first.show(open.id)?.state else {
            Issue.record("not shown as committed")
            return
        }
        #expect(at > 0)
        #expect(try await first.show(open.id, environment: 2) == nil)
        try await first.close()
        try await second.close()
    }

    @Test func aThousandUnitsAreExactlyAThousandFlowsOverThreeNodes() async throws {
        let database = try await TestDatabase.withQuota(1_000)
        var nodes: [FlowNode] = []
        for _ in 0..<3 { nodes.append(try await FlowNode(database)) }
        let ends = try await withThrowingTaskGroup(of: [Result<FlowSettled, FlowNode.Refused>].self) { group in
            for (index, node) in nodes.enumerated() { group.addTask { try await node.runMany(index == 0 ? 1_666 : 1_667) } }
            return try await group.reduce(into: []) { $0 += $1 }
        }
        #expect(ends.count == 5_000)
        #expect(ends.filter { $0 == .success(.ended(.committed(units: 1))) }.count == 1_000)
        let refused = ends.filter {
            guard case .failure(let refused) = $0, let start = refused.start else { return false }
            switch start {
            case .held, .usedUp: return true
            default: return false
            }
        }
        #expect(refused.count == 4_000)
        #expect(try await database.flowNumbers() == "1000|0|0|1000|0")
        guard case .usedUp(let retryAfter, let view) = try await nodes[0].start() else { Issue.record("not used up"); return }
        #expect(retryAfter > 0 && retryAfter <= 86_400 && view.limit == 1_000 && view.remaining == 0)
        for node in nodes { try await node.close() }
    }

    @Test func aKeyHasNoMoreFlowsOpenThanItMayOverThreeNodes() async throws {
        let database = try await TestDatabase.withQuota(1_000)
        let flow = FlowNode.flow(open: 10)
        var nodes: [FlowNode] = []
        for _ in 0..<3 { nodes.append(try await FlowNode(database, flow: flow)) }
        let answers = try await withThrowingTaskGroup(of: [FlowStartAnswer].self) { group in
            for node in nodes { group.addTask { try await node.startMany(20) } }
            return try await group.reduce(into: []) { $0 += $1 }
        }
        let open = answers.compactMap(\.flow)
        #expect(open.count == 10)
        #expect(answers.allSatisfy { answer in
            if case .limitReached(let retryAfter) = answer { return retryAfter > 200 && retryAfter <= 300 }
            return answer.flow != nil
        })
        // Another key is not bothered, and what ends makes room.
        #expect(try await nodes[0].startMany(1, key: KeyID(UUIDBits(high: 2, low: 2)))[0].flow != nil)
        #expect(try await nodes[1].resolve(open[0].id, commits: false) == .ended(.rolledBack))
        #expect(try await nodes[2].start().flow != nil)
        for node in nodes { try await node.close() }
    }

    @Test func ofManyFinishesOverThreeNodesOneIsCharged() async throws {
        let database = try await TestDatabase.withQuota(1_000)
        var nodes: [FlowNode] = []
        for _ in 0..<3 { nodes.append(try await FlowNode(database)) }
        let ids = try await nodes[0].startMany(10).compactMap { $0.flow?.id }
        #expect(ids.count == 10)
        let ends = try await withThrowingTaskGroup(of: (FlowHopAnswer, FlowSettled?).self) { group in
            for id in ids {
                for node in nodes { for _ in 0..<4 { group.addTask { try await node.finish(id) } } }
            }
            return try await group.reduce(into: []) { $0.append($1) }
        }
        #expect(ends.count == 120)
        #expect(ends.filter { $0.1 == .ended(.committed(units: 1)) }.count == 10)
        #expect(ends.allSatisfy { $0.1 != nil || $0.0 == .finishing || $0.0 == .ended(.committed(units: 1)) })
        #expect(try await database.flowNumbers() == "10|990|0|10|0")
        for node in nodes { try await node.close() }
    }

    @Test func anExpiryAndAClaimNeverBothWin() async throws {
        let database = try await TestDatabase.withQuota(1_000)
        let node = try await FlowNode(database)
        let ids = try await node.startMany(40).compactMap { $0.flow?.id }
        try await database.psql("UPDATE pandora.reservations SET expires_at = clock_timestamp() - interval '1 s'")
        async let swept: Void = {
            for _ in 0..<10 { try await database.psql("SELECT pandora.flow_expire(4, '0 s')") }
        }()
        var committed = 0
        for id in ids {
            let (answer, settled) = try await node.finish(id)
            if settled == .ended(.committed(units: 1)) { committed += 1 } else { #expect(answer == .ended(.expired(charged: 0))) }
        }
        try await swept
        #expect(try await database.flowNumbers() == "\(committed)|\(1_000 - committed)|0|\(committed)|0")
        try await node.close()
    }

    @Test func aClaimedFlowIsNotSweptAndASessionThatJustCameSweepsNothing() async throws {
        let database = try await TestDatabase.withQuota(100)
        let node = try await FlowNode(database, flow: FlowNode.flow { $0.timeToLive = .seconds(1); $0.timeMax = .seconds(1) })
        let (claimed, abandoned) = (try #require(try await node.start().flow), try #require(try await node.start().flow))
        let (answer, hop) = try await node.claim(claimed.id)
        #expect((answer.flow?.expiresIn ?? 0) > 35_000_000)
        try await eventually("the other flow is overdue") {
            try await database.psql(
                "SELECT expires_at < clock_timestamp() FROM pandora.reservations WHERE id = '\(abandoned.id)'")[0] == "t"
        }
        #expect(try await database.psql("SELECT pandora.flow_expire(100, '60 s')")[0] == "0")
        #expect(try await database.psql("SELECT pandora.flow_expire(100, '0 s')")[0] == "1")
        #expect(try await database.flowNumbers() == "0|100|1|0|1")
        let settlement = try #require(answer.flow?.settlement(.commit, hop: hop, of: node.flow))
        #expect(try await node.settle(settlement) == .ended(.committed(units: 1)))
        #expect(try await node.step(abandoned.id) == .ended(.expired(charged: 0)))
        try await node.close()
    }

    /// However long the route lets a finish take, a gateway that is killed amid it holds the flow for its claim's time at most.
    @Test func aClaimLivesAsLongAsItsNodeAndNoLonger() async throws {
        let database = try await TestDatabase.withQuota(10)
        var limits = FlowLimits.patient
        limits.renewInterval = 20_000
        let node = try await FlowNode(database, flow: FlowNode.flow(units: 4), limits: limits)
        let open = try #require(try await node.start().flow)
        #expect(Limits.flowClaim == .seconds(300))
        let (answer, _) = try await node.claim(open.id, for: .seconds(2))
        #expect((answer.flow?.expiresIn ?? 0) <= 2_000_000)
        let void = try await database.psql("SELECT expires_at FROM pandora.reservations")[0]
        try await eventually("it lives longer than it would by itself") {
            try await database.psql("SELECT expires_at > '\(void)'::timestamptz + interval '1 s' FROM pandora.reservations")[0] == "t"
        }
        #expect(try await database.psql("SELECT state, hops FROM pandora.reservations")[0] == "finishing|2")
        await node.die()
        try await eventually("it is void") { try await database.psql("SELECT pandora.flow_expire(9, '0 s')")[0] == "1" }
        #expect(try await database.flowNumbers() == "0|10|0|0|0")
    }

    /// It may be heard when its hop is settled and the flow has gone on.
    @Test func aRenewalClaimsNothingAnew() async throws {
        let database = try await TestDatabase.withQuota(10)
        let node = try await FlowNode(database)
        let reactor = try Reactor.start(name: "straggler")
        let client = try await PostgresClient.connect(to: database.url, role: .pipeline, on: reactor)
        let store = FlowStore(client, reactor)
        let open = try #require(try await node.start().flow)
        let claim = FlowHop(
            finishOf: node.flow, id: open.id, requestID: RequestID(UUIDBits(high: 9, low: 9)), environmentID: 1)
        #expect(try await store.advance([claim.renewal]) == [.finishing])
        let claimed = try #require(try await store.advance([claim])[0].flow)
        #expect(try await store.advance([claim.renewal])[0].flow?.hops == 2)
        let settlement = try #require(claimed.settlement(.reopen, hop: claim.requestID, of: node.flow))
        #expect(try await store.settle([.settle(settlement)]) == [.open])
        #expect(try await node.step(open.id).flow?.hops == 3)
        #expect(try await store.advance([claim.renewal]) == [.finishing])
        #expect(try await database.psql("SELECT state, hops FROM pandora.reservations")[0] == "open|3")
        #expect(try await node.finish(open.id).1 == .ended(.committed(units: 1)))
        await client.shutdown()
        reactor.stop()
        try await node.close()
    }

    @Test func aSuccessAfterTheExpiryIsAnOverrun() async throws {
        let database = try await TestDatabase.withQuota(10)
        let node = try await FlowNode(database, flow: FlowNode.flow(units: 10))
        let open = try #require(try await node.start().flow)
        let (answer, hop) = try await node.claim(open.id)
        try await database.psql(
            "UPDATE pandora.reservations SET expires_at = clock_timestamp() - interval '1 s'; SELECT pandora.flow_expire(9, '0 s')")
        let settlement = try #require(answer.flow?.settlement(.commit, hop: hop, of: node.flow))
        for _ in 0..<2 { #expect(try await node.settle(settlement) == .ended(.expired(charged: 10))) }
        #expect(try await database.flowNumbers() == "10|0|0|10|0")
        #expect(
            try await database.psql(
                "SELECT kind, outcome, used_delta FROM pandora.quota_ledger WHERE reservation_id IS NOT NULL ORDER BY id")
                == ["flow|expired|0", "overrun||10"])
        try await node.close()
    }

    /// The ledger takes one late row, be it of nothing: who comes after is told what that says.
    @Test func onceLateIsOnceForAll() async throws {
        let database = try await TestDatabase.withQuota(10)
        let node = try await FlowNode(database, flow: FlowNode.flow(units: 5))
        let open = try #require(try await node.start().flow)
        try await database.psql(
            "UPDATE pandora.reservations SET expires_at = clock_timestamp() - interval '1 s'; SELECT pandora.flow_expire(9, '0 s')")
        for (hop, units) in [(1, 0), (2, 5), (1, 0)] as [(UInt64, Int64)] {
            let late = FlowSettlement(
                id: open.id, hop: RequestID(UUIDBits(high: hop, low: 9)), row: open.row, period: open.period, action: .commit(units: units))
            #expect(try await node.settle(late) == .ended(.expired(charged: 0)))
        }
        #expect(try await database.flowNumbers() == "0|10|0|0|0")
        try await node.close()
    }

    /// A reset that was not due when a start was sent is done by the next turn.
    @Test func aPeriodThatEndsWhileAStartWaitsForItsRowRefusesNobody() async throws {
        let database = try await TestDatabase.withQuota(1)
        let node = try await FlowNode(database)
        #expect(try await node.runMany(1) == [.success(.ended(.committed(units: 1)))])
        async let ended: Void = database.endPeriodUnderAWait()
        try await database.isLocked()
        let answer = try await node.start()
        #expect(answer.flow?.period == 2, "\(answer)")
        try await ended
        #expect(try await node.counters().refusedUsedUp == 0)
        try await node.close()
    }

    @Test(arguments: [FlowVerdict.commit, .rollback]) func whatEndsAfterAResetTouchesOnlyItsOwnPeriod(_ verdict: FlowVerdict) async throws {
        let database = try await TestDatabase.withQuota(10)
        let node = try await FlowNode(database, flow: FlowNode.flow(units: 4))
        let open = try #require(try await node.start().flow)
        try await database.psql("UPDATE pandora.project_service SET next_reset = clock_timestamp() - interval '1 s'")
        // The next start performs the reset.
        let next = try #require(try await node.start().flow)
        #expect(open.period == 1 && next.period == 2)
        #expect(try await database.flowNumbers() == "0|10|4|0|2")
        let (_, settled) = try await node.finish(open.id, verdict)
        #expect(settled == .ended(verdict == .commit ? .committed(units: 4) : .rolledBack))
        #expect(try await database.flowNumbers() == "0|10|4|0|1")
        let old = try await database.psql("SELECT sum(used_delta) FROM pandora.quota_ledger WHERE period = 1")
        #expect(old == [verdict == .commit ? "4" : "0"])
        try await node.close()
    }

    @Test func aFailedFinishOpensAgainAndARollbackOfTheLastUnitReturnsIt() async throws {
        let database = try await TestDatabase.withQuota(1)
        let node = try await FlowNode(database)
        let open = try #require(try await node.start().flow)
        guard case .held = try await node.start() else { Issue.record("not held"); return }
        #expect(try await node.finish(open.id, .reopen).1 == .open)
        #expect(try await node.finish(open.id, .rollback).1 == .ended(.rolledBack))
        #expect(try await database.flowNumbers() == "0|1|0|0|0")
        let again = try #require(try await node.start().flow)
        #expect(try await node.resolve(again.id, commits: true) == .ended(.committed(units: 1)))
        guard case .usedUp = try await node.start() else { Issue.record("not used up"); return }
        try await node.close()
    }

    @Test func aStepWithItsKeyIsTheSameStepOnEveryNode() async throws {
        let database = try await TestDatabase.withQuota(10)
        let (first, second) = (try await FlowNode(database), try await FlowNode(database))
        let open = try #require(try await first.start().flow)
        #expect(try await first.step(open.id, key: "k").flow?.hops == 2)
        try await first.note(FlowNote(id: open.id, key: StepKey("k".utf8)!, status: 201))
        try await eventually("the status is noted") {
            try await database.psql("SELECT count(*) FROM pandora.flow_hop WHERE status_code = 201")[0] == "1"
        }
        guard case .repeated(let again, _, let status) = try await second.step(open.id, key: "k") else {
            Issue.record("not recognised")
            return
        }
        #expect(again.hops == 2 && status == 201)
        #expect(try await second.finish(open.id).1 == .ended(.committed(units: 1)))
        #expect(try await database.psql("SELECT count(*) FROM pandora.flow_hop")[0] == "0")
        try await first.close()
        try await second.close()
    }

    @Test func anUnlimitedRowIsNeverRefusedAndCounted() async throws {
        let database = try await TestDatabase.withQuota(nil)
        let node = try await FlowNode(database, flow: FlowNode.flow(units: 5))
        guard case .started(let open, nil) = try await node.start() else { Issue.record("not started"); return }
        #expect(try await database.flowNumbers() == "0||5|0|1")
        #expect(try await node.finish(open.id, charge: 2).1 == .ended(.committed(units: 2)))
        #expect(try await database.flowNumbers() == "2||0|2|0")
        #expect(try await node.start { $0.row.serviceID = 77 } == .notAssigned)
        try await node.close()
    }

    @Test func idleLeasesOfOthersServeAFlow() async throws {
        let database = try await TestDatabase.withQuota(100)
        let holder = try await KeeperNode(database, limits: .hoarding)
        let want = QuotaWant(environmentID: 1, serviceID: 1, units: 1, limited: true, outage: .deny)
        let hold = try #require(try await holder.admit(1, want)[0].hold)
        let flow = FlowNode.flow(units: 99)
        var limits = FlowLimits.patient
        limits.recallWait = 100_000_000
        let (node, late) = (try await FlowNode(database, flow: flow, limits: limits), try await FlowNode(database, flow: flow))
        // The holder took more than it needs; it gives that back when it hears of the other's wait.
        let open = try #require(try await node.start().flow)
        guard case .held(1, _) = try await late.start() else { Issue.record("not held"); return }
        #expect(try await node.counters().recalls > 0)
        #expect(try await node.finish(open.id).1 == .ended(.committed(units: 99)))
        try await holder.settle([hold], charge: 1, booking: database)
        try await holder.close()
        try await node.close()
        try await late.close()
        #expect(try await database.numbers() == "100|0|0|100")
    }

    @Test func manyRowsAreLockedInOrder() async throws {
        let database = try await TestDatabase.withQuota(1_000)
        try await database.psql(
            """
            SET search_path = pandora;
            INSERT INTO service (name) SELECT 's' || i FROM generate_series(2, 9) i;
            INSERT INTO project_service (project_id, service_id) SELECT 1, i FROM generate_series(2, 9) i;
            INSERT INTO environment_service (environment_id, service_id, max_request) SELECT 1, i, 100000 FROM generate_series(2, 9) i;
            """)
        var nodes: [FlowNode] = []
        for _ in 0..<3 { nodes.append(try await FlowNode(database)) }
        try await withThrowingTaskGroup(of: Void.self) { group in
            for node in nodes {
                group.addTask {
                    let settled: Int = try await node.ask { node, keeper, done in
                        var (left, ended) = (400, 0)
                        for index in 0..<400 {
                            let start = node.newStart(service: Int64((index * 7) % 9) + 1)
                            keeper.start(start) { started in
                                guard let open = started.flow else { left -= 1; if left == 0 { done(ended) }; return }
                                let settlement = open.settlement(.commit, hop: start.requestID, of: node.flow)!
                                keeper.settle(settlement, keep: { _ in true }) { answer in
                                    if answer == .ended(.committed(units: 1)) { ended += 1 }
                                    left -= 1
                                    if left == 0 { done(ended) }
                                }
                            }
                        }
                    }
                    #expect(settled == 400)
                }
            }
            try await group.waitForAll()
        }
        #expect(try await database.psql("SELECT sum(used_request), sum(held_request) FROM pandora.environment_service")[0] == "1200|0")
        for node in nodes {
            #expect(try await node.refusals() == [])
            try await node.close()
        }
    }
}
