/// Every reason for which the gateway answers a request itself. The raw values are on disk in spools: never reuse one.
public enum Refusal: UInt8, Sendable, CaseIterable {
    // Keys and tenancy.
    case keyMissing = 1
    case keyInvalid = 2
    case keyConflict = 3
    case keyDisabled = 4
    case keyExpired = 5
    case environmentDisabled = 6
    case projectDisabled = 7
    case serviceDisabled = 8
    case serviceDeprecated = 9
    case serviceNotAssigned = 10
    // Quota.
    case quotaExceeded = 11
    case quotaHeld = 12
    // The request.
    case routeNotFound = 20
    case startPointInvalid = 21
    case requestMalformed = 22
    case targetTooLong = 23
    case headersTooLarge = 24
    case bodyTooLarge = 25
    case methodRefused = 26
    case codingRefused = 27
    case requestTimeout = 28
    case upgradeRefused = 29
    // The gateway itself.
    case storeUnavailable = 40
    case quotaUnavailable = 41
    case logUnavailable = 42
    case overloaded = 43
    case draining = 44
    // The upstream.
    case upstreamRefused = 60
    case upstreamClosed = 61
    case upstreamTimeout = 62
    case upstreamProtocol = 63
    case upstreamTLS = 64
    case upstreamUnavailable = 65
    // Flows.
    case flowNotFound = 80
    case flowFinishing = 81
    case flowClosed = 82
    case flowStepRefused = 83
    case flowLimit = 84
    case flowInvalid = 85
    case flowExpired = 86
    case flowRouteRefused = 87
    case flowHopsExceeded = 88

    /// The stable code that clients and operators see.
    public var code: StaticString { about.code }
    public var status: UInt16 { about.status }
    /// One line, the same for every occurrence (RFC 9457, section 3.1.3).
    public var title: StaticString { about.title }
    /// What the client can do about it.
    public var detail: StaticString { about.detail }

    /// Whether the request lacked authority, which the log calls `unauthorized`.
    public var isUnauthorized: Bool { rawValue <= Refusal.quotaHeld.rawValue }

    /// Whether what the client did is the cause, rather than the gateway or the upstream.
    public var blamesClient: Bool { status < 500 || self == .methodRefused || self == .codingRefused }

    /// Whether the upstream is the cause.
    public var blamesUpstream: Bool { (60..<80).contains(rawValue) }

    /// Seconds for `Retry-After` where trying again soon makes sense and nothing better is known.
    public var retryAfter: Int64? { status == 503 || status == 429 ? 1 : nil }

    public init?(code: String) {
        guard let found = Self.allCases.first(where: { String(describing: $0.code) == code }) else { return nil }
        self = found
    }
}

extension Refusal {
    struct About {
        var status: UInt16
        var code: StaticString
        var title: StaticString
        var detail: StaticString

        init(_ status: UInt16, _ code: StaticString, _ title: StaticString, _ detail: StaticString) {
            (self.status, self.code, self.title, self.detail) = (status, code, title, detail)
        }
    }

    var about: About {
        switch rawValue {
        case ..<20: aboutAuthority
        case ..<40: aboutRequest
        case ..<80: aboutService
        default: aboutFlow
        }
    }

    private var aboutAuthority: About {
        switch self {
        case .keyMissing:
            About(401, "KEY_MISSING", "No API key", "Send the key as X-API-Key or as Authorization: Bearer.")
        case .keyConflict:
            About(400, "KEY_CONFLICT", "Two different API keys", "Send one key, in one place.")
        case .keyDisabled:
            About(401, "KEY_DISABLED", "API key disabled", "This key was disabled. Use another key.")
        case .keyExpired:
            About(401, "KEY_EXPIRED", "API key expired", "This key is past its expiry. Use another key.")
        case .environmentDisabled:
            About(403, "ENVIRONMENT_DISABLED", "Environment disabled", "The key's environment is disabled.")
        case .projectDisabled:
            About(403, "PROJECT_DISABLED", "Project disabled", "The key's project is disabled.")
        case .serviceDisabled:
            About(403, "SERVICE_DISABLED", "Service disabled", "The service behind this route is disabled.")
        case .serviceDeprecated:
            About(410, "SERVICE_DEPRECATED", "Service deprecated", "This version of the service is no longer served.")
        case .serviceNotAssigned:
            About(
                403, "SERVICE_NOT_ASSIGNED", "Service not assigned",
                "The key's environment may not use the service behind this route.")
        case .quotaExceeded:
            About(
                429, "QUOTA_EXCEEDED", "Quota used up",
                "Fewer units are left than the request takes. Retry when the quota was reset or raised.")
        case .quotaHeld:
            About(
                429, "QUOTA_HELD", "Quota held",
                "The units left are held by requests in progress and may come back. Retry shortly.")
        default:
            About(401, "KEY_INVALID", "API key not valid", "The key is not known here. Check it for typing errors.")
        }
    }

