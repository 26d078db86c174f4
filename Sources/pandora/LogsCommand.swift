import ArgumentParser
import GatewayCore
import GatewayStore
import Postgres

struct LogsCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "logs", abstract: "Read the log of hops, the newest last.",
        discussion: """
            With --json one array is printed; with --follow, one object a line. 'pandora trace' shows how the hops of a chain \
            hang together.
            """)

    @Flag(name: .shortAndLong, help: "Then show hops as they arrive, until Ctrl-C.") var follow = false
    @Option(name: .shortAndLong, help: "So many at most, of those that were there already.") var limit = 50
    @Option(help: ArgumentHelp("Not older than this.", valueName: "1h"), transform: Moment.duration) var since: Int64?
    @Option(help: "CLIENT/PROJECT/ENVIRONMENT or an id.") var environment: String?
    @Option(help: ArgumentHelp("A key's public id.", valueName: "key_…")) var key: String?
    @Option(help: "NAME (every version), NAME/VERSION or an id.") var service: String?
    @Option(
        help: ArgumentHelp(
            "success, client_error, server_error, upstream_error, client_aborted, unauthorized, 4xx or 429.", valueName: "status"),
        transform: Self.status)
    var status: LogFilter.Status?
    @Option(help: ArgumentHelp("Any hop of a chain, or its start point.", valueName: "req_…"), transform: TraceCommand.hop)
    var chain: RequestID?
    @OptionGroup var database: DatabaseOptions
    @Flag(help: "Print JSON.") var json = false

    static let limitMax = 100_000

    func validate() throws {
        if !(0...Self.limitMax).contains(limit) { throw ValidationError("--limit is from 0 to \(Self.limitMax).") }
    }

    func run() async throws {
        try await database.withClient { client, reactor in
            let filter = try await filter(Administration(client, actor: DatabaseOptions.actor), LogReader(client))
            if !follow { return print(try await LogReader(client).newest(limit, filter)) }
            let listener = PostgresClient(client.configuration, role: .session, on: reactor)
            let table = LogTable()
            if !json { Output.line(table.heading) }
            let now = UInt64(Moment.now / 1_000)
            try await LogFollower(listener, on: reactor, filter).run(newest: limit, now: now) { entries in
                for entry in entries { Output.line(json ? entry.fields.json.text : table.line(entry)) }
            }
        }
    }

    private func print(_ entries: [LogEntry]) {
        if json { return Output.line(JSON.array(entries.map(\.fields.json)).text) }
        for line in LogTable.lines(entries) { Output.line(line) }
    }

    private func filter(_ admin: Administration, _ reader: LogReader) async throws -> LogFilter {
        var filter = LogFilter()
        filter.age = since
        filter.status = status
        if let environment { filter.environmentID = try await admin.environment(environment).id }
        if let service { filter.serviceIDs = try await admin.services(matching: service).map(\.id) }
        if let key { filter.keyID = KeyID(try await admin.key(key).id) }
        if let chain {
            // A chain that has not begun to arrive may still be followed by its start point.
            filter.chain = try await reader.chain(of: chain)?.root ?? chain
        }
        return filter
    }

    private static func status(_ text: String) throws -> LogFilter.Status {
        if let status = ExecutionStatus.allCases.first(where: { "\($0.text)" == text }) { return .execution(status) }
        if text.count == 3, let first = text.first?.wholeNumberValue, (1...5).contains(first) {
            if text.hasSuffix("xx") { return .codes(Int16(first)) }
            if let code = Int16(text) { return .code(code) }
        }
        let names = ExecutionStatus.allCases.map { "\($0.text)" }.joined(separator: ", ")
        throw ValidationError("expected \(names), a class such as 4xx or a code such as 429, found '\(text)'")
    }
}

/// Hops as people read them, a line each.
struct LogTable {
    private static let headings = [
        "time", "code", "result", "method", "path", "route", "service", "environment", "units", "duration", "request",
    ]
    private let table = Table(headings, widths: [24, 4, 17, 6, 28, 14, 12, 18, 5, 9, 30])

    var heading: String { table.heading }

    func line(_ entry: LogEntry) -> String { table.line(Self.cells(entry)) }

    static func lines(_ entries: [LogEntry]) -> [String] {
        var table = Table(headings)
        for entry in entries { table.add(cells(entry)) }
        return table.lines
    }

    private static func cells(_ entry: LogEntry) -> [String] {
        [
            Moment.table(entry.requestTime, milliseconds: true), entry.statusCode.map { "\($0)" } ?? "-",
            (entry.refusal ?? entry.executionStatus) + (entry.repeats > 1 ? " ×\(entry.repeats)" : ""),
            entry.method ?? "-", entry.path ?? "-", entry.route ?? "-", entry.servicePath ?? "-", entry.environmentPath ?? "-",
            "\(entry.units)", entry.duration.map(duration) ?? "-", entry.id,
        ]
    }

    /// `12.3 ms`, from microseconds.
    static func duration(_ microseconds: Int64) -> String {
        switch microseconds {
        case ..<1_000: "\(microseconds) us"
        case ..<1_000_000: tenths(microseconds / 100) + " ms"
        default: tenths(microseconds / 100_000) + " s"
        }
    }

    private static func tenths(_ number: Int64) -> String { "\(number / 10).\(number % 10)" }
}

extension LogEntry {
    var fields: [Field] {
        [
            Field("id", id), Field("start_point", startPoint), Field("request_time", moment: requestTime),
            Field("execution_status", executionStatus), Field("unauthorized_reason", refusal),
            number("status_code", statusCode), number("environment_id", environmentID), Field("environment", environmentPath),
            number("service_id", serviceID), Field("service", servicePath), Field("api_key", apiKey),
            Field("reservation_id", reservationID), Field("units", units), number("period", period), Field("outage", isOutage),
            Field("route", route), Field("target", target), number("attempts", attempts), number("repeats", repeats),
            Field("method", method), Field("host", host), Field("path", path), number("duration_us", duration),
            number("first_byte_us", firstByte), number("bytes_in", bytesIn), number("bytes_out", bytesOut),
            Field("remote_address", remoteAddress), Field("trace_id", traceID), Field("node", node),
        ]
    }

    private func number(_ name: String, _ value: (some FixedWidthInteger)?) -> Field {
        Field(name, JSON(value.map { Int64($0) }), text: value.map { "\($0)" } ?? "-")
    }
}
