import Gateway
import GatewayCore
import GatewayStore
import NIOCore
import Postgres
import Reactor
import TestKit

/// A worker's flow side alone: a reactor, a connection, a keeper.
///
/// Sendable: everything but the immutable references is used on the reactor only.
final class FlowNode: @unchecked Sendable {
    let reactor: Reactor
    let flow: Flow
    private let client: PostgresClient
    private let keeper: FlowKeeper
    private var ids = RequestIDs()
    private(set) var errors: [PostgresError] = []

    init(_ database: TestDatabase, flow: Flow = FlowNode.flow(), limits: FlowLimits = .patient) async throws {
        self.flow = flow
        reactor = try Reactor.start(name: "flows")
        client = PostgresClient(try .patient(database.url), role: .pipeline, on: reactor)
        keeper = FlowKeeper(on: reactor, limits: limits)
        try await reactor.submit { [self] in
            client.onStateChange = { [weak keeper] state in
                switch state {
                case .ready: keeper?.storeReady()
                case .lost: keeper?.storeLost()
                default: break
                }
            }
            keeper.onError = { [weak self] in self?.errors.append($0) }
            keeper.begin(FlowSession(client))
            client.start()
        }.get()
        try await client.ready(within: patience)
    }

    static func flow(units: Int64 = 1, open: Int = 1_000_000, _ edit: (inout Flow) -> Void = { _ in }) -> Flow {
        var flow = Flow(name: "f", start: "a", steps: ["b"], finish: "c", units: units, open: open)
        edit(&flow)
        return flow
    }

    // MARK: - On the reactor

    func newRequest() -> RequestID { ids.next() }

    func newStart(key: KeyID = FlowNode.key, service: Int64 = 1) -> FlowStart {
        FlowStart(
            flow, id: ReservationID(ids.next().uuid), requestID: newRequest(), keyID: key,
            row: QuotaRow(environmentID: 1, serviceID: service))
    }

    func newFinish(_ id: ReservationID, claim: Duration = Limits.flowClaim) -> FlowHop {
        FlowHop(finishOf: flow, id: id, requestID: newRequest(), environmentID: 1, claim: claim)
    }

    static let key = KeyID(UUIDBits(high: 1, low: 1))

    /// Runs `body` on the reactor and waits until it calls back.
    func ask<Answer: Sendable>(
        _ body: @escaping @Sendable (FlowNode, FlowKeeper, @escaping (Answer) -> Void) -> Void
    ) async throws -> Answer {
        let promise = reactor.makePromise(of: Answer.self)
        reactor.execute { [self] in body(self, keeper) { promise.succeed($0) } }
        return try await promise.futureResult.get()
    }

    // MARK: - One request

    func start(_ edit: @escaping @Sendable (inout FlowStart) -> Void = { _ in }) async throws -> FlowStartAnswer {
        try await ask { node, keeper, done in
            var start = node.newStart()
            edit(&start)
            keeper.start(start, done)
        }
    }

    func step(_ id: ReservationID, key: String? = nil) async throws -> FlowHopAnswer {
        try await ask { node, keeper, done in
            keeper.step(
                FlowHop(
                    stepOf: node.flow, index: 0, id: id, requestID: node.newRequest(), environmentID: 1,
                    key: key.flatMap { StepKey($0.utf8) }), done)
        }
    }

    /// Claims, and settles what passed.
    func finish(_ id: ReservationID, _ verdict: FlowVerdict = .commit, charge: Int64? = nil) async throws -> (FlowHopAnswer, FlowSettled?) {
        try await ask { node, keeper, done in
            let hop = node.newFinish(id)
            keeper.claim(hop) { answer in
                guard case .passed(let open) = answer,
                    let settlement = open.settlement(verdict, hop: hop.requestID, of: node.flow, charge: charge)
                else { return done((answer, nil)) }
                keeper.settle(settlement, keep: { _ in true }) { done((answer, $0)) }
            }
        }
    }

    /// Claims only.
    func claim(_ id: ReservationID, for time: Duration = Limits.flowClaim) async throws -> (FlowHopAnswer, RequestID) {
        try await ask { node, keeper, done in
            let hop = node.newFinish(id, claim: time)
            keeper.claim(hop) { done(($0, hop.requestID)) }
        }
    }

    /// - Parameter keep: what the spool says to a settlement that is late.
    func settle(
        _ settlement: FlowSettlement, keep: @escaping @Sendable (FlowSettlement) -> Bool = { _ in true }
    ) async throws -> FlowSettled {
        try await ask { _, keeper, done in keeper.settle(settlement, keep: keep, done) }
    }

