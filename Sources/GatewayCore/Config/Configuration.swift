/// Everything that a configuration file says, checked.  Immutable; a reload makes a new one.
public struct Configuration: Sendable {
    /// What a running node cannot change.
    public var boot: BootSettings
    /// What a reload swaps as a whole.
    public var traffic: TrafficSettings

    public init(boot: BootSettings, traffic: TrafficSettings) { (self.boot, self.traffic) = (boot, traffic) }
}

/// The reloadable part: upstreams, routes, flows.
public struct TrafficSettings: Sendable {
    /// In the order of the file; ``Upstream/index`` is the place in this array.
    public var upstreams: [Upstream]
    public var routes: RouteTable
    public var flows: [Flow]

    public init(upstreams: [Upstream] = [], routes: RouteTable = RouteTable([]), flows: [Flow] = []) {
        (self.upstreams, self.routes, self.flows) = (upstreams, routes, flows)
    }
}

/// A numeric address to listen on.
public struct ListenAddress: Sendable, Hashable, CustomStringConvertible {
    /// An IPv4 or IPv6 literal, without brackets.
    public var host: String
    /// 0 lets the kernel choose.
    public var port: Int

    public init(host: String, port: Int) { (self.host, self.port) = (host, port) }

    public var description: String { host.utf8.contains(UInt8(ascii: ":")) ? "[\(host)]:\(port)" : "\(host):\(port)" }
}

public struct BootSettings: Sendable {
    /// A label in the log; the host's name where nil.
    public var node: String?
    /// Worker threads; one per core where nil.
    public var workers: Int?
    public var listen: [ListenAddress]
    /// `postgres://…`; nil where the file leaves it to the command line.
    public var database: Secret?
    public var spool = SpoolSettings()
    public var limits = LimitSettings()
    public var keys = KeySettings()
    public var quota = QuotaSettings()
    public var log = LogSettings()
    /// How long requests in flight may take after SIGTERM.
    public var drain = Limits.drain

    public init(listen: [ListenAddress], database: Secret? = nil) { (self.listen, self.database) = (listen, database) }
}

public struct SpoolSettings: Sendable, Equatable {
    /// What the death of the host may cost.
    public enum Sync: String, Sendable, CaseIterable {
        /// What the kernel had not written yet.
        case none
        /// At most ``Limits/spoolSyncInterval``.
        case interval
        /// Nothing: every turn of a worker waits for the disk.
        case always
    }

    public var directory = "spool"
    public var sync = Sync.interval
    /// Bytes per worker.
    public var size = Limits.spoolSize
    public var keep = Limits.spoolKeep

    public init() {}
}

public struct LimitSettings: Sendable, Equatable {
    public var requestTarget = Limits.requestTarget
    public var headerField = Limits.headerField
    public var headerList = Limits.headerList
    public var headerFields = Limits.headerFields
    public var requestHead = Limits.requestHead
    public var bodyIdle = Limits.bodyIdle
    public var keepAlive = Limits.keepAlive
    /// Bytes of a request body where the route says nothing.
    public var requestBody = Limits.requestBody
    /// Open client connections per worker.
    public var connections = Limits.connectionsPerWorker

    public init() {}
}

public struct KeySettings: Sendable, Equatable {
    public var cache = Limits.keyEntries
    public var negativeCache = Limits.negativeKeys
    public var negativeTime = Limits.negativeKeyTime
    public var stale = Limits.staleKeyTime

    public init() {}
}

public struct QuotaSettings: Sendable, Equatable {
    public var leaseUse = Limits.leaseUse
    public var lostAfter = Limits.leaseLostAfter
    public var recallWait = Limits.recallWait

    public init() {}
}

public struct LogSettings: Sendable, Equatable {
    public enum Level: String, Sendable, CaseIterable { case trace, debug, info, notice, warning, error, critical }
    public enum Format: String, Sendable, CaseIterable { case text, json }

    /// Of the process's own messages, on standard error.
    public var level = Level.info
    public var format = Format.json
    /// Of the shipper: a batch leaves at the first of these.
    public var batchRows = Limits.batchRows
    public var batchBytes = Limits.batchBytes
    public var batchTime = Limits.batchTime
    /// How long rows of hops stay in the database, by whole days; nil: for ever.
    public var keep: Duration?

    public init() {}
}

extension Duration {
    /// Whole nanoseconds, for clocks that count in them; more than 292 years is cut.
    public var wholeNanoseconds: Int64 {
        let (seconds, attoseconds) = components
        let (product, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
        return overflow ? (seconds < 0 ? .min : .max) : product &+ attoseconds / 1_000_000_000
    }

    public var wholeMicroseconds: Int64 { wholeNanoseconds / 1_000 }
}
