internal import Yams

/// Collects what is wrong while a file is read to its end.
final class FaultList {
    private(set) var faults: [ConfigurationFault] = []
    let surroundings: ConfigurationSurroundings

    init(_ surroundings: ConfigurationSurroundings) { self.surroundings = surroundings }

    func add(_ mark: Mark?, _ message: String) { add(line: mark?.line ?? 1, column: mark?.column ?? 1, message) }

    func add(line: Int, column: Int, _ message: String) {
        faults.append(ConfigurationFault(line: line, column: column, message: message))
    }

    /// The text of a scalar with `${NAME}` replaced; `$$` stands for a dollar.  Nil, with a fault, where it is none.
    func text(_ node: Node, _ what: String) -> String? {
        guard case .scalar(let scalar) = node else {
            add(node.mark, "\(what) must be a single value, found \(node.kind)")
            return nil
        }
        if scalar.style == .plain, ["", "~", "null"].contains(scalar.string) {
            add(node.mark, "\(what) has no value")
            return nil
        }
        return interpolate(scalar.string, node.mark)
    }

    private func interpolate(_ text: String, _ mark: Mark?) -> String? {
        var (result, rest) = ("", Substring(text))
        while let dollar = rest.firstIndex(of: "$") {
            result += rest[..<dollar]
            rest = rest[rest.index(after: dollar)...]
            if rest.first == "$" {
                result += "$"
                rest.removeFirst()
            } else if rest.first == "{" {
                guard let close = rest.firstIndex(of: "}") else {
                    add(mark, "'${' without '}'")
                    return nil
                }
                let name = String(rest[rest.index(after: rest.startIndex)..<close])
                guard let value = surroundings.variable(name) else {
                    add(mark, "environment variable \(name) is not set")
                    return nil
                }
                result += value
                rest = rest[rest.index(after: close)...]
            } else {
                result += "$"
            }
        }
        return result + rest
    }
}

/// A mapping of the file, read strictly: what nobody asked for when ``finish()`` is called is an unknown key.
final class Section {
    /// Where it is, for messages: `routes[0].match`; empty at the top.
    let name: String
    let mark: Mark?
    let faults: FaultList
    private let entries: [(key: String, mark: Mark?, value: Node)]
    private var known: [String] = []

    /// Nil, with a fault, where the node is no mapping.
    init?(_ node: Node, name: String, faults: FaultList) {
        guard case .mapping(let mapping) = node else {
            faults.add(node.mark, "\(name.isEmpty ? "the file" : name) must be a mapping, found \(node.kind)")
            return nil
        }
        (self.name, self.faults) = (name, faults)
        mark = mapping.first?.key.mark ?? node.mark
        entries = mapping.map { (key: $0.key.string ?? "", mark: $0.key.mark, value: $0.value) }
    }

    func path(_ key: String) -> String { name.isEmpty ? key : "\(name).\(key)" }

    func node(_ key: String) -> Node? {
        known.append(key)
        return entries.first { $0.key == key }?.value
    }

    /// Where the value of a key stands, or else the section.
    func mark(_ key: String) -> Mark? { entries.first { $0.key == key }?.value.mark ?? mark }
    func keyMark(_ key: String) -> Mark? { entries.first { $0.key == key }?.mark ?? mark }
    func has(_ key: String) -> Bool { entries.contains { $0.key == key } }

    /// Keys and values of a mapping whose keys are names.
    var all: [(key: String, mark: Mark?, value: Node)] { entries }

    func finish() {
        for entry in entries where !known.contains(entry.key) {
            // A second use of a key was marked where it was found.
            if entry.key.unicodeScalars.contains(where: { ConfigurationReader.duplicateMarks.contains($0.value) }) { continue }
            let place = name.isEmpty ? "" : " in \(name)"
            faults.add(entry.mark, "unknown key '\(entry.key)'\(place)\(Suggestion.text(for: entry.key, among: known))")
        }
    }

