import GatewayCore
import Testing

private let upstream = Upstream(name: "u", targets: [Target(host: "h", port: 1)])

private func table(_ matches: [RouteMatch]) -> RouteTable {
    RouteTable(
        matches.enumerated().map {
            Route(index: $0.offset, name: "r\($0.offset)", match: $0.element, service: .init(name: "s"), upstream: upstream)
        })
}

private struct Fields: RequestFields {
    var list: [(String, String)]
    func hasField(named name: String, value: String?) -> Bool { list.contains { $0.0 == name && (value == nil || $0.1 == value) } }
}

extension RouteTable.Outcome {
    fileprivate var index: Int? { if case .route(let route) = self { route.index } else { nil } }
    fileprivate var fault: PathFault? { if case .refused(let fault) = self { fault } else { nil } }
}

private func bytes(_ text: String) -> [UInt8] { Array(text.utf8) }

@Suite struct RoutingTests {
    @Test func theMostSpecificWins() {
        let routes = table([
            RouteMatch(),
            RouteMatch(path: .prefix(bytes("/a"))),
            RouteMatch(path: .prefix(bytes("/a/b"))),
            RouteMatch(path: .pattern([.literal(bytes("a")), .parameter("x")])),
            RouteMatch(path: .pattern([.parameter("x"), .literal(bytes("b"))])),
            RouteMatch(path: .exact(bytes("/a/b"))),
            RouteMatch(host: .suffix(bytes(".e.com"))),
            RouteMatch(host: .suffix(bytes(".d.e.com"))),
            RouteMatch(host: .exact(bytes("c.d.e.com")), path: .prefix(bytes("/z"))),
            RouteMatch(path: .exact(bytes("/a/b")), methods: ["PUT"]),
            RouteMatch(path: .exact(bytes("/a/b")), fields: [.init(name: "x")]),
            RouteMatch(path: .exact(bytes("/a/b")), fields: [.init(name: "x", value: "1")]),
        ])
        #expect(routes.match(target: "/").index == 0)
        #expect(routes.match(target: "/ab").index == 0)
        #expect(routes.match(target: "/a").index == 1)
        #expect(routes.match(target: "/a/").index == 1)
        #expect(routes.match(target: "/a/c/d").index == 1)
        #expect(routes.match(target: "/a/b/c").index == 2)
        #expect(routes.match(target: "/a/c?x=/b").index == 3)
        #expect(routes.match(target: "/c/b").index == 4)
        #expect(routes.match(target: "/a/b").index == 5)
        #expect(routes.match(host: "x.E.com:80", target: "/a/b").index == 6)
        #expect(routes.match(host: "e.com", target: "/a/b").index == 5)
        #expect(routes.match(host: "c.D.e.com.", target: "/a/b").index == 7)
        #expect(routes.match(host: "c.d.e.com", target: "/z/1").index == 8)
        #expect(routes.match(method: "PUT", target: "/a/b").index == 9)
        #expect(routes.match(method: "put", target: "/a/b").index == 5)
        #expect(routes.match(method: "PUT", target: "/a/b", fields: Fields(list: [("x", "2")])).index == 10)
        #expect(routes.match(target: "/a/b", fields: Fields(list: [("x", "1")])).index == 11)
    }

    @Test func pathsAreComparedDecodedAndByteForByte() {
        let routes = table([RouteMatch(path: .exact(bytes("/café"))), RouteMatch(path: .prefix(bytes("/admin")))])
        #expect(routes.match(target: "/caf%C3%A9").index == 0)
        #expect(routes.match(target: "/caf%c3%a9?q=%").index == 0)
        #expect(routes.match(target: "/café").index == 0)
        #expect(routes.match(target: "/CAFÉ").index == nil)
        // The same text in another normal form is another path.
        #expect(routes.match(target: "/cafe\u{301}").index == nil)
        #expect(routes.match(target: "/%61dmin/x").index == 1)
        #expect(routes.match(target: "/%2561dmin").index == nil)
    }

