internal import CLibpq

/// The rows of an answer. They stay in libpq's memory and are decoded when asked for.
public struct Rows: RandomAccessCollection, Sendable {
    private let result: PostgresResult

    init(_ result: PostgresResult) { self.result = result }

    public var startIndex: Int { 0 }
    public var endIndex: Int { Int(PQntuples(result.raw)) }
    public subscript(position: Int) -> Row {
        precondition(position >= 0 && position < endIndex, "row \(position) of \(endIndex)")
        return Row(result: result, number: CInt(position))
    }

    /// Rows that the command changed, copied or returned (PQcmdTuples).
    public var affected: Int { Int(String(cString: PQcmdTuples(result.raw))) ?? 0 }

    public var columnNames: [String] {
        (0..<PQnfields(result.raw)).map { PQfname(result.raw, $0).map { String(cString: $0) } ?? "" }
    }
}

/// Owns a PGresult. Sendable because a PGresult is read-only once made and may then be used by any thread (PostgreSQL manual,
/// 34.20); this is its only owner and clears it when nobody holds it any more.
final class PostgresResult: @unchecked Sendable {
    let raw: OpaquePointer
    init(_ raw: OpaquePointer) { self.raw = raw }
    deinit { PQclear(raw) }

    var status: ExecStatusType { PQresultStatus(raw) }

    func field(_ code: CInt) -> String? {
        PQresultErrorField(raw, code).map { String(cString: $0) }
    }

    /// The session ends with this error.
    var isFatal: Bool { field(ppq_diag_severity).map { $0 == "FATAL" || $0 == "PANIC" } ?? true }

    /// The server's words; a result without a SQLSTATE was made up by libpq, because the connection broke.
    func error(statement: String) -> PostgresError {
        guard let state = field(ppq_diag_sqlstate) else {
            return PostgresError(.connectionLost, tidy(String(cString: PQresultErrorMessage(raw))), statement: statement)
        }
        var error = PostgresError(.server(SQLState(state)), field(ppq_diag_message) ?? "", statement: statement)
        error.detail = field(ppq_diag_detail)
        error.hint = field(ppq_diag_hint)
        error.constraint = field(ppq_diag_constraint)
        return error
    }
}

/// libpq ends its messages with a line break and may write several lines.
func tidy(_ message: String) -> String {
    message.split(whereSeparator: \.isNewline).filter { !$0.hasPrefix("LOCATION:") }.joined(separator: "; ")
}
