/// Finds the route of a request.
///
/// Among the routes whose conditions a request all meets, the most specific wins:
/// 1. host: exact, then the longest wildcard, then any;
/// 2. path: exact, then pattern (the one that has a literal where the other first has a parameter), then the longest prefix;
/// 3. more header conditions, then more of them with a value;
/// 4. a route that names methods.
/// Two routes that could tie are an error of the configuration, so the order of the file never matters.  A request that
/// misses a condition of a more specific route may be taken by a less specific one; where there is none it has no route
/// (404, also when only its method kept it out: which methods a path has is not told to strangers).
///
/// Paths are compared percent-decoded and byte for byte; a path that servers read in different ways is refused
/// (``PathFault``).  Hosts are compared without case, port and final dot.
public struct RouteTable: Sendable {
    public enum Outcome: Sendable {
        case route(Route)
        case none
        case refused(PathFault)
    }

    /// In the order of the file.
    public let routes: [Route]
    private let exactHosts: BytesIndex
    private let exactHostPaths: [PathTable]
    /// Longest first.
    private let suffixes: [(suffix: [UInt8], paths: PathTable)]
    private let anyHost: PathTable

    public init(_ routes: [Route]) {
        self.routes = routes
        var exact: [[UInt8]: [Route]] = [:]
        var suffix: [[UInt8]: [Route]] = [:]
        var any: [Route] = []
        for route in routes {
            switch route.match.host {
            case .any: any.append(route)
            case .exact(let host): exact[host, default: []].append(route)
            case .suffix(let host): suffix[host, default: []].append(route)
            }
        }
        let hosts = exact.keys.sorted { $0.lexicographicallyPrecedes($1) }
        exactHosts = BytesIndex(hosts)
        exactHostPaths = hosts.map { PathTable(exact[$0]!) }
        suffixes = suffix.map { (suffix: $0.key, paths: PathTable($0.value)) }.sorted { $0.suffix.count > $1.suffix.count }
        anyHost = PathTable(any)
    }

    /// The route of a request.  `target` is the request target in origin form, query included or not, `host` the
    /// authority as the client sent it.  Allocates only where the path holds percent-encoding.
    public func match(
        method: UnsafeRawBufferPointer, host: UnsafeRawBufferPointer, target: UnsafeRawBufferPointer,
        fields: some RequestFields
    ) -> Outcome {
        let path: RequestPath
        do throws(PathFault) { path = try RequestPath(target) } catch { return .refused(error) }
        guard path.isEscaped else {
            return find(method, host, UnsafeRawBufferPointer(rebasing: target[..<path.end]), path.segments, fields)
        }
        return target.percentDecoded(0..<path.end).withUnsafeBytes { find(method, host, $0, path.segments, fields) }
    }

    private func find(
        _ method: UnsafeRawBufferPointer, _ authority: UnsafeRawBufferPointer, _ path: UnsafeRawBufferPointer, _ segments: Int,
        _ fields: some RequestFields
    ) -> Outcome {
        let host = authority.hostWithoutPort
        if let index = exactHosts.findFolded(host),
            let route = exactHostPaths[index].match(method, path, segments, fields)
        {
            return .route(route)
        }
        for (suffix, paths) in suffixes where host.endsFolded(with: suffix) {
            if let route = paths.match(method, path, segments, fields) { return .route(route) }
        }
        return anyHost.match(method, path, segments, fields).map(Outcome.route) ?? .none
    }

    /// The same for texts, off the hot path.
    public func match(
        method: String = "GET", host: String = "", target: String, fields: some RequestFields = NoFields()
    ) -> Outcome {
        Array(method.utf8).withUnsafeBytes { method in
            Array(host.utf8).withUnsafeBytes { host in
                Array(target.utf8).withUnsafeBytes { match(method: method, host: host, target: $0, fields: fields) }
            }
        }
    }
}

extension UnsafeRawBufferPointer {
    /// An authority without its port and a final dot; an IPv6 literal without its brackets.
    var hostWithoutPort: UnsafeRawBufferPointer {
        var end = count
        if first == UInt8(ascii: "["), let close = firstIndex(of: UInt8(ascii: "]")) {
            return UnsafeRawBufferPointer(rebasing: self[1..<close])
        }
        if let colon = lastIndex(of: UInt8(ascii: ":")) { end = colon }
        if end > 0, self[end - 1] == dot { end -= 1 }
        return UnsafeRawBufferPointer(rebasing: self[..<end])
    }

    /// Whether these end with `suffix` without regard to case, and something stands before it.
    func endsFolded(with suffix: [UInt8]) -> Bool {
        guard count > suffix.count else { return false }
        let start = count - suffix.count
        return suffix.indices.allSatisfy { self[start + $0].folded == suffix[$0] }
    }
}
