/// A named pool of targets that serve the same.
public final class Upstream: Sendable {
    public enum Scheme: String, Sendable, CaseIterable {
        case http, https
        public var defaultPort: Int { self == .http ? 80 : 443 }
    }

    /// What the upstream sees as `Host`.
    public enum HostHeader: Sendable, Equatable {
        /// What the client sent.
        case preserve
        /// The target's own address.
        case target
        case fixed(String)
    }

    /// How the certificate of an https target is verified.
    public struct TLS: Sendable, Equatable {
        public var verify = true
        /// PEM file of authorities; the system's where nil.
        public var authorities: String?
        /// Asked for by SNI and expected in the certificate; the target's host where nil.
        public var serverName: String?

        public init() {}
    }

    /// Place in ``TrafficSettings/upstreams``.
    public let index: Int
    public let name: String
    public let scheme: Scheme
    /// At least one.
    public let targets: [Target]
    public let hostHeader: HostHeader
    public let tls: TLS
    /// Connections of one worker to one target.
    public let connections: Int
    /// Requests of one worker that may wait for a connection.
    public let waiting: Int

    public init(
        index: Int = 0, name: String, scheme: Scheme = .http, targets: [Target], hostHeader: HostHeader = .target,
        tls: TLS = TLS(), connections: Int = Limits.connectionsPerTarget, waiting: Int = Limits.waitingPerUpstream
    ) {
        precondition(!targets.isEmpty, "an upstream has a target")
        (self.index, self.name, self.scheme, self.targets) = (index, name, scheme, targets)
        (self.hostHeader, self.tls, self.connections, self.waiting) = (hostHeader, tls, connections, waiting)
    }

    /// A chooser over the targets; `seed` keeps workers from all beginning with the same one.
    public func roundRobin(seed: Int = 0) -> WeightedRoundRobin {
        WeightedRoundRobin(weights: targets.map(\.weight), seed: seed)
    }
}

/// One address of an upstream.
public struct Target: Sendable, Hashable, CustomStringConvertible {
    /// A name or an IP literal, without brackets.
    public var host: String
    public var port: Int
    public var weight: Int

    public init(host: String, port: Int, weight: Int = 1) { (self.host, self.port, self.weight) = (host, port, weight) }

    /// `host:port`, as it stands in the log.
    public var description: String { host.utf8.contains(UInt8(ascii: ":")) ? "[\(host)]:\(port)" : "\(host):\(port)" }
}
