internal import CLibpq

/// One row. A column is decoded as the type that the statement returns; asking for another type, or for a value where there
/// is NULL, is a programming error and stops the process. Each decoder exists for values and for values or NULL.
public struct Row: Sendable {
    let result: PostgresResult
    let number: CInt

    public var columns: Int { Int(PQnfields(result.raw)) }

    public func isNull(_ column: Int) -> Bool { PQgetisnull(result.raw, number, CInt(column)) == 1 }

    public func int64(_ column: Int) -> Int64 { require(int64(column), column) }
    public func int64(_ column: Int) -> Int64? { integer(column) }
    public func int32(_ column: Int) -> Int32 { require(int32(column), column) }
    public func int32(_ column: Int) -> Int32? { integer(column) }
    public func int16(_ column: Int) -> Int16 { require(int16(column), column) }
    public func int16(_ column: Int) -> Int16? { integer(column) }

    public func bool(_ column: Int) -> Bool { require(bool(column), column) }
    public func bool(_ column: Int) -> Bool? { decode(column) { $0[0] != 0 } }

    public func double(_ column: Int) -> Double { require(double(column), column) }
    public func double(_ column: Int) -> Double? {
        let bits: UInt64? = integer(column)
        return bits.map(Double.init(bitPattern:))
    }

    public func string(_ column: Int) -> String { require(string(column), column) }
    public func string(_ column: Int) -> String? { decode(column) { String(decoding: $0, as: UTF8.self) } }

    public func bytes(_ column: Int) -> [UInt8] { require(bytes(column), column) }
    public func bytes(_ column: Int) -> [UInt8]? { decode(column) { Array($0) } }

    /// Lends the value as it came, without a copy; nil is NULL. The bytes live as long as the call.
    public func withBytes<Value>(_ column: Int, _ body: (UnsafeRawBufferPointer) -> Value) -> Value? { decode(column, body) }

    /// Microseconds since 1970-01-01 00:00 UTC. `Int64.max` and `.min` stand for infinity.
    public func timestampMicroseconds(_ column: Int) -> Int64 { require(timestampMicroseconds(column), column) }
    public func timestampMicroseconds(_ column: Int) -> Int64? {
        let value: Int64? = integer(column)
        return value.map(unixMicroseconds)
    }

    // Arrays of one dimension. The first form stops the process at an element that is NULL; a column that is NULL is empty.
    public func int64Array(_ column: Int) -> [Int64] { require(all: int64Array(column), column) }
    public func int64Array(_ column: Int) -> [Int64?] { array(column) { Int64(bigEndian: $0.loadUnaligned(as: Int64.self)) } }
    public func int32Array(_ column: Int) -> [Int32] { require(all: int32Array(column), column) }
    public func int32Array(_ column: Int) -> [Int32?] { array(column) { Int32(bigEndian: $0.loadUnaligned(as: Int32.self)) } }
    public func int16Array(_ column: Int) -> [Int16] { require(all: int16Array(column), column) }
    public func int16Array(_ column: Int) -> [Int16?] { array(column) { Int16(bigEndian: $0.loadUnaligned(as: Int16.self)) } }
    public func boolArray(_ column: Int) -> [Bool] { require(all: boolArray(column), column) }
    public func boolArray(_ column: Int) -> [Bool?] { array(column) { $0[0] != 0 } }
    public func stringArray(_ column: Int) -> [String] { require(all: stringArray(column), column) }
    public func stringArray(_ column: Int) -> [String?] { array(column) { String(decoding: $0, as: UTF8.self) } }
    public func bytesArray(_ column: Int) -> [[UInt8]] { require(all: bytesArray(column), column) }
    public func bytesArray(_ column: Int) -> [[UInt8]?] { array(column) { Array($0) } }
    public func timestampMicrosecondsArray(_ column: Int) -> [Int64] {
        require(all: int64Array(column), column).map(unixMicroseconds)
    }

    private func require<Value>(_ value: Value?, _ column: Int) -> Value {
        guard let value else { preconditionFailure("column \(column) is NULL") }
        return value
    }

    private func require<Value>(all values: [Value?], _ column: Int) -> [Value] {
        values.map { require($0, column) }
    }

    private func decode<Value>(_ column: Int, _ body: (UnsafeRawBufferPointer) -> Value) -> Value? {
        precondition(column < columns, "column \(column) of \(columns)")
        guard !isNull(column) else { return nil }
        let length = Int(PQgetlength(result.raw, number, CInt(column)))
        return body(UnsafeRawBufferPointer(start: PQgetvalue(result.raw, number, CInt(column)), count: length))
    }

    private func integer<Number: FixedWidthInteger>(_ column: Int) -> Number? {
        decode(column) { bytes in
            precondition(bytes.count == MemoryLayout<Number>.size, "column \(column) has \(bytes.count) bytes")
            return Number(bigEndian: bytes.loadUnaligned(as: Number.self))
        }
    }

    /// One dimension, as array_send writes it: dimensions, NULL flag, element type, length, lower bound, elements.
    private func array<Element>(_ column: Int, _ element: (UnsafeRawBufferPointer) -> Element) -> [Element?] {
        decode(column) { bytes in
            func number(at offset: Int) -> Int {
                Int(Int32(bigEndian: bytes.loadUnaligned(fromByteOffset: offset, as: Int32.self)))
            }
            let dimensions = number(at: 0)
            precondition(dimensions <= 1, "column \(column) is an array of \(dimensions) dimensions")
            guard dimensions == 1 else { return [] }
            var (offset, elements) = (20, [Element?]())
            elements.reserveCapacity(number(at: 12))
            for _ in 0..<number(at: 12) {
                let length = number(at: offset)
                offset += 4
                guard length >= 0 else {
                    elements.append(nil)
                    continue
                }
                elements.append(element(UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + length])))
                offset += length
            }
            return elements
        } ?? []
    }
}
