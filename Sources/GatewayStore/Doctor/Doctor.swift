internal import GatewayCore
internal import NIOCore
public import Postgres

/// Compares everything in the database that must be equal, and looks for what nobody sees to.
///
/// May be used from any task; the client must be of role `session`. Traffic may go on: one snapshot is looked at, in which
/// every transaction is there as a whole or not at all.
public struct Doctor: Sendable {
    private let client: PostgresClient
    private let actor: String

    /// - Parameter actor: who is responsible for repairs, as the audit log names them.
    public init(_ client: PostgresClient, actor: String) { (self.client, self.actor) = (client, actor) }

    /// One question to the snapshot, and what its answer means.
    struct Question: Sendable {
        let statement: Statement
        let findings: @Sendable (Rows) -> [Finding]

        init(_ name: String, _ sql: String, _ findings: @escaping @Sendable (Rows) -> [Finding]) {
            statement = Statement(name: "doctor_\(name)", sql: sql, isPrepared: false)
            self.findings = findings
        }

        /// At most one finding of a row.
        init(_ name: String, _ sql: String, each finding: @escaping @Sendable (Row) -> Finding?) {
            self.init(name, sql) { rows in rows.compactMap(finding) }
        }
    }

    /// Findings of one kind that are named.
    static let namesMax = 1_000
    /// A long log takes its time.
    private static let patience = TimeAmount.hours(2)
    /// How long something may be due before nobody seems to see to it: twice what sweepers wait after a restart.
    static let overdue = Limits.sweepConnected * 2
    private static let attempts = 5

    /// SQL: a sum as a number that is read, however far beyond one it is.
    static func whole(_ sum: String) -> String {
        "least(greatest(\(sum), \(Int64.min)), \(Int64.max))::bigint"
    }

    /// SQL: the whole seconds since a moment, also since one that never was.
    static func seconds(since moment: String) -> String {
        "extract(epoch FROM now() - greatest(\(moment), now() - interval '1000 years'))::bigint"
    }

    /// - Parameter log: false: without the questions that read the whole log and the whole ledger.
    public func examine(log: Bool = true) async throws(AdministrationError) -> [Finding] {
        let questions = Self.quotaQuestions + Self.holderQuestions + Self.timeQuestions + (log ? Self.logQuestions : [])
        var statements = [Self.readOnly, Self.lockLog, DatabaseSettings.statement].map { ($0, Parameters()) }
        statements += questions.map { ($0.statement, Parameters()) }
        let settings: DatabaseSettings
        let answers: [Rows]
        do {
            answers = try await client.transaction(statements, isolation: .repeatableRead, deadline: Self.patience)
            settings = DatabaseSettings(answers[2][0])
        } catch {
            throw AdministrationError(error)
        }
        return zip(questions, answers.dropFirst(3)).flatMap(Self.findings) + settings.findings
    }

    /// What an answer means, and that there may be more of it where it was cut off.
    private static func findings(_ question: Question, _ rows: Rows) -> [Finding] {
        let found = question.findings(rows)
        guard rows.count >= namesMax, let last = found.last else { return found }
        return found + [
            Finding(last.check, isNote: true, "no more than \(namesMax) places are named; there may be more of this kind")
        ]
    }

    /// Puts right what is certain, in one transaction with its row in the audit log; everything else stays to be decided.
    public func repair() async throws(AdministrationError) -> [Repair] {
        var parameters = Parameters()
        parameters.append(actor)
        parameters.append(Self.overdue.wholeMicroseconds)
        parameters.append(Int64(Limits.sweepRows))
        parameters.append(Int64(Limits.partitionDays))
        var attempt = 1
        while true {
            do throws(PostgresError) {
                let rows = try await client.query(Self.repairStatement, parameters, deadline: Self.patience)
                return rows.map { row in
                    Repair(what: row.string(0), object: row.string(1), was: row.int64(2), became: row.int64(3))
                }
            } catch {
                guard error.isRetryable, attempt < Self.attempts else { throw AdministrationError(error) }
                attempt += 1
            }
        }
    }

    private static let readOnly = Statement(name: "doctor_begin", sql: "SET TRANSACTION READ ONLY", isPrepared: false)

    /// Before the snapshot is taken: which partitions there are is read as it is, so that none may come or go meanwhile.
    private static let lockLog = Statement(
        name: "doctor_lock", sql: "LOCK TABLE pandora.request_logs IN ACCESS SHARE MODE", isPrepared: false)

    private static let repairStatement = Statement(
        name: "doctor_repair",
        sql: """
            SELECT what, object, was, became
              FROM pandora.repair($1, $2 * interval '1 us', $3::integer, $4::integer)
            """,
        parameterTypes: [.text, .int8, .int8, .int8], isPrepared: false)
}
