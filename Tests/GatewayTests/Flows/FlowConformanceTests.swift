import Foundation
import GatewayCore
import GatewayStore
import NIOCore
import Postgres
import QuotaModel
import Reactor
import TestKit
import Testing

/// The same random operations on flows on the model and on PostgreSQL: answers, rows, reservations and ledger must be equal,
/// so that what the simulation proves of the model holds for the store.
@Suite struct FlowConformanceTests {
    static let always: ClosedRange<UInt64> = 1...4
    /// `PANDORA_CONFORMANCE_SEEDS=FIRST-LAST` runs others.
    static let seeds: ClosedRange<UInt64> = {
        let text = ProcessInfo.processInfo.environment["PANDORA_CONFORMANCE_SEEDS"] ?? ""
        let ends = text.split(separator: "-").compactMap { UInt64($0) }
        guard let first = ends.first, let last = ends.last, first <= last else { return always }
        return first...last
    }()

    @Test(arguments: seeds) func theModelIsTheStore(_ seed: UInt64) async throws {
        let database = try await TestDatabase.withQuota(60)
        let reactor = try Reactor.start(name: "conformance")
        defer { reactor.stop() }
        let admin = try await PostgresClient.connect(to: database.url, on: reactor)
        try await admin.script(
            """
            SET search_path = pandora;
            UPDATE project_service SET max_request = NULL;
            INSERT INTO environment (project_id, name) VALUES (1, 'f');
            INSERT INTO service (name) VALUES ('t');
            INSERT INTO project_service (project_id, service_id, reset_frequency) VALUES (1, 2, 'daily');
            INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (2, 1, NULL), (1, 2, 40);
            INSERT INTO log_spool (id, node) VALUES ('00000000-0000-7000-8000-000000000001', 'n');
            """)
        let client = try await PostgresClient.connect(to: database.url, role: .pipeline, on: reactor)
        var model = ModelStore()
        let rows = [(1, 1), (2, 1), (1, 2)].map { QuotaRow(environmentID: $0.0, serviceID: $0.1) }
        for (row, limit) in zip(rows, [60, nil, 40] as [Int64?]) { model.setLimit(limit, of: row) }
        _ = model.open(0)
        var pair = Pair(
            random: SeededRandom(seed: seed), model: model, rows: rows, store: FlowStore(client, reactor), admin: admin)
        for step in 0..<150 {
            let what = try await pair.operate()
            let (state, expected) = (try await pair.storeState(), pair.modelState())
            #expect(state == expected, "seed \(seed), step \(step): \(what)")
            guard state == expected else { break }
        }
        #expect(pair.model.ended.count > 10)
        await client.shutdown()
        await admin.shutdown()
    }
}

/// The calls of a session, awaited.
struct FlowStore: Sendable {
    let session: FlowSession
    let reactor: Reactor

    init(_ client: PostgresClient, _ reactor: Reactor) { (session, self.reactor) = (FlowSession(client), reactor) }

    func start(_ starts: [FlowStart]) async throws -> [FlowStartReply] {
        var turn = FlowTurn()
        turn.starts = starts
        return try await take(turn).starts
    }

    func advance(_ hops: [FlowHop]) async throws -> [FlowHopAnswer] {
        var turn = FlowTurn()
        turn.hops = hops
        return try await take(turn).hops
    }

    func settle(_ orders: [FlowOrder]) async throws -> [FlowSettled] {
        var turn = FlowTurn()
        turn.orders = orders
        return try await take(turn).orders
    }

    func take(_ turn: FlowTurn) async throws -> FlowTurnAnswers {
        guard !turn.isEmpty else { return FlowTurnAnswers() }
        return try await ask { $0.take(turn, deadline: patience, $1) }
    }

    func show(_ id: ReservationID, _ environment: Int64?) async throws -> FlowView? {
        try await ask { $0.show(id, environment: environment, deadline: patience, $1) }
    }

