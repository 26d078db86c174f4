/// The layout of a flow's settlement in a frame: fixed fields at fixed places, little-endian.  The first byte tells it
/// from a hop.
enum SettlementLayout {
    static let kind: UInt8 = 2

    static let action = 1
    static let id = 2
    static let hop = 18
    static let environment = 34
    static let service = 42
    static let period = 50
    /// Units of a commit, microseconds of a flow that goes on.
    static let number = 58
    static let length = 66

    static let commit: UInt8 = 1
    static let rollback: UInt8 = 2
    static let reopen: UInt8 = 3
}

extension FlowSettlement {
    /// Writes the settlement as a frame.
    ///
    /// - Parameters:
    ///   - frame: at least ``Frame/maximumLength`` bytes.
    ///   - position: offset of the frame in its spool.
    /// - Returns: the frame's length.
    public func encode(into frame: UnsafeMutableRawBufferPointer, at position: Int64) -> Int {
        precondition(frame.count >= Frame.maximumLength)
        let out = UnsafeMutableRawBufferPointer(rebasing: frame[Frame.headerLength...])
        out[0] = SettlementLayout.kind
        let (code, number): (UInt8, Int64) =
            switch action {
            case .commit(let units): (SettlementLayout.commit, units)
            case .rollback: (SettlementLayout.rollback, 0)
            case .reopen(let timeToLive): (SettlementLayout.reopen, timeToLive)
            }
        out[SettlementLayout.action] = code
        out.store(id.uuid, at: SettlementLayout.id)
        out.store(hop.uuid, at: SettlementLayout.hop)
        out.store(row.environmentID, at: SettlementLayout.environment)
        out.store(row.serviceID, at: SettlementLayout.service)
        out.store(period, at: SettlementLayout.period)
        out.store(max(number, 0), at: SettlementLayout.number)
        return Frame.seal(frame, contentLength: SettlementLayout.length, at: position)
    }

    /// - Parameter frame: a whole frame, header included, whose checksum is right. Nil: not a settlement that this version
    ///   knows.
    public init?(_ frame: UnsafeRawBufferPointer) {
        let content = UnsafeRawBufferPointer(rebasing: frame[Frame.headerLength...])
        guard content.count == SettlementLayout.length, content[0] == SettlementLayout.kind else { return nil }
        func number(_ offset: Int) -> Int64 {
            Int64(littleEndian: content.loadUnaligned(fromByteOffset: offset, as: Int64.self))
        }
        func uuid(_ offset: Int) -> UUIDBits {
            UUIDBits(high: UInt64(bitPattern: number(offset)), low: UInt64(bitPattern: number(offset + 8)))
        }
        let value = number(SettlementLayout.number)
        guard value >= 0 else { return nil }
        let action: Action
        switch content[SettlementLayout.action] {
        case SettlementLayout.commit: action = .commit(units: value)
        case SettlementLayout.rollback: action = .rollback
        case SettlementLayout.reopen: action = .reopen(timeToLive: value)
        default: return nil
        }
        self.init(
            id: ReservationID(uuid(SettlementLayout.id)), hop: RequestID(uuid(SettlementLayout.hop)),
            row: QuotaRow(
                environmentID: number(SettlementLayout.environment), serviceID: number(SettlementLayout.service)),
            period: number(SettlementLayout.period), action: action)
    }
}
