import ArgumentParser
import GatewayCore
import GatewayStore

struct TraceCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "trace", abstract: "Show a chain of hops as a waterfall.",
        discussion: "Every answer of the gateway names its hop in Pandora-Request-Id and its chain in Pandora-Start-Point; either will do.")

    @Argument(help: "Any hop of the chain, or its start point, with or without its tag.", transform: Self.hop) var hop: RequestID
    @OptionGroup var database: DatabaseOptions
    @Flag(help: "Print JSON.") var json = false

    func run() async throws {
        try await database.withClient { client, _ in
            guard let (root, hops) = try await LogReader(client).chain(of: hop) else {
                Output.error("error: the log has no hop \(hop)")
                Output.error("hint: a hop reaches the log a moment after its answer")
                throw ExitCode(1)
            }
            let waterfall = Waterfall(root: "\(root)", hops: hops)
            if json { return Output.line(waterfall.json.text) }
            for line in waterfall.lines { Output.line(line) }
        }
    }

    /// `req_…`, or a start point `req_….tag`: the tag is for those who may not see every chain.
    static func hop(_ text: String) throws -> RequestID {
        guard let id = RequestID(String(text.prefix { $0 != "." })) else {
            throw ValidationError("expected req_ and 26 characters, found '\(text)'")
        }
        return id
    }
}

/// Hops of one chain on one axis of time.
struct Waterfall {
    private let root: String
    private let hops: [LogEntry]
    private let begin: Int64
    private let length: Int64

    /// Characters of the axis.
    private static let width = 40

    /// - Parameter hops: at least one.
    init(root: String, hops: [LogEntry]) {
        self.root = root
        self.hops = hops.sorted { ($0.requestTime, $0.id) < ($1.requestTime, $1.id) }
        begin = self.hops.first?.requestTime ?? 0
        length = (hops.map { $0.requestTime + ($0.duration ?? 0) }.max() ?? begin) - begin
    }

    private var units: Int64 { hops.reduce(0) { $0 + $1.units } }

    var lines: [String] {
        let about = [
            "chain \(root)", hops.first?.environmentPath ?? "no environment", "\(hops.count) hop\(hops.count == 1 ? "" : "s")",
            LogTable.duration(length), "\(units) unit\(units == 1 ? "" : "s")",
        ]
        var table = Table(["at", "duration", "", "code", "result", "route", "method", "path", "units", "request"])
        for hop in hops {
            table.add([
                "+" + LogTable.duration(hop.requestTime - begin), hop.duration.map(LogTable.duration) ?? "-", bar(hop),
                hop.statusCode.map { "\($0)" } ?? "-", hop.refusal ?? hop.executionStatus, hop.route ?? "-", hop.method ?? "-",
                hop.path ?? "-", "\(hop.units)", hop.id,
            ])
        }
        return [Table.printable(about.joined(separator: " · "))] + table.lines
    }

    private func bar(_ hop: LogEntry) -> String {
        let scale = Double(Self.width) / Double(max(length, 1))
        let start = min(Int(Double(hop.requestTime - begin) * scale), Self.width - 1)
        let size = min(max(Int((Double(hop.duration ?? 0) * scale).rounded()), 1), Self.width - start)
        return "|" + String(repeating: " ", count: start) + String(repeating: "█", count: size)
            + String(repeating: " ", count: Self.width - start - size) + "|"
    }

    var json: JSON {
        .object([
            (name: "chain", value: .string(root)), (name: "environment", value: JSON(hops.first?.environmentPath)),
            (name: "started_at", value: JSON(moment: begin)), (name: "duration_us", value: .number(length)),
            (name: "units", value: .number(units)),
            (
                name: "hops",
                value: .array(
                    hops.map { hop in
                        ([Field("offset_us", hop.requestTime - begin)] + hop.fields).json
                    })
            ),
        ])
    }
}