    private func ask<Answer: Sendable>(
        _ call: @escaping @Sendable (FlowSession, @escaping (Result<Answer, PostgresError>) -> Void) -> Void
    ) async throws -> Answer {
        let promise = reactor.makePromise(of: Answer.self)
        reactor.execute { [session] in call(session) { promise.completeWith($0.mapError { $0 as any Error }) } }
        return try await promise.futureResult.get()
    }
}

/// One operation after the other on both.
private struct Pair {
    var random: SeededRandom
    var model: ModelStore
    let rows: [QuotaRow]
    let store: FlowStore
    let admin: PostgresClient
    private var last: UInt64 = 0
    private var started: [ReservationID] = []
    private var hops: [FlowHop] = []

    init(random: SeededRandom, model: ModelStore, rows: [QuotaRow], store: FlowStore, admin: PostgresClient) {
        (self.random, self.model, self.rows) = (random, model, rows)
        (self.store, self.admin) = (store, admin)
    }

    mutating func operate() async throws -> String {
        switch random.pick(0...20) {
        case 0...16: return try await turn()
        case 17: return try await time()
        case 18: return try await edit()
        case 19: return try await lease()
        default: return try await show()
        }
    }

    /// Mostly the first one.
    private mutating func anyRow() -> QuotaRow { rows[[0, 0, 0, 0, 1, 2, 2][Int(random.pick(0...6))]] }

    /// Deadlines are compared in steps of five minutes: no test takes that long.
    private mutating func fiveMinutes(_ times: ClosedRange<Int64>) -> Duration { .seconds(300 * random.pick(times)) }

    private mutating func request() -> RequestID {
        last += 1
        return RequestID(UUIDBits(high: last, low: 1))
    }

    private mutating func anyFlow() -> ReservationID {
        if started.isEmpty || random.chance(12) { return ReservationID(UUIDBits(high: 9_999, low: random.next() % 4)) }
        let open = model.reservations.keys.sorted()
        if !open.isEmpty, random.chance(2) { return open[Int(random.pick(0...Int64(open.count - 1)))] }
        // Mostly a recent one.
        let last = started.count - 1
        let first = random.chance(3) ? 0 : max(0, last - 7)
        return started[Int(random.pick(Int64(first)...Int64(last)))]
    }

    /// Of one kind or of several, whose flows may be the same.
    private mutating func turn() async throws -> String {
        var turn = FlowTurn()
        let kinds = random.pick(1...7)
        if kinds & 1 != 0 { turn.hops = nextHops() }
        if kinds & 2 != 0 { turn.orders = nextOrders() }
        if kinds & 4 != 0 { turn.starts = nextStarts() }
        turn.notes = (turn.hops + hops.suffix(2)).compactMap { hop in
            hop.key.map { FlowNote(id: hop.id, key: $0, status: UInt16(200 + random.pick(0...9))) }
        }
        hops += turn.hops
        let expected = coarse(model.take(turn))
        let answers = coarse(try await store.take(turn))
        #expect(answers == expected, "\(turn)")
        for (start, reply) in zip(turn.starts, expected.starts) {
            if case .started = reply { started.append(start.id) }
        }
        return "\(turn)"
    }

    private mutating func nextStarts() -> [FlowStart] {
        var starts: [FlowStart] = []
        for _ in 0..<random.pick(1...6) {
            let row = anyRow()
            let flow = Flow(
                name: "f", start: "a", steps: ["b", "c"], finish: "d", units: random.pick(0...15), timeToLive: fiveMinutes(1...4),
                timeMax: fiveMinutes(3...8), hops: 6, ordered: true, open: 5)
            // A key belongs to one environment.
            let key = KeyID(UUIDBits(high: UInt64(row.environmentID), low: UInt64(random.pick(0...1))))
            var start = FlowStart(flow, id: ReservationID(request().uuid), requestID: request(), keyID: key, row: row)
            if !started.isEmpty, random.chance(8) {
                start.id = anyFlow()
                // The same flow said again, or one that is over.
                if let known = model.reservations[start.id] { start.row = known.row; start.keyID = known.keyID }
                if starts.contains(where: { $0.id == start.id }) || model.reservations[start.id] == nil && model.ended[start.id] == nil {
                    start.id = ReservationID(request().uuid)
                }
            }
            if random.chance(12) { start.row.serviceID = 77 }
            starts.append(start)
        }
        return starts
    }

