internal import GatewayCore
internal import Postgres

// What the statements of a turn take.
extension FlowSession {
    static func parameters(of starts: [FlowStart]) -> Parameters {
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
        return parameters
    }

    static func parameters(of hops: [FlowHop]) -> Parameters {
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
        return parameters
    }

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

    static func parameters(of notes: [FlowNote]) -> Parameters {
        var parameters = Parameters()
        parameters.append(notes.map { "\($0.id)" })
        parameters.append(notes.map(\.key.text))
        parameters.append(notes.map { Int16(clamping: $0.status) })
        return parameters
    }

    /// The flows that a turn finds; those that it starts nobody knows yet.
    static func flows(of turn: FlowTurn) -> Parameters {
        var parameters = Parameters()
        parameters.append((turn.hops.map(\.id) + turn.orders.map(\.id) + turn.notes.map(\.id)).map { "\($0)" })
        return parameters
    }

    /// The quota rows that a turn changes, as far as they are known, and the flows that know the others.
    static func rows(of turn: FlowTurn) -> Parameters {
        let rows = Set(turn.starts.map(\.row) + turn.orders.compactMap { $0.settlement?.row })
        var parameters = Parameters()
        parameters.append(turn.orders.map { "\($0.id)" })
        parameters.append(rows.map(\.environmentID))
        parameters.append(rows.map(\.serviceID))
        return parameters
    }
}

extension FlowTurn {
    /// Whether its parts would take each other's locks out of order.
    var isMixed: Bool { [hops.isEmpty, orders.isEmpty, starts.isEmpty, notes.isEmpty].count { !$0 } > 1 }
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
