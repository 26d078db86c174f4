public import GatewayCore
public import NIOCore
public import Postgres

/// A worker's conversation with the store about flows, in the messages of a ``FlowBook``.  Confined to the reactor of its
/// client.
public struct FlowSession: Sendable {
    private let client: PostgresClient

    /// - Parameter client: a pipeline connection: what was sent first takes effect first.
    public init(_ client: PostgresClient) { self.client = client }

    public var isReady: Bool { client.isReady }

    /// Starts flows in one statement, which performs a due reset first, in order of arrival as far as units reach.
    public func start(
        _ starts: [FlowStart], deadline: TimeAmount,
        _ done: @escaping (Result<[FlowStartReply], PostgresError>) -> Void
    ) {
        var parameters = Parameters()
        parameters.append(starts.map { "\($0.id)" })
        parameters.append(starts.map { "\($0.requestID)" })
        parameters.append(starts.map { "\($0.keyID)" })
        parameters.append(starts.map(\.row.environmentID))
        parameters.append(starts.map(\.row.serviceID))
        parameters.append(starts.map(\.flow))
        parameters.append(starts.map(\.units))
        parameters.append(starts.map(\.timeToLive))
        parameters.append(starts.map(\.timeMax))
        parameters.append(starts.map(\.openMax))
        client.execute(Self.startStatement, parameters, deadline: deadline) { result in
            done(result.map { rows in rows.map(FlowStartReply.init) })
        }
    }

    /// Lets steps pass and claims finishes.
    ///
    /// - Parameter hops: at most one of a flow.
    public func advance(
        _ hops: [FlowHop], deadline: TimeAmount, _ done: @escaping (Result<[FlowHopAnswer], PostgresError>) -> Void
    ) {
        var parameters = Parameters()
        parameters.append(hops.map { "\($0.id)" })
        parameters.append(hops.map { "\($0.requestID)" })
        parameters.append(hops.map(\.environmentID))
        parameters.append(hops.map(\.flow))
        parameters.append(hops.map(\.isFinish))
        parameters.append(hops.map(\.position))
        parameters.append(hops.map(\.isOrdered))
        parameters.append(hops.map(\.hopsMax))
        parameters.append(hops.map { $0.isFinish ? $0.claimTime : $0.timeToLive })
        parameters.append(optionals: hops.map { $0.key?.text })
        client.execute(Self.advanceStatement, parameters, deadline: deadline) { result in
            done(result.map { rows in zip(hops, rows).map { FlowHopAnswer($1, of: $0) } })
        }
    }

    /// Ends flows or opens them again.
    ///
    /// - Parameter orders: at most one of a flow.
    public func settle(
        _ orders: [FlowOrder], deadline: TimeAmount, _ done: @escaping (Result<[FlowSettled], PostgresError>) -> Void
    ) {
        client.execute(Self.settleStatement, Self.parameters(of: orders), deadline: deadline) { result in
            done(result.map { rows in rows.map(FlowSettled.init) })
        }
    }

    /// Remembers what steps were answered.
    public func note(
        _ notes: [FlowNote], deadline: TimeAmount, _ done: @escaping (Result<Void, PostgresError>) -> Void
    ) {
        var parameters = Parameters()
        parameters.append(notes.map { "\($0.id)" })
        parameters.append(notes.map(\.key.text))
        parameters.append(notes.map { Int16(clamping: $0.status) })
        client.execute(Self.noteStatement, parameters, deadline: deadline) { done($0.map { _ in }) }
    }

    /// The flow as it is; nil: unknown, or of another environment than the one asked for.
    public func show(
        _ id: ReservationID, environment: Int64?, deadline: TimeAmount,
        _ done: @escaping (Result<FlowView?, PostgresError>) -> Void
    ) {
        var parameters = Parameters()
        parameters.append("\(id)")
        parameters.append(environment)
        client.execute(Self.showStatement, parameters, deadline: deadline) { result in
            done(result.map { rows in rows.first.flatMap { FlowView(id, $0) } })
        }
    }

    /// Asks the holders of leases to return idle units of a row (NOTIFY quota_recall, payload `environment:service`).
    public func recall(_ row: QuotaRow, deadline: TimeAmount) {
        var parameters = Parameters()
        parameters.append("\(row.environmentID):\(row.serviceID)")
        client.execute(Self.recallStatement, parameters, deadline: deadline) { _ in }
    }

    /// What ``settleStatement`` takes.
    static func parameters(of orders: [FlowOrder]) -> Parameters {
        var parameters = Parameters()
        parameters.append(orders.map { "\($0.id)" })
        parameters.append(optionals: orders.map { $0.settlement.map { "\($0.hop)" } })
        parameters.append(orders.map(\.action))
        parameters.append(optionals: orders.map(\.environmentID))
        parameters.append(orders.map { $0.settlement?.row.serviceID ?? 0 })
        parameters.append(orders.map { $0.settlement?.period ?? 0 })
        parameters.append(optionals: orders.map(\.units))
        parameters.append(orders.map(\.life))
        return parameters
    }
}

