internal import NIOCore

/// The header fields of a request in one buffer, in order, duplicates kept, as libcurl wants them: `Name: value\0`, and
/// `Name;\0` for an empty value (CURLOPT_HTTPHEADER).
///
/// `add` refuses with `false` what would not arrive as one field: a name that is no token (RFC 9110, 5.1), a value with CR, LF
/// or NUL. White space around a value is not part of it and is dropped. Framing fields (Content-Length, Transfer-Encoding) and
/// Expect are libcurl's or nobody's: leave them out.
public struct TransferHeaders {
    private(set) var bytes: [UInt8] = []
    private(set) var starts: [Int] = []

    public init() {
        bytes.reserveCapacity(1024)
        starts.reserveCapacity(24)
    }

    public var count: Int { starts.count }

    public mutating func removeAll() {
        bytes.removeAll(keepingCapacity: true)
        starts.removeAll(keepingCapacity: true)
    }

    @discardableResult
    public mutating func add(name: UnsafeRawBufferPointer, value: UnsafeRawBufferPointer) -> Bool {
        guard !name.isEmpty, name.allSatisfy(isTokenByte), !TransferHeaders.endsLine(value) else { return false }
        let value = TransferHeaders.trimmed(value)
        starts.append(bytes.count)
        bytes.append(contentsOf: name)
        if value.isEmpty {
            bytes.append(UInt8(ascii: ";"))
        } else {
            bytes.append(UInt8(ascii: ":"))
            bytes.append(UInt8(ascii: " "))
            bytes.append(contentsOf: value)
        }
        bytes.append(0)
        return true
    }

    @discardableResult
    public mutating func add(name: String, value: String) -> Bool {
        var name = name
        var value = value
        return name.withUTF8 { name in
            value.withUTF8 { add(name: UnsafeRawBufferPointer(name), value: UnsafeRawBufferPointer($0)) }
        }
    }

    /// Adds a field whose value `write` appends, without blanks around it.
    @discardableResult
    public mutating func add(_ name: StaticString, _ write: (inout [UInt8]) -> Void) -> Bool {
        let start = bytes.count
        bytes.append(contentsOf: UnsafeBufferPointer(start: name.utf8Start, count: name.utf8CodeUnitCount))
        let colon = bytes.count
        bytes.append(UInt8(ascii: ":"))
        bytes.append(UInt8(ascii: " "))
        write(&bytes)
        let isWhole = bytes.withUnsafeBytes { !TransferHeaders.endsLine(UnsafeRawBufferPointer(rebasing: $0[colon...])) }
        guard isWhole else {
            bytes.removeSubrange(start...)
            return false
        }
        if bytes.count == colon + 2 { bytes.replaceSubrange(colon..., with: CollectionOfOne(UInt8(ascii: ";"))) }
        bytes.append(0)
        starts.append(start)
        return true
    }

    /// Whether a field of this lower-case name is there.
    func contains(_ name: StaticString) -> Bool {
        let wanted = UnsafeBufferPointer(start: name.utf8Start, count: name.utf8CodeUnitCount)
        return bytes.withUnsafeBufferPointer { bytes in
            starts.contains { start in
                guard start + wanted.count < bytes.count else { return false }
                for offset in 0..<wanted.count where bytes[start + offset] | 0x20 != wanted[offset] { return false }
                let after = bytes[start + wanted.count]
                return after == UInt8(ascii: ":") || after == UInt8(ascii: ";")
            }
        }
    }

    /// As they go on the wire, for a head that libcurl does not write (RFC 9112, 5).
    func write(to wire: inout ByteBuffer) {
        for start in starts {
            // Neither is part of a name: the first of them ends it.
            let delimiter = bytes[start...].firstIndex { $0 == UInt8(ascii: ":") || $0 == UInt8(ascii: ";") }!
            wire.writeBytes(bytes[start..<delimiter])
            wire.writeInteger(UInt8(ascii: ":"))
            wire.writeBytes(bytes[(delimiter + 1)...].prefix { $0 != 0 })
            wire.writeStaticString("\r\n")
        }
    }

    private static func trimmed(_ value: UnsafeRawBufferPointer) -> UnsafeRawBufferPointer {
        func isBlank(_ byte: UInt8) -> Bool { byte == UInt8(ascii: " ") || byte == UInt8(ascii: "\t") }
        var (from, to) = (0, value.count)
        while from < to, isBlank(value[from]) { from += 1 }
        while to > from, isBlank(value[to - 1]) { to -= 1 }
        return UnsafeRawBufferPointer(rebasing: value[from..<to])
    }

    private static func endsLine(_ bytes: UnsafeRawBufferPointer) -> Bool {
        bytes.contains { $0 == 0 || $0 == 10 || $0 == 13 }
    }
}
