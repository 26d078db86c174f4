/// A field of an answer, as ranges into `TransferHead.bytes`.
public struct HeaderField: Equatable, Sendable {
    public var name: Range<Int>
    public var value: Range<Int>
}

/// The head of an answer, in the upstream's own bytes.
public struct TransferHead: Sendable {
    /// 100 to 999
    public var status: Int = 0
    /// The reason phrase within `bytes`; may be empty.
    public var reason: Range<Int> = 0..<0
    /// Status line and fields as they came, without their line ends.
    public var bytes: [UInt8] = []
    /// In the order of arrival; values without surrounding white space.
    public var fields: [HeaderField] = []

    public init() {}

    public func isNamed(_ field: HeaderField, _ lowercase: StaticString) -> Bool { isSame(field.name, lowercase) }

    /// Equal without regard to the case of ASCII letters.
    public func hasValue(_ field: HeaderField, _ lowercase: StaticString) -> Bool { isSame(field.value, lowercase) }

    private func isSame(_ range: Range<Int>, _ lowercase: StaticString) -> Bool {
        guard range.count == lowercase.utf8CodeUnitCount else { return false }
        var wanted = lowercase.utf8Start
        for index in range {
            var byte = bytes[index]
            if byte >= 65, byte <= 90 { byte |= 0x20 }
            guard byte == wanted.pointee else { return false }
            wanted += 1
        }
        return true
    }

    /// The values of all fields of a name in lower case.
    public func values(of lowercase: [UInt8]) -> [ArraySlice<UInt8>] {
        fields.compactMap { field in
            let name = bytes[field.name]
            let isNamed = name.count == lowercase.count && name.elementsEqual(lowercase) { (65...90 ~= $0 ? $0 | 0x20 : $0) == $1 }
            return isNamed ? bytes[field.value] : nil
        }
    }

    public func value(of lowercase: StaticString) -> ArraySlice<UInt8>? {
        for field in fields where isNamed(field, lowercase) { return bytes[field.value] }
        return nil
    }
}