    func resolve(_ id: ReservationID, commits: Bool, environment: Int64? = 1) async throws -> FlowSettled {
        try await ask { _, keeper, done in
            keeper.resolve(FlowResolution(id: id, environmentID: environment, commits: commits), done)
        }
    }

    func show(_ id: ReservationID, environment: Int64? = 1) async throws -> FlowView? {
        try await ask { (_, keeper, done: @escaping (Result<FlowView?, PostgresError>) -> Void) in
            keeper.show(id, environment: environment, done)
        }.get()
    }

    func note(_ note: FlowNote) async throws {
        try await reactor.submit { [self] in keeper.note(note) }.get()
    }

    // MARK: - Many at once

    /// Starts `count` flows at once.
    func startMany(_ count: Int, key: KeyID = FlowNode.key) async throws -> [FlowStartAnswer] {
        try await ask { node, keeper, done in
            var answers: [FlowStartAnswer] = []
            for _ in 0..<count {
                keeper.start(node.newStart(key: key)) { answer in
                    answers.append(answer)
                    if answers.count == count { done(answers) }
                }
            }
        }
    }

    /// Whole flows, all begun at once: started, and finished where they started.  Returns how each ended.
    func runMany(_ count: Int) async throws -> [Result<FlowSettled, Refused>] {
        try await ask { node, keeper, done in
            var ends: [Result<FlowSettled, Refused>] = []
            let end = { (result: Result<FlowSettled, Refused>) in
                ends.append(result)
                if ends.count == count { done(ends) }
            }
            for _ in 0..<count { node.run(keeper, end) }
        }
    }

    struct Refused: Error, Equatable {
        var start: FlowStartAnswer?
        var claim: FlowHopAnswer?
    }

    /// One flow from start to finish.
    func run(_ keeper: FlowKeeper, _ end: @escaping (Result<FlowSettled, Refused>) -> Void) {
        keeper.start(newStart()) { [self] started in
            guard case .started(let open, _) = started else { return end(.failure(Refused(start: started))) }
            let hop = newFinish(open.id)
            keeper.claim(hop) { [self] claimed in
                guard case .passed(let open) = claimed else { return end(.failure(Refused(claim: claimed))) }
                keeper.settle(open.settlement(.commit, hop: hop.requestID, of: flow)!, keep: { _ in true }) { end(.success($0)) }
            }
        }
    }

    func counters() async throws -> FlowBook.Counters { try await reactor.submit { [self] in keeper.counters }.get() }

    /// What the store refused.
    func refusals() async throws -> [String] { try await reactor.submit { [self] in errors.map(\.description) }.get() }

    func backendPID() async throws -> Int32? { try await reactor.submit { [client] in client.backendPID }.get() }

    func isReady() async throws -> Bool { try await reactor.submit { [client] in client.isReady }.get() }

    func close() async throws {
        _ = try await close(within: patience)
        await die()
    }

    /// Returns how many settlements were lost.
    func close(within limit: TimeAmount) async throws -> Int {
        try await ask { _, keeper, done in keeper.close(within: limit, done) }
    }

    /// Ends without a word, as a killed process does.
    func die() async {
        await client.shutdown()
        reactor.stop()
    }
}

extension FlowLimits {
    /// A loaded machine is no outage: requests wait for the store as long as it takes.
    static var patient: FlowLimits {
        var limits = FlowLimits()
        (limits.waitMax, limits.settleMax, limits.answerMax) = (120_000_000, 120_000_000, 120_000_000)
        return limits
    }
}

extension FlowStartAnswer {
    var flow: OpenFlow? { if case .started(let flow, _) = self { flow } else { nil } }
}

extension FlowHopAnswer {
    var flow: OpenFlow? { if case .passed(let flow) = self { flow } else { nil } }
}

extension TestDatabase {
    /// used|available|held of the row, the ledger's units of the current period, and open reservations.
    func flowNumbers() async throws -> String {
        try await psql(
            """
            SELECT used_request, available_request, held_request,
                   (SELECT sum(used_delta) FROM pandora.quota_ledger l
                     WHERE (l.environment_id, l.service_id, l.period) = (1, 1, e.period)),
                   (SELECT count(*) FROM pandora.reservations)
              FROM pandora.environment_service e
            """)[0]
    }
}
