internal import Curl
internal import GatewayCore
internal import Glibc
internal import NIOHTTP1

/// The head of a request with what the gateway needs to know of it, found in one pass over its fields.
struct RequestHead {
    let method: String
    /// In origin form (RFC 9112, 3.2.1), as the client sent it.
    private(set) var target: String
    /// The authority as the client sent it; empty where HTTP/1.0 sent none.
    private(set) var host = ""
    let fields: HTTPHeaders
    /// One for each of `fields`, in the same order.
    private(set) var kinds: [FieldKind]
    private(set) var body = BodyFraming.none
    /// Whether the client speaks HTTP/1.1: it understands chunked answers and 1xx.
    let isHTTP11: Bool
    /// Whether the client wants to use the connection again.
    private(set) var keepsAlive: Bool
    private(set) var expectsContinue = false
    private(set) var wantsUpgrade = false
    private(set) var wantsWebSocket = false
    var asksForWebSocket: Bool { wantsUpgrade && wantsWebSocket }
    /// NIO's decoder (llhttp) understands nothing behind such a request.
    var endsDecoding: Bool { wantsUpgrade && namesProtocol }
    private var namesProtocol = false

    /// The key, where one was sent in a header field.
    private(set) var key: KeyCandidate?
    private(set) var hasTwoKeys = false
    /// A Bearer token that is a key, or is taken for one for want of another.
    private(set) var isAuthorizationKey = false
    private(set) var startPoint: String?
    private(set) var flow: String?
    /// Names a step of a flow, for its repetition; goes upstream as well.
    private(set) var idempotencyKey: String?
    private(set) var trace: TraceContext?

    /// A head that must not be forwarded, and what is wrong with it.
    struct Fault: Error {
        var refusal: Refusal
        var detail: String

        init(_ refusal: Refusal, _ detail: String) { (self.refusal, self.detail) = (refusal, detail) }
    }

    init(_ head: HTTPRequestHead, limits: LimitSettings) throws(Fault) {
        (target, fields) = (head.uri, head.headers)
        // NIO's decoder loses the hyphen.
        method = head.method == .MSEARCH ? "M-SEARCH" : head.method.rawValue
        isHTTP11 = head.version.minor >= 1
        keepsAlive = isHTTP11
        kinds = []
        kinds.reserveCapacity(fields.count)
        guard target.utf8.count <= limits.requestTarget else { throw Fault(.targetTooLong, "more than \(limits.requestTarget) bytes") }
        try Self.refuseReplaced(target, "the request target")
        if method == "CONNECT" || method == "TRACE" { throw Fault(.methodRefused, method) }
        var reading = Reading()
        for field in fields { try take(field.name, field.value, &reading) }
        try finish(reading)
        try splitAbsoluteTarget()
    }

    // MARK: Reading

    private struct Reading {
        var hosts = 0
        var lengths = 0
        var codings = 0
        var bearer: String?
        var nominated: [Substring] = []
    }

    private mutating func take(_ name: String, _ sent: String, _ reading: inout Reading) throws(Fault) {
        try Self.refuseReplaced(name, "a header field")
        try Self.refuseReplaced(sent, "a header field")
        var kind = FieldKind(name)
        if kind.isFraming { try Self.refuseUnprintable(sent, in: name) }
        let value = sent.withoutTrailingBlanks
        switch kind {
        case .host:
            reading.hosts += 1
            host = value
        case .apiKey: noteKey(value)
        case .authorization: if let token = Self.bearer(value) { reading.bearer = token }
        case .connection: takeConnection(value) { reading.nominated.append($0) }
        // No standard knows it, but NIO's decoder reads it as it does Connection.
        case .proxyConnection: takeConnection(value) { _ in }
        case .contentLength:
            reading.lengths += 1
            guard let length = Self.length(value) else { throw Fault(.requestMalformed, "Content-Length is not a number") }
            body = .length(length)
        case .transferEncoding:
            reading.codings += 1
            guard value.isNamed("chunked") else { throw Fault(.codingRefused, "Transfer-Encoding is not chunked") }
        case .expect:
            guard value.isNamed("100-continue") else { throw Fault(.requestMalformed, "Expect is not 100-continue") }
            expectsContinue = isHTTP11
        case .upgrade:
            wantsWebSocket = value.isNamed("websocket")
            if !value.isEmpty { namesProtocol = true }
        case .startPoint: startPoint = Self.joined(startPoint, value)
        case .flow: flow = Self.joined(flow, value)
        case .idempotencyKey:
            idempotencyKey = Self.joined(idempotencyKey, value)
            kind = .endToEnd
        case .traceparent:
            // A second one, or one that cannot be read, is as good as none (W3C Trace Context, 3.2.2 and 4.3).
            trace = trace == nil ? TraceContext(value) : nil
            kind = .dropped
        default: break
        }
        kinds.append(kind)
    }

    /// A field that comes twice is a list (RFC 9110, 5.3), which is no value where one is wanted.
    private static func joined(_ first: String?, _ value: String) -> String { first.map { $0 + ", " + value } ?? value }

    private mutating func takeConnection(_ value: String, nominates: (Substring) -> Void) {
        for token in value.utf8.split(separator: UInt8(ascii: ",")) {
            let token = Substring(token).trimmingBlanks
            if token.isNamed("close") {
                keepsAlive = false
            } else if token.isNamed("keep-alive") {
                if !isHTTP11 { keepsAlive = true }
            } else if token.isNamed("upgrade") {
                wantsUpgrade = true
            } else if !token.isEmpty {
                nominates(token)
            }
        }
    }

