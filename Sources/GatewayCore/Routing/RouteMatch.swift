/// The conditions of a route, all of which a request must meet.
public struct RouteMatch: Sendable, Equatable {
    public enum Host: Sendable, Hashable {
        case any
        /// Lower case, without port.
        case exact([UInt8])
        /// What follows the `*`, with its dot and in lower case: `.example.com`.  Matches one label or more before it.
        case suffix([UInt8])
    }

    /// Compared with the percent-decoded path, byte for byte.
    public enum Path: Sendable, Hashable {
        case exact([UInt8])
        case pattern([Segment])
        /// Without a `/` at its end; empty for every path.  Matches on segment boundaries: `/a` takes `/a` and `/a/b`, not `/ab`.
        case prefix([UInt8])
    }

    public enum Segment: Sendable, Hashable {
        case literal([UInt8])
        /// Takes one segment that is not empty.
        case parameter(String)
    }

    public struct Field: Sendable, Hashable {
        /// Lower case.
        public var name: String
        /// Nil: the field only has to be there.
        public var value: String?
        public init(name: String, value: String? = nil) { (self.name, self.value) = (name, value) }
    }

    public var host: Host
    public var path: Path
    /// In upper case, sorted; empty for every method.
    public var methods: [String]
    /// Sorted by name.
    public var fields: [Field]

    public init(host: Host = .any, path: Path = .prefix([]), methods: [String] = [], fields: [Field] = []) {
        (self.host, self.path) = (host, path)
        self.methods = methods.sorted()
        self.fields = fields.sorted { ($0.name, $0.value ?? "") < ($1.name, $1.value ?? "") }
    }
}

/// How a route table asks for the header fields of a request; only routes with header conditions ask.
public protocol RequestFields {
    /// Whether a field of the name (given in lower case) is there, and if `value` is given, whether one has that value.
    func hasField(named name: String, value: String?) -> Bool
}

/// The fields of a request that has none.
public struct NoFields: RequestFields {
    public init() {}
    public func hasField(named name: String, value: String?) -> Bool { false }
}
