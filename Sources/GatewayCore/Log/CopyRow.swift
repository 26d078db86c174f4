/// Encodes hops as rows of COPY … (FORMAT binary) (PostgreSQL manual, COPY, "Binary Format"): a count of fields, then each
/// with its length; numbers in network order; −1 is NULL.
public struct CopyRowEncoder: Sendable {
    /// The columns of `request_logs`, in the order of the fields.
    public static let columns = [
        "id", "start_point", "request_time", "execution_status", "unauthorized_reason", "status_code",
        "environment_id", "service_id", "api_key", "reservation_id", "units", "period", "outage", "route", "target",
        "attempts", "repeats", "method", "host", "path", "duration_us", "first_byte_us", "bytes_in", "bytes_out",
        "remote_address", "trace_id", "node", "spool_id",
    ]

    private let node: [UInt8]
    private let spool: UUIDBits

    /// - Parameters: what all rows of a spool have in common.
    public init(node: String, spool: UUIDBits) {
        self.node = Array(HopText(node, limit: HopLimits.node).text.utf8)
        self.spool = spool
    }

    /// Microseconds from 1970 to 2000, from which PostgreSQL counts.
    private static let epoch: Int64 = 946_684_800_000_000

    /// Appends the row of a hop.
    public func append(_ hop: HopFrame, to rows: inout [UInt8]) {
        rows.append(big: Int16(Self.columns.count))
        hop.id.withText { rows.append(field: UnsafeRawBufferPointer($0)) }
        append(identifier: hop.startPoint, to: &rows)
        rows.append(field: hop.requestTime.subtractingReportingOverflow(Self.epoch).partialValue)
        rows.append(field: hop.executionStatus.text)
        // The table wants a reason of every unauthorized row; a reason from a later version is still a row.
        let reason = hop.refusal?.code ?? (hop.executionStatus == .unauthorized ? "UNKNOWN" : nil)
        if let reason { rows.append(field: reason) } else { rows.appendNull() }
        rows.append(field: hop.statusCode.map { Int16(truncatingIfNeeded: $0) })
        rows.append(field: hop.environmentID)
        rows.append(field: hop.serviceID)
        append(identifier: hop.keyID, to: &rows)
        append(identifier: hop.reservationID, to: &rows)
        rows.append(field: max(hop.units, 0))
        rows.append(field: hop.period == 0 ? nil : hop.period)
        rows.append(field: UInt8(hop.outage ? 1 : 0))
        rows.append(field: hop.route)
        rows.append(field: hop.target)
        rows.append(field: Int16(clamping: hop.attempts))
        rows.append(field: Int32(clamping: max(hop.repeats, 1)))
        rows.append(field: hop.method)
        rows.append(field: hop.host)
        rows.append(field: hop.path)
        rows.append(field: hop.duration)
        rows.append(field: hop.firstByte)
        rows.append(field: hop.bytesIn)
        rows.append(field: hop.bytesOut)
        append(hop.remoteAddress, to: &rows)
        append(trace: hop.traceID, to: &rows)
        node.withUnsafeBytes { rows.append(field: $0) }
        rows.append(big: Int32(16))
        rows.append(big: spool.high)
        rows.append(big: spool.low)
    }

    private func append<Kind>(identifier: Identifier<Kind>?, to rows: inout [UInt8]) {
        guard let identifier else { return rows.appendNull() }
        identifier.withText { rows.append(field: UnsafeRawBufferPointer($0)) }
    }

    /// src/backend/utils/adt/network.c, network_send: family (2: IPv4, 3: IPv6), bits, is_cidr, length, address.
    private func append(_ address: RemoteAddress?, to rows: inout [UInt8]) {
        guard let address else { return rows.appendNull() }
        let length = address.isIPv6 ? 16 : 4
        rows.append(big: Int32(4 + length))
        rows.append(contentsOf: [
            address.isIPv6 ? 3 : 2, min(address.prefixLength, UInt8(8 * length)), 0, UInt8(length),
        ])
        if address.isIPv6 {
            rows.append(big: address.high)
            rows.append(big: address.low)
        } else {
            rows.append(big: UInt32(address.high >> 32))
        }
    }

    private func append(trace: UUIDBits?, to rows: inout [UInt8]) {
        guard let trace else { return rows.appendNull() }
        rows.append(big: Int32(32))
        for word in [trace.high, trace.low] {
            for shift in stride(from: 60, through: 0, by: -4) {
                rows.append(hex: UInt8(truncatingIfNeeded: word >> UInt64(shift)) & 15)
            }
        }
    }
}

extension [UInt8] {
    fileprivate mutating func append<Number: FixedWidthInteger>(big number: Number) {
        Swift.withUnsafeBytes(of: number.bigEndian) { append(contentsOf: $0) }
    }

    fileprivate mutating func appendNull() { append(big: Int32(-1)) }

    fileprivate mutating func append<Number: FixedWidthInteger>(field number: Number) {
        append(big: Int32(MemoryLayout<Number>.size))
        append(big: number)
    }

    fileprivate mutating func append<Number: FixedWidthInteger>(field number: Number?) {
        if let number { append(field: number) } else { appendNull() }
    }

    fileprivate mutating func append(field text: StaticString) {
        append(big: Int32(text.utf8CodeUnitCount))
        append(static: text)
    }

    fileprivate mutating func append(field bytes: UnsafeRawBufferPointer?) {
        guard let bytes else { return appendNull() }
        append(big: Int32(bytes.count))
        append(contentsOf: bytes)
    }
}
