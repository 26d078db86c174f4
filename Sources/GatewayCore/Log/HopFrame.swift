/// The layout of a hop in a frame: fixed fields at fixed places, then the texts. Little-endian; version 1.
///
/// Absent identifiers and addresses are zero, absent sizes and durations −1, absent texts have length 0xffff.
enum HopLayout {
    static let version: UInt8 = 1

    static let status = 1
    static let refusal = 2
    static let flags = 3
    static let statusCode = 4
    static let attempts = 6
    static let repeats = 8
    static let addressFamily = 12
    static let addressPrefix = 13
    static let address = 14
    static let id = 30
    static let startPoint = 46
    static let key = 62
    static let reservation = 78
    static let trace = 94
    static let requestTime = 110
    static let environment = 118
    static let service = 126
    static let units = 134
    static let period = 142
    static let duration = 150
    static let firstByte = 158
    static let bytesIn = 166
    static let bytesOut = 174
    /// Lengths of route, target, method, host and path.
    static let lengths = 182
    static let textCount = 5
    static let texts = 192

    static let leasedFlag: UInt8 = 1
    static let outageFlag: UInt8 = 2
    static let absentText: UInt16 = 0xffff
}

extension HopRecord {
    /// Writes the record as a frame.
    ///
    /// - Parameters:
    ///   - frame: at least ``Frame/maximumLength`` bytes.
    ///   - position: offset of the frame in its spool.
    /// - Returns: the frame's length.
    public func encode(into frame: UnsafeMutableRawBufferPointer, at position: Int64) -> Int {
        precondition(frame.count >= Frame.maximumLength)
        let out = UnsafeMutableRawBufferPointer(rebasing: frame[Frame.headerLength...])
        out[0] = HopLayout.version
        out[HopLayout.status] = executionStatus.rawValue
        out[HopLayout.refusal] = refusal?.rawValue ?? 0
        out[HopLayout.flags] = (leased ? HopLayout.leasedFlag : 0) | (outage ? HopLayout.outageFlag : 0)
        out.store(statusCode ?? 0, at: HopLayout.statusCode)
        out.store(attempts, at: HopLayout.attempts)
        out.store(max(repeats, 1), at: HopLayout.repeats)
        out[HopLayout.addressFamily] = remoteAddress.map { $0.isIPv6 ? 6 : 4 } ?? 0
        out[HopLayout.addressPrefix] = remoteAddress?.prefixLength ?? 0
        out.store(UUIDBits(high: remoteAddress?.high ?? 0, low: remoteAddress?.low ?? 0), at: HopLayout.address)
        out.store(id.uuid, at: HopLayout.id)
        out.store(startPoint?.uuid ?? .zero, at: HopLayout.startPoint)
        out.store(keyID?.uuid ?? .zero, at: HopLayout.key)
        out.store(reservationID?.uuid ?? .zero, at: HopLayout.reservation)
        out.store(traceID ?? .zero, at: HopLayout.trace)
        out.store(requestTime, at: HopLayout.requestTime)
        out.store(environmentID ?? 0, at: HopLayout.environment)
        out.store(serviceID ?? 0, at: HopLayout.service)
        out.store(max(units, 0), at: HopLayout.units)
        out.store(period, at: HopLayout.period)
        out.store(duration ?? -1, at: HopLayout.duration)
        out.store(firstByte ?? -1, at: HopLayout.firstByte)
        out.store(bytesIn ?? -1, at: HopLayout.bytesIn)
        out.store(bytesOut ?? -1, at: HopLayout.bytesOut)
        var end = HopLayout.texts
        end = out.store(texts.route, number: 0, at: end)
        end = out.store(texts.target, number: 1, at: end)
        end = out.store(texts.method, number: 2, at: end)
        end = out.store(texts.host, number: 3, at: end)
        end = out.store(texts.path, number: 4, at: end)
        return Frame.seal(frame, contentLength: end, at: position)
    }
}

extension UnsafeMutableRawBufferPointer {
    @inline(__always)
    func store<Number: FixedWidthInteger>(_ number: Number, at offset: Int) {
        storeBytes(of: number.littleEndian, toByteOffset: offset, as: Number.self)
    }

    @inline(__always)
    func store(_ uuid: UUIDBits, at offset: Int) {
        store(uuid.high, at: offset)
        store(uuid.low, at: offset + 8)
    }

    fileprivate func store(_ text: HopText?, number: Int, at offset: Int) -> Int {
        guard var text = text?.text else {
            store(HopLayout.absentText, at: HopLayout.lengths + 2 * number)
            return offset
        }
        return text.withUTF8 { bytes in
            store(UInt16(bytes.count), at: HopLayout.lengths + 2 * number)
            UnsafeMutableRawBufferPointer(rebasing: self[offset..<(offset + bytes.count)])
                .copyMemory(from: UnsafeRawBufferPointer(bytes))
            return offset + bytes.count
        }
    }
}

