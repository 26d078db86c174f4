/// Which requests, and what becomes of them.  Immutable and shared by every worker.
public final class Route: Sendable {
    /// The service whose quota and assignment the route asks for; without a version any one the environment was given.
    public struct ServiceReference: Sendable, Hashable {
        public var name: String
        public var version: String?
        public init(name: String, version: String? = nil) { (self.name, self.version) = (name, version) }
    }

    public enum Charge: String, Sendable, CaseIterable {
        case onSuccess = "on_success"
        case always, never
    }

    /// Deadlines of a hop's transfer.
    public struct Timeouts: Sendable, Equatable {
        public var connect = Limits.upstreamConnect
        public var firstByte = Limits.upstreamFirstByte
        public var idle = Limits.upstreamIdle
        public var total = Limits.upstreamTotal
        public init() {}
    }

    /// What is done to request header fields before they go upstream, besides what every request gets.
    public struct HeaderEdits: Sendable, Equatable {
        public struct Field: Sendable, Equatable {
            public var name: String
            public var value: String
            public init(name: String, value: String) { (self.name, self.value) = (name, value) }
        }

        /// Replaces every field of the name.
        public var replace: [Field] = []
        /// Lower case.
        public var remove: [String] = []
        public init() {}
        public var isEmpty: Bool { replace.isEmpty && remove.isEmpty }
    }

    public struct Settings: Sendable {
        public var rewrite = TargetRewrite.none
        public var timeouts = Timeouts()
        /// Bytes of a request body; above it 413.  Nil: ``LimitSettings/requestBody``.
        public var bodyLimit: Int?
        /// Name of a query parameter that may carry the key.
        public var keyQuery: String?
        /// Whether a deprecated service is still served.
        public var deprecatedPasses = true
        public var charge = Charge.onSuccess
        /// What a request costs; what it may cost at most where the upstream says how much it is.
        public var units: Int64 = 1
        /// Lower-case name of the answer's field in which the upstream says how many of `units` a request costs; nil: all.
        public var unitsHeader: String?
        public var outage = OutageRule.deny
        /// Whether the log keeps the query.
        public var logsQuery = false
        public var headers = HeaderEdits()
        public var flow: FlowRole?
        /// Whether a request may change the protocol to WebSocket.
        public var takesWebSocket = false
        public init() {}
    }

    /// Place in ``RouteTable/routes``, which has the order of the file.
    public let index: Int
    /// Unique in the file; goes to the log.
    public let name: String
    public let match: RouteMatch
    public let service: ServiceReference
    public let upstream: Upstream
    public let settings: Settings

    public init(
        index: Int = 0, name: String, match: RouteMatch, service: ServiceReference, upstream: Upstream,
        settings: Settings = Settings()
    ) {
        (self.index, self.name, self.match) = (index, name, match)
        (self.service, self.upstream, self.settings) = (service, upstream, settings)
    }
}
