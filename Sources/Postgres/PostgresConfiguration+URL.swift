internal import NIOCore

extension PostgresConfiguration {
    /// What is wrong with a URL; never repeats it, it may hold a password.
    public struct URLError: Error, Sendable, Equatable, CustomStringConvertible {
        public let description: String
        init(_ problem: String) { description = "database URL: \(problem)" }
    }

    /// `postgres://user:password@host:port,host2:port2/database?host=/socket/directory&sslmode=…` (PostgreSQL manual,
    /// 34.1.1.2). Known parameters: host, port, user, password, dbname, sslmode, sslrootcert, application_name,
    /// connect_timeout (seconds), target_session_attrs (`any` or `read-write`).
    public init(url: String) throws(URLError) {
        self.init()
        var rest = Substring(url)
        guard let scheme = ["postgres://", "postgresql://"].first(where: { rest.hasPrefix($0) }) else {
            throw URLError("it must begin with postgres://")
        }
        rest.removeFirst(scheme.count)
        let (place, query) = Self.split(rest, at: "?")
        let (location, path) = Self.split(place, at: "/")
        if let path, !path.isEmpty { database = try Self.decode(path) }
        var authority = location
        if let at = location.lastIndex(of: "@") {
            let (name, secret) = Self.split(location[..<at], at: ":")
            if !name.isEmpty { user = try Self.decode(name) }
            if let secret { password = Password(try Self.decode(secret)) }
            authority = location[location.index(after: at)...]
        }
        if !authority.isEmpty {
            hosts = []
            for part in authority.split(separator: ",", omittingEmptySubsequences: false) {
                hosts.append(try Self.host(part))
            }
        }
        if let query { try takeParameters(query) }
    }

    private mutating func takeParameters(_ text: Substring) throws(URLError) {
        var ports: [Int] = []
        for pair in text.split(separator: "&") {
            let (name, encoded) = Self.split(pair, at: "=")
            guard let encoded else { throw URLError("a parameter has no value") }
            let value = try Self.decode(encoded)
            switch name {
            case "host": hosts = value.split(separator: ",").map { Host(name: String($0)) }
            case "port":
                for part in value.split(separator: ",") { ports.append(try Self.port(part)) }
            case "user": user = value
            case "password": password = Password(value)
            case "dbname": database = value
            case "sslmode":
                guard ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"].contains(value) else {
                    throw URLError("sslmode is none of disable, allow, prefer, require, verify-ca, verify-full")
                }
                tlsMode = value
            case "sslrootcert": tlsRootCertificate = value
            case "application_name": applicationName = value
            case "connect_timeout":
                guard let seconds = Self.number(value[...]), (1...3600).contains(seconds) else {
                    throw URLError("connect_timeout is not a number of seconds from 1 to 3600")
                }
                connectTimeout = .seconds(Int64(seconds))
            case "target_session_attrs":
                guard value == "any" || value == "read-write" else {
                    throw URLError("target_session_attrs is neither any nor read-write")
                }
                needsWritable = value == "read-write"
            default: throw URLError("a parameter has an unknown name")
            }
        }
        guard !hosts.isEmpty else { throw URLError("there is no host") }
        guard ports.isEmpty || ports.count == 1 || ports.count == hosts.count else {
            throw URLError("there are neither one port nor as many as hosts")
        }
        for index in hosts.indices where !ports.isEmpty { hosts[index].port = ports.count == 1 ? ports[0] : ports[index] }
    }

    private static func host(_ text: Substring) throws(URLError) -> Host {
        var (name, number) = split(text, at: ":")
        if text.hasPrefix("[") {
            guard let end = text.firstIndex(of: "]") else { throw URLError("an IPv6 address lacks its ]") }
            name = text[text.index(after: text.startIndex)..<end]
            number = split(text[end...], at: ":").1
        }
        let decoded = try decode(name)
        guard !decoded.isEmpty else { throw URLError("a host is empty") }
        guard let number else { return Host(name: decoded) }
        return Host(name: decoded, port: try port(number))
    }

    private static func port(_ text: Substring) throws(URLError) -> Int {
        guard let port = number(text), (1...65535).contains(port) else {
            throw URLError("a port is not a number from 1 to 65535")
        }
        return port
    }

    /// Digits only: Int's own parser takes signs.
    private static func number(_ text: Substring) -> Int? {
        text.utf8.allSatisfy { (0x30...0x39).contains($0) } ? Int(text) : nil
    }

    private static func split(_ text: Substring, at separator: Character) -> (Substring, Substring?) {
        guard let index = text.firstIndex(of: separator) else { return (text, nil) }
        return (text[..<index], text[text.index(after: index)...])
    }

    /// RFC 3986, 2.1
    private static func decode(_ text: Substring) throws(URLError) -> String {
        var bytes: [UInt8] = []
        var rest = Array(text.utf8)[...]
        while let byte = rest.popFirst() {
            guard byte == UInt8(ascii: "%") else {
                bytes.append(byte)
                continue
            }
            guard let high = rest.popFirst().flatMap(digit), let low = rest.popFirst().flatMap(digit), high << 4 | low != 0 else {
                throw URLError("a % is not followed by two hexadecimal digits")
            }
            bytes.append(high << 4 | low)
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    private static func digit(_ byte: UInt8) -> UInt8? {
        switch byte {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): byte - UInt8(ascii: "0")
        case UInt8(ascii: "a")...UInt8(ascii: "f"): byte - UInt8(ascii: "a") + 10
        case UInt8(ascii: "A")...UInt8(ascii: "F"): byte - UInt8(ascii: "A") + 10
        default: nil
        }
    }
}
