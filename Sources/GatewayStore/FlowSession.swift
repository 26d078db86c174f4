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

    /// Carries out a turn in one transaction: lets steps pass and claims finishes; ends flows or opens them again; starts flows,
    /// in order of arrival as far as units reach, after a reset that is due; remembers what steps were answered.
    ///
    /// - Parameter turn: not empty.
    public func take(
        _ turn: FlowTurn, deadline: TimeAmount, _ done: @escaping (Result<FlowTurnAnswers, PostgresError>) -> Void
    ) {
        var statements: [(statement: Statement, parameters: Parameters)] = []
        if turn.isMixed { statements.append((Self.lockFlowsStatement, Self.flows(of: turn))) }
        if !turn.hops.isEmpty { statements.append((Self.advanceStatement, Self.parameters(of: turn.hops))) }
        if turn.isMixed, !turn.orders.isEmpty || !turn.starts.isEmpty {
            statements.append((Self.lockRowsStatement, Self.rows(of: turn)))
        }
        if !turn.orders.isEmpty { statements.append((Self.settleStatement, Self.parameters(of: turn.orders))) }
        if !turn.starts.isEmpty { statements.append((Self.startStatement, Self.parameters(of: turn.starts))) }
        if !turn.notes.isEmpty { statements.append((Self.noteStatement, Self.parameters(of: turn.notes))) }
        client.execute(together: statements, deadline: deadline) { [statements] result in
            done(result.map { FlowTurnAnswers(zip(statements.lazy.map(\.statement), $0), of: turn.hops) })
        }
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
}

extension FlowTurnAnswers {
    fileprivate init(_ answers: some Sequence<(Statement, Rows)>, of asked: [FlowHop]) {
        self.init()
        for (statement, rows) in answers {
            if statement === FlowSession.advanceStatement { hops = zip(asked, rows).map { FlowHopAnswer($1, of: $0) } }
            if statement === FlowSession.settleStatement { orders = rows.map(FlowSettled.init) }
            if statement === FlowSession.startStatement { starts = rows.map(FlowStartReply.init) }
        }
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
