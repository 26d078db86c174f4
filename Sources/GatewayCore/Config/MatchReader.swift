internal import Yams

extension ConfigurationReader {
    func readMatch(_ section: Section) -> RouteMatch? {
        let host = section.text("host").map { readHost($0, section.mark("host")) } ?? .any
        let given = ["path", "prefix", "pattern"].filter(section.has)
        if given.count > 1 {
            faults.add(
                section.keyMark(given[1]),
                "\(section.name) has '\(given[0])' and '\(given[1])'; a route has one of path, prefix and pattern")
        }
        var path: RouteMatch.Path? = .prefix([])
        if let text = section.text("path") { path = readPath(text, section.mark("path"), section.path("path")).map { .exact($0) } }
        if let text = section.text("prefix") { path = readPrefix(text, section.mark("prefix"), section.path("prefix")).map { .prefix($0) } }
        if let text = section.text("pattern") { path = readPattern(text, section.mark("pattern"), section.path("pattern")) }
        var methods: Set<String> = []
        for (text, mark) in section.texts("methods") {
            if text.isEmpty || !text.utf8.allSatisfy(Self.isToken) {
                faults.add(mark, "'\(text)' is no method")
            } else if text != text.uppercased() {
                // Methods are case-sensitive (RFC 9110, section 9.1).
                faults.add(mark, "methods are case-sensitive; did you mean '\(text.uppercased())'?")
            } else if !methods.insert(text).inserted {
                faults.add(mark, "method '\(text)' is listed twice")
            }
        }
        let fields = readConditions(section)
        guard let host, let path else { return nil }
        return RouteMatch(host: host, path: path, methods: Array(methods), fields: fields)
    }

    private func readConditions(_ section: Section) -> [RouteMatch.Field] {
        var fields: [RouteMatch.Field] = []
        guard let node = section.node("headers"), let headers = Section(node, name: section.path("headers"), faults: faults) else {
            return []
        }
        for (name, mark, node) in headers.all {
            if name.isEmpty || !name.utf8.allSatisfy(Self.isToken) {
                faults.add(mark, "'\(name)' is no name of a header field")
                continue
            }
            let field = name.lowercased()
            if fields.contains(where: { $0.name == field }) { faults.add(mark, "header field '\(name)' is listed twice") }
            // `*` asks only that the field is there.
            if let value = faults.text(node, headers.path(name)) { fields.append(.init(name: field, value: value == "*" ? nil : value)) }
        }
        if fields.count > Limits.headerConditions { faults.add(headers.mark, "more than \(Limits.headerConditions) header conditions") }
        return fields
    }

    private func readHost(_ text: String, _ mark: Mark?) -> RouteMatch.Host? {
        var host = text.lowercased()
        if host == "*" { return .any }
        let wildcard = host.hasPrefix("*.")
        if wildcard { host = String(host.dropFirst(2)) }
        if host.contains(":"), !HostPort.isLiteral(host) {
            faults.add(mark, "a host is matched without its port; did you mean '\(text.prefix { $0 != ":" })'?")
            return nil
        }
        guard HostPort.isName(host), !host.hasSuffix("."), !(wildcard && HostPort.isLiteral(host)) else {
            let hint = host.contains("*") ? "; a '*' may only stand for the first labels, as in *.example.com" : ""
            faults.add(mark, "'\(text)' is no host\(hint)")
            return nil
        }
        return wildcard ? .suffix(Array(".\(host)".utf8)) : .exact(Array(host.utf8))
    }

