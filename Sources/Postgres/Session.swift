internal import CLibpq
internal import NIOCore

/// One exchange with the server outside of a pipeline.
struct Operation {
    enum Kind {
        case statement(Statement, Parameters)
        /// Any number of commands in one message; results are text.
        case script(String)
        /// COPY … FROM STDIN (FORMAT binary), with the rows between its header and trailer.
        case copyIn(String, ByteBuffer)
    }

    let kind: Kind
    let name: String
    let deadline: NIODeadline
    /// Whether it commits what it does.
    var commits = true
    let done: Completion
}

/// The session role: units run one after the other, each to its end. A unit is one operation or one transaction.
final class Session: Engine {
    private enum Unit {
        case operation(Operation)
        case transaction(Transaction)

        var deadline: NIODeadline {
            switch self {
            case .operation(let operation): operation.deadline
            case .transaction(let transaction): transaction.deadline
            }
        }
    }

    private unowned let host: any EngineHost
    private(set) var connection: Connection?
    private var units = CircularBuffer<Unit>()
    private var running: Exchange?
    private var transaction: Transaction?
    private var preparations = Preparations()

    init(host: any EngineHost) { self.host = host }

    var waiting: Int { units.count + (running != nil || transaction != nil ? 1 : 0) }

    var earliestDeadline: NIODeadline? {
        var earliest = units.lazy.map(\.deadline).min()
        for deadline in [running?.operation.deadline, transaction?.deadline] {
            if let deadline { earliest = min(earliest ?? deadline, deadline) }
        }
        return earliest
    }

    func attach(_ connection: Connection) {
        self.connection = connection
        preparations = Preparations()
    }

    // MARK: Units

    func submit(_ operation: Operation) {
        units.append(.operation(operation))
        host.arm(operation.deadline)
        startNext()
    }

    func submit(_ transaction: Transaction) {
        units.append(.transaction(transaction))
        host.arm(transaction.deadline)
        startNext()
    }

    private func startNext() {
        guard running == nil, transaction == nil, let unit = units.popFirst() else { return }
        switch unit {
        case .operation(let operation): start(operation)
        case .transaction(let next):
            transaction = next
            next.begin(on: self)
        }
    }

    /// Of the transaction that has the connection.
    func transactionEnded() {
        transaction = nil
        startNext()
    }

    // MARK: Operations

    var isBusy: Bool { running != nil }

    /// Nothing else runs.
    func start(_ operation: Operation) {
        guard let connection else { preconditionFailure("no connection") }
        precondition(running == nil, "the connection is busy")
        host.arm(operation.deadline)
        var exchange = Exchange(operation)
        if !exchange.begin(connection, &preparations) { connection.breakLater() }
        running = exchange
        connection.flushLater()
    }

    func received() {
        while let connection, !connection.isFinished, running != nil, PQisBusy(connection.raw) == 0 {
            // While rows go in nothing comes out.
            guard running?.isCopying == false else { return }
            let step: Exchange.Progress
            if let result = PQgetResult(connection.raw) {
                step = running!.take(PostgresResult(result), connection)
            } else {
                step = running!.takeEnd(connection, &preparations)
            }
            switch step {
            case .continues: connection.flushLater()
            case .copies: drained()
            case .lost(let error): host.lose(error)
            case .finished(let outcome): finish(outcome)
            }
        }
    }

    func drained() {
        guard let connection, running?.isCopying == true else { return }
        if !running!.pumpRows(connection) { connection.breakLater() }
    }

    private func finish(_ outcome: Result<Rows, PostgresError>) {
        guard let operation = running?.operation else { return }
        running = nil
        if case .failure(let error) = outcome { host.refused(error) }
        operation.done(outcome)
        if connection != nil { startNext() }
    }

    // MARK: The end

    func expire(_ now: NIODeadline) -> Bool {
        if let running, running.operation.deadline <= now { return true }
        if let transaction, transaction.deadline <= now { return true }
        let late = units.filter { $0.deadline <= now }
        guard !late.isEmpty else { return false }
        units = CircularBuffer(units.filter { $0.deadline > now })
        for unit in late { fail(unit, PostgresError(.deadline, "it had to wait for other statements")) }
        return false
    }

    func fail(_ error: PostgresError, now: NIODeadline) {
        connection = nil
        let (running, transaction, units) = (running, transaction, units)
        (self.running, self.transaction, self.units) = (nil, nil, CircularBuffer())
        if let operation = running?.operation {
            let reason = operation.deadline <= now ? PostgresError(.deadline, error.message) : error
            operation.done(.failure(reason.of(operation.name, mayHaveTakenEffect: operation.commits)))
        }
        if let transaction {
            transaction.connectionLost(transaction.deadline <= now ? PostgresError(.deadline, error.message) : error)
        }
        for unit in units {
            fail(unit, unit.deadline <= now ? PostgresError(.deadline, error.message) : error)
        }
    }

    private func fail(_ unit: Unit, _ error: PostgresError) {
        switch unit {
        case .operation(let operation): operation.done(.failure(error.of(operation.name, mayHaveTakenEffect: false)))
        case .transaction(let transaction): transaction.connectionLost(error)
        }
    }
}
