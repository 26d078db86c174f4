/// The routes of one host, found by path.
struct PathTable: Sendable {
    private let exact: BytesIndex
    private let exactRoutes: [Candidates]
    private let patterns: [(segments: [RouteMatch.Segment], routes: Candidates)]
    private let prefixes: BytesIndex
    private let prefixRoutes: [Candidates]

    init(_ routes: [Route]) {
        var exact: [[UInt8]: [Route]] = [:]
        var patterns: [[RouteMatch.Segment]: [Route]] = [:]
        var prefixes: [[UInt8]: [Route]] = [:]
        for route in routes {
            switch route.match.path {
            case .exact(let path): exact[path, default: []].append(route)
            case .pattern(let segments): patterns[segments.map(\.withoutName), default: []].append(route)
            case .prefix(let path): prefixes[path, default: []].append(route)
            }
        }
        (self.exact, exactRoutes) = Self.indexed(exact)
        (self.prefixes, prefixRoutes) = Self.indexed(prefixes)
        self.patterns = patterns.map { (segments: $0.key, routes: Candidates($0.value)) }
            .sorted { Self.isMoreSpecific($0.segments, $1.segments) }
    }

    private static func indexed(_ routes: [[UInt8]: [Route]]) -> (BytesIndex, [Candidates]) {
        let keys = Array(routes.keys)
        return (BytesIndex(keys), keys.map { Candidates(routes[$0]!) })
    }

    /// A literal where the other has a parameter, the leftmost difference deciding.  No path has two numbers of segments,
    /// but without an order between those, too, "neither is more specific" would not be transitive and sort nothing.
    private static func isMoreSpecific(_ a: [RouteMatch.Segment], _ b: [RouteMatch.Segment]) -> Bool {
        if a.count != b.count { return a.count < b.count }
        for (a, b) in zip(a, b) where a.isParameter != b.isParameter { return b.isParameter }
        return false
    }

    func match(
        _ method: UnsafeRawBufferPointer, _ path: UnsafeRawBufferPointer, _ segments: Int, _ fields: some RequestFields
    ) -> Route? {
        var hash = BytesIndex.seed
        var found: Route?
        // Shorter prefixes first: what a longer one finds replaces it.
        for index in 0...path.count {
            if index == path.count || path[index] == slash, !prefixes.isEmpty,
                let place = prefixes.find(path, count: index, hash: hash),
                let route = prefixRoutes[place].first(method, fields)
            {
                found = route
            }
            if index < path.count { hash = BytesIndex.hash(hash, path[index]) }
        }
        if let place = exact.find(path, count: path.count, hash: hash), let route = exactRoutes[place].first(method, fields) {
            return route
        }
        for pattern in patterns where pattern.segments.count == segments && pattern.segments.match(path) {
            if let route = pattern.routes.first(method, fields) { return route }
        }
        return found
    }
}

/// Routes that differ only in methods and header conditions, the most specific first.
struct Candidates: Sendable {
    private let routes: [(route: Route, methods: [[UInt8]], fields: [RouteMatch.Field])]

    init(_ routes: [Route]) {
        self.routes = routes.sorted { $0.match.conditionRank > $1.match.conditionRank }
            .map { (route: $0, methods: $0.match.methods.map { Array($0.utf8) }, fields: $0.match.fields) }
    }

    func first(_ method: UnsafeRawBufferPointer, _ fields: some RequestFields) -> Route? {
        for (route, methods, conditions) in routes {
            guard methods.isEmpty || methods.contains(where: { $0.count == method.count && $0.equals(method, $0.count) }) else {
                continue
            }
            if conditions.allSatisfy({ fields.hasField(named: $0.name, value: $0.value) }) { return route }
        }
        return nil
    }
}

extension RouteMatch {
    /// What decides between routes of the same host and path; the higher wins.
    var conditionRank: (Int, Int, Int) { (fields.count, fields.count { $0.value != nil }, methods.isEmpty ? 0 : 1) }
}

extension RouteMatch.Segment {
    var isParameter: Bool { if case .parameter = self { true } else { false } }
    /// Names of parameters do not make a different pattern.
    var withoutName: Self { if case .parameter = self { .parameter("") } else { self } }
}

extension [RouteMatch.Segment] {
    /// Whether a path with as many segments has these.
    func match(_ path: UnsafeRawBufferPointer) -> Bool {
        var start = 1
        for segment in self {
            var end = start
            while end < path.count, path[end] != slash { end += 1 }
            switch segment {
            case .parameter: if start == end { return false }
            case .literal(let literal):
                guard literal.count == end - start,
                    literal.equals(UnsafeRawBufferPointer(rebasing: path[start..<end]), literal.count)
                else { return false }
            }
            start = end + 1
        }
        return true
    }
}
