internal import CLibpq
internal import NIOCore

/// The pipeline role (PostgreSQL manual, 34.5): units go out as they come, each one command or several in an implicit
/// transaction, which ends with a sync, so that one that fails takes nobody with it. A unit is done when its sync is: only then
/// is it committed.
final class Pipeline: Engine {
    typealias Done = (Result<[Rows], PostgresError>) -> Void

    private struct Command {
        let statement: Statement
        let preparation: Preparation?
        /// This unit prepares it first.
        let prepares: Bool
    }

    private struct Unit {
        let commands: [Command]
        let deadline: NIODeadline
        let done: Done
        /// What the next result answers: a command, or its preparation; after the last the sync.
        var current = 0
        var isPreparing: Bool
        /// It had its result; NULL follows and ends it.
        var awaitsEnd = false
        var rows: [Rows] = []
        /// The first failure, and of which command.
        var failure: (error: PostgresError, command: Int)?

        var isAtSync: Bool { current == commands.count }
        var name: String { commands[min(current, commands.count - 1)].statement.name }
    }

    private unowned let host: any EngineHost
    private var connection: Connection?
    private var units = CircularBuffer<Unit>()
    private var preparations = Preparations()

    init(host: any EngineHost) { self.host = host }

    var waiting: Int { units.count }
    var earliestDeadline: NIODeadline? { units.lazy.map(\.deadline).min() }

    func attach(_ connection: Connection) {
        self.connection = connection
        preparations = Preparations()
        if PQenterPipelineMode(connection.raw) == 0 { connection.breakLater() }
    }

    // MARK: Sending

    func execute(_ statements: [(statement: Statement, parameters: Parameters)], _ deadline: NIODeadline, _ done: @escaping Done) {
        guard let connection else { preconditionFailure("no connection") }
        var sent = true
        let commands = statements.map { statement, parameters in
            let command = command(statement)
            if command.prepares, let name = command.preparation?.name { sent = sent && connection.sendPrepare(statement, name) }
            sent = sent && connection.sendQuery(statement, command.preparation?.name, parameters)
            return command
        }
        sent = sent && ppq_pipeline_sync(connection.raw) == 1
        units.append(Unit(commands: commands, deadline: deadline, done: done, isPreparing: commands[0].prepares))
        host.arm(deadline)
        // libpq may have queued a part of the unit: the connection is of no use any more.
        if sent { connection.flushLater() } else { connection.breakLater() }
    }

    private func command(_ statement: Statement) -> Command {
        guard statement.isPrepared else { return Command(statement: statement, preparation: nil, prepares: false) }
        if let known = preparations.find(statement) { return Command(statement: statement, preparation: known, prepares: false) }
        return Command(statement: statement, preparation: preparations.begin(statement), prepares: true)
    }

    // MARK: Results

    func received() {
        guard let connection else { return }
        while !connection.isFinished, !units.isEmpty, PQisBusy(connection.raw) == 0 {
            if let result = PQgetResult(connection.raw) {
                take(PostgresResult(result))
            } else {
                takeEnd()
            }
        }
    }

    private func take(_ result: PostgresResult) {
        let status = result.status
        if units[units.startIndex].isAtSync {
            if status == PGRES_PIPELINE_SYNC { return finishFirst() }
            // What fails at the sync is the commit, for instance a deferred constraint.
            guard status == PGRES_FATAL_ERROR else { return violation("a result where a sync was due") }
            return fail(result)
        }
        guard !units[units.startIndex].awaitsEnd else { return violation("two results for one command") }
        units[units.startIndex].awaitsEnd = true
        switch status {
        case PGRES_TUPLES_OK, PGRES_COMMAND_OK, PGRES_EMPTY_QUERY:
            if !units[units.startIndex].isPreparing { units[units.startIndex].rows.append(Rows(result)) }
        case PGRES_FATAL_ERROR: fail(result)
        case PGRES_PIPELINE_ABORTED: break
        default: violation("status \(status.rawValue) in a pipeline")
        }
    }