    private mutating func nextHops() -> [FlowHop] {
        var batch: [FlowHop] = []
        for _ in 0..<random.pick(1...6) {
            let id = anyFlow()
            guard !batch.contains(where: { $0.id == id }) else { continue }
            let said = hops.filter { $0.id == id }
            if !said.isEmpty, random.chance(4) {
                let known = random.chance(2) ? said.last! : said[Int(random.pick(0...Int64(said.count - 1)))]
                batch.append(known.isFinish && random.chance(2) ? known.renewal : known)
                continue
            }
            let flow = Flow(
                name: random.chance(15) ? "g" : "f", start: "a", steps: ["b", "c"], finish: "d", timeToLive: fiveMinutes(1...9),
                hops: 4, ordered: random.chance(2))
            var environment = model.reservations[id]?.row.environmentID ?? model.ended[id]?.row.environmentID ?? 1
            if random.chance(15) { environment = 3 - environment }
            if random.chance(4) {
                batch.append(
                    FlowHop(finishOf: flow, id: id, requestID: request(), environmentID: environment, claim: fiveMinutes(1...9)))
            } else {
                let key = random.chance(2) ? StepKey("k\(random.pick(0...1))".utf8) : nil
                batch.append(
                    FlowHop(
                        stepOf: flow, index: Int(random.pick(0...1)), id: id, requestID: request(),
                        environmentID: environment, key: key))
            }
        }
        return batch
    }

    private mutating func settlement(_ id: ReservationID) -> FlowSettlement {
        let known = model.reservations[id]
        let hop = random.chance(5) ? nil : known?.finishingHop ?? hops.last { $0.id == id }?.requestID
        let action: FlowSettlement.Action =
            switch random.pick(0...5) {
            case 0...2: .commit(units: random.chance(3) ? random.pick(0...20) : known?.units ?? random.pick(0...3))
            case 3: .rollback
            default: .reopen(timeToLive: fiveMinutes(1...9).wholeMicroseconds)
            }
        var row = known?.row ?? model.ended[id]?.row ?? rows[0]
        if random.chance(15) { row.environmentID = 3 - row.environmentID }
        return FlowSettlement(
            id: id, hop: hop ?? request(), row: row,
            period: random.chance(6) ? 0 : known?.period ?? model.quotas[row]?.period ?? 1, action: action)
    }

    private mutating func nextOrders() -> [FlowOrder] {
        var orders: [FlowOrder] = []
        for _ in 0..<random.pick(1...3) {
            let id = anyFlow()
            guard !orders.contains(where: { $0.id == id }) else { continue }
            if random.chance(4) {
                let environment: Int64? = random.chance(2) ? nil : random.chance(8) ? 2 : model.reservations[id]?.row.environmentID ?? 1
                orders.append(.resolve(FlowResolution(id: id, environmentID: environment, commits: random.chance(2))))
            } else {
                orders.append(.settle(settlement(id)))
            }
        }
        return orders
    }

    /// Some flows are overdue, or a period ends.
    private mutating func time() async throws -> String {
        if random.chance(3) {
            model.periodLength = 1
            model.now += 1
            model.makeResetDue()
            model.resetIfDue()
            try await admin.script(
                """
                UPDATE pandora.project_service SET next_reset = clock_timestamp() - interval '1 s';
                SELECT pandora.reset_if_due(1, 1), pandora.reset_if_due(1, 2);
                """)
            return "reset"
        }
        let id = anyFlow()
        model.makeOverdue(id)
        try await admin.script(
            "UPDATE pandora.reservations SET expires_at = clock_timestamp() - interval '1 s' WHERE id = '\(id)'")
        // A claim that is said again lives again.
        let claim = hops.last { $0.isFinish && $0.id == id && $0.requestID == model.reservations[id]?.finishingHop }
        if random.chance(2), let renewal = claim?.renewal {
            let expected = model.advance([renewal]).map(coarse)
            #expect(try await store.advance([renewal]).map(coarse) == expected)
        }
        let count = model.expireFlows()
        #expect(try await admin.script("SELECT pandora.flow_expire(100, '0 s')")[0].string(0) == "\(count)")
        return "expire \(id)"
    }

