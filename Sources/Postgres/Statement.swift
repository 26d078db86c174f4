internal import Synchronization

/// The types that parameters are declared as; all travel in binary. The numbers are those of pg_type.
public enum PostgresType: UInt32, Sendable {
    case bool = 16
    case bytea = 17
    case int8 = 20
    case int2 = 21
    case int4 = 23
    case text = 25
    case json = 114
    case float8 = 701
    case timestamptz = 1184
    case uuid = 2950
    case boolArray = 1000
    case byteaArray = 1001
    case int2Array = 1005
    case int4Array = 1007
    case textArray = 1009
    case int8Array = 1016
    case timestamptzArray = 1185
}

/// One SQL command that connections prepare when they first need it. Make one of each, for ever: a connection remembers every
/// statement that it has prepared.
public final class Statement: Sendable {
    /// Names the statement in errors.
    public let name: String
    let sql: String
    let parameterTypes: [UInt32]
    /// Tells statements apart that share a name by mistake.
    let number: Int
    let isPrepared: Bool

    private static let count = Atomic<Int>(0)

    /// - Parameters:
    ///   - name: letters, digits and underscores, at most 40.
    ///   - sql: one command with parameters `$1`, `$2` …
    ///   - parameterTypes: as many as there are parameters.
    ///   - isPrepared: false for what is executed once: it is then parsed at each execution.
    public init(name: String, sql: String, parameterTypes: [PostgresType] = [], isPrepared: Bool = true) {
        // The server cuts names at 63 bytes, and ours get a number.
        precondition(name.utf8.count <= 40, "the name \(name) is too long")
        self.name = name
        self.sql = sql
        self.parameterTypes = parameterTypes.map(\.rawValue)
        self.isPrepared = isPrepared
        number = Statement.count.add(1, ordering: .relaxed).newValue
    }
}
