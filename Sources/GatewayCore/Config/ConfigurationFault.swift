/// One thing that is wrong with a configuration file.
public struct ConfigurationFault: Error, Sendable, Equatable {
    /// From 1; columns count Unicode scalars.
    public var line: Int
    public var column: Int
    /// What is wrong and, where something close to it would be right, what.
    public var message: String

    public init(line: Int, column: Int, message: String) { (self.line, self.column, self.message) = (line, column, message) }
}

/// Everything that is wrong with a configuration file, in the order of the file.
public struct ConfigurationErrors: Error, Sendable, CustomStringConvertible {
    public var file: String
    public var faults: [ConfigurationFault]

    /// One line each, as compilers write them: `file:line:column: error: message`.
    public var description: String {
        faults.map { "\(file):\($0.line):\($0.column): error: \($0.message)" }.joined(separator: "\n")
    }
}

/// What a configuration may refer to outside its file.
public struct ConfigurationSurroundings: Sendable {
    /// The value of an environment variable, for `${NAME}`.
    public var variable: @Sendable (String) -> String?
    /// The contents of a file, for `file:PATH`.
    public var contents: @Sendable (String) -> String?

    public init(
        variable: @escaping @Sendable (String) -> String? = { _ in nil },
        contents: @escaping @Sendable (String) -> String? = { _ in nil }
    ) {
        (self.variable, self.contents) = (variable, contents)
    }
}

/// "did you mean" for misspelt words.
enum Suggestion {
    /// The candidate nearest to `word`, if it is near: at most a third of its letters wrong.
    static func nearest(to word: String, among candidates: some Sequence<String>) -> String? {
        let best = candidates.map { (distance: distance(word, $0), word: $0) }.min { $0 < $1 }
        guard let best, best.distance <= max(1, word.count / 3) else { return nil }
        return best.word
    }

    static func text(for word: String, among candidates: some Sequence<String>) -> String {
        nearest(to: word, among: candidates).map { "; did you mean '\($0)'?" } ?? ""
    }

    /// Insertions, deletions, replacements, and swaps of neighbours (optimal string alignment).
    static func distance(_ a: String, _ b: String) -> Int {
        let (a, b) = (Array(a.lowercased().prefix(64)), Array(b.lowercased().prefix(64)))
        var rows = [Array(0...b.count)]
        for i in a.indices {
            var row = [i + 1]
            for j in b.indices {
                var cost = min(rows[i][j + 1] + 1, row[j] + 1, rows[i][j] + (a[i] == b[j] ? 0 : 1))
                if i > 0, j > 0, a[i] == b[j - 1], a[i - 1] == b[j] { cost = min(cost, rows[i - 1][j - 1] + 1) }
                row.append(cost)
            }
            rows.append(row)
        }
        return rows[a.count][b.count]
    }
}
