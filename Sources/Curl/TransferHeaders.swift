internal import CLibcurl
internal import Glibc

/// The header fields of a request in one buffer, in order, duplicates kept, as libcurl wants them: `Name: value\0`, and
/// `Name;\0` for an empty value (CURLOPT_HTTPHEADER).
///
/// No field may hold CR, LF or NUL: `add` refuses it with `false`, because such a value would end the field early.
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
        guard !TransferHeaders.endsLine(name), !TransferHeaders.endsLine(value), !name.isEmpty else { return false }
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

    @discardableResult
    public mutating func add(name: StaticString, value: some Collection<UInt8>) -> Bool {
        let name = UnsafeRawBufferPointer(start: name.utf8Start, count: name.utf8CodeUnitCount)
        let done = value.withContiguousStorageIfAvailable { add(name: name, value: UnsafeRawBufferPointer($0)) }
        return done ?? Array(value).withUnsafeBytes { add(name: name, value: $0) }
    }

    /// Keeps libcurl from adding a field of its own (`Name:` alone).
    mutating func suppress(_ name: StaticString) {
        starts.append(bytes.count)
        bytes.append(contentsOf: UnsafeRawBufferPointer(start: name.utf8Start, count: name.utf8CodeUnitCount))
        bytes.append(UInt8(ascii: ":"))
        bytes.append(0)
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

    private static func endsLine(_ bytes: UnsafeRawBufferPointer) -> Bool {
        bytes.contains { $0 == 0 || $0 == 10 || $0 == 13 }
    }
}

/// The same fields as the linked list that libcurl reads, made without a call per field. It lives in memory of its own until
/// the transfer has ended, because libcurl keeps the pointer (CURLOPT_HTTPHEADER(3)).
final class HeaderList {
    private var nodes: UnsafeMutableBufferPointer<curl_slist> = .allocate(capacity: 32)
    private var text: UnsafeMutableBufferPointer<CChar> = .allocate(capacity: 2048)

    deinit {
        nodes.deallocate()
        text.deallocate()
    }

    func fill(_ headers: borrowing TransferHeaders) -> UnsafeMutablePointer<curl_slist>? {
        guard headers.count > 0 else { return nil }
        let (bytes, starts) = (headers.bytes, headers.starts)
        if nodes.count < starts.count {
            nodes.deallocate()
            nodes = .allocate(capacity: starts.count * 2)
        }
        if text.count < bytes.count {
            text.deallocate()
            text = .allocate(capacity: bytes.count * 2)
        }
        bytes.withUnsafeBytes { UnsafeMutableRawBufferPointer(text).copyMemory(from: $0) }
        for (index, start) in starts.enumerated() {
            let next = index + 1 < starts.count ? nodes.baseAddress! + index + 1 : nil
            (nodes.baseAddress! + index).initialize(to: curl_slist(data: text.baseAddress! + start, next: next))
        }
        return nodes.baseAddress
    }
}
