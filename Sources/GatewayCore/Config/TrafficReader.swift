internal import Yams

extension ConfigurationReader {
    /// Upstreams first, then the routes that name them, then the flows that name routes.
    func readTraffic(_ top: Section) -> TrafficSettings? {
        let upstreams = readUpstreams(top)
        let drafts = readRoutes(top, upstreams)
        let flows = readFlows(top, drafts)
        reportConflicts(drafts)
        var routes: [Route] = []
        for draft in drafts {
            if let role = flows.roles[draft.name] {
                for cost in draft.costs {
                    faults.add(
                        cost.mark,
                        "route '\(draft.name)' is of flow '\(role.flowName)', which reserves its units when it starts and is charged "
                            + "when it succeeds: '\(cost.setting)' has no use there; see 'units', 'success' and 'on_failure' of the flow")
                }
            }
            guard let upstream = draft.upstream, let match = draft.match, let service = draft.service else { continue }
            var settings = draft.settings
            settings.flow = flows.roles[draft.name]
            routes.append(
                Route(index: routes.count, name: draft.name, match: match, service: service, upstream: upstream, settings: settings))
        }
        guard faults.faults.isEmpty else { return nil }
        return TrafficSettings(upstreams: upstreams.list, routes: RouteTable(routes), flows: flows.list)
    }

    // MARK: Upstreams

    struct Upstreams {
        var list: [Upstream] = []
        /// Every name that the file gives, also of upstreams with faults.
        var names: Set<String> = []
    }

    private func readUpstreams(_ top: Section) -> Upstreams {
        var result = Upstreams()
        guard let node = top.node("upstreams") else {
            faults.add(nil, "the file needs 'upstreams'")
            return result
        }
        guard let section = Section(node, name: "upstreams", faults: faults) else { return result }
        if section.all.count > Limits.upstreams { faults.add(node.mark, "more than \(Limits.upstreams) upstreams") }
        for (name, mark, node) in section.all {
            if name.unicodeScalars.contains(where: { Self.duplicateMarks.contains($0.value) }) { continue }
            result.names.insert(name)
            checkName(name, mark, "an upstream")
            guard let section = Section(node, name: "upstreams.\(name)", faults: faults) else { continue }
            if let upstream = readUpstream(section, name, result.list.count) { result.list.append(upstream) }
            section.finish()
        }
        return result
    }

    private func readUpstream(_ section: Section, _ name: String, _ index: Int) -> Upstream? {
        var scheme = Upstream.Scheme.http
        section.choice("scheme") { scheme = $0 }
        var (connections, waiting) = (Limits.connectionsPerTarget, Limits.waitingPerUpstream)
        section.integer("connections", in: 1...100_000) { connections = $0 }
        section.integer("waiting", in: 0...1_000_000) { waiting = $0 }
        var host = Upstream.HostHeader.target
        switch section.text("host_header") {
        case nil, "target": break
        case "preserve": host = .preserve
        case let text?:
            guard let split = HostPort.split(text), HostPort.isName(split.host) else {
                faults.add(
                    section.mark("host_header"), "\(section.path("host_header")) must be preserve, target or a host, found '\(text)'")
                break
            }
            host = .fixed(text)
        }
        var tls = Upstream.TLS()
        if section.has("tls"), scheme == .http {
            faults.add(section.keyMark("tls"), "\(section.path("tls")) has no use with scheme http; did you mean 'scheme: https'?")
        }
        section.section("tls") { section in
            section.bool("verify") { tls.verify = $0 }
            tls.authorities = section.text("ca_file")
            tls.serverName = section.text("server_name")
        }
        if !section.has("targets") { faults.add(section.mark, "\(section.name) needs 'targets'") }
        let items = section.list("targets")
        if section.has("targets"), items.isEmpty, case .sequence = section.node("targets") {
            faults.add(section.mark("targets"), "\(section.path("targets")) must not be empty")
        }
        if items.count > Limits.targets { faults.add(section.mark("targets"), "more than \(Limits.targets) targets") }
        var seen: Set<String> = []
        let targets = items.compactMap { item -> Target? in
            guard let target = readTarget(item.node, item.name, scheme) else { return nil }
            if !seen.insert(target.description).inserted {
                faults.add(item.node.mark, "target \(target) is listed twice; give it a weight instead")
            }
            return target
        }
        guard !targets.isEmpty else { return nil }
        return Upstream(
            index: index, name: name, scheme: scheme, targets: targets, hostHeader: host, tls: tls, connections: connections,
            waiting: waiting)
    }

