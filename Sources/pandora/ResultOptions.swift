import ArgumentParser
import GatewayStore

/// How a command shows what it found.
struct ResultOptions: ParsableArguments {
    @Flag(help: "Print JSON.")
    var json = false

    /// One record: a line for each value.
    func show(_ fields: [Field]) {
        if json { return Output.line(fields.json.text) }
        let width = fields.map(\.name.count).max() ?? 0
        for field in fields {
            let name = field.name.replacing("_", with: " ")
            Output.line("\(name)\(String(repeating: " ", count: width - name.count))  \(Table.printable(field.text))")
        }
    }

    /// Many records: a line each, in these columns.
    func list(_ records: [[Field]], columns: [String]) {
        if Int64(records.count) == Administration.listMax { Output.error("only the first \(records.count) are shown") }
        if json { return Output.line(JSON.array(records.map(\.json)).text) }
        var table = Table(columns)
        for record in records { table.add(columns.map { record[$0].text }) }
        for line in table.lines { Output.line(line) }
    }
}

/// Whether a project, an environment or a key may be used.
enum StatusArgument: String, ExpressibleByArgument, CaseIterable { case enabled, disabled }

enum ServiceStatusArgument: String, ExpressibleByArgument, CaseIterable { case enabled, disabled, deprecated }
