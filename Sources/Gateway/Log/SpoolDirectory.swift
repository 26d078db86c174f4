internal import GatewayCore
internal import Glibc

/// The files of one spool:
///
///     <root>/<spool id>/spool               identity, locked by whoever writes or ships it
///     <root>/<spool id>/<offset>.segment    frames from that offset (16 hexadecimal digits) to the next segment
///     <root>/<spool id>/ahead-<n>           space allocated for segments to come
///     <root>/<spool id>/rejected            frames that the database or the reader could not take
///
/// Offsets count the bytes of the spool from its beginning and never start again.
struct SpoolDirectory: Sendable {
    let path: String
    let id: UUIDBits
    let node: String
    /// Held as long as this value or a copy of it lives.
    private let identity: FileDescriptor

    private static let magic = Array("pandora spool 1\n".utf8)

    /// A new spool. Throws where the files cannot be made.
    init(creating id: UUIDBits, node: String, in root: String) throws(FileError) {
        try Directory.create(root)
        path = "\(root)/\(id)"
        (self.id, self.node) = (id, HopText(node, limit: HopLimits.node).text)
        try Directory.create(path)
        // Under its final name only once it is complete and locked: nobody takes it for an abandoned one.
        identity = try FileDescriptor("\(path)/spool.new", flags: O_RDWR | O_CREAT | O_EXCL)
        guard identity.lock() else { throw FileError(call: "flock", path: path, code: EWOULDBLOCK) }
        let bytes = Self.magic + Array("\(id)\n\(self.node)\n".utf8)
        let identity = identity
        try Self.write(bytes, to: identity)
        try identity.syncData()
        try Directory.rename("\(path)/spool.new", "\(path)/spool")
        try Directory.sync(path)
        try Directory.sync(root)
    }

    /// A spool that lies there; nil where another process, or another part of this one, has it open.
    ///
    /// Throws where it is no spool.
    init?(opening path: String) throws(FileError) {
        self.path = path
        identity = try FileDescriptor("\(path)/spool", flags: O_RDWR)
        guard identity.lock() else { return nil }
        var bytes = [UInt8](repeating: 0, count: 256)
        let identity = identity
        let count = try Self.read(&bytes, from: identity)
        let lines = bytes[..<count].split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false)
        guard lines.count >= 3, Array(lines[0]) + [UInt8(ascii: "\n")] == Self.magic,
            let id = UUIDBits(String(decoding: lines[1], as: UTF8.self))
        else { throw FileError(call: "read", path: "\(path)/spool", code: EINVAL) }
        (self.id, node) = (id, String(decoding: lines[2], as: UTF8.self))
    }

    private static func write(_ bytes: [UInt8], to file: FileDescriptor) throws(FileError) {
        var failure: FileError?
        bytes.withUnsafeBytes { raw in
            do throws(FileError) { try file.write(raw, at: 0) } catch { failure = error }
        }
        if let failure { throw failure }
    }

    private static func read(_ bytes: inout [UInt8], from file: FileDescriptor) throws(FileError) -> Int {
        var result = Result<Int, FileError>.success(0)
        bytes.withUnsafeMutableBytes { raw in
            do throws(FileError) { result = .success(try file.read(into: raw, at: 0)) } catch { result = .failure(error) }
        }
        return try result.get()
    }

    static let segmentSuffix = ".segment"

    func segmentPath(_ start: Int64) -> String {
        let digits = String(start, radix: 16)
        return "\(path)/\(String(repeating: "0", count: 16 - digits.utf8.count))\(digits)\(Self.segmentSuffix)"
    }

    func aheadPath(_ number: Int) -> String { "\(path)/ahead-\(number)" }
    var rejectedPath: String { "\(path)/\(Self.rejectedName)" }
    private static let rejectedName = "rejected"
    /// Bytes of it; what is rejected beyond is counted only.
    static let rejectedMax: Int64 = 16 << 20

    /// Where the segments begin, in order.
    func segmentStarts() throws(FileError) -> [Int64] {
        try Directory.names(path).compactMap { name in
            guard name.utf8.count == 16 + Self.segmentSuffix.utf8.count, name.hasSuffix(Self.segmentSuffix) else { return nil }
            return Int64(name.prefix(16), radix: 16)
        }.sorted()
    }

    /// Space allocated ahead is of no use to a spool that nobody writes.
    func removeSpaceAhead() {
        for name in (try? Directory.names(path)) ?? [] where name.hasPrefix("ahead-") { Directory.remove("\(path)/\(name)") }
    }

    /// Removes the spool; only frames that were rejected stay, for people to look at.
    func remove() {
        for name in (try? Directory.names(path)) ?? [] where name != Self.rejectedName { Directory.remove("\(path)/\(name)") }
        Directory.removeEmpty(path)
    }
}
