/// The values of a statement's parameters in the binary format, in one buffer (PostgreSQL manual, 34.3; array layout in
/// src/backend/utils/adt/arrayfuncs.c, array_send).
public struct Parameters: Sendable {
    private var bytes: [UInt8] = []
    /// Where each value lies; nil is NULL.
    private var values: [Range<Int>?] = []

    public init() {}

    public var count: Int { values.count }

    public mutating func append(_ value: Int64?) { appendFixed(value) }
    public mutating func append(_ value: Int32?) { appendFixed(value) }
    public mutating func append(_ value: Int16?) { appendFixed(value) }
    public mutating func append(_ value: Bool?) { appendFixed(value.map { $0 ? UInt8(1) : 0 }) }
    public mutating func append(_ value: Double?) { appendFixed(value.map(\.bitPattern)) }

    /// Text that holds a NUL is cut there: PostgreSQL has no such character.
    public mutating func append(_ value: String?) {
        guard let value else { return values.append(nil) }
        appendValue { bytes in bytes.appendText(value) }
    }

    public mutating func append(text value: String?) { append(value) }

    public mutating func append(bytes value: (some Sequence<UInt8>)?) {
        guard let value else { return values.append(nil) }
        appendValue { bytes in bytes.append(contentsOf: value) }
    }

    /// Microseconds since 1970-01-01 00:00 UTC, as a timestamptz. `Int64.max` and `.min` stand for infinity.
    public mutating func append(timestampMicroseconds value: Int64?) { appendFixed(value.map(serverMicroseconds)) }

    public mutating func append(_ elements: [Int64]) { appendArray(of: .int8, elements) { $0.appendBigEndian($1) } }
    public mutating func append(_ elements: [Int32]) { appendArray(of: .int4, elements) { $0.appendBigEndian($1) } }
    public mutating func append(_ elements: [Int16]) { appendArray(of: .int2, elements) { $0.appendBigEndian($1) } }
    public mutating func append(_ elements: [Bool]) { appendArray(of: .bool, elements) { $0.append($1 ? 1 : 0) } }
    public mutating func append(_ elements: [String]) { appendArray(of: .text, elements) { $0.appendText($1) } }
    public mutating func append(_ elements: [[UInt8]]) {
        appendArray(of: .bytea, elements) { $0.append(contentsOf: $1) }
    }
    public mutating func append(timestampsMicroseconds elements: [Int64]) {
        appendArray(of: .timestamptz, elements) { $0.appendBigEndian(serverMicroseconds($1)) }
    }

    /// Arrays whose elements may be NULL.
    public mutating func append(optionals elements: [Int64?]) {
        appendArray(of: .int8, optionals: elements) { $0.appendBigEndian($1) }
    }
    public mutating func append(optionals elements: [String?]) {
        appendArray(of: .text, optionals: elements) { $0.appendText($1) }
    }

    private mutating func appendFixed(_ value: (some FixedWidthInteger)?) {
        guard let value else { return values.append(nil) }
        appendValue { $0.appendBigEndian(value) }
    }

    private mutating func appendValue(_ write: (inout [UInt8]) -> Void) {
        let start = bytes.count
        write(&bytes)
        values.append(start..<bytes.count)
    }

    private mutating func appendArray<Element>(
        of type: PostgresType, _ elements: [Element], _ write: (inout [UInt8], Element) -> Void
    ) {
        appendArray(of: type, optionals: elements.lazy.map(Optional.some), write)
    }

    private mutating func appendArray<Element>(
        of type: PostgresType, optionals elements: some Collection<Element?>, _ write: (inout [UInt8], Element) -> Void
    ) {
        appendValue { bytes in
            bytes.appendBigEndian(Int32(elements.isEmpty ? 0 : 1))
            bytes.appendBigEndian(Int32(elements.contains { $0 == nil } ? 1 : 0))
            bytes.appendBigEndian(type.rawValue)
            guard !elements.isEmpty else { return }
            bytes.appendBigEndian(Int32(elements.count))
            bytes.appendBigEndian(Int32(1))
            for element in elements {
                guard let element else {
                    bytes.appendBigEndian(Int32(-1))
                    continue
                }
                let lengthAt = bytes.count
                bytes.appendBigEndian(Int32(0))
                write(&bytes, element)
                let length = UInt32(bytes.count - lengthAt - 4)
                for offset in 0..<4 { bytes[lengthAt + offset] = UInt8(truncatingIfNeeded: length >> (24 - 8 * offset)) }
            }
        }
    }

    /// Lends libpq the arrays that PQsendQueryPrepared wants; the formats serve for the result, too.
    func withPointers<Result>(
        _ body: (
            _ values: UnsafePointer<UnsafePointer<CChar>?>?, _ lengths: UnsafePointer<CInt>?, _ formats: UnsafePointer<CInt>?
        ) -> Result
    ) -> Result {
        guard count > 0 else { return body(nil, nil, nil) }
        return bytes.withUnsafeBytes { raw in
            withUnsafeTemporaryAllocation(of: UnsafePointer<CChar>?.self, capacity: count) { pointers in
                withUnsafeTemporaryAllocation(of: CInt.self, capacity: 2 * count) { numbers in
                    for (index, value) in values.enumerated() {
                        pointers.initializeElement(at: index, to: value.map { Parameters.pointer(raw, $0.lowerBound) })
                        numbers.initializeElement(at: index, to: CInt(value?.count ?? 0))
                        numbers.initializeElement(at: count + index, to: 1)
                    }
                    return body(pointers.baseAddress, numbers.baseAddress, numbers.baseAddress! + count)
                }
            }
        }
    }

    /// An empty value needs an address, or libpq would take it for NULL; where there are no bytes at all, any will do.
    private static func pointer(_ raw: UnsafeRawBufferPointer, _ offset: Int) -> UnsafePointer<CChar> {
        guard let base = raw.baseAddress else { return UnsafePointer(bitPattern: 1)! }
        return (base + offset).assumingMemoryBound(to: CChar.self)
    }
}

/// PostgreSQL counts timestamps from 2000-01-01 00:00 UTC.
private let microsecondsTo2000: Int64 = 946_684_800_000_000

private func serverMicroseconds(_ value: Int64) -> Int64 {
    value == .max || value == .min ? value : value - microsecondsTo2000
}

func unixMicroseconds(_ value: Int64) -> Int64 {
    value == .max || value == .min ? value : value + microsecondsTo2000
}

extension [UInt8] {
    mutating func appendBigEndian<Number: FixedWidthInteger>(_ number: Number) {
        Swift.withUnsafeBytes(of: number.bigEndian) { append(contentsOf: $0) }
    }

    mutating func appendText(_ text: String) {
        var text = text
        text.withUTF8 { append(contentsOf: UnsafeBufferPointer(rebasing: $0.prefix { $0 != 0 })) }
    }
}
