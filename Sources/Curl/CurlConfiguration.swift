public import NIOCore

/// The limits of a client. Every one is per reactor.
public struct CurlConfiguration: Sendable {
    /// Transfers that run at the same time; one more fails at once with `overloaded`.
    public var maxTransfers = 4_096
    /// Transfers per multi handle: libcurl's search for an idle connection is linear within one.
    public var transfersPerMulti = 32
    /// Idle connections that each multi handle keeps (CURLMOPT_MAXCONNECTS).
    public var idleConnectionsPerMulti = 64
    /// Easy handles kept for reuse.
    public var pooledHandles = 256
    /// Bytes of a body that wait for us (received) or for the upstream (to send) before the other side is paused.
    public var windowBytes = 65_536
    /// Bytes of one head with its 1xx predecessors.
    public var headBytesMax = 128 * 1_024
    /// Bytes of the line with a chunk's size and extensions, and of all trailers, in the answer of a tunnel that was declined.
    public var chunkLineBytesMax = 4_096
    /// CURLOPT_BUFFERSIZE and CURLOPT_UPLOAD_BUFFERSIZE
    public var receiveBufferBytes = 16_384
    public var uploadBufferBytes = 16_384
    /// How often deadlines are looked at: a timeout is late by at most this.
    public var deadlineTick: TimeAmount = .milliseconds(100)
    /// The bundle that upstreams' certificates are checked against; CURLOPT_CAPATH stays unset, or libcurl would read the
    /// bundle anew for every connection.
    public var certificateBundle = "/etc/ssl/certs/ca-certificates.crt"

    public init() {}
}
