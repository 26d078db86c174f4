internal import GatewayCore
internal import GatewayStore
internal import Postgres

/// Where spools are shipped to. Called on the control reactor; every call is answered there once.
protocol ShipTarget: AnyObject {
    var isReady: Bool { get }
    func open(_ spool: UUIDBits, node: String, _ done: @escaping (Result<SpoolMark, PostgresError>) -> Void)
    func mark(of spool: UUIDBits, _ done: @escaping (Result<SpoolMark?, PostgresError>) -> Void)
    func ship(_ shipment: Shipment, _ done: @escaping (Result<ShipmentOutcome, PostgresError>) -> Void)
    func returnLeases(of spool: UUIDBits, epoch: Int64, _ done: @escaping (Result<Void, PostgresError>) -> Void)
}

extension ShipSession: ShipTarget {}
