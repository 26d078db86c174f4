/// One value of a record: as JSON, and as people read it.
struct Field {
    let name: String
    let json: JSON
    let text: String

    init(_ name: String, _ json: JSON, text: String) { (self.name, self.json, self.text) = (name, json, text) }

    init(_ name: String, _ value: String?) { self.init(name, JSON(value), text: value ?? "-") }
    init(_ name: String, _ value: Int64) { self.init(name, .number(value), text: "\(value)") }
    init(_ name: String, _ value: Bool) { self.init(name, .bool(value), text: value ? "yes" : "no") }
    init(_ name: String, moment: Int64?, absent: String = "-") {
        self.init(name, JSON(moment: moment), text: moment.map { Moment.table($0) } ?? absent)
    }
    /// Units; without a number there is no limit.
    init(_ name: String, units: Int64?) { self.init(name, JSON(units), text: units.map { "\($0)" } ?? "unlimited") }
}

extension [Field] {
    var json: JSON { .object(map { (name: $0.name, value: $0.json) }) }

    subscript(name: String) -> Field {
        guard let field = first(where: { $0.name == name }) else { preconditionFailure("no field \(name)") }
        return field
    }
}

/// Text in columns.
struct Table {
    /// In characters; a column is at least as wide as its heading.
    private(set) var widths: [Int]
    private let headings: [String]
    private var rows: [[String]] = []

    /// - Parameter widths: where rows are printed before all are known; otherwise columns are as wide as they need.
    init(_ headings: [String], widths: [Int]? = nil) {
        self.headings = headings.map { $0.uppercased().replacing("_", with: " ") }
        self.widths = zip(self.headings, widths ?? headings.map { _ in 0 }).map { max($0.count, $1) }
    }

    mutating func add(_ cells: [String]) {
        let cells = cells.map(Self.printable)
        for (index, cell) in cells.enumerated() { widths[index] = max(widths[index], cell.count) }
        rows.append(cells)
    }

    var lines: [String] { [heading] + rows.map(line) }

    var heading: String { line(headings) }

    /// A row by itself.
    func line(_ cells: [String]) -> String {
        let padded = zip(cells, widths).map { cell, width in
            let cell = Self.printable(cell)
            return cell + String(repeating: " ", count: max(width - cell.count, 0))
        }
        var line = padded.joined(separator: "  ")
        while line.last == " " { line.removeLast() }
        return line
    }

    /// Without what would steer a terminal: what clients send is in the log.
    static func printable(_ text: String) -> String {
        guard text.unicodeScalars.contains(where: isControl) else { return text }
        var clean = String.UnicodeScalarView()
        for scalar in text.unicodeScalars {
            let isSpace = scalar == "\t" || scalar == "\n"
            clean.append(isSpace ? " " : isControl(scalar) ? "\u{fffd}" : scalar)
        }
        return String(clean)
    }

    private static func isControl(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.properties.generalCategory {
        case .control, .format, .lineSeparator, .paragraphSeparator: true
        default: false
        }
    }
}