    private mutating func finish(_ reading: Reading) throws(Fault) {
        if reading.hosts > 1 { throw Fault(.requestMalformed, "more than one Host") }
        if reading.hosts == 0, isHTTP11 { throw Fault(.requestMalformed, "no Host") }
        if reading.lengths > 1 { throw Fault(.requestMalformed, "more than one Content-Length") }
        if reading.codings > 0 {
            // Whoever disagrees about which of the two counts takes the rest of the body for another request (RFC 9112, 6.3).
            if reading.lengths > 0 { throw Fault(.requestMalformed, "both Content-Length and Transfer-Encoding") }
            if reading.codings > 1 { throw Fault(.codingRefused, "more than one Transfer-Encoding") }
            if !isHTTP11 { throw Fault(.requestMalformed, "Transfer-Encoding in HTTP/1.0") }
            body = .chunked
        }
        if let bearer = reading.bearer {
            // A token of another kind beside a key is the upstream's business.
            if case .candidate = KeyCandidate.parse(bearer.utf8) { isAuthorizationKey = true } else { isAuthorizationKey = key == nil }
            if isAuthorizationKey { noteKey(bearer) }
        }
        for name in reading.nominated { dropNominated(name) }
    }

    private mutating func noteKey(_ text: String) {
        let candidate = KeyCandidate.parse(text.utf8)
        if let key, key != candidate { hasTwoKeys = true }
        key = candidate
    }

    /// A key from the query, on routes that take it from there.
    mutating func noteQueryKeys(_ values: [[UInt8]]) {
        for value in values {
            let candidate = KeyCandidate.parse(value)
            if let key, key != candidate { hasTwoKeys = true }
            key = candidate
        }
    }

    /// Fields that `Connection` names are of this connection (RFC 9110, 7.6.1).
    private mutating func dropNominated(_ name: Substring) {
        for (index, field) in fields.enumerated() where kinds[index] == .endToEnd {
            if field.name.utf8.count == name.utf8.count, field.name.lowercased() == name.lowercased() { kinds[index] = .dropped }
        }
    }

    /// `http://host/path`: the authority of the target counts, not that of Host (RFC 9112, 3.2.2).
    private mutating func splitAbsoluteTarget() throws(Fault) {
        guard target.utf8.first != UInt8(ascii: "/") else { return }
        let scheme = Substring(target.utf8.prefix { $0 != UInt8(ascii: ":") })
        guard scheme.isNamed("http") || scheme.isNamed("https") else { return }
        let behind = target.utf8.dropFirst(scheme.utf8.count)
        guard behind.starts(with: "://".utf8) else { return }
        let rest = behind.dropFirst(3)
        let authority = rest.prefix { $0 != UInt8(ascii: "/") && $0 != UInt8(ascii: "?") }
        guard !authority.isEmpty, !authority.contains(UInt8(ascii: "@")) else {
            throw Fault(.requestMalformed, "no host in the request target")
        }
        let path = rest[authority.endIndex...]
        host = String(Substring(authority))
        target = (path.first == UInt8(ascii: "/") ? "" : "/") + String(Substring(path))
    }

    // MARK: Values

    /// NIO's decoder puts U+FFFD in the place of what is not UTF-8: such a request would go upstream altered.
    private static func refuseReplaced(_ text: String, _ what: String) throws(Fault) {
        let isAltered = text.utf8.withContiguousStorageIfAvailable { bytes in
            memchr(bytes.baseAddress ?? UnsafePointer(bitPattern: 1)!, 0xef, bytes.count) != nil && text.unicodeScalars.contains("\u{fffd}")
        }
        if isAltered ?? text.unicodeScalars.contains("\u{fffd}") { throw Fault(.requestMalformed, "\(what) is not UTF-8") }
    }

    /// NIO's decoder has its own opinion of tabs and of what is not ASCII there, and so have others: where a request ends must
    /// be no matter of opinion.
    private static func refuseUnprintable(_ value: String, in name: String) throws(Fault) {
        guard value.utf8.allSatisfy({ 0x20...0x7e ~= $0 }) else {
            throw Fault(.requestMalformed, "a tab, or what is not ASCII, in \(name)")
        }
    }

    private static func bearer(_ value: String) -> String? {
        guard value.utf8.count > 7, Substring(value.utf8.prefix(7)).isNamed("bearer ") else { return nil }
        return String(Substring(value.utf8.dropFirst(7)).trimmingBlanks)
    }

    private static func length(_ value: String) -> Int64? {
        guard !value.isEmpty, value.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }) else { return nil }
        return Int64(value)
    }
}

extension RequestHead: RequestFields {
    func hasField(named name: String, value: String?) -> Bool {
        fields.contains { field in
            field.name.utf8.count == name.utf8.count && field.name.lowercased() == name && (value == nil || field.value == value)
        }
    }
}

extension String {
    /// NIO's decoder leaves the optional white space behind a field's value (RFC 9110, 5.5) in it.
    fileprivate var withoutTrailingBlanks: String {
        guard let last = utf8.last, last == 0x20 || last == 0x09 else { return self }
        return String(Substring(self).trimmingBlanks)
    }
}

extension Substring {
    func isNamed(_ lowercase: StaticString) -> Bool {
        utf8.withContiguousStorageIfAvailable { $0.isNamed(lowercase) } ?? false
    }

    var trimmingBlanks: Substring {
        // By bytes: a blank and what combines with it are one Character.
        var bytes = utf8
        while let first = bytes.first, first == 0x20 || first == 0x09 { bytes.removeFirst() }
        while let last = bytes.last, last == 0x20 || last == 0x09 { bytes.removeLast() }
        return Substring(bytes)
    }
}