/// A hop as it lies in a frame, read in place: valid as long as the bytes are.
public struct HopFrame {
    let content: UnsafeRawBufferPointer
    /// Where each text ends; the first begins at `HopLayout.texts`.
    private let textEnds: (Int, Int, Int, Int, Int)

    /// - Parameter frame: a whole frame, header included, whose checksum is right. Nil: not a hop that this version knows.
    public init?(_ frame: UnsafeRawBufferPointer) {
        content = UnsafeRawBufferPointer(rebasing: frame[Frame.headerLength...])
        guard content.count >= HopLayout.texts, content[0] == HopLayout.version,
            ExecutionStatus(rawValue: content[HopLayout.status]) != nil
        else { return nil }
        var end = HopLayout.texts
        var ends: [5 of Int] = .init(repeating: 0)
        for number in 0..<HopLayout.textCount {
            let length = UInt16(
                littleEndian: content.loadUnaligned(fromByteOffset: HopLayout.lengths + 2 * number, as: UInt16.self))
            if length != HopLayout.absentText { end += Int(length) }
            ends[number] = end
        }
        guard end == content.count else { return nil }
        textEnds = (ends[0], ends[1], ends[2], ends[3], ends[4])
    }

    func integer<Number: FixedWidthInteger>(_ offset: Int) -> Number {
        Number(littleEndian: content.loadUnaligned(fromByteOffset: offset, as: Number.self))
    }

    func uuid(_ offset: Int) -> UUIDBits? {
        let bits = UUIDBits(high: integer(offset), low: integer(offset + 8))
        return bits == .zero ? nil : bits
    }

    private func positive(_ offset: Int) -> Int64? {
        let value: Int64 = integer(offset)
        return value < 0 ? nil : value
    }

    private func nonzero(_ offset: Int) -> Int64? {
        let value: Int64 = integer(offset)
        return value == 0 ? nil : value
    }

    public var id: RequestID { RequestID(UUIDBits(high: integer(HopLayout.id), low: integer(HopLayout.id + 8))) }
    public var startPoint: RequestID? { uuid(HopLayout.startPoint).map { RequestID($0) } }
    public var keyID: KeyID? { uuid(HopLayout.key).map { KeyID($0) } }
    public var reservationID: ReservationID? { uuid(HopLayout.reservation).map { ReservationID($0) } }
    public var traceID: UUIDBits? { uuid(HopLayout.trace) }
    public var executionStatus: ExecutionStatus {
        ExecutionStatus(rawValue: content[HopLayout.status]) ?? .serverError
    }
    public var refusal: Refusal? { Refusal(rawValue: content[HopLayout.refusal]) }
    public var statusCode: UInt16? {
        let code: UInt16 = integer(HopLayout.statusCode)
        return code == 0 ? nil : code
    }
    public var attempts: UInt16 { integer(HopLayout.attempts) }
    public var repeats: UInt32 { integer(HopLayout.repeats) }
    public var requestTime: Int64 { integer(HopLayout.requestTime) }
    public var environmentID: Int64? { nonzero(HopLayout.environment) }
    public var serviceID: Int64? { nonzero(HopLayout.service) }
    public var units: Int64 { integer(HopLayout.units) }
    public var period: Int64 { integer(HopLayout.period) }
    public var leased: Bool { content[HopLayout.flags] & HopLayout.leasedFlag != 0 }
    public var outage: Bool { content[HopLayout.flags] & HopLayout.outageFlag != 0 }
    public var duration: Int64? { positive(HopLayout.duration) }
    public var firstByte: Int64? { positive(HopLayout.firstByte) }
    public var bytesIn: Int64? { positive(HopLayout.bytesIn) }
    public var bytesOut: Int64? { positive(HopLayout.bytesOut) }

    public var remoteAddress: RemoteAddress? {
        let family = content[HopLayout.addressFamily]
        guard family != 0 else { return nil }
        return RemoteAddress(
            high: integer(HopLayout.address), low: integer(HopLayout.address + 8), isIPv6: family == 6,
            prefixLength: content[HopLayout.addressPrefix])
    }

    public var route: UnsafeRawBufferPointer? { text(0, HopLayout.texts, textEnds.0) }
    public var target: UnsafeRawBufferPointer? { text(1, textEnds.0, textEnds.1) }
    public var method: UnsafeRawBufferPointer? { text(2, textEnds.1, textEnds.2) }
    public var host: UnsafeRawBufferPointer? { text(3, textEnds.2, textEnds.3) }
    public var path: UnsafeRawBufferPointer? { text(4, textEnds.3, textEnds.4) }

    private func text(_ number: Int, _ start: Int, _ end: Int) -> UnsafeRawBufferPointer? {
        let length: UInt16 = integer(HopLayout.lengths + 2 * number)
        return length == HopLayout.absentText ? nil : UnsafeRawBufferPointer(rebasing: content[start..<end])
    }
}
