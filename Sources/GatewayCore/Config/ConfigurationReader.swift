internal import Glibc
internal import Yams

extension Configuration {
    /// Reads a file.  `file` is its name in messages.
    /// - Throws: everything that is wrong with it, at once.
    public static func parse(
        _ text: String, file: String, surroundings: ConfigurationSurroundings = ConfigurationSurroundings()
    ) throws(ConfigurationErrors) -> Configuration {
        let faults = FaultList(surroundings)
        let reader = ConfigurationReader(faults)
        let configuration = reader.read(text)
        if let configuration, faults.faults.isEmpty { return configuration }
        // Faults of one place stay in the order in which they were found.
        let ordered = faults.faults.enumerated()
            .sorted { ($0.element.line, $0.element.column, $0.offset) < ($1.element.line, $1.element.column, $1.offset) }
        throw ConfigurationErrors(file: file, faults: ordered.map(\.element))
    }

    /// Reads the file at `path`, with the variables of this process and the files it may read.
    public static func load(path: String) throws(ConfigurationErrors) -> Configuration {
        let surroundings = ConfigurationSurroundings(
            variable: { getenv($0).map { String(cString: $0) } },
            contents: { contents(of: $0, limit: 64 << 10) })
        guard let text = contents(of: path, limit: Limits.configurationBytes) else {
            let reason = String(cString: strerror(errno))
            throw ConfigurationErrors(file: path, faults: [ConfigurationFault(line: 1, column: 1, message: "cannot read: \(reason)")])
        }
        return try parse(text, file: path, surroundings: surroundings)
    }

    private static func contents(of path: String, limit: Int) -> String? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 64 << 10)
        while bytes.count <= limit {
            let count = read(descriptor, &chunk, chunk.count)
            if count < 0, errno == EINTR { continue }
            if count < 0 { return nil }
            if count == 0 { return String(validating: bytes, as: UTF8.self) ?? invalidText() }
            bytes.append(contentsOf: chunk[..<count])
        }
        errno = EFBIG
        return nil
    }

    private static func invalidText() -> String? {
        errno = EILSEQ
        return nil
    }
}

/// Turns the text of a file into a configuration, noting everything that is wrong on the way.
struct ConfigurationReader {
    /// Private-use characters that take the place of the first letter of a key used twice, so that the rest is still read.
    static let duplicateMarks: ClosedRange<UInt32> = 0xe000...0xe0ff

    let faults: FaultList

    init(_ faults: FaultList) { self.faults = faults }

    func read(_ text: String) -> Configuration? {
        guard let node = compose(text), let top = Section(node, name: "", faults: faults) else { return nil }
        let boot = readBoot(top)
        let traffic = readTraffic(top)
        top.finish()
        guard let boot, let traffic else { return nil }
        return Configuration(boot: boot, traffic: traffic)
    }

    private func compose(_ source: String) -> Node? {
        var text = source
        for mark in Self.duplicateMarks {
            do {
                if let node = try Yams.compose(yaml: text) { return node }
                faults.add(nil, "the file is empty")
                return nil
            } catch YamlError.duplicatedKeysInMapping(let keys, let context) {
                guard let replaced = hideDuplicate(of: keys.first ?? "", from: context.mark, in: text, as: mark) else {
                    faults.add(context.mark, "key '\(keys.first ?? "")' is used twice")
                    return nil
                }
                text = replaced
            } catch {
                add(error)
                return nil
            }
        }
        return nil
    }

    private func add(_ error: any Error) {
        switch error {
        case YamlError.scanner(_, let problem, let mark, _), YamlError.parser(_, let problem, let mark, _),
            YamlError.composer(_, let problem, let mark, _):
            faults.add(mark, "no YAML: \(problem)")
        case YamlError.reader(let problem, _, _, _): faults.add(nil, "no YAML: \(problem)")
        default: faults.add(nil, "no YAML: \(error)")
        }
    }

    /// Notes the second use of `key` in the block mapping that begins at `start`, and puts `mark` in place of its first
    /// letter.  Nil where the mapping is not written in lines.
    private func hideDuplicate(of key: String, from start: Mark, in text: String, as mark: UInt32) -> String? {
        var lines = text.split(separator: "\n", omittingEmptySubsequences: false).map { Array($0.unicodeScalars) }
        let (letters, column) = (Array(key.unicodeScalars), start.column - 1)
        var seen = false
        guard !letters.isEmpty, let replacement = Unicode.Scalar(mark) else { return nil }
        for index in lines.indices.dropFirst(start.line - 1) {
            let line = lines[index]
            guard line.count > column + letters.count, Array(line[column..<column + letters.count]) == letters,
                line[(column + letters.count)...].first(where: { $0 != " " }) == ":",
                index == start.line - 1 || line[..<column].allSatisfy({ $0 == " " })
            else { continue }
            if seen {
                faults.add(line: index + 1, column: start.column, "key '\(key)' is used twice")
                lines[index][column] = replacement
                var result = String.UnicodeScalarView()
                for (index, line) in lines.enumerated() {
                    if index > 0 { result.append("\n") }
                    result.append(contentsOf: line)
                }
                return String(result)
            }
            seen = true
        }
        return nil
    }
}