    /// `host:port`, or a mapping with `address` and `weight`.
    private func readTarget(_ node: Node, _ name: String, _ scheme: Upstream.Scheme) -> Target? {
        var weight = 1
        var address: String?
        var mark = node.mark
        if case .mapping = node {
            guard let section = Section(node, name: name, faults: faults) else { return nil }
            address = section.required("address")
            mark = section.mark("address")
            section.integer("weight", in: Limits.targetWeight) { weight = $0 }
            section.finish()
        } else {
            address = faults.text(node, name)
        }
        guard let address else { return nil }
        guard let (host, port) = HostPort.split(address), HostPort.isName(host), port != 0 else {
            let schemes = ["http://", "https://"]
            let suggestion = schemes.first(where: address.hasPrefix).map {
                "; leave the scheme to 'scheme': '\(address.dropFirst($0.count).prefix { $0 != "/" })'"
            }
            faults.add(mark, "\(name) must be host:port, found '\(address)'\(suggestion ?? "")")
            return nil
        }
        return Target(host: host, port: port ?? scheme.defaultPort, weight: weight)
    }

    func checkName(_ name: String, _ mark: Mark?, _ what: String) {
        let legal = name.utf8.allSatisfy {
            $0 == 0x2d || $0 == 0x2e || $0 == 0x5f || ($0.folded >= 0x61 && $0.folded <= 0x7a) || ($0 >= 0x30 && $0 <= 0x39)
        }
        if name.isEmpty || name.utf8.count > 63 || !legal {
            faults.add(mark, "the name of \(what) is 1 to 63 letters, digits, '.', '-' or '_', found '\(name)'")
        }
    }

    // MARK: Flows

    private func readFlows(_ top: Section, _ routes: [RouteDraft]) -> (list: [Flow], roles: [String: FlowRole]) {
        var result: (list: [Flow], roles: [String: FlowRole]) = ([], [:])
        guard let node = top.node("flows"), let section = Section(node, name: "flows", faults: faults) else { return result }
        let names = routes.map(\.name)
        for (name, mark, node) in section.all {
            if name.unicodeScalars.contains(where: { Self.duplicateMarks.contains($0.value) }) { continue }
            checkName(name, mark, "a flow")
            guard let section = Section(node, name: "flows.\(name)", faults: faults) else { continue }
            var flow = Flow(name: name, start: "", steps: [], finish: "")
            func role(_ route: String?, _ mark: Mark?, _ role: FlowRole) -> String {
                guard let route else { return "" }
                if !names.contains(route) {
                    faults.add(
                        mark, "flow '\(name)' names route '\(route)', which does not exist\(Suggestion.text(for: route, among: names))")
                } else if result.roles[route] != nil {
                    faults.add(mark, "route '\(route)' has a role in a flow already")
                } else if routes.contains(where: { $0.name == route && $0.settings.takesWebSocket }) {
                    faults.add(mark, "route '\(route)' has 'upgrade', which no hop of a flow can have")
                } else {
                    result.roles[route] = role
                }
                return route
            }
            flow.start = role(section.required("start"), section.mark("start"), .start(flow: name))
            for (index, step) in section.texts("steps").enumerated() {
                flow.steps.append(role(step.text, step.mark, .step(flow: name, index: index)))
            }
            flow.finish = role(section.required("finish"), section.mark("finish"), .finish(flow: name))
            section.integer("units", in: Limits.units) { flow.units = Int64($0) }
            section.duration("ttl", from: .seconds(1), to: Limits.flowTimeMax) { flow.timeToLive = $0 }
            section.duration("max_time", from: .seconds(1), to: .seconds(30 * 86_400)) { flow.timeMax = $0 }
            section.integer("max_hops", in: 2...1_000_000) { flow.hops = $0 }
            section.integer("max_open", in: 1...1_000_000) { flow.open = $0 }
            section.bool("ordered") { flow.ordered = $0 }
            readSuccess(section, &flow)
            section.choice("on_failure") { flow.onFailure = $0 }
            if flow.timeMax < flow.timeToLive { faults.add(section.mark("max_time"), "max_time must not be shorter than ttl") }
            section.finish()
            result.list.append(flow)
        }
        return result
    }

    /// Statuses and ranges of them.
    private func readSuccess(_ section: Section, _ flow: inout Flow) {
        guard section.has("success") else { return }
        if case .sequence(let items)? = section.node("success"), items.isEmpty {
            faults.add(section.mark("success"), "\(section.path("success")) must not be empty")
        }
        flow.success = section.texts("success").compactMap { item in
            let ends = item.text.split(separator: "-", omittingEmptySubsequences: false).compactMap { UInt16($0) }
            let isRange = item.text.contains("-")
            if ends.count == (isRange ? 2 : 1), ends[0] <= ends.last!, ends[0] >= 200, ends.last! <= 599 { return ends[0]...ends.last! }
            faults.add(
                item.mark,
                "\(section.path("success")) lists statuses from 200 to 599, or ranges such as 200-299, found '\(item.text)'")
            return nil
        }
    }
}
