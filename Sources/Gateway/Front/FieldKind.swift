/// What a request's header field is to the gateway.
enum FieldKind: UInt8 {
    /// Goes upstream as it is.
    case endToEnd
    /// Of this connection alone (RFC 9110, 7.6.1), or the gateway's own word: never goes upstream.
    case dropped
    case host, apiKey, authorization, connection, proxyConnection, contentLength, transferEncoding, expect, upgrade
    case forwarded, forwardedFor, forwardedHost, forwardedProto, via, traceparent
    case startPoint, flow, idempotencyKey

    /// Says where a request ends and whether HTTP goes on behind it.
    var isFraming: Bool {
        switch self {
        case .connection, .proxyConnection, .contentLength, .transferEncoding, .upgrade: true
        default: false
        }
    }

    /// By length first: most names are told apart without comparing a byte.
    init(_ name: String) {
        self = name.utf8.withContiguousStorageIfAvailable(FieldKind.init) ?? .init(Array(name.utf8).withUnsafeBufferPointer { $0 })
    }

    init(_ name: UnsafeBufferPointer<UInt8>) {
        func named(_ lowercase: StaticString) -> Bool { name.isNamed(lowercase) }
        self = .endToEnd
        switch name.count {
        case 2: if named("te") { self = .dropped }
        case 3: if named("via") { self = .via }
        case 4: if named("host") { self = .host }
        case 6: if named("expect") { self = .expect }
        case 7: if named("upgrade") { self = .upgrade } else if named("trailer") { self = .dropped }
        case 9: if named("x-api-key") { self = .apiKey } else if named("forwarded") { self = .forwarded }
        case 10: if named("connection") { self = .connection } else if named("keep-alive") { self = .dropped }
        case 11: if named("traceparent") { self = .traceparent }
        case 13: if named("authorization") { self = .authorization }
        case 14: if named("content-length") { self = .contentLength }
        case 15:
            if named("x-forwarded-for") { self = .forwardedFor } else if named("idempotency-key") { self = .idempotencyKey }
        case 16:
            if named("x-forwarded-host") { self = .forwardedHost } else if named("proxy-connection") { self = .proxyConnection }
        case 17:
            if named("transfer-encoding") {
                self = .transferEncoding
            } else if named("x-forwarded-proto") {
                self = .forwardedProto
            }
        case 19: if named("proxy-authorization") { self = .dropped }
        default: break
        }
        if self == .endToEnd, name.count > 8, name[7] == UInt8(ascii: "-") { self = Self.ownName(name) }
    }

    /// Only the gateway says who a request is from: a client's own `Pandora-…` fields stop here.
    private static func ownName(_ name: UnsafeBufferPointer<UInt8>) -> FieldKind {
        guard UnsafeBufferPointer(rebasing: name[..<8]).isNamed("pandora-") else { return .endToEnd }
        if name.isNamed("pandora-start-point") { return .startPoint }
        return name.isNamed("pandora-flow") ? .flow : .dropped
    }
}

extension UnsafeBufferPointer<UInt8> {
    /// Equal without regard to the case of ASCII letters.
    func isNamed(_ lowercase: StaticString) -> Bool {
        guard count == lowercase.utf8CodeUnitCount else { return false }
        let wanted = lowercase.utf8Start
        for index in 0..<count {
            let byte = self[index]
            guard (byte >= 65 && byte <= 90 ? byte | 0x20 : byte) == wanted[index] else { return false }
        }
        return true
    }
}

extension String {
    /// Equal without regard to the case of ASCII letters.
    func isNamed(_ lowercase: StaticString) -> Bool {
        utf8.withContiguousStorageIfAvailable { $0.isNamed(lowercase) } ?? (self.lowercased() == "\(lowercase)")
    }
}
