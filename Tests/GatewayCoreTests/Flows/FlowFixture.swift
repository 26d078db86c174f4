import GatewayCore
import QuotaModel

/// Flows of one environment and service, with ids that count.
struct FlowFixture {
    var flow: Flow
    let row = QuotaRow(environmentID: 1, serviceID: 1)
    let key = KeyID(UUIDBits(high: 1, low: 1))
    private var last: UInt64 = 0

    init(units: Int64 = 1, steps: Int = 2, _ edit: (inout Flow) -> Void = { _ in }) {
        flow = Flow(name: "f", start: "a", steps: (0..<steps).map { "step\($0)" }, finish: "z", units: units)
        edit(&flow)
    }

    func store(_ limit: Int64?, period: Int64? = nil) -> ModelStore {
        var store = ModelStore(periodLength: period)
        store.setLimit(limit, of: row)
        return store
    }

    mutating func request() -> RequestID {
        last += 1
        return RequestID(UUIDBits(high: last, low: 7))
    }

    mutating func start(units: Int64? = nil, key: KeyID? = nil) -> FlowStart {
        last += 1
        var start = FlowStart(
            flow, id: ReservationID(UUIDBits(high: last, low: 1)), requestID: request(), keyID: key ?? self.key, row: row)
        if let units { start.units = units }
        return start
    }

    mutating func step(_ index: Int, of id: ReservationID, key: String? = nil) -> FlowHop {
        FlowHop(
            stepOf: flow, index: index, id: id, requestID: request(), environmentID: 1,
            key: key.flatMap { StepKey($0.utf8) })
    }

    mutating func finish(_ id: ReservationID) -> FlowHop {
        FlowHop(finishOf: flow, id: id, requestID: request(), environmentID: 1)
    }

    /// What the hop has to say of a flow it holds.
    func settlement(_ verdict: FlowVerdict, of open: OpenFlow, by hop: RequestID, charge: Int64? = nil) -> FlowSettlement {
        open.settlement(verdict, hop: hop, of: flow, charge: charge)!
    }
}

extension FlowStartAnswer {
    var flow: OpenFlow? { if case .started(let flow, _) = self { flow } else { nil } }
}

extension FlowHopAnswer {
    var flow: OpenFlow? { if case .passed(let flow) = self { flow } else { nil } }
}
