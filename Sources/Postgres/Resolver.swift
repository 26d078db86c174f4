internal import Reactor

/// Turns hosts into numeric addresses. Only names need it, and those never on a loop: libpq is given addresses.
enum Resolver {
    /// What needs no looking up: IP literals and directories of sockets; nil if there is a name among the hosts.
    static func literalTargets(_ hosts: [PostgresConfiguration.Host]) -> [Target]? {
        var targets: [Target] = []
        for host in hosts {
            if host.name.hasPrefix("/") {
                targets.append(Target(host: host, address: nil))
            } else if HostLookup.isLiteral(host.name) {
                targets.append(Target(host: host, address: host.name))
            } else {
                return nil
            }
        }
        return targets
    }

    /// Looks the names up on a helper thread and calls back there with every address of every host, in order; hosts without an
    /// address are left out. False if no thread could be had.
    static func resolve(
        _ hosts: [PostgresConfiguration.Host], _ done: @escaping @Sendable ([Target], _ failure: String?) -> Void
    ) -> Bool {
        HelperThread.run {
            var (targets, failure) = ([Target](), String?.none)
            for host in hosts {
                if let literal = literalTargets([host]) {
                    targets += literal
                    continue
                }
                do throws(HostLookup.Failure) {
                    targets += try HostLookup.addresses(of: host.name).map { Target(host: host, address: $0) }
                } catch {
                    failure = "\(host.name): \(error)"
                }
            }
            done(targets, failure)
        }
    }
}
