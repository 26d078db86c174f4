internal import Curl
internal import GatewayCore
internal import NIOCore

/// The reloadable part of the configuration as one worker uses it: immutable but for the addresses behind names. An exchange
/// keeps the plan that it began with, so a reload changes nothing for it.
final class TrafficTable {
    let routes: RouteTable
    private let plans: [RoutePlan]
    private let pools: [UpstreamPool]

    init(_ traffic: TrafficSettings, limits: LimitSettings, addresses: TargetAddresses, seed: Int) {
        routes = traffic.routes
        let pools = traffic.upstreams.map { UpstreamPool($0, seed: seed) }
        self.pools = pools
        plans = traffic.routes.routes.map { RoutePlan($0, pools[$0.upstream.index], limits, traffic.flows) }
        update(addresses)
    }

    func plan(of route: Route) -> RoutePlan { plans[route.index] }

    func update(_ addresses: TargetAddresses) {
        for pool in pools { pool.update(addresses) }
    }
}

/// What a worker needs for the requests of one route, worked out once.
final class RoutePlan {
    let route: Route
    let pool: UpstreamPool
    let timeouts: TransferTimeouts
    /// Bytes of a request body.
    let bodyLimit: Int64
    let keyQuery: [UInt8]?
    /// Lower-case name of the field in which the upstream says what an answer costs; no client sees it.
    let unitsHeader: [UInt8]?
    /// Lower-case names of fields that the route takes away or replaces.
    let removedFields: Set<String>
    /// The flow that the route has a part in.
    let flow: Flow?

    init(_ route: Route, _ pool: UpstreamPool, _ limits: LimitSettings, _ flows: [Flow] = []) {
        (self.route, self.pool) = (route, pool)
        let settings = route.settings
        timeouts = TransferTimeouts(
            connect: TimeAmount(settings.timeouts.connect), firstByte: TimeAmount(settings.timeouts.firstByte),
            idle: TimeAmount(settings.timeouts.idle), total: TimeAmount(settings.timeouts.total))
        bodyLimit = Int64(settings.bodyLimit ?? limits.requestBody)
        flow = settings.flow.flatMap { role in flows.first { $0.name == role.flowName } }
        keyQuery = settings.keyQuery.map { Array($0.utf8) }
        unitsHeader = settings.unitsHeader.map { Array($0.utf8) }
        removedFields = Set(settings.headers.remove + settings.headers.replace.map { $0.name.lowercased() })
    }
}

extension TimeAmount {
    /// More than 292 years is cut.
    init(_ duration: Duration) { self = .nanoseconds(duration.wholeNanoseconds) }
}