    private mutating func edit() async throws -> String {
        let limit = random.chance(5) ? nil : random.pick(0...120)
        let row = anyRow()
        model.setLimit(limit, of: row)
        try await admin.script(
            """
            UPDATE pandora.environment_service SET max_request = \(limit.map(String.init) ?? "NULL")
             WHERE environment_id = \(row.environmentID) AND service_id = \(row.serviceID)
            """)
        return "limit \(limit ?? -1)"
    }

    /// Leases share the row.
    private mutating func lease() async throws -> String {
        let need = random.pick(0...20)
        let row = rows[random.chance(3) ? 2 : 0]
        _ = try model.acquire(0, epoch: 1, [LeaseQuestion(row: row, need: need, wish: need)])
        try await admin.script(
            """
            SELECT * FROM pandora.lease_acquire('00000000-0000-7000-8000-000000000001', 1, '{1}', '{\(row.serviceID)}',
                                                '{\(need)}', '{\(need)}')
            """)
        let open = model.leases.filter { $0.key.row == row && $0.value.open > 0 }.min { $0.key < $1.key }
        if random.chance(2), let lease = open {
            let total = lease.value.returned + lease.value.open
            try model.giveBack(0, epoch: 1, [LeaseReturn(row: row, period: lease.key.period, totalReturned: total)])
            try await admin.script(
                """
                SELECT pandora.lease_return('00000000-0000-7000-8000-000000000001', 1, '{1}', '{\(row.serviceID)}',
                                            '{\(lease.key.period)}', '{\(total)}')
                """)
        }
        return "lease \(need)"
    }

    private mutating func show() async throws -> String {
        let id = anyFlow()
        let environment: Int64? = random.chance(2) ? nil : 1
        let view = try await store.show(id, environment)
        if let flow = model.reservations[id], environment ?? flow.row.environmentID == flow.row.environmentID {
            #expect(view?.row == flow.row && view?.period == flow.period && view?.progress?.units == flow.units)
            #expect(view?.progress?.hops == flow.hops && view?.progress?.startPoint == flow.startPoint)
            #expect(view?.progress?.keyID == flow.keyID && view?.progress?.flow == flow.flow)
            #expect(view?.state == (flow.finishingHop == nil ? .open : .finishing))
        } else if let past = model.ended[id], environment ?? past.row.environmentID == past.row.environmentID {
            guard case .ended(let outcome, _) = view?.state else { Issue.record("\(view as Any)"); return "show" }
            #expect(outcome == past.outcome && view?.row == past.row && view?.period == past.period)
        } else {
            #expect(view == nil)
        }
        return "show \(id)"
    }

    // MARK: - With a clock that shows five minutes

    private static func coarse(_ microseconds: Int64) -> Int64 { (microseconds + 299_999_999) / 300_000_000 }

    private func coarse(_ answers: FlowTurnAnswers) -> FlowTurnAnswers {
        var answers = answers
        answers.hops = answers.hops.map(coarse)
        answers.starts = answers.starts.map(coarse)
        return answers
    }

    private func coarse(_ reply: FlowStartReply) -> FlowStartReply {
        func coarse(_ numbers: FlowNumbers) -> FlowNumbers {
            var numbers = numbers
            numbers.resetIn = nil
            return numbers
        }
        switch reply {
        // What the row has meanwhile is of no use to the one who asks again.
        case .started(var numbers, let expiresIn):
            (numbers.limit, numbers.available, numbers.held) = (nil, nil, 0)
            return .started(coarse(numbers), expiresIn: Self.coarse(expiresIn))
        case .short(let numbers, let leased, let deadline):
            return .short(coarse(numbers), leased: leased, deadlineIn: deadline.map(Self.coarse))
        case .limit(let deadline): return .limit(deadlineIn: deadline.map(Self.coarse))
        case .notAssigned, .ended: return reply
        }
    }