    /// The first failure of a unit stands.
    private func fail(_ result: PostgresResult) {
        let unit = units[units.startIndex]
        let error = result.error(statement: unit.name)
        if result.isFatal { return host.lose(error.asLoss) }
        if unit.failure == nil { units[units.startIndex].failure = (error, unit.current) }
    }

    private func takeEnd() {
        let unit = units[units.startIndex]
        if unit.isAtSync {
            // NULL after an error at the sync; without one libpq has lost count.
            if unit.failure == nil { violation("nothing where a sync was due") }
            return
        }
        guard unit.awaitsEnd else { return violation("a command without a result") }
        units[units.startIndex].awaitsEnd = false
        guard unit.isPreparing else {
            let next = unit.current + 1
            units[units.startIndex].current = next
            units[units.startIndex].isPreparing = next < unit.commands.count && unit.commands[next].prepares
            return
        }
        units[units.startIndex].isPreparing = false
        let preparation = unit.commands[unit.current].preparation
        if let failure = unit.failure { preparation?.failure = failure.error } else { preparation?.isConfirmed = true }
    }

    private func finishFirst() {
        let unit = units.removeFirst()
        guard let failure = unit.failure else {
            guard unit.rows.count == unit.commands.count else { return violation("a command without a result") }
            return unit.done(.success(unit.rows))
        }
        let error = review(unit, failure.error, failure.command)
        host.refused(error)
        unit.done(.failure(error))
    }

    /// What the error says of the preparations: of the command that failed, and of those after it, which never ran.
    private func review(_ unit: Unit, _ error: PostgresError, _ failed: Int) -> PostgresError {
        var error = error
        for (index, command) in unit.commands.enumerated().dropFirst(failed) {
            guard let preparation = command.preparation else { continue }
            // It was sent while its statement was being prepared for another unit, in vain.
            if index == failed, error.sqlState == .invalidStatementName, let cause = preparation.failure { error = cause }
            if index == failed || !preparation.isConfirmed { preparations.review(command.statement, preparation, error) }
        }
        return error
    }

    private func violation(_ what: String) {
        host.lose(PostgresError(.protocolViolation, what))
    }

    func drained() {}

    // MARK: The end

    /// A statement that hangs holds up all that follow, so the connection is given up.
    func expire(_ now: NIODeadline) -> Bool { units.contains { $0.deadline <= now } }

    func fail(_ error: PostgresError, now: NIODeadline) {
        connection = nil
        let failed = units
        units = CircularBuffer()
        for unit in failed {
            let isLate = unit.deadline <= now
            let reason = isLate ? PostgresError(.deadline, error.message) : error
            unit.done(.failure(reason.of(unit.name, mayHaveTakenEffect: true)))
        }
    }
}

extension PostgresError {
    /// As the reason of a connection's end.
    var asLoss: PostgresError {
        var error = self
        if kind != .protocolViolation { error.kind = .connectionLost }
        return error
    }
}

extension Connection {
    func sendPrepare(_ statement: Statement, _ name: String) -> Bool {
        statement.parameterTypes.withUnsafeBufferPointer { types in
            PQsendPrepare(raw, name, statement.sql, CInt(types.count), types.baseAddress) == 1
        }
    }

    /// Without a name the statement is parsed on the way.
    func sendQuery(_ statement: Statement, _ name: String?, _ parameters: Parameters) -> Bool {
        parameters.withPointers { values, lengths, formats in
            let count = CInt(parameters.count)
            if let name { return PQsendQueryPrepared(raw, name, count, values, lengths, formats, 1) == 1 }
            return statement.parameterTypes.withUnsafeBufferPointer { types in
                PQsendQueryParams(raw, statement.sql, count, types.baseAddress, values, lengths, formats, 1) == 1
            }
        }
    }
}
