internal import CLibpq
internal import NIOCore

/// The pipeline role (PostgreSQL manual, 34.5): statements go out as they come, each a unit of its own that ends with a sync,
/// so that one that fails takes nobody with it. A statement is done when its sync is: only then is it committed.
final class Pipeline: Engine {
    /// What the next result of a unit answers.
    private enum Step { case prepare, execute, sync }

    private struct Unit {
        let statement: Statement
        let deadline: NIODeadline
        let preparation: Preparation?
        let done: Completion
        var step: Step
        /// The step had its result; NULL follows and ends it.
        var awaitsEnd = false
        var outcome: Result<Rows, PostgresError>?
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

    func execute(_ statement: Statement, _ parameters: Parameters, _ deadline: NIODeadline, _ done: @escaping Completion) {
        guard let connection else { preconditionFailure("no connection") }
        var sent = true
        var preparation = statement.isPrepared ? preparations.find(statement) : nil
        var step = Step.execute
        if statement.isPrepared, preparation == nil {
            let begun = preparations.begin(statement)
            preparation = begun
            step = .prepare
            sent = connection.sendPrepare(statement, begun.name)
        }
        sent = sent && connection.sendQuery(statement, preparation?.name, parameters)
        sent = sent && ppq_pipeline_sync(connection.raw) == 1
        units.append(Unit(statement: statement, deadline: deadline, preparation: preparation, done: done, step: step))
        host.arm(deadline)
        // libpq may have queued a part of the unit: the connection is of no use any more.
        if sent { connection.flushLater() } else { connection.breakLater() }
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
        if units[units.startIndex].step == .sync {
            if status == PGRES_PIPELINE_SYNC { return finishFirst() }
            // What fails at the sync is the commit, for instance a deferred constraint.
            guard status == PGRES_FATAL_ERROR else { return violation("a result where a sync was due") }
            return record(.failure(result.error(statement: units[units.startIndex].statement.name)), result)
        }
        guard !units[units.startIndex].awaitsEnd else { return violation("two results for one command") }
        units[units.startIndex].awaitsEnd = true
        switch status {
        case PGRES_TUPLES_OK, PGRES_COMMAND_OK, PGRES_EMPTY_QUERY: record(.success(Rows(result)), result)
        case PGRES_FATAL_ERROR: record(.failure(result.error(statement: units[units.startIndex].statement.name)), result)
        case PGRES_PIPELINE_ABORTED: break
        default: violation("status \(status.rawValue) in a pipeline")
        }
    }

    /// The first failure of a unit stands; a success stands until its sync fails.
    private func record(_ outcome: Result<Rows, PostgresError>, _ result: PostgresResult) {
        guard case .failure(let error) = outcome else {
            units[units.startIndex].outcome = outcome
            return
        }
        if result.isFatal { return host.lose(error.asLoss) }
        if case .failure = units[units.startIndex].outcome { return }
        units[units.startIndex].outcome = .failure(error)
    }

    private func takeEnd() {
        let unit = units[units.startIndex]
        guard unit.awaitsEnd || unit.step == .sync else { return violation("a command without a result") }
        units[units.startIndex].awaitsEnd = false
        switch unit.step {
        case .prepare:
            units[units.startIndex].step = .execute
            if case .failure(let error) = unit.outcome {
                unit.preparation?.failure = error
            } else {
                unit.preparation?.isConfirmed = true
                units[units.startIndex].outcome = nil
            }
        case .execute:
            units[units.startIndex].step = .sync
        case .sync:
            // NULL after an error at the sync; without one libpq has lost count.
            guard case .failure = unit.outcome else { return violation("nothing where a sync was due") }
        }
    }

    private func finishFirst() {
        let unit = units.removeFirst()
        guard var outcome = unit.outcome else { return violation("a unit without a result") }
        if case .failure(var error) = outcome {
            if let preparation = unit.preparation {
                // It was sent while its statement was being prepared for another unit, in vain.
                if error.sqlState == .invalidStatementName, let cause = preparation.failure { error = cause }
                preparations.review(unit.statement, preparation, error)
            }
            host.refused(error)
            outcome = .failure(error)
        }
        unit.done(outcome)
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
            unit.done(.failure(reason.of(unit.statement.name, mayHaveTakenEffect: true)))
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
