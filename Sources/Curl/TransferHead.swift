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

    public func isNamed(_ field: HeaderField, _ lowercase: StaticString) -> Bool {
        guard field.name.count == lowercase.utf8CodeUnitCount else { return false }
        var wanted = lowercase.utf8Start
        for index in field.name {
            var byte = bytes[index]
            if byte >= 65, byte <= 90 { byte |= 0x20 }
            guard byte == wanted.pointee else { return false }
            wanted += 1
        }
        return true
    }

    public func value(of lowercase: StaticString) -> ArraySlice<UInt8>? {
        for field in fields where isNamed(field, lowercase) { return bytes[field.value] }
        return nil
    }
}