    private var aboutRequest: About {
        switch self {
        case .routeNotFound:
            About(404, "ROUTE_NOT_FOUND", "No such route", "No route matches host, path and method of the request.")
        case .startPointInvalid:
            About(
                400, "START_POINT_INVALID", "Start point not valid",
                "Send Pandora-Start-Point back exactly as an answer to the same environment gave it.")
        case .targetTooLong:
            About(414, "TARGET_TOO_LONG", "Request target too long", "The request target is longer than the gateway takes.")
        case .headersTooLarge:
            About(431, "HEADERS_TOO_LARGE", "Header fields too large", "The header fields are more than the gateway takes.")
        case .bodyTooLarge:
            About(413, "BODY_TOO_LARGE", "Content too large", "The content is larger than the route takes.")
        case .methodRefused:
            About(501, "METHOD_REFUSED", "Method not implemented", "The gateway does not forward this method.")
        case .codingRefused:
            About(
                501, "CODING_REFUSED", "Transfer coding not implemented", "The gateway understands chunked, alone and once.")
        case .requestTimeout:
            About(408, "REQUEST_TIMEOUT", "Request too slow", "The request did not arrive in time.")
        case .upgradeRefused:
            About(400, "UPGRADE_REFUSED", "Upgrade refused", "The route does not take this upgrade.")
        default:
            About(400, "REQUEST_MALFORMED", "Request malformed", "The request breaks the syntax of HTTP.")
        }
    }

    private var aboutService: About {
        switch self {
        case .quotaUnavailable:
            About(503, "QUOTA_UNAVAILABLE", "Quota unavailable", "Quota cannot be checked at the moment. Retry shortly.")
        case .logUnavailable:
            About(503, "LOG_UNAVAILABLE", "Log unavailable", "The request cannot be recorded at the moment. Retry shortly.")
        case .overloaded:
            About(503, "OVERLOADED", "Too many requests in progress", "The gateway is at its limit. Retry shortly.")
        case .draining:
            About(503, "DRAINING", "Gateway stopping", "This node is stopping. Retry on a new connection.")
        case .upstreamRefused:
            About(502, "UPSTREAM_REFUSED", "Upstream refused", "The service behind this route refused the connection.")
        case .upstreamClosed:
            About(502, "UPSTREAM_CLOSED", "Upstream closed", "The service behind this route closed before it answered.")
        case .upstreamTimeout:
            About(504, "UPSTREAM_TIMEOUT", "Upstream too slow", "The service behind this route did not answer in time.")
        case .upstreamProtocol:
            About(502, "UPSTREAM_PROTOCOL", "Upstream not understood", "The service behind this route broke its protocol.")
        case .upstreamTLS:
            About(502, "UPSTREAM_TLS", "Upstream not trusted", "The service behind this route failed the TLS handshake.")
        case .upstreamUnavailable:
            About(503, "UPSTREAM_UNAVAILABLE", "No upstream", "No instance of the service is available. Retry shortly.")
        default:
            About(503, "STORE_UNAVAILABLE", "Key cannot be checked", "Keys cannot be looked up at the moment. Retry shortly.")
        }
    }

    private var aboutFlow: About {
        switch self {
        case .flowFinishing:
            About(409, "FLOW_FINISHING", "Flow finishing", "Another request is finishing this flow.")
        case .flowClosed:
            About(409, "FLOW_CLOSED", "Flow closed", "The flow was committed or rolled back.")
        case .flowExpired:
            About(409, "FLOW_EXPIRED", "Flow expired", "The flow was not finished in time.")
        case .flowStepRefused:
            About(403, "FLOW_STEP_REFUSED", "Not the flow's next step", "The flow takes its steps in another order.")
        case .flowRouteRefused:
            About(403, "FLOW_ROUTE_REFUSED", "Not a route of the flow", "Send Pandora-Flow to the steps of its own flow only.")
        case .flowHopsExceeded:
            About(403, "FLOW_HOPS_EXCEEDED", "Too many hops", "The flow has had all its steps: finish it or roll it back.")
        case .flowLimit:
            About(429, "FLOW_LIMIT", "Too many open flows", "Finish an open flow before starting another.")
        case .flowInvalid:
            About(400, "FLOW_INVALID", "Flow id not valid", "Send Pandora-Flow back exactly as it was given.")
        default:
            About(404, "FLOW_NOT_FOUND", "No such flow", "No flow of this environment has that id.")
        }
    }
}
