internal import GatewayCore
internal import Glibc
internal import Reactor
internal import Synchronization

/// The thread that looks up the names of upstreams' targets, because neither a worker nor the control loop may block: once at
/// the start and then every `interval`. A name that cannot be looked up keeps the addresses that it had.
final class NameResolver: Sendable {
    private struct State {
        var names: Set<String> = []
        var isStopped = false
        var generation = 0
    }

    private let state = Mutex(State())
    private let changed: @Sendable (TargetAddresses) -> Void
    private let failed: @Sendable (_ name: String, _ reason: String) -> Void

    /// Seconds between two rounds.
    static let interval = 10
    /// Addresses of one name that are used.
    static let addressesMax = 32

    /// - Parameters: called on the resolver's thread, `changed` only when an address changed.
    init(
        changed: @escaping @Sendable (TargetAddresses) -> Void, failed: @escaping @Sendable (_ name: String, _ reason: String) -> Void
    ) {
        (self.changed, self.failed) = (changed, failed)
    }

    static func names(of upstreams: [Upstream]) -> Set<String> {
        Set(upstreams.flatMap { $0.targets.map(\.host) }.filter { !HostLookup.isLiteral($0) })
    }

    /// Looks these names up from now on; the first round begins at once. Without names no thread runs.
    func watch(_ names: Set<String>) {
        let generation = state.withLock { state in
            state.names = names
            state.generation += 1
            return state.generation
        }
        guard !names.isEmpty else { return }
        let argument = Unmanaged.passRetained(Start(resolver: self, generation: generation)).toOpaque()
        var thread = pthread_t()
        let status = pthread_create(
            &thread, nil,
            { argument in
                let start = Unmanaged<Start>.fromOpaque(argument!).takeRetainedValue()
                start.resolver.run(start.generation)
                return nil
            }, argument)
        if status == 0 { pthread_detach(thread) } else { Unmanaged<Start>.fromOpaque(argument).release() }
    }

    func stop() { state.withLock { $0.isStopped = true } }

    private final class Start {
        let resolver: NameResolver
        let generation: Int
        init(resolver: NameResolver, generation: Int) { (self.resolver, self.generation) = (resolver, generation) }
    }

    private func run(_ generation: Int) {
        var addresses = TargetAddresses()
        while let names = state.withLock({ $0.isStopped || $0.generation != generation ? nil : $0.names }) {
            let before = addresses
            for name in names.sorted() {
                do throws(HostLookup.Failure) {
                    // Sorted, so that a server that rotates its answers changes nothing.
                    addresses.byName[name] = Array(Set(try HostLookup.addresses(of: name)).sorted().prefix(Self.addressesMax))
                } catch {
                    failed(name, error.description)
                }
            }
            if addresses != before { changed(addresses) }
            sleep(UInt32(Self.interval))
        }
    }
}
