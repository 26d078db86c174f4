internal import CLibcurl
public import NIOCore

/// What is known when a transfer has ended well.
public struct TransferTimings: Sendable {
    /// How often the request went out; more than 1 only where `ResendRule.allowed` let it.
    public var attempts: Int
    public var bytesReceived: Int64
    public var bytesSent: Int64
    /// From the start to the final head.
    public var head: TimeAmount
    /// From the start to the end.
    public var total: TimeAmount
}

/// Why a transfer failed.
public struct TransferError: Error, CustomStringConvertible {
    public enum Source: Sendable { case upstream, local }

    public enum Kind: String, Sendable, CaseIterable {
        /// No connection: refused, or no route.
        case refused
        case unreachable
        case connectTimeout, firstByteTimeout, idleTimeout, totalTimeout
        /// The connection ended before the head of the answer was complete.
        case closedBeforeHead
        /// The connection ended, or the framing broke, before the body of the answer was complete.
        case diedMidBody
        case tls
        /// The answer is not one that can be handed on.
        case protocolError
        case headTooLarge
        /// Too many transfers run or wait already.
        case overloaded
        /// The body that was sent is not as long as announced.
        case bodyMismatch
        case shutdown
        case other

        /// Whose fault it is.
        public var source: Source {
            switch self {
            case .overloaded, .bodyMismatch, .shutdown: .local
            default: .upstream
            }
        }
    }

    public var kind: Kind
    /// The request never went out: the upstream cannot have begun to act on it.
    public var isRetrySafe: Bool
    /// For the operator: libcurl's words and the address; never a header or a body.
    public var detail: String
    /// How often the request went out.
    public var attempts: Int

    public var source: Source { kind.source }
    /// From a small fixed set: fit for a metric.
    public var label: String { kind.rawValue }
    public var description: String { "\(kind.rawValue): \(detail)" }
}

public enum TransferResult: Sendable {
    case success(TransferTimings)
    case failure(TransferError)
}

extension TransferError.Kind {
    init(_ code: CURLcode, hasHead: Bool) {
        switch code {
        case CURLE_COULDNT_CONNECT: self = .refused
        case CURLE_COULDNT_RESOLVE_HOST, CURLE_COULDNT_RESOLVE_PROXY: self = .unreachable
        // libcurl itself knows no timeout but CURLOPT_CONNECTTIMEOUT_MS here; the others are ours.
        case CURLE_OPERATION_TIMEDOUT: self = .connectTimeout
        case CURLE_SSL_CONNECT_ERROR, CURLE_PEER_FAILED_VERIFICATION, CURLE_SSL_CERTPROBLEM, CURLE_SSL_CIPHER, CURLE_SSL_CACERT_BADFILE,
            CURLE_SSL_ISSUER_ERROR:
            self = .tls
        // 0 without a head: the connection ended within it. 42 is our refusal to send again, 65 libcurl's inability to: both
        // mean that the connection died under the request.
        case CURLE_OK, CURLE_ABORTED_BY_CALLBACK, CURLE_SEND_FAIL_REWIND, CURLE_GOT_NOTHING, CURLE_SEND_ERROR, CURLE_RECV_ERROR,
            CURLE_PARTIAL_FILE:
            self = hasHead ? .diedMidBody : .closedBeforeHead
        case CURLE_WEIRD_SERVER_REPLY, CURLE_UNSUPPORTED_PROTOCOL, CURLE_BAD_CONTENT_ENCODING, CURLE_HTTP2:
            self = hasHead ? .diedMidBody : .protocolError
        default: self = hasHead ? .diedMidBody : .other
        }
    }
}
