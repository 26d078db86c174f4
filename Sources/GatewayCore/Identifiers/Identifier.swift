/// What an identifier names; its text begins with the prefix.
public protocol IdentifierKind {
    /// At most seven lower-case letters.
    static var prefix: StaticString { get }
}

public enum RequestKind: IdentifierKind { public static var prefix: StaticString { "req" } }
public enum ReservationKind: IdentifierKind { public static var prefix: StaticString { "rsv" } }
public enum KeyKind: IdentifierKind { public static var prefix: StaticString { "key" } }

/// A TypeID: a prefix, an underscore and a UUID in 26 characters (TypeID specification 0.3). Sixteen bytes, no reference.
public struct Identifier<Kind: IdentifierKind>: Hashable, Sendable, Comparable, CustomStringConvertible {
    public var uuid: UUIDBits

    @inlinable
    public init(_ uuid: UUIDBits) { self.uuid = uuid }

    /// Exactly the text that `description` gives; nil for anything else.
    public init?(_ text: some Collection<UInt8>) {
        let found = text.withContiguousStorageIfAvailable { Base32.read($0, after: Kind.prefix) }
        guard let uuid = found ?? Array(text).withUnsafeBufferPointer({ Base32.read($0, after: Kind.prefix) }) else { return nil }
        self.uuid = uuid
    }

    public init?(_ text: String) { self.init(text.utf8) }

    /// Bytes of the text.
    public static var textLength: Int { Kind.prefix.utf8CodeUnitCount + 1 + Base32.characters }

    /// Appends the text.
    public func append(to bytes: inout [UInt8]) {
        withText { bytes.append(contentsOf: $0) }
    }

    /// Lends the text, without an allocation.
    public func withText<Result>(_ body: (UnsafeBufferPointer<UInt8>) -> Result) -> Result {
        let prefix = Kind.prefix.utf8CodeUnitCount
        return withUnsafeTemporaryAllocation(of: UInt8.self, capacity: Self.textLength) { text in
            let start = text.baseAddress!
            start.initialize(from: Kind.prefix.utf8Start, count: prefix)
            start[prefix] = UInt8(ascii: "_")
            Base32.write(uuid, to: start + prefix + 1)
            return body(UnsafeBufferPointer(text))
        }
    }

    public var description: String { withText { String(decoding: $0, as: UTF8.self) } }

    @inlinable
    public static func < (a: Self, b: Self) -> Bool { a.uuid < b.uuid }
}

/// `req_…`: a row of `request_logs`. Ordered by time, as its text is.
public typealias RequestID = Identifier<RequestKind>
/// `rsv_…`: a flow's hold on quota.
public typealias ReservationID = Identifier<ReservationKind>
/// `key_…`: an API key's public identity, never its secret.
public typealias KeyID = Identifier<KeyKind>
