/// Two routes of one table between which a request could not decide.
public struct RouteConflict: Sendable, Equatable {
    public enum Kind: Sendable, Equatable {
        /// The same conditions: the later one would never match.
        case duplicate
        /// Some requests meet both, and neither is more specific.
        case ambiguous
    }

    public var kind: Kind
    /// Places in the list of routes; `first` is the smaller.
    public var first: Int
    public var second: Int
}

extension RouteConflict {
    /// Every conflict among `matches`, in the order of the second route; one per second route.
    public static func all(in matches: [RouteMatch]) -> [RouteConflict] {
        struct Place: Hashable {
            var host: RouteMatch.Host
            var path: RouteMatch.Path
        }
        var seen: [Place: [Int]] = [:]
        var conflicts: [RouteConflict] = []
        for (index, match) in matches.enumerated() {
            var path = match.path
            if case .pattern(let segments) = path { path = .pattern(segments.map(\.withoutName)) }
            let place = Place(host: match.host, path: path)
            let earlier = seen[place, default: []]
            let kinds = earlier.lazy.compactMap { other in
                matches[other].conflict(with: match).map { RouteConflict(kind: $0, first: other, second: index) }
            }
            if let found = kinds.first(where: { $0.kind == .duplicate }) ?? kinds.first { conflicts.append(found) }
            seen[place] = earlier + [index]
        }
        return conflicts
    }
}

extension RouteMatch {
    /// For routes of the same host and path.
    fileprivate func conflict(with other: RouteMatch) -> RouteConflict.Kind? {
        if fields == other.fields, methods == other.methods { return .duplicate }
        guard conditionRank == other.conditionRank else { return nil }
        if !methods.isEmpty, Set(methods).isDisjoint(with: other.methods) { return nil }
        return .ambiguous
    }
}