extension FlowOrder {
    fileprivate var settlement: FlowSettlement? { if case .settle(let settlement) = self { settlement } else { nil } }

    fileprivate var environmentID: Int64? {
        switch self {
        case .settle(let settlement): settlement.row.environmentID
        case .resolve(let resolution): resolution.environmentID
        }
    }

    fileprivate var action: String {
        switch self {
        case .settle(let settlement):
            switch settlement.action {
            case .commit: "commit"
            case .rollback: "rollback"
            case .reopen: "reopen"
            }
        case .resolve(let resolution): resolution.commits ? "commit" : "rollback"
        }
    }

    /// nil: all that are held.
    fileprivate var units: Int64? {
        guard let settlement else { return nil }
        if case .commit(let units) = settlement.action { return units }
        return 0
    }

    fileprivate var life: Int64 {
        if case .reopen(let timeToLive) = settlement?.action { timeToLive } else { 0 }
    }
}

extension FlowOutcome {
    fileprivate init?(_ verdict: String, _ units: Int64) {
        switch verdict {
        case "committed": self = .committed(units: units)
        case "rolled_back": self = .rolledBack
        case "expired": self = .expired(charged: units)
        default: return nil
        }
    }
}

extension FlowStartReply {
    fileprivate init(_ row: Row) {
        let numbers = FlowNumbers(
            period: row.int64(1) ?? 0, limit: row.int64(2), available: row.int64(3), held: row.int64(4) ?? 0,
            resetIn: row.int64(6))
        switch row.string(0) as String {
        case "started": self = .started(numbers, expiresIn: row.int64(7) ?? 0)
        case "held": self = .short(numbers, leased: row.int64(5) ?? 0, deadlineIn: row.int64(7))
        case "limit": self = .limit(deadlineIn: row.int64(7))
        case "ended": self = .ended
        default: self = .notAssigned
        }
    }
}

extension FlowHopAnswer {
    fileprivate init(_ row: Row, of hop: FlowHop) {
        let verdict: String = row.string(0)
        if let outcome = FlowOutcome(verdict, row.int64(3) ?? 0) {
            self = .ended(outcome)
            return
        }
        switch verdict {
        case "finishing": self = .finishing
        case "foreign": self = .refused(.foreign)
        case "order": self = .refused(.order)
        case "hops": self = .refused(.hops)
        case "passed", "repeated":
            guard let flow = OpenFlow(row, of: hop) else { self = .unknown; return }
            let first = (row.string(7) as String?).flatMap { RequestID($0) }
            self =
                verdict == "repeated"
                ? .repeated(flow, first: first ?? flow.startPoint, status: (row.int16(8) as Int16?).map { UInt16(clamping: $0) })
                : .passed(flow)
        default: self = .unknown
        }
    }
}

extension OpenFlow {
    /// Nil where the chain's root is no identifier, which a hand must have written.
    fileprivate init?(_ row: Row, of hop: FlowHop) {
        guard let startPoint = RequestID(row.string(4) as String) else { return nil }
        self.init(
            id: hop.id, row: QuotaRow(environmentID: hop.environmentID, serviceID: row.int64(1)), period: row.int64(2),
            units: row.int64(3), startPoint: startPoint, hops: Int64(row.int32(5) as Int32), expiresIn: row.int64(6))
    }
}

extension FlowSettled {
    init(_ row: Row) {
        let verdict: String = row.string(0)
        if let outcome = FlowOutcome(verdict, row.int64(1)) {
            self = .ended(outcome)
            return
        }
        switch verdict {
        case "open": self = .open
        case "finishing": self = .finishing
        default: self = .unknown
        }
    }
}

extension FlowView {
    fileprivate init?(_ id: ReservationID, _ row: Row) {
        let quotaRow = QuotaRow(environmentID: row.int64(0), serviceID: row.int64(1))
        let (period, state, units): (Int64, String, Int64) = (row.int64(2), row.string(3), row.int64(4))
        if let outcome = FlowOutcome(state, units) {
            self.init(
                id: id, row: quotaRow, period: period, state: .ended(outcome, at: row.timestampMicroseconds(5)),
                progress: nil)
            return
        }
        let progress = Progress(
            flow: row.string(6), keyID: KeyID(row.string(7) as String), startPoint: RequestID(row.string(8) as String),
            units: units, hops: Int64(row.int32(9) as Int32), startedAt: row.timestampMicroseconds(5),
            expiresAt: row.timestampMicroseconds(10), expiresIn: row.int64(11))
        self.init(
            id: id, row: quotaRow, period: period, state: state == "finishing" ? .finishing : .open, progress: progress)
    }
}
