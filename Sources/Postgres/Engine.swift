internal import NIOCore

/// What a role does with an open connection: it owns the statements and says what each result means. Confined to the reactor.
protocol Engine: AnyObject {
    /// Statements that wait for their answer.
    var waiting: Int { get }
    /// Of all that wait; nil when nothing does.
    var earliestDeadline: NIODeadline? { get }

    func attach(_ connection: Connection)
    /// Takes the results that are ready.
    func received()
    func drained()
    /// Fails what waits and can be failed without harm to the rest. True if what is under way has missed its deadline.
    func expire(_ now: NIODeadline) -> Bool
    /// Fails everything that waits. The connection is finished.
    func fail(_ error: PostgresError, now: NIODeadline)
}

/// How an engine reaches the client that it works for.
protocol EngineHost: AnyObject {
    func arm(_ deadline: NIODeadline)
    func lose(_ error: PostgresError)
    /// A statement was refused; the connection may have to go.
    func refused(_ error: PostgresError)
}

typealias Completion = (Result<Rows, PostgresError>) -> Void

/// What a connection knows of a statement that it has prepared, or is about to.
final class Preparation {
    let name: String
    var failure: PostgresError?
    var isConfirmed = false
    init(_ name: String) { self.name = name }
}

/// The statements of one connection by number. A statement that the server no longer knows, or whose plan no longer fits the
/// schema, gets another name the next time.
struct Preparations {
    private var known: [Int: Preparation] = [:]
    private var renamed = 0

    func find(_ statement: Statement) -> Preparation? { known[statement.number] }

    mutating func begin(_ statement: Statement) -> Preparation {
        let suffix = renamed == 0 ? "" : "_\(renamed)"
        let preparation = Preparation("\(statement.name)_\(statement.number)\(suffix)")
        known[statement.number] = preparation
        return preparation
    }

    /// Forgets a preparation after an error that says so: the next execution prepares anew.
    mutating func review(_ statement: Statement, _ preparation: Preparation, _ error: PostgresError) {
        guard known[statement.number] === preparation else { return }
        if !preparation.isConfirmed {
            known[statement.number] = nil
        } else if error.sqlState == .invalidStatementName || error.sqlState == .featureNotSupported {
            known[statement.number] = nil
            renamed += 1
        }
    }
}
