internal import Curl
internal import GatewayCore
internal import Reactor

/// The targets of one upstream as one worker sees them: every address of every target is a destination of its own. Confined to
/// its worker.
final class UpstreamPool {
    /// A destination and what the log and the upstream are told of it.
    struct Member {
        let destination: Destination
        /// `host:port` of the target, as the configuration has it.
        let label: String
        /// What the upstream sees as Host where the configuration says `target`.
        let host: String
        let weight: Int
    }

    let upstream: Upstream
    private(set) var members: [Member] = []
    private var chooser: WeightedRoundRobin?
    private let seed: Int

    init(_ upstream: Upstream, seed: Int) { (self.upstream, self.seed) = (upstream, seed) }

    /// The target whose turn it is; nil while no target has an address.
    func next() -> Member? {
        if members.count == 1 { return members[0] }
        return chooser.map { _ in members[chooser!.next()] }
    }

    /// Takes the addresses that names stand for now. Destinations that stay keep their connections.
    func update(_ addresses: TargetAddresses) {
        var updated: [Member] = []
        for target in upstream.targets {
            for address in addresses.of(target.host) {
                let kept = members.first { $0.label == target.description && $0.destination.address == address }
                if let member = kept ?? Self.member(target, address, upstream) { updated.append(member) }
            }
        }
        members = updated
        chooser = updated.isEmpty ? nil : WeightedRoundRobin(weights: updated.map(\.weight), seed: seed)
    }

    private static func member(_ target: Target, _ address: String, _ upstream: Upstream) -> Member? {
        let scheme: Destination.Scheme = upstream.scheme == .https ? .https : .http
        let tls = Destination.TLS(verifies: upstream.tls.verify, authorities: upstream.tls.authorities)
        let destination = Destination(
            scheme: scheme, host: upstream.tls.serverName ?? target.host, port: target.port, address: address, tls: tls,
            transfersMax: upstream.connections, waitingMax: upstream.waiting)
        guard let destination else { return nil }
        let isDefaultPort = target.port == upstream.scheme.defaultPort
        let host = isDefaultPort ? String(target.description.dropLast(":\(target.port)".count)) : target.description
        return Member(destination: destination, label: target.description, host: host, weight: target.weight)
    }
}

/// The addresses that the hosts of targets stand for.
struct TargetAddresses: Sendable, Equatable {
    var byName: [String: [String]] = [:]

    /// An IP literal stands for itself; a name without an answer for nothing.
    func of(_ host: String) -> [String] { HostLookup.isLiteral(host) ? [host] : byName[host] ?? [] }
}
