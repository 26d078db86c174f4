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

/// How long a transfer waits. All count from its own start but `idle`.
public struct TransferTimeouts: Sendable {
    /// Until the connection (with TLS) stands.
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

/// A field of an answer, as ranges into `TransferHead.bytes`.
public struct HeaderField: Equatable, Sendable {
    public var name: Range<Int>
    public var value: Range<Int>
}

/// The head of an answer, in the upstream's own bytes.
public struct TransferHead: Sendable {
    /// 100 to 999
    public var status: Int = 0
    /// The reason phrase within `bytes`; may be empty.
    public var reason: Range<Int> = 0..<0
    /// Status line and fields as they came, without their line ends.
    public var bytes: [UInt8] = []
    /// In the order of arrival; values without surrounding white space.
    public var fields: [HeaderField] = []

    public init() {}

    public func isNamed(_ field: HeaderField, _ lowercase: StaticString) -> Bool {
        guard field.name.count == lowercase.utf8CodeUnitCount else { return false }
        var wanted = lowercase.utf8Start
        for index in field.name {
            var byte = bytes[index]
            if byte >= 65, byte <= 90 { byte |= 0x20 }
            guard byte == wanted.pointee else { return false }
            wanted += 1
        }
        return true
    }

    public func value(of lowercase: StaticString) -> ArraySlice<UInt8>? {
        for field in fields where isNamed(field, lowercase) { return bytes[field.value] }
        return nil
    }
}

/// What is known when a transfer has ended well.
public struct TransferTimings: Sendable {
    /// How often the request went out; more than 1 only where `ResendRule.allowed` let it.
    public var attempts: Int
    public var bytesReceived: Int64
    public var bytesSent: Int64
}

/// Why a transfer failed.
public struct TransferError: Error, CustomStringConvertible {
    public enum Source: Sendable { case upstream, local }

    public enum Kind: String, Sendable {
        case refused, unreachable, connectTimeout, firstByteTimeout, idleTimeout, totalTimeout, closedBeforeHead, diedMidBody
        case tls, protocolError, headTooLarge, overloaded, shutdown, other
    }

    public var kind: Kind
    /// Whose fault it is.
    public var source: Source
    /// The upstream cannot have begun to act on the request.
    public var isRetrySafe: Bool
    /// For the operator: libcurl's words and the address; never a header or a body.
    public var detail: String
    public var attempts: Int

    /// From a small fixed set: fit for a metric.
    public var label: String { kind.rawValue }
    public var description: String { "\(kind.rawValue): \(detail)" }
}

public enum TransferResult: Sendable {
    case success(TransferTimings)
    case failure(TransferError)
}

/// Takes what a transfer receives. All calls come on the reactor at the end of a turn, never from inside libcurl, so they may
/// do anything with any transfer.
public protocol TransferDelegate: AnyObject {
    /// A 1xx answer other than 100 and 101.
    func transferInformational(_ transfer: Transfer, _ head: TransferHead)
    /// The final head, once.
    func transferHead(_ transfer: Transfer, _ head: TransferHead)
    func transferBody(_ transfer: Transfer, _ bytes: ByteBuffer)
    /// Fields after a chunked body.
    func transferTrailers(_ transfer: Transfer, _ trailers: TransferHead)
    /// There is room again after `send` returned false.
    func transferNeedsBody(_ transfer: Transfer)
    /// Exactly once, and the last call; never after `cancel()`.
    func transferEnded(_ transfer: Transfer, _ result: TransferResult)
}
