public import Logging

/// Everything that a node tells its operator.
public enum NodeEvent: Sendable {
    case waitingForDatabase(String)
    /// The server is not set up as the promises need it.
    case databaseUnfit(String)
    case databaseLost(worker: Int, String)
    case controlDatabaseLost(String)
    case listening(lost: Bool)
    case upstreamFailed(upstream: String, route: String, String)
    /// A request was charged all that it held.
    case unitsNotReported(upstream: String, route: String, String)
    case nameFailed(name: String, String)
    case spool(Shipper.Event)
    /// Another process has this node's spool: what it still takes is not logged, and its leases are not its own.
    case fenced
    /// Since it was told the last time: hops that found no place in the spool, and what the disk refused.
    case logRefused(worker: Int, lost: Int64, failures: Int64)
    case maintenanceFailed(String)
    case flowRefused(String)
    case draining
    case drained(complete: Bool)
    case shipped(complete: Bool)
    case reloaded(routes: Int, upstreams: Int)
    case reloadRefused(String)

    public var level: Logger.Level {
        switch self {
        case .waitingForDatabase, .databaseUnfit, .databaseLost, .controlDatabaseLost, .upstreamFailed, .unitsNotReported, .nameFailed,
            .maintenanceFailed, .flowRefused:
            .warning
        case .listening(let lost): lost ? .warning : .info
        case .spool(.adopted): .info
        case .spool(.failed): .warning
        case .spool: .error
        case .fenced: .critical
        case .draining, .reloaded: .notice
        case .drained(let complete), .shipped(let complete): complete ? .notice : .error
        case .reloadRefused, .logRefused: .error
        }
    }

    public var message: Logger.Message {
        switch self {
        case .waitingForDatabase: "waiting for the database"
        case .databaseUnfit: "the database is not set up as it should be"
        case .databaseLost, .controlDatabaseLost: "the database is away"
        case .listening(let lost): lost ? "changes of the configuration are not heard" : "changes of the configuration are heard"
        case .upstreamFailed: "an upstream failed"
        case .unitsNotReported: "an upstream did not say what an answer costs: the route's max is charged"
        case .nameFailed: "a target's name could not be looked up"
        case .spool(.fenced): "another process opened the spool, on a copy of this disk or because this node was forgotten"
        case .fenced: "this node is given up by another: it drains and ends, and may be started again"
        case .spool(.rolledBack): "the disk of the spool was rolled back"
        case .spool(.damaged): "frames of the spool cannot be read"
        case .spool(.rejected): "the database took no row of some hops; their units are settled"
        case .spool(.adopted): "an earlier spool is all in the database"
        case .spool(.failed): "shipping the log failed"
        case .logRefused: "the spool is full or its disk refuses: hops are lost or requests wait"
        case .maintenanceFailed: "maintenance of the database failed"
        case .flowRefused: "the database refused a statement about flows"
        case .draining: "draining"
        case .drained(let complete): complete ? "drained" : "requests in flight were cut at the end of the drain"
        case .shipped(let complete): complete ? "the log is all in the database" : "hops stay in the spool until the next start"
        case .reloaded: "configuration reloaded"
        case .reloadRefused: "the new configuration was refused, the old one stays"
        }
    }

    public var metadata: Logger.Metadata {
        switch self {
        case .waitingForDatabase(let reason), .databaseUnfit(let reason), .controlDatabaseLost(let reason),
            .maintenanceFailed(let reason), .flowRefused(let reason), .reloadRefused(let reason):
            ["reason": "\(reason)"]
        case .databaseLost(let worker, let reason): ["worker": "\(worker)", "reason": "\(reason)"]
        case .upstreamFailed(let upstream, let route, let reason), .unitsNotReported(let upstream, let route, let reason):
            ["upstream": "\(upstream)", "route": "\(route)", "reason": "\(reason)"]
        case .nameFailed(let name, let reason): ["name": "\(name)", "reason": "\(reason)"]
        case .spool(let event): Self.metadata(event)
        case .logRefused(let worker, let lost, let failures):
            ["worker": "\(worker)", "lost": "\(lost)", "failures": "\(failures)"]
        case .reloaded(let routes, let upstreams): ["routes": "\(routes)", "upstreams": "\(upstreams)"]
        case .fenced, .listening, .draining, .drained, .shipped: [:]
        }
    }

    private static func metadata(_ event: Shipper.Event) -> Logger.Metadata {
        switch event {
        case .fenced(let spool), .adopted(let spool): ["spool": "\(spool)"]
        case .rolledBack(let spool, let mark, let end): ["spool": "\(spool)", "mark": "\(mark)", "end": "\(end)"]
        case .damaged(let spool, let bytes): ["spool": "\(spool)", "bytes": "\(bytes)"]
        case .rejected(let spool, let frames): ["spool": "\(spool)", "frames": "\(frames)"]
        case .failed(let spool, let reason): ["spool": "\(spool)", "reason": "\(reason)"]
        }
    }
}
