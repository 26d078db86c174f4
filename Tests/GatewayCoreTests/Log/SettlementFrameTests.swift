import GatewayCore
import Testing

@Suite struct SettlementFrameTests {
    static let actions: [FlowSettlement.Action] = [
        .commit(units: 0), .commit(units: 1_000_000_000_000), .rollback, .reopen(timeToLive: 300_000_000),
    ]

    func settlement(_ action: FlowSettlement.Action) -> FlowSettlement {
        FlowSettlement(
            id: ReservationID(UUIDBits(high: 1 << 63 | 5, low: 2)), hop: RequestID(UUIDBits(high: 3, low: .max)),
            row: QuotaRow(environmentID: 7, serviceID: 8), period: 9, action: action)
    }

    func frame(_ settlement: FlowSettlement, at position: Int64) -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: Frame.maximumLength) { buffer, count in
            count = settlement.encode(into: UnsafeMutableRawBufferPointer(buffer), at: position)
        }
    }

    @Test(arguments: actions) func whatIsWrittenIsRead(_ action: FlowSettlement.Action) {
        let written = settlement(action)
        frame(written, at: 77).withUnsafeBytes { bytes in
            #expect(Frame.read(bytes, at: 77) == .frame(length: bytes.count))
            #expect(FlowSettlement(bytes) == written)
            #expect(HopFrame(bytes) == nil)
        }
    }

    @Test func aHopIsNoSettlement() {
        let hop = HopRecord(id: RequestID(UUIDBits(high: 1, low: 1)), requestTime: 1, executionStatus: .success)
        let bytes = [UInt8](unsafeUninitializedCapacity: Frame.maximumLength) { buffer, count in
            count = hop.encode(into: UnsafeMutableRawBufferPointer(buffer), at: 0)
        }
        bytes.withUnsafeBytes { #expect(FlowSettlement($0) == nil) }
    }

    @Test func whatALaterVersionWritesIsNotMisread() {
        var bytes = frame(settlement(.rollback), at: 0)
        for (offset, value) in [(Frame.headerLength, UInt8(3)), (Frame.headerLength + 1, 9)] {
            let before = bytes[offset]
            bytes[offset] = value
            bytes.withUnsafeBytes { #expect(FlowSettlement($0) == nil) }
            bytes[offset] = before
        }
        (bytes + [0]).withUnsafeBytes { #expect(FlowSettlement($0) == nil) }
    }
}
