/// Why a statement did not succeed. `description` is for operators: it never holds SQL text, parameters or a password, but it
/// may quote what the server says, so it does not belong into an answer to a client.
public struct PostgresError: Error, Sendable, Equatable, CustomStringConvertible {
    public enum Kind: Equatable, Sendable {
        /// There is no connection; nothing was sent.
        case unavailable
        /// More statements wait than the configuration allows; nothing was sent.
        case overloaded
        /// The connection broke with the statement under way.
        case connectionLost
        /// No answer by the statement's deadline. If it was under way, the connection was dropped.
        case deadline
        /// The server refused; the statement, and the transaction it belongs to, had no effect.
        case server(SQLState)
        /// The server or libpq did what the protocol does not allow; the connection was dropped.
        case protocolViolation
    }

    public var kind: Kind
    /// The name of the statement, or empty.
    public var statement: String
    /// The server's primary message, or libpq's.
    public var message: String
    /// The server's detail and hint: they may quote values.
    public var detail: String?
    public var hint: String?
    /// The name of the violated constraint, if the server named one.
    public var constraint: String?
    /// What the server said when it refused a connection or ended it; otherwise the state of `.server`.
    public var sqlState: SQLState?
    /// Whether the statement may have been executed and committed all the same. False is certain.
    public var mayHaveTakenEffect: Bool

    init(_ kind: Kind, _ message: String, statement: String = "", mayHaveTakenEffect: Bool = false) {
        (self.kind, self.message, self.statement, self.mayHaveTakenEffect) = (kind, message, statement, mayHaveTakenEffect)
        if case .server(let state) = kind { sqlState = state }
    }

    /// A serialization failure, a deadlock, or a lock that was not waited for: the same transaction may succeed the next time.
    public var isRetryable: Bool {
        guard case .server(let state) = kind else { return false }
        return [.serializationFailure, .deadlockDetected, .lockNotAvailable].contains(state)
    }

    /// The database is away or cannot serve; the statement is not to blame.
    public var isConnectionLoss: Bool {
        switch kind {
        case .unavailable, .connectionLost, .deadline, .protocolViolation: true
        case .overloaded: false
        case .server(let state):
            state.errorClass == "57" && state != .queryCanceled || state == .tooManyConnections || state == .readOnlyTransaction
        }
    }

    /// One of a fixed set of words, for metrics.
    public var label: String {
        switch kind {
        case .unavailable: "unavailable"
        case .overloaded: "overloaded"
        case .connectionLost: "connection_lost"
        case .deadline: "deadline"
        case .server: "server"
        case .protocolViolation: "protocol_violation"
        }
    }

    public var description: String {
        let name = statement.isEmpty ? "" : "\(statement): "
        let state = sqlState.map { " (SQLSTATE \($0))" } ?? ""
        let what =
            switch kind {
            case .unavailable: "no connection to PostgreSQL: "
            case .overloaded: "too many statements wait: "
            case .connectionLost: "connection to PostgreSQL lost: "
            case .deadline: "no answer in time: "
            case .server: ""
            case .protocolViolation: "PostgreSQL's protocol was violated: "
            }
        return name + what + message + state
    }

    func of(_ statement: String, mayHaveTakenEffect: Bool) -> PostgresError {
        var copy = self
        copy.statement = statement
        copy.mayHaveTakenEffect = mayHaveTakenEffect
        return copy
    }
}

/// Five characters that say what the server objects to (PostgreSQL manual, appendix A).
public struct SQLState: Hashable, Sendable, CustomStringConvertible, ExpressibleByStringLiteral {
    public let code: String

    public init(_ code: String) { self.code = code }
    public init(stringLiteral code: String) { self.code = code }

    /// The first two characters.
    public var errorClass: String { String(code.prefix(2)) }
    public var description: String { code }

    public static let uniqueViolation: SQLState = "23505"
    public static let foreignKeyViolation: SQLState = "23503"
    public static let checkViolation: SQLState = "23514"
    public static let notNullViolation: SQLState = "23502"
    public static let serializationFailure: SQLState = "40001"
    public static let deadlockDetected: SQLState = "40P01"
    public static let lockNotAvailable: SQLState = "55P03"
    public static let readOnlyTransaction: SQLState = "25006"
    public static let invalidPassword: SQLState = "28P01"
    public static let invalidDatabase: SQLState = "3D000"
    public static let tooManyConnections: SQLState = "53300"
    public static let queryCanceled: SQLState = "57014"
    public static let featureNotSupported: SQLState = "0A000"
    public static let invalidStatementName: SQLState = "26000"
}