    private func coarse(_ answer: FlowHopAnswer) -> FlowHopAnswer {
        switch answer {
        case .passed(var flow):
            flow.expiresIn = Self.coarse(flow.expiresIn)
            return .passed(flow)
        case .repeated(var flow, let first, let status):
            flow.expiresIn = Self.coarse(flow.expiresIn)
            return .repeated(flow, first: first, status: status)
        default: return answer
        }
    }

    // MARK: - State

    func storeState() async throws -> [String] {
        let rows = try await admin.script(
            """
            SELECT line FROM (
                SELECT concat_ws(' ', 'row', environment_id, service_id, coalesce(max_request, -1), used_request, held_request,
                                 period) AS line FROM pandora.environment_service
                UNION ALL
                SELECT concat_ws(' ', 'flow', id, environment_id, service_id, api_key, start_point, flow, units, period, hops,
                                 step, coalesce(last_hop, '-'), coalesce(finishing_hop, '-'),
                                 ceil(extract(epoch FROM expires_at - clock_timestamp()) / 300),
                                 ceil(extract(epoch FROM deadline_max - clock_timestamp()) / 300)) FROM pandora.reservations
                UNION ALL
                SELECT concat_ws(' ', 'step', reservation_id, idempotency_key, request_id, coalesce(status_code, 0))
                  FROM pandora.flow_hop
                UNION ALL
                SELECT concat_ws(' ', 'ended', reservation_id, environment_id, service_id, period, max(outcome), sum(used_delta))
                  FROM pandora.quota_ledger WHERE reservation_id IS NOT NULL
                 GROUP BY reservation_id, environment_id, service_id, period
                UNION ALL
                SELECT concat_ws(' ', 'ledger', environment_id, service_id, period, kind, sum(used_delta))
                  FROM pandora.quota_ledger GROUP BY environment_id, service_id, period, kind
                HAVING sum(used_delta) <> 0) AS lines
            ORDER BY line COLLATE "C"
            """)
        return rows.map { $0.string(0) }
    }

    func modelState() -> [String] {
        var lines: [String] = []
        for (row, quota) in model.quotas {
            lines.append("row \(row.environmentID) \(row.serviceID) \(quota.limit ?? -1) \(quota.used) \(quota.held) \(quota.period)")
        }
        for (id, flow) in model.reservations {
            lines.append(
                "flow \(id) \(flow.row.environmentID) \(flow.row.serviceID) \(flow.keyID) \(flow.startPoint) \(flow.flow) "
                    + "\(flow.units) \(flow.period) \(flow.hops) \(flow.step) \(flow.lastHop.map { "\($0)" } ?? "-") "
                    + "\(flow.finishingHop.map { "\($0)" } ?? "-") \(Self.coarse(flow.expiresAt - model.now)) "
                    + "\(Self.coarse(flow.deadlineMax - model.now))")
            for (key, step) in flow.steps { lines.append("step \(id) \(key.text) \(step.request) \(step.status ?? 0)") }
        }
        for (id, flow) in model.ended {
            let outcome =
                switch flow.outcome {
                case .committed: "committed"
                case .rolledBack: "rolled_back"
                case .expired: "expired"
                }
            lines.append("ended \(id) \(flow.row.environmentID) \(flow.row.serviceID) \(flow.period) \(outcome) \(flow.charged)")
        }
        for (id, booked) in model.ledger {
            for (kind, used) in [("flow", booked.flows), ("overrun", booked.late + booked.overrun), ("hops", booked.hops)]
            where used != 0 {
                lines.append("ledger \(id.row.environmentID) \(id.row.serviceID) \(id.period) \(kind) \(used)")
            }
        }
        return lines.sorted { Array($0.utf8).lexicographicallyPrecedes(Array($1.utf8)) }
    }
}