    func text(_ key: String) -> String? { node(key).flatMap { faults.text($0, path(key)) } }

    /// As ``text(_:)``, with a fault where the key is not there.
    func required(_ key: String) -> String? {
        if !has(key) { faults.add(mark, "\(name.isEmpty ? "the file" : name) needs '\(key)'") }
        return text(key)
    }

    func integer(_ key: String, in range: ClosedRange<Int>, _ found: (Int) -> Void) {
        guard let text = text(key) else { return }
        guard let number = Int(text) else {
            return faults.add(mark(key), "\(path(key)) must be a whole number, found '\(text)'")
        }
        guard range.contains(number) else {
            return faults.add(mark(key), "\(path(key)) must be between \(range.lowerBound) and \(range.upperBound), found \(number)")
        }
        found(number)
    }

    func bool(_ key: String, _ found: (Bool) -> Void) {
        guard let text = text(key) else { return }
        switch text {
        case "true": found(true)
        case "false": found(false)
        default: faults.add(mark(key), "\(path(key)) must be true or false, found '\(text)'")
        }
    }

    func duration(
        _ key: String, from least: Duration = .milliseconds(1), to most: Duration = .seconds(86_400), _ found: (Duration) -> Void
    ) {
        guard let text = text(key) else { return }
        do throws(Quantity.Fault) {
            let value = try Quantity.duration(text)
            guard value >= least, value <= most else {
                return faults.add(
                    mark(key), "\(path(key)) must be between \(Quantity.text(least)) and \(Quantity.text(most)), found '\(text)'")
            }
            found(value)
        } catch { faults.add(mark(key), "\(path(key)): \(error.message)") }
    }

    func size(_ key: String, in range: ClosedRange<Int>, _ found: (Int) -> Void) {
        guard let text = text(key) else { return }
        do throws(Quantity.Fault) {
            let value = try Quantity.size(text)
            guard range.contains(value) else {
                let (least, most) = (Quantity.text(size: range.lowerBound), Quantity.text(size: range.upperBound))
                return faults.add(mark(key), "\(path(key)) must be between \(least) and \(most), found '\(text)'")
            }
            found(value)
        } catch { faults.add(mark(key), "\(path(key)): \(error.message)") }
    }

    func choice<Choice: RawRepresentable & CaseIterable>(_ key: String, _ found: (Choice) -> Void) where Choice.RawValue == String {
        guard let text = text(key) else { return }
        if let choice = Choice(rawValue: text) { return found(choice) }
        let all = Choice.allCases.map(\.rawValue)
        let suggestion = Suggestion.text(for: text, among: all)
        faults.add(mark(key), "\(path(key)) must be one of \(all.joined(separator: ", ")), found '\(text)'\(suggestion)")
    }

    /// Reads a mapping below, if it is there, and closes it.
    func section(_ key: String, _ read: (Section) -> Void) {
        guard let node = node(key), let section = Section(node, name: path(key), faults: faults) else { return }
        read(section)
        section.finish()
    }

    func list(_ key: String) -> [(name: String, node: Node)] {
        guard let node = node(key) else { return [] }
        guard case .sequence(let sequence) = node else {
            faults.add(node.mark, "\(path(key)) must be a list, found \(node.kind)")
            return []
        }
        return sequence.enumerated().map { (name: "\(path(key))[\($0.offset)]", node: $0.element) }
    }

    func texts(_ key: String) -> [(text: String, mark: Mark?)] {
        list(key).compactMap { item in faults.text(item.node, item.name).map { (text: $0, mark: item.node.mark) } }
    }
}

extension Node {
    /// What it is, for messages.
    var kind: String {
        switch self {
        case .scalar(let scalar): scalar.string.isEmpty || scalar.string == "~" ? "nothing" : "'\(scalar.string)'"
        case .mapping: "a mapping"
        case .sequence: "a list"
        case .alias: "an alias"
        }
    }
}
