internal import Yams

/// A route on the way: parts that have faults are nil, so that the rest can be checked.
struct RouteDraft {
    var name: String
    var mark: Mark?
    var matchMark: Mark?
    var match: RouteMatch?
    var service: Route.ServiceReference?
    var upstream: Upstream?
    var settings = Route.Settings()
    /// Where the file says what a request costs and when: not for hops of flows.
    var costs: [(setting: String, mark: Mark?)] = []
}

extension ConfigurationReader {
    func readRoutes(_ top: Section, _ upstreams: Upstreams) -> [RouteDraft] {
        if !top.has("routes") { faults.add(nil, "the file needs 'routes'") }
        let items = top.list("routes")
        if items.count > Limits.routes { faults.add(top.mark("routes"), "more than \(Limits.routes) routes") }
        var names: [String: Mark?] = [:]
        return items.compactMap { item in
            guard let section = Section(item.node, name: item.name, faults: faults) else { return nil }
            let draft = readRoute(section, upstreams)
            section.finish()
            if let earlier = names[draft.name] {
                faults.add(section.mark("name"), "route '\(draft.name)' exists already, in line \(earlier?.line ?? 0)")
            }
            if !draft.name.isEmpty { names[draft.name] = section.mark("name") }
            return draft
        }
    }

    private func readRoute(_ section: Section, _ upstreams: Upstreams) -> RouteDraft {
        var draft = RouteDraft(name: section.required("name") ?? "", mark: section.mark)
        if !draft.name.isEmpty { checkName(draft.name, section.mark("name"), "a route") }
        draft.match = RouteMatch()
        draft.matchMark = section.has("match") ? section.mark("match") : section.mark
        section.section("match") { draft.match = readMatch($0) }
        draft.service = readService(section)
        if let name = section.required("upstream") {
            draft.upstream = upstreams.list.first { $0.name == name }
            if !upstreams.names.contains(name) {
                let suggestion = Suggestion.text(for: name, among: upstreams.names.sorted())
                faults.add(section.mark("upstream"), "upstream '\(name)' does not exist\(suggestion)")
            }
        }
        draft.settings.rewrite = readRewrite(section, draft.match)
        readSettings(section, &draft.settings)
        draft.costs = ["charge", "units", "quota_unavailable"].filter(section.has).map { (setting: $0, mark: section.mark($0)) }
        return draft
    }

    private func readService(_ section: Section) -> Route.ServiceReference? {
        guard let node = section.node("service") else {
            faults.add(section.mark, "\(section.name) needs 'service'")
            return nil
        }
        var reference: Route.ServiceReference?
        if case .mapping = node {
            section.section("service") { section in
                guard let name = section.required("name") else { return }
                reference = Route.ServiceReference(name: name, version: section.text("version"))
            }
        } else if let text = faults.text(node, section.path("service")) {
            let parts = text.split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
            reference = Route.ServiceReference(name: String(parts[0]), version: parts.count > 1 ? String(parts[1]) : nil)
        }
        guard let reference else { return nil }
        let first = reference.name.utf8.first ?? 0, last = reference.name.utf8.last ?? 0
        if reference.name.utf8.count > 63 || !Self.isSlugEnd(first) || !Self.isSlugEnd(last)
            || !reference.name.utf8.allSatisfy({ Self.isSlugEnd($0) || $0 == 0x2d || $0 == 0x2e || $0 == 0x5f })
        {
            faults.add(
                node.mark, "a service's name is lower case letters and digits with '.', '-' or '_' between them, found '\(reference.name)'")
        }
        if let version = reference.version,
            version.isEmpty || version.utf8.count > 25
                || !version.utf8.allSatisfy({ Self.isSlugEnd($0.folded) || $0 == 0x2d || $0 == 0x2e || $0 == 0x5f })
        {
            faults.add(node.mark, "a service's version is 1 to 25 letters, digits, '.', '-' or '_', found '\(version)'")
        }
        return reference
    }

    private static func isSlugEnd(_ byte: UInt8) -> Bool { (byte >= 0x30 && byte <= 0x39) || (byte >= 0x61 && byte <= 0x7a) }

