internal import CLibpq
internal import NIOCore

/// An operation under way: which of its commands the server is at.
struct Exchange {
    private enum Step { case prepare, execute, copy }

    enum Progress {
        case continues
        /// The server waits for rows.
        case copies
        case finished(Result<Rows, PostgresError>)
        case lost(PostgresError)
    }

    /// Rows are handed to libpq in pieces of this size, so that its buffer stays about as small.
    static let copyPieceBytes = 65_536
    /// Signature, flags, length of the header's extension; then the trailer (PostgreSQL manual, COPY, binary format).
    private static let copyHeader: [UInt8] = Array("PGCOPY\n".utf8) + [0xff, 0x0d, 0x0a, 0] + [UInt8](repeating: 0, count: 8)
    private static let copyTrailer: [UInt8] = [0xff, 0xff]

    let operation: Operation
    private var step = Step.execute
    private var preparation: Preparation?
    private var outcome: Result<Rows, PostgresError>?
    private var rows = ByteBuffer()

    init(_ operation: Operation) { self.operation = operation }

    var isCopying: Bool { step == .copy }

    /// Sends the first command; false if libpq refuses.
    mutating func begin(_ connection: Connection, _ preparations: inout Preparations) -> Bool {
        switch operation.kind {
        case .script(let sql), .copyIn(let sql, _):
            return PQsendQuery(connection.raw, sql) == 1
        case .statement(let statement, let parameters):
            guard statement.isPrepared else { return connection.sendQuery(statement, nil, parameters) }
            if let known = preparations.find(statement) {
                preparation = known
                return connection.sendQuery(statement, known.name, parameters)
            }
            let begun = preparations.begin(statement)
            (preparation, step) = (begun, .prepare)
            return connection.sendPrepare(statement, begun.name)
        }
    }

    mutating func take(_ result: PostgresResult, _ connection: Connection) -> Progress {
        switch result.status {
        case PGRES_TUPLES_OK, PGRES_COMMAND_OK, PGRES_EMPTY_QUERY:
            // Of a script the last result counts; an error ends it.
            outcome = .success(Rows(result))
            return .continues
        case PGRES_FATAL_ERROR:
            let error = result.error(statement: operation.name)
            if result.isFatal { return .lost(error.asLoss) }
            outcome = .failure(error)
            return .continues
        case PGRES_COPY_IN:
            return beginCopy(connection)
        default:
            return .lost(PostgresError(.protocolViolation, "status \(result.status.rawValue) in a session"))
        }
    }

    mutating func takeEnd(_ connection: Connection, _ preparations: inout Preparations) -> Progress {
        guard let outcome else { return .lost(PostgresError(.protocolViolation, "a command without a result")) }
        if case .failure(let error) = outcome {
            if case .statement(let statement, _) = operation.kind, let preparation {
                preparations.review(statement, preparation, error)
            }
            return .finished(outcome)
        }
        guard step == .prepare, let preparation, case .statement(let statement, let parameters) = operation.kind else {
            return .finished(outcome)
        }
        preparation.isConfirmed = true
        (step, self.outcome) = (.execute, nil)
        if !connection.sendQuery(statement, preparation.name, parameters) { connection.breakLater() }
        return .continues
    }

    // MARK: COPY

    private mutating func beginCopy(_ connection: Connection) -> Progress {
        guard case .copyIn(_, let given) = operation.kind else {
            // A script or statement must not copy: the server is told so and answers with an error.
            if PQputCopyEnd(connection.raw, "COPY FROM STDIN needs copyIn") != 1 { connection.breakLater() }
            return .continues
        }
        rows = given
        step = .copy
        return put(Exchange.copyHeader, connection) ? .copies : .lost(PostgresError(.connectionLost, "COPY refused"))
    }

    /// Hands over rows until the kernel has no room, and ends the COPY after the last. False if libpq refuses.
    mutating func pumpRows(_ connection: Connection) -> Bool {
        while rows.readableBytes > 0 {
            let piece = min(rows.readableBytes, Exchange.copyPieceBytes)
            let status = rows.withUnsafeReadableBytes { bytes in
                PQputCopyData(connection.raw, bytes.baseAddress?.assumingMemoryBound(to: CChar.self), CInt(piece))
            }
            guard status >= 0 else { return false }
            if status == 1 { rows.moveReaderIndex(forwardBy: piece) }
            // The connection says when there is room again.
            guard connection.flush() else { return true }
        }
        guard put(Exchange.copyTrailer, connection), PQputCopyEnd(connection.raw, nil) == 1 else { return false }
        rows = ByteBuffer()
        step = .execute
        connection.flushLater()
        return true
    }

    /// A few bytes: libpq enlarges its buffer for them rather than refuse.
    private func put(_ bytes: [UInt8], _ connection: Connection) -> Bool {
        bytes.withUnsafeBytes { bytes in
            PQputCopyData(connection.raw, bytes.baseAddress?.assumingMemoryBound(to: CChar.self), CInt(bytes.count)) == 1
        }
    }
}
