internal import GatewayCore
internal import GatewayStore

/// Makes a shipment of a piece of a spool: its rows, what its hops charged, and what became of flows.
struct ShipmentCutter {
    private struct Charged: Hashable {
        var row: QuotaRow
        var period: Int64
    }

    private let encoder: CopyRowEncoder
    private let spool: UUIDBits

    init(spool: UUIDBits, node: String) {
        self.spool = spool
        encoder = CopyRowEncoder(node: node, spool: spool)
    }

    /// - Parameter withRows: false: the hops are settled without their rows, and settlements of flows left out, because the
    ///   database takes none of them.
    /// - Returns: the shipment, and the frames that are nothing this version knows.
    func cut(
        _ piece: SpoolReader.Piece, epoch: Int64, withRows: Bool
    ) -> (shipment: Shipment, strange: [Range<Int>]) {
        var rows: [UInt8] = []
        if withRows { rows.reserveCapacity(piece.bytes.count + piece.bytes.count / 2 + 1_024) }
        var charges: [Charged: ShipmentCharge] = [:]
        var strange: [Range<Int>] = []
        var ids: ClosedRange<RequestID>?
        var settlements: [FlowSettlement] = []
        piece.bytes.withUnsafeBytes { bytes in
            for range in piece.frames {
                let frame = UnsafeRawBufferPointer(rebasing: bytes[range])
                guard let hop = HopFrame(frame) else {
                    if let settlement = FlowSettlement(frame) {
                        if withRows { settlements.append(settlement) }
                    } else {
                        strange.append(range)
                    }
                    continue
                }
                if withRows {
                    encoder.append(hop, to: &rows)
                    ids = ids.map { min($0.lowerBound, hop.id)...max($0.upperBound, hop.id) } ?? hop.id...hop.id
                }
                Self.add(hop, to: &charges)
            }
        }
        let shipment = Shipment(
            spool: spool, epoch: epoch, start: piece.start, end: piece.end, rows: rows, ids: ids,
            charges: charges.values.sorted { ($0.row, $0.period) < ($1.row, $1.period) }, settlements: settlements)
        return (shipment, strange)
    }

    private static func add(_ hop: HopFrame, to charges: inout [Charged: ShipmentCharge]) {
        guard hop.units > 0, let environment = hop.environmentID, let service = hop.serviceID else { return }
        let row = QuotaRow(environmentID: environment, serviceID: service)
        let key = Charged(row: row, period: hop.period)
        var charge =
            charges[key] ?? ShipmentCharge(row: row, period: hop.period, units: 0, leased: 0, frames: 0)
        charge.units += hop.units
        if hop.leased { charge.leased += hop.units }
        charge.frames += 1
        charges[key] = charge
    }
}