    private func readSettings(_ section: Section, _ settings: inout Route.Settings) {
        section.section("timeouts") { section in
            section.duration("connect", to: .seconds(300)) { settings.timeouts.connect = $0 }
            section.duration("first_byte") { settings.timeouts.firstByte = $0 }
            section.duration("idle") { settings.timeouts.idle = $0 }
            section.duration("total") { settings.timeouts.total = $0 }
        }
        section.size("body_limit", in: 0...(1 << 40)) { settings.bodyLimit = $0 }
        if let name = section.text("key_query") {
            if name.isEmpty || name.utf8.count > 64 || !name.utf8.allSatisfy(Self.isToken) {
                faults.add(section.mark("key_query"), "\(section.path("key_query")) must be the name of a query parameter, found '\(name)'")
            }
            settings.keyQuery = name
        }
        enum Deprecated: String, CaseIterable { case allow, refuse }
        section.choice("deprecated") { (choice: Deprecated) in settings.deprecatedPasses = choice == .allow }
        section.choice("charge") { settings.charge = $0 }
        readUnits(section, &settings)
        enum Outage: String, CaseIterable { case deny, allow }
        section.choice("quota_unavailable") { (choice: Outage) in settings.outage = choice == .deny ? .deny : .allow }
        for item in section.texts("upgrade") {
            if item.text == "websocket" {
                settings.takesWebSocket = true
            } else {
                let suggestion = Suggestion.text(for: item.text, among: ["websocket"])
                faults.add(item.mark, "\(section.path("upgrade")) may list websocket, found '\(item.text)'\(suggestion)")
            }
        }
        section.section("log") { section in section.bool("query") { settings.logsQuery = $0 } }
        section.section("request_headers") { settings.headers = readHeaderEdits($0) }
    }

    /// A number, or a bound and the field in which the upstream says how much of it is charged.
    private func readUnits(_ section: Section, _ settings: inout Route.Settings) {
        guard case .mapping = section.node("units") else {
            return section.integer("units", in: Limits.units) { settings.units = Int64($0) }
        }
        section.section("units") { section in
            if !section.has("max") { faults.add(section.mark, "\(section.name) needs 'max'") }
            section.integer("max", in: 1...Limits.units.upperBound) { settings.units = Int64($0) }
            guard let name = section.required("header") else { return }
            guard name.lowercased() == "pandora-units" || checkFieldName(name, section.mark("header")) else { return }
            settings.unitsHeader = name.lowercased()
        }
    }

    private func readHeaderEdits(_ section: Section) -> Route.HeaderEdits {
        var edits = Route.HeaderEdits()
        if let node = section.node("set"), let fields = Section(node, name: section.path("set"), faults: faults) {
            for (name, mark, node) in fields.all {
                guard checkFieldName(name, mark), let value = faults.text(node, fields.path(name)) else { continue }
                if value.utf8.contains(where: { ($0 < 0x20 && $0 != 0x09) || $0 == 0x7f }) {
                    faults.add(node.mark, "the value of '\(name)' has a control character")
                }
                edits.replace.append(.init(name: name, value: value))
            }
        }
        for item in section.texts("remove") where checkFieldName(item.text, item.mark) { edits.remove.append(item.text.lowercased()) }
        return edits
    }

    /// Fields that the gateway itself writes, or that decide how a message is framed, are not for a route to change.
    private func checkFieldName(_ name: String, _ mark: Mark?) -> Bool {
        if name.isEmpty || !name.utf8.allSatisfy(Self.isToken) {
            faults.add(mark, "'\(name)' is no name of a header field")
            return false
        }
        let own = ["connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "via"]
        if own.contains(name.lowercased()) || name.lowercased().hasPrefix("pandora-") {
            faults.add(
                mark,
                "header field '\(name)' belongs to the gateway\(name.lowercased() == "host" ? "; use host_header of the upstream" : "")")
            return false
        }
        return true
    }

    /// RFC 9110, section 5.6.2.
    static func isToken(_ byte: UInt8) -> Bool {
        switch byte.folded {
        case 0x30...0x39, 0x61...0x7a: true
        default: "!#$%&'*+-.^_`|~".utf8.contains(byte)
        }
    }

    func reportConflicts(_ drafts: [RouteDraft]) {
        let complete = drafts.filter { $0.match != nil }
        for conflict in RouteConflict.all(in: complete.map { $0.match! }) {
            let (first, second) = (complete[conflict.first], complete[conflict.second])
            let place = "'\(first.name)' in line \(first.mark?.line ?? 0)"
            switch conflict.kind {
            case .duplicate:
                faults.add(second.matchMark, "route '\(second.name)' can never match: route \(place) has the same conditions")
            case .ambiguous:
                faults.add(
                    second.matchMark,
                    "routes '\(second.name)' and \(place) both take some requests and neither is more specific; "
                        + "separate their methods or add a header condition")
            }
        }
    }
}
