/// How a request ended, as the log tells it. The raw values are on disk in spools.
public enum ExecutionStatus: UInt8, Sendable, CaseIterable {
    case success = 1
    case clientError = 2
    case serverError = 3
    case upstreamError = 4
    case clientAborted = 5
    case unauthorized = 6

    public var text: StaticString {
        switch self {
        case .success: "success"
        case .clientError: "client_error"
        case .serverError: "server_error"
        case .upstreamError: "upstream_error"
        case .clientAborted: "client_aborted"
        case .unauthorized: "unauthorized"
        }
    }

    /// The status of a request that the gateway answered itself.
    public init(_ refusal: Refusal) {
        if refusal.isUnauthorized { self = .unauthorized }
        else if refusal.blamesUpstream { self = .upstreamError }
        else if refusal.blamesClient { self = .clientError }
        else { self = .serverError }
    }

    /// The status of a request that the upstream answered.
    public init(upstreamStatus status: UInt16) {
        switch status {
        case ..<400: self = .success
        case ..<500: self = .clientError
        default: self = .serverError
        }
    }
}

/// One hop: a row of `request_logs`. Moments are microseconds since 1970, durations microseconds, sizes bytes.
///
/// Of bounded size whatever the request was like: identifiers are numbers, texts are cut and clean (``HopText``).
/// `node` and `spool_id` are the spool's, not the record's.
public struct HopRecord: Sendable, Equatable {
    public var id: RequestID
    /// The chain's root; nil where this hop starts a chain or stands alone.
    public var startPoint: RequestID?
    public var requestTime: Int64
    public var executionStatus: ExecutionStatus
    /// Why the gateway answered itself, if it did.
    public var refusal: Refusal?
    /// What the client was answered; nil where it was not.
    public var statusCode: UInt16?
    public var environmentID: Int64?
    public var serviceID: Int64?
    public var keyID: KeyID?
    public var reservationID: ReservationID?
    /// Units charged, ≥ 0.
    public var units: Int64 = 0
    /// The quota period they are charged in; 0: whichever is current when the hop is booked (no lease was needed).
    public var period: Int64 = 0
    /// Whether the units came out of a lease.
    public var leased = false
    /// Whether the request was let through without a lease while the store was away.
    public var outage = false
    public var attempts: UInt16 = 0
    /// Refused requests that the record stands for, > 0.
    public var repeats: UInt32 = 1
    public var duration: Int64?
    public var firstByte: Int64?
    public var bytesIn: Int64?
    public var bytesOut: Int64?
    public var remoteAddress: RemoteAddress?
    /// W3C trace id.
    public var traceID: UUIDBits?
    public private(set) var texts = Texts()

    public struct Texts: Sendable, Equatable {
        public var route: HopText?
        public var target: HopText?
        public var method: HopText?
        public var host: HopText?
        public var path: HopText?
    }

    public init(id: RequestID, requestTime: Int64, executionStatus: ExecutionStatus) {
        self.id = id
        self.requestTime = requestTime
        self.executionStatus = executionStatus
    }

    public mutating func setRoute(_ text: String) { texts.route = HopText(text, limit: HopLimits.route) }
    public mutating func setTarget(_ text: String) { texts.target = HopText(text, limit: HopLimits.target) }
    public mutating func setMethod(_ text: String) { texts.method = HopText(text, limit: HopLimits.method) }
    public mutating func setHost(_ text: String) { texts.host = HopText(text, limit: HopLimits.host) }
    public mutating func setPath(_ text: String) { texts.path = HopText(text, limit: HopLimits.path) }
    public mutating func setPath(bytes: UnsafeBufferPointer<UInt8>) {
        texts.path = HopText(bytes: bytes, limit: HopLimits.path)
    }
}

/// Bytes of UTF-8 that the texts of a hop may have.
public enum HopLimits {
    public static let route = 128
    public static let target = 128
    public static let method = 32
    public static let host = 255
    public static let path = 2048
    /// The node's label.
    public static let node = 64
}