    @Test(arguments: [
        ("", PathFault.notAbsolute), ("*", .notAbsolute), ("a", .notAbsolute), ("?", .notAbsolute),
        ("/.", .dotSegment), ("/..", .dotSegment), ("/a/../b", .dotSegment), ("/a/%2e%2E/b", .dotSegment), ("/a/.%2e", .dotSegment),
        ("/a/..;x/b", .dotSegment), ("/a/..?x", .dotSegment), ("//", .emptySegment), ("/a//b", .emptySegment), ("/a/;x", .emptySegment),
        ("/a%2fb", .hiddenSlash), ("/a%2Fb", .hiddenSlash), ("/a\\b", .hiddenSlash), ("/a%5cb", .hiddenSlash),
        ("/a%00", .controlByte), ("/a%7f", .controlByte), ("/a\tb", .controlByte), ("/%", .badEscape), ("/%2", .badEscape),
        ("/%zz", .badEscape), (String(repeating: "/a", count: 65), .tooManySegments),
    ])
    func ambiguousPathsAreRefused(target: String, fault: PathFault) { #expect(table([RouteMatch()]).match(target: target).fault == fault) }

    @Test(arguments: ["/...", "/.a", "/a..", "/a;x/b", "/a/", "/?..", "/a?//%2f\\", String(repeating: "/a", count: 64)])
    func harmlessPathsAreMatched(target: String) { #expect(table([RouteMatch()]).match(target: target).index == 0) }

    @Test(arguments: [
        (TargetRewrite.none, "/a?b", nil), (.prefix(length: 2, replacement: []), "/a/b?c", "/b?c"),
        (.prefix(length: 2, replacement: []), "/a", "/"),
        (.prefix(length: 2, replacement: []), "/a?c", "/?c"), (.prefix(length: 2, replacement: []), "/%61/%62", "/%62"),
        (.prefix(length: 2, replacement: Array("/x/y".utf8)), "/a/b", "/x/y/b"),
        (.prefix(length: 0, replacement: Array("/x".utf8)), "/a", "/x/a"),
        (.path([.literal(Array("/x/".utf8)), .segment(1), .literal(Array("/y".utf8))]), "/a/%C3%A9/c?q", "/x/%C3%A9/y?q"),
        (.path([.literal(Array("/".utf8)), .segment(0)]), "/a?q=/", "/a?q=/"),
    ] as [(TargetRewrite, String, String?)]) func rewritesKeepTheRest(rewrite: TargetRewrite, target: String, result: String?) {
        let found = bytes(target).withUnsafeBytes { rewrite.apply(to: $0) }
        #expect(found.map { String(decoding: $0, as: UTF8.self) } == result)
    }

    @Test(arguments: [
        ("/a?k=1", ["1"], "/a"), ("/a?x=1&k=2&y", ["2"], "/a?x=1&y"), ("/a?k=%41&k=b", ["A", "b"], "/a"), ("/a?%6b=1&z", ["1"], "/a?z"),
        ("/a?kk=1", [], nil), ("/a", [], nil), ("/a?k", [""], "/a"), ("/a?&k=1&", ["1"], "/a?&"), ("/k=1?x=k=1", [], nil),
    ] as [(String, [String], String?)]) func keysAreTakenOutOfTheQuery(target: String, values: [String], rest: String?) {
        let raw = bytes(target)
        #expect(raw.withUnsafeBytes { TargetQuery.values(of: bytes("k"), in: $0) }.map { String(decoding: $0, as: UTF8.self) } == values)
        #expect(raw.withUnsafeBytes { TargetQuery.removing(bytes("k"), from: $0) }.map { String(decoding: $0, as: UTF8.self) } == rest)
    }

    @Test func weightsAreKeptAndSpread() {
        // The sequence that nginx's documentation of the algorithm gives for 5, 1, 1.
        var robin = WeightedRoundRobin(weights: [5, 1, 1])
        #expect((0..<7).map { _ in robin.next() } == [0, 0, 1, 0, 2, 0, 0])
        for seed in 0..<20 {
            var robin = WeightedRoundRobin(weights: [3, 1, 4], seed: seed)
            let chosen = (0..<80).map { _ in robin.next() }
            #expect([0, 1, 2].map { target in chosen.count { $0 == target } } == [30, 10, 40])
        }
        var rest = WeightedRoundRobin(weights: [1, 1])
        #expect(rest.next { $0 == 1 } == 1)
        #expect(rest.next { _ in false } == nil)
    }
}

/// The table against an implementation that tries every route.
@Suite struct RoutingModelTests {
    struct Random: RandomNumberGenerator {
        var state: UInt64
        mutating func next() -> UInt64 {
            state &+= 0x9e37_79b9_7f4a_7c15
            var z = state
            z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
            z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
            return z ^ (z >> 31)
        }
    }

    static let names = ["a", "b", "é"]

    static func match(_ random: inout Random) -> RouteMatch {
        let host: RouteMatch.Host =
            switch Int.random(in: 0..<5, using: &random) {
            case 0: .exact(bytes("x.y"))
            case 1: .exact(bytes("z.x.y"))
            case 2: .suffix(bytes(".y"))
            case 3: .suffix(bytes(".x.y"))
            default: .any
            }
        let segments = (0..<Int.random(in: 1...3, using: &random)).map { _ in names.randomElement(using: &random)! }
        let text = segments.reduce("") { "\($0)/\($1)" }
        var path = RouteMatch.Path.prefix([])
        switch Int.random(in: 0..<4, using: &random) {
        case 0: path = .exact(bytes(text))
        case 1: path = .prefix(bytes(text))
        case 2: path = .pattern(segments.map { Bool.random(using: &random) ? .parameter("p") : .literal(bytes($0)) })
        default: break
        }
        let methods = ["GET", "PUT"].filter { _ in Int.random(in: 0..<3, using: &random) == 0 }
        let fields = ["h", "i"].filter { _ in Int.random(in: 0..<3, using: &random) == 0 }
            .map { RouteMatch.Field(name: $0, value: Bool.random(using: &random) ? "1" : nil) }
        return RouteMatch(host: host, path: path, methods: methods, fields: fields)
    }

    /// The rank of a match as a list of numbers, higher first; nil where the request misses a condition.
    static func rank(_ match: RouteMatch, method: String, host: String, segments: [String], fields: [(String, String)]) -> [Int]? {
        var rank: [Int] = []
        switch match.host {
        case .any: rank.append(0)
        case .exact(let name): if bytes(host) == name { rank.append(1_000) } else { return nil }
        case .suffix(let name):
            if bytes(host).count > name.count, bytes(host).suffix(name.count) == name[...] { rank.append(name.count) } else { return nil }
        }
        let path = bytes(segments.reduce("") { "\($0)/\($1)" })
        switch match.path {
        case .exact(let exact):
            guard exact == path else { return nil }
            rank += [2, 0]
        case .prefix(let prefix):
            guard path.starts(with: prefix), path.count == prefix.count || path[prefix.count] == UInt8(ascii: "/") else { return nil }
            rank += [0, prefix.count]
        case .pattern(let pattern):
            guard pattern.count == segments.count else { return nil }
            var shape = 0
            for (part, segment) in zip(pattern, segments) {
                switch part {
                case .parameter: shape = shape * 2
                case .literal(let literal):
                    guard literal == bytes(segment) else { return nil }
                    shape = shape * 2 + 1
                }
            }
            rank += [1, shape]
        }
        if !match.methods.isEmpty, !match.methods.contains(method) { return nil }
        for field in match.fields where !Fields(list: fields).hasField(named: field.name, value: field.value) { return nil }
        return rank + [match.fields.count, match.fields.count { $0.value != nil }, match.methods.isEmpty ? 0 : 1]
    }

    @Test(arguments: 1...60) func theTableAgreesWithTryingEveryRoute(seed: UInt64) {
        var random = Random(state: seed)
        var matches = (0..<40).map { _ in Self.match(&random) }
        while let conflict = RouteConflict.all(in: matches).first { matches.remove(at: conflict.second) }
        let routes = table(matches)
        for host in ["x.y", "z.x.y", "w.z.x.y", "q.y", "y", "other"] {
            for depth in 1...4 {
                for _ in 0..<12 {
                    let segments = (0..<depth).map { _ in Self.names.randomElement(using: &random)! }
                    let method = ["GET", "PUT", "POST"].randomElement(using: &random)!
                    let fields = ["h", "i"].filter { _ in Bool.random(using: &random) }.map {
                        ($0, Bool.random(using: &random) ? "1" : "2")
                    }
                    let ranked = matches.indices.compactMap { index in
                        Self.rank(matches[index], method: method, host: host, segments: segments, fields: fields).map {
                            (rank: $0, index: index)
                        }
                    }
                    let best = ranked.max { $0.rank.lexicographicallyPrecedes($1.rank) }
                    // Without conflicts nothing ties.
                    #expect(ranked.count { $0.rank == best?.rank } <= 1)
                    let target = segments.reduce("") { "\($0)/\($1 == "é" && Bool.random(using: &random) ? "%C3%A9" : $1)" } + "?q=/a"
                    let found = routes.match(method: method, host: host, target: target, fields: Fields(list: fields)).index
                    #expect(found == best?.index, "\(method) \(host) \(target)")
                }
            }
        }
    }
}
