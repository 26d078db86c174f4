internal import CLibcurl
internal import Glibc
internal import NIOCore

/// One target of an upstream: where connections go and what name is spoken there. Made once, used by many transfers of one
/// reactor: it holds libcurl's parsed URL and its address, so that nothing is parsed per request and no name is ever resolved
/// on the loop.
public final class Destination {
    public enum Scheme: String, Sendable { case http, https }

    public let scheme: Scheme
    public let host: String
    public let port: Int
    /// An IP literal, where the connection really goes.
    public let address: String
    public let tls: TLS
    /// Transfers to it that run at the same time, so its connections too; further ones wait, for at most their connect timeout.
    public let transfersMax: Int
    /// Transfers that wait for it; one more fails at once with `overloaded`.
    public let waitingMax: Int

    /// How its certificate is checked.
    public struct TLS: Sendable, Equatable {
        /// False: not at all.
        public var verifies: Bool
        /// A PEM file of authorities; the client's bundle where nil.
        public var authorities: String?

        public init(verifies: Bool = true, authorities: String? = nil) { (self.verifies, self.authorities) = (verifies, authorities) }
    }

    let url: OpaquePointer
    let connectTo: UnsafeMutablePointer<curl_slist>
    /// Transfers to it that run, and those that wait until one of them has ended.
    var active = 0
    var waiting = CircularBuffer<any Errand>()

    /// nil when the host or the address is not one that libcurl takes.
    ///
    /// - host: the name for TLS (SNI and certificate) and for the pool of connections; a name or an IP literal.
    /// - address: an IP literal without brackets.
    public init?(
        scheme: Scheme, host: String, port: Int, address: String, tls: TLS = TLS(), transfersMax: Int = 1_024, waitingMax: Int = 1_024
    ) {
        func bracketed(_ literal: String) -> String { literal.contains(":") ? "[\(literal)]" : literal }
        var storage = in6_addr()
        guard inet_pton(AF_INET, address, &storage) == 1 || inet_pton(AF_INET6, address, &storage) == 1, let handle = curl_url() else {
            return nil
        }
        // By parts: a host with more than a host in it is refused.
        let parts = [
            (CURLUPART_SCHEME, scheme.rawValue), (CURLUPART_HOST, bracketed(host)), (CURLUPART_PORT, "\(port)"), (CURLUPART_PATH, "/"),
        ]
        guard parts.allSatisfy({ curl_url_set(handle, $0.0, $0.1, 0) == CURLUE_OK }),
            let list = curl_slist_append(nil, "::\(bracketed(address)):\(port)")
        else {
            curl_url_cleanup(handle)
            return nil
        }
        (self.scheme, self.host, self.port, self.address) = (scheme, host, port, address)
        (self.tls, self.transfersMax, self.waitingMax) = (tls, transfersMax, waitingMax)
        (url, connectTo) = (handle, list)
    }

    deinit {
        curl_slist_free_all(connectTo)
        curl_url_cleanup(url)
    }
}
