internal import CMigrations
internal import Crypto

/// One file of `migrations/`.
public struct Migration: Sendable, Equatable {
    /// The number that its name begins with; files are applied in its order.
    public let version: Int32
    /// `0001_create_schema.sql`
    public let name: String
    public let sql: String
    /// SHA-256 of the file's bytes.
    public let checksum: [UInt8]

    /// - Parameter name: begins with a number above zero; anything else is a programming error.
    public init(name: String, sql: String) {
        guard let version = Int32(name.prefix { $0.isNumber }), version > 0 else {
            preconditionFailure("\(name) does not begin with a number")
        }
        self.version = version
        self.name = name
        self.sql = sql
        checksum = Array(SHA256.hash(data: Array(sql.utf8)))
    }

    /// Those that this binary was built with, in order.
    public static let embedded: [Migration] = (0..<cmigrations_count()).map { index in
        let bytes = UnsafeBufferPointer(start: cmigrations_bytes(index), count: cmigrations_length(index))
        return Migration(name: String(cString: cmigrations_name(index)), sql: String(decoding: bytes, as: UTF8.self))
    }
}
