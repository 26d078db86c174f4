public import GatewayCore
internal import Postgres

/// Which rows of the log are wanted; what is nil does not matter.
public struct LogFilter: Sendable, Equatable {
    public enum Status: Sendable, Equatable {
        case execution(ExecutionStatus)
        /// 429
        case code(Int16)
        /// 4: all of 400 to 499.
        case codes(Int16)
    }

    /// Not older than so many microseconds, by the server's clock.
    public var age: Int64?
    public var environmentID: Int64?
    public var keyID: KeyID?
    public var serviceIDs: [Int64]?
    public var status: Status?
    /// The first hop of a chain.
    public var chain: RequestID?
    public var reservation: ReservationID?

    public init() {}
}

/// A condition under construction, with its parameters.
struct LogCondition {
    private(set) var terms: [String] = []
    private(set) var types: [PostgresType] = []
    private(set) var parameters = Parameters()

    /// `age` aside, which is for a first look at the log.
    init(_ filter: LogFilter) {
        if let id = filter.environmentID { add(.int8, { $0.append(id) }) { "l.environment_id = \($0)" } }
        if let id = filter.keyID { add(.text, { $0.append("\(id)") }) { "l.api_key = \($0)" } }
        if let ids = filter.serviceIDs { add(.int8Array, { $0.append(ids) }) { "l.service_id = ANY (\($0))" } }
        if let root = filter.chain { add(.text, { $0.append("\(root)") }) { "(l.id = \($0) OR l.start_point = \($0))" } }
        if let id = filter.reservation { add(.text, { $0.append("\(id)") }) { "l.reservation_id = \($0)" } }
        switch filter.status {
        case .execution(let status):
            add(.text, { $0.append("\(status.text)") }) { "l.execution_status = \($0)" }
        case .code(let code): add(.int2, { $0.append(code) }) { "l.status_code = \($0)" }
        case .codes(let hundred): add(.int2, { $0.append(hundred) }) { "l.status_code / 100 = \($0)" }
        case nil: break
        }
    }

    /// An id is a moment: this bound lets whole partitions be left out.
    mutating func add(age: Int64?) {
        guard let age else { return }
        // now(), unlike clock_timestamp(), is the same for all of a statement, so that the planner can work with it.
        add(.int8, { $0.append(age) }) { "l.id >= pandora.typeid_floor('req', now() - \($0) * interval '1 microsecond')" }
    }

    mutating func add(_ type: PostgresType, _ value: (inout Parameters) -> Void, _ term: (_ parameter: String) -> String) {
        value(&parameters)
        types.append(type)
        terms.append(term("$\(types.count)"))
    }

    var sql: String { terms.isEmpty ? "true" : terms.joined(separator: " AND ") }
}