    /// A path as it is compared: percent-decoded.
    private func readPath(_ text: String, _ mark: Mark?, _ what: String) -> [UInt8]? {
        if text.contains("?") || text.contains("#") {
            faults.add(mark, "\(what) must not have a query or a fragment; did you mean '\(text.prefix { $0 != "?" && $0 != "#" })'?")
            return nil
        }
        let bytes = Array(text.utf8)
        do throws(PathFault) {
            try RequestPath.check(bytes)
            return bytes.withUnsafeBytes { $0.percentDecoded(0..<$0.count) }
        } catch {
            let reason =
                switch error {
                case .notAbsolute: "must begin with '/'; did you mean '/\(text)'?"
                case .badEscape: "has a '%' without two hexadecimal digits"
                case .dotSegment: "has a segment '.' or '..'; no such request is served"
                case .emptySegment: "has an empty segment; no such request is served"
                case .hiddenSlash: "has an escaped '/' or a '\\'; no such request is served"
                case .controlByte: "has a control character"
                case .tooManySegments: "has more than \(Limits.pathSegments) segments"
                }
            faults.add(mark, "\(what) \(reason)")
            return nil
        }
    }

    private func readPrefix(_ text: String, _ mark: Mark?, _ what: String) -> [UInt8]? {
        if text == "/" { return [] }
        if text.hasSuffix("*") {
            faults.add(mark, "\(what) takes everything below it without a '*'; did you mean '\(text.prefix { $0 != "*" }.trimmedSlash)'?")
            return nil
        }
        if text.hasSuffix("/") {
            faults.add(mark, "\(what) ends on a segment without a '/'; did you mean '\(Substring(text).trimmedSlash)'?")
            return nil
        }
        return readPath(text, mark, what)
    }

    private func readPattern(_ text: String, _ mark: Mark?, _ what: String) -> RouteMatch.Path? {
        var segments: [RouteMatch.Segment] = []
        var names: Set<String> = []
        guard text.hasPrefix("/") else {
            faults.add(mark, "\(what) must begin with '/'; did you mean '/\(text)'?")
            return nil
        }
        for segment in text.dropFirst().split(separator: "/", omittingEmptySubsequences: false) {
            if segment.hasPrefix("{"), segment.hasSuffix("}") {
                let name = String(segment.dropFirst().dropLast())
                if name.isEmpty || !name.utf8.allSatisfy({ Self.isToken($0) && $0 != UInt8(ascii: "*") }) {
                    faults.add(mark, "\(what): '\(segment)' is no parameter; write one as {name}")
                    return nil
                }
                if !names.insert(name).inserted {
                    faults.add(mark, "\(what) has parameter '\(name)' twice")
                    return nil
                }
                segments.append(.parameter(name))
            } else if segment.contains("{") || segment.contains("}") || segment == "*" {
                faults.add(mark, "\(what): a parameter is a whole segment such as {name}, found '\(segment)'")
                return nil
            } else {
                segments.append(.literal(Array(segment.utf8).withUnsafeBytes { $0.percentDecoded(0..<$0.count) }))
            }
        }
        // The rules of paths hold for patterns, too; a parameter stands for a harmless segment.
        let sampled = text.dropFirst().split(separator: "/", omittingEmptySubsequences: false)
        let sample = "/" + sampled.map { $0.hasPrefix("{") ? "x" : $0 }.joined(separator: "/")
        guard let literal = readPath(sample, mark, what) else { return nil }
        return names.isEmpty ? .exact(literal) : .pattern(segments)
    }

    /// `strip_prefix: /a` or `rewrite: /b`.
    func readRewrite(_ section: Section, _ match: RouteMatch?) -> TargetRewrite {
        if section.has("strip_prefix"), section.has("rewrite") {
            faults.add(section.keyMark("rewrite"), "\(section.name) has 'strip_prefix' and 'rewrite'; a route has one of them")
        }
        let (stripped, rewritten) = (section.text("strip_prefix"), section.text("rewrite"))
        if let text = stripped {
            guard let prefix = readPrefix(text, section.mark("strip_prefix"), section.path("strip_prefix")), let match else { return .none }
            guard match.path.begins(with: prefix) else {
                faults.add(
                    section.mark("strip_prefix"), "\(section.path("strip_prefix")) '\(text)' is not how every path of the route begins")
                return .none
            }
            return .prefix(length: prefix.count, replacement: [])
        }
        guard let text = rewritten, let match else { return .none }
        return readReplacement(text, section.mark("rewrite"), section.path("rewrite"), match.path)
    }

    private func readReplacement(_ text: String, _ mark: Mark?, _ what: String, _ path: RouteMatch.Path) -> TargetRewrite {
        guard text.hasPrefix("/") else {
            faults.add(mark, "\(what) must begin with '/'; did you mean '/\(text)'?")
            return .none
        }
        guard text.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7f && $0 != questionMark && $0 != UInt8(ascii: "#") }) else {
            faults.add(mark, "\(what) must be a path as it is sent: without query, spaces and unescaped letters beyond ASCII")
            return .none
        }
        var segments: [RouteMatch.Segment] = []
        switch path {
        case .prefix(let prefix):
            return .prefix(length: prefix.count, replacement: Array(Substring(text).trimmedSlash.utf8).droppingOnlySlash)
        case .exact: break
        case .pattern(let all): segments = all
        }
        let names = segments.map { if case .parameter(let name) = $0 { name } else { "" } }
        var parts: [TargetRewrite.Part] = []
        var rest = Substring(text)
        while let open = rest.firstIndex(of: "{") {
            guard let close = rest[open...].firstIndex(of: "}") else {
                faults.add(mark, "\(what) has a '{' without '}'")
                return .none
            }
            let name = String(rest[rest.index(after: open)..<close])
            guard !name.isEmpty, let index = names.firstIndex(of: name) else {
                let suggestion = Suggestion.text(for: name, among: names.filter { !$0.isEmpty })
                faults.add(mark, "\(what): the route's pattern has no parameter '\(name)'\(suggestion)")
                return .none
            }
            if open > rest.startIndex { parts.append(.literal(Array(rest[..<open].utf8))) }
            parts.append(.segment(index))
            rest = rest[rest.index(after: close)...]
        }
        if !rest.isEmpty { parts.append(.literal(Array(rest.utf8))) }
        return .path(parts)
    }
}

extension Substring {
    /// Without slashes at the end, but for one that stands alone.
    fileprivate var trimmedSlash: Substring {
        var text = self
        while text.count > 1, text.hasSuffix("/") { text.removeLast() }
        return text
    }
}

extension [UInt8] {
    fileprivate var droppingOnlySlash: [UInt8] { self == [slash] ? [] : self }
}

extension RouteMatch.Path {
    /// Whether every path that matches begins with `prefix` on a segment boundary.
    fileprivate func begins(with prefix: [UInt8]) -> Bool {
        var literal: [UInt8] = []
        switch self {
        case .exact(let path): literal = path
        case .prefix(let path): literal = path
        case .pattern(let segments):
            for case .literal(let bytes) in segments.prefix(while: { !$0.isParameter }) { literal += [slash] + bytes }
            literal.append(slash)
        }
        return literal.starts(with: prefix) && (literal.count == prefix.count || literal[prefix.count] == slash)
    }
}
