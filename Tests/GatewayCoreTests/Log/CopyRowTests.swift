@testable import GatewayCore
import Testing

/// Rows as COPY takes them; that PostgreSQL reads them so is for the shipper's tests to say.
@Suite struct CopyRowTests {
    private func fields(_ hop: HopRecord) -> [String: [UInt8]?] {
        let encoder = CopyRowEncoder(node: "node", spool: UUIDBits(high: 1, low: 2))
        var row: [UInt8] = []
        frame(hop, at: 0).withUnsafeBytes { encoder.append(HopFrame($0)!, to: &row) }
        var rest = row[...]
        func number(_ bytes: Int) -> Int64 {
            defer { rest = rest.dropFirst(bytes) }
            let value = rest.prefix(bytes).reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
            return bytes == 2 ? Int64(Int16(bitPattern: UInt16(value))) : Int64(Int32(bitPattern: UInt32(value)))
        }
        #expect(number(2) == Int64(CopyRowEncoder.columns.count))
        var fields: [String: [UInt8]?] = [:]
        for column in CopyRowEncoder.columns {
            let length = Int(number(4))
            fields[column] = .some(length < 0 ? nil : Array(rest.prefix(max(length, 0))))
            rest = rest.dropFirst(max(length, 0))
        }
        #expect(rest.isEmpty)
        return fields
    }

    private func text(_ field: [UInt8]??) -> String? { (field ?? nil).map { String(decoding: $0, as: UTF8.self) } }

    private func minimal(_ status: ExecutionStatus = .success) -> HopRecord {
        HopRecord(id: RequestID(UUIDBits(high: 1, low: 1)), requestTime: 946_684_800_000_001, executionStatus: status)
    }

    @Test func absentFieldsAreNull() {
        let fields = fields(minimal())
        let present = ["id", "request_time", "execution_status", "units", "outage", "attempts", "repeats", "node", "spool_id"]
        for column in CopyRowEncoder.columns { #expect(((fields[column] ?? nil) != nil) == present.contains(column), "\(column)") }
        // One microsecond after PostgreSQL's zero.
        #expect(fields["request_time"] == [0, 0, 0, 0, 0, 0, 0, 1])
        #expect(text(fields["execution_status"]) == "success" && text(fields["node"]) == "node")
        #expect(fields["spool_id"] == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2])
    }

    @Test func anUnauthorizedRowHasAReasonInAnyCase() {
        var hop = minimal(.unauthorized)
        #expect(text(fields(hop)["unauthorized_reason"]) == "UNKNOWN")
        hop.refusal = .keyExpired
        #expect(text(fields(hop)["unauthorized_reason"]) == "KEY_EXPIRED")
    }

    @Test func numbersThatNoColumnHoldsAreCut() {
        var hop = minimal()
        (hop.attempts, hop.repeats, hop.units) = (.max, .max, -5)
        #expect(fields(hop)["attempts"] == [0x7f, 0xff])
        #expect(fields(hop)["repeats"] == [0x7f, 0xff, 0xff, 0xff])
        #expect(fields(hop)["units"] == [0, 0, 0, 0, 0, 0, 0, 0])
        hop.repeats = 0
        #expect(fields(hop)["repeats"] == [0, 0, 0, 1])
    }

    @Test func addressesAndTracesAreInTheirFormats() {
        var hop = minimal()
        hop.remoteAddress = RemoteAddress(ipv4: 0x0a01_0203).network
        #expect(fields(hop)["remote_address"] == [2, 24, 0, 4, 10, 1, 2, 0])
        hop.remoteAddress = RemoteAddress(ipv6High: 0x2001_0db8_0001_0002, low: 3)
        #expect(fields(hop)["remote_address"] == [3, 128, 0, 16, 0x20, 1, 0x0d, 0xb8, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3])
        hop.traceID = UUIDBits(high: 0x0123_4567_89ab_cdef, low: 0xfedc_ba98_7654_3210)
        #expect(text(fields(hop)["trace_id"]) == "0123456789abcdeffedcba9876543210")
    }

    @Test func aNodesNameIsCleanAndShort() {
        let encoder = CopyRowEncoder(node: "a\u{0}" + String(repeating: "x", count: 100), spool: .zero)
        var row: [UInt8] = []
        frame(minimal(), at: 0).withUnsafeBytes { encoder.append(HopFrame($0)!, to: &row) }
        #expect(row.contains(0xef) && !String(decoding: row, as: UTF8.self).contains(String(repeating: "x", count: 64)))
    }
}
