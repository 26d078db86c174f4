internal import Glibc

/// Turns hosts into numeric addresses. Only names need it, and those never on a loop: libpq is given addresses.
enum Resolver {
    /// What needs no looking up: IP literals and directories of sockets; nil if there is a name among the hosts.
    static func literalTargets(_ hosts: [PostgresConfiguration.Host]) -> [Target]? {
        var targets: [Target] = []
        for host in hosts {
            if host.name.hasPrefix("/") {
                targets.append(Target(host: host, address: nil))
            } else if isLiteral(host.name) {
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
                switch addresses(of: host.name) {
                case .success(let found): targets += found.map { Target(host: host, address: $0) }
                case .failure(let error): failure = "\(host.name): \(error.message)"
                }
            }
            done(targets, failure)
        }
    }

    static func isLiteral(_ name: String) -> Bool {
        var address = in6_addr()
        return inet_pton(AF_INET, name, &address) == 1 || inet_pton(AF_INET6, name, &address) == 1
    }

    private struct Failure: Error { var message: String }

    /// Blocks.
    private static func addresses(of name: String) -> Result<[String], Failure> {
        var hints = addrinfo()
        hints.ai_socktype = CInt(SOCK_STREAM.rawValue)
        hints.ai_flags = AI_ADDRCONFIG
        var list: UnsafeMutablePointer<addrinfo>?
        let status = getaddrinfo(name, nil, &hints, &list)
        guard status == 0 else { return .failure(Failure(message: String(cString: gai_strerror(status)))) }
        defer { freeaddrinfo(list) }
        var found: [String] = []
        var next = list
        while let entry = next {
            var text = [CChar](repeating: 0, count: Int(NI_MAXHOST))
            let (address, length) = (entry.pointee.ai_addr, entry.pointee.ai_addrlen)
            if getnameinfo(address, length, &text, socklen_t(text.count), nil, 0, NI_NUMERICHOST) == 0 {
                found.append(String(decoding: text.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self))
            }
            next = entry.pointee.ai_next
        }
        return .success(found)
    }
}
