public import NIOCore

/// How the body of a request is framed (RFC 9112, 6).
public enum BodyFraming: Equatable, Sendable {
    /// No body, and no field that announces one.
    case none
    /// `Content-Length`
    case length(Int64)
    /// `Transfer-Encoding: chunked`
    case chunked
}

/// Whether libcurl may send a request again by itself after the upstream closed a reused connection on it.
public enum ResendRule: Sendable {
    case never
    /// The request may be repeated: it has no body and its method is idempotent, or the caller says so.
    case allowed
}

/// How long a transfer waits. A passed one is noticed within `CurlConfiguration.deadlineTick`.
public struct TransferTimeouts: Sendable {
    /// For a connection (with TLS) that stands; and, before that, for room at the destination.
    public var connect: TimeAmount
    /// From the last byte of the request to the head of the answer.
    public var firstByte: TimeAmount
    /// Between two pieces of a body, either way; the time that our own side takes does not count.
    public var idle: TimeAmount
    /// The whole transfer; nil is no limit.
    public var total: TimeAmount?

    public init(
        connect: TimeAmount = .seconds(2), firstByte: TimeAmount = .seconds(30), idle: TimeAmount = .seconds(60), total: TimeAmount? = nil
    ) {
        self.connect = connect
        self.firstByte = firstByte
        self.idle = idle
        self.total = total
    }
}

/// One request to an upstream.
public struct TransferRequest {
    public var destination: Destination
    public var method: String
    /// The request target as it goes on the wire (RFC 9112, 3.2): not touched. No NUL, CR, LF or space.
    public var target: [UInt8]
    public var headers: TransferHeaders
    public var body: BodyFraming
    public var timeouts: TransferTimeouts
    public var resend: ResendRule

    public init(
        destination: Destination, method: String, target: [UInt8], headers: TransferHeaders, body: BodyFraming = .none,
        timeouts: TransferTimeouts = TransferTimeouts(), resend: ResendRule = .never
    ) {
        self.destination = destination
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.timeouts = timeouts
        self.resend = resend
    }
}
