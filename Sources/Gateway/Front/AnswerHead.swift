internal import Curl
internal import GatewayCore
internal import NIOCore

/// How the end of an answer's body is told to the client (RFC 9112, 6).
enum AnswerFraming: Equatable {
    /// There is none: HEAD, 204, 304.
    case empty
    case length(Int64)
    case chunked
    /// The connection ends with it: HTTP/1.0.
    case close
    /// 101: what follows is of another protocol.
    case tunnel
}

/// Writes the heads of answers, straight from the upstream's bytes.
struct AnswerHead {
    private(set) var bytes: ByteBuffer
    private(set) var framing = AnswerFraming.empty

    /// The gateway's own word beside the upstream's.
    struct Own {
        var requestID: RequestID
        /// `Pandora-Start-Point`, signed; empty where the environment is not known.
        var startPoint: [UInt8]
        var quota: QuotaView?
        /// The connection ends after this answer.
        var closes: Bool
        var isHTTP11: Bool
        var flow: FlowFields?
    }

    /// The flow that the request was a hop of.
    struct FlowFields {
        var id: ReservationID
        /// open, finishing, committed, rolled_back, expired, pending, unknown
        var state: String
    }

    // MARK: The upstream's

    /// - Parameters:
    ///   - isHead: the answer is to HEAD, which has no body whatever its fields say (RFC 9110, 9.3.2).
    ///   - hidden: lower-case name of a field that is for the gateway alone.
    init(_ head: TransferHead, isHead: Bool, own: Own, hiding hidden: [UInt8]? = nil, allocator: ByteBufferAllocator) {
        bytes = allocator.buffer(capacity: head.bytes.count + 320)
        startLine(head)
        var length: Int64?
        var nominated = Self.nominated(head)
        if let hidden { nominated.append(hidden) }
        head.bytes.withUnsafeBytes { raw in
            for field in head.fields {
                switch AnswerFieldKind(UnsafeRawBufferPointer(rebasing: raw[field.name])) {
                case .dropped: continue
                case .contentLength:
                    // The parser has made sure that all lengths are one.
                    if length != nil || head.status == 101 { continue }
                    length = Self.number(raw[field.value])
                case .quota: if own.quota != nil { continue }
                case .endToEnd: break
                }
                if !nominated.isEmpty, nominated.contains(Self.lowercased(raw[field.name])) { continue }
                bytes.writeField(raw, field)
            }
        }
        bytes.writeStaticString("Via: 1.1 pandora\r\n")
        if head.status == 101 {
            framing = .tunnel
        } else if isHead || head.status == 204 || head.status == 304 {
            framing = .empty
        } else if let length {
            framing = .length(length)
        } else {
            framing = own.isHTTP11 ? .chunked : .close
        }
        finish(own)
    }

    /// 1xx: the status line and the end-to-end fields, nothing of ours.
    init(informational head: TransferHead, hiding hidden: [UInt8]? = nil, allocator: ByteBufferAllocator) {
        bytes = allocator.buffer(capacity: head.bytes.count + 64)
        startLine(head)
        bytes.writeEndToEndFields(of: head, hiding: hidden)
        bytes.writeStaticString("\r\n")
    }

    /// The end of a chunked body, with the upstream's trailers (RFC 9112, 7.1.2).
    static func lastChunk(_ trailers: TransferHead?, hiding hidden: [UInt8]? = nil, allocator: ByteBufferAllocator) -> ByteBuffer {
        var bytes = allocator.buffer(capacity: (trailers?.bytes.count ?? 0) + 64)
        bytes.writeStaticString("0\r\n")
        if let trailers { bytes.writeEndToEndFields(of: trailers, hiding: hidden) }
        bytes.writeStaticString("\r\n")
        return bytes
    }

    private mutating func startLine(_ head: TransferHead) {
        bytes.writeStaticString("HTTP/1.1 ")
        writeDecimal(Int64(head.status))
        bytes.writeStaticString(" ")
        head.bytes.withUnsafeBytes { raw in _ = bytes.writeBytes(UnsafeRawBufferPointer(rebasing: raw[head.reason])) }
        bytes.writeStaticString("\r\n")
    }

    /// Fields that the upstream's `Connection` names, in lower case.
    private static func nominated(_ head: TransferHead) -> [[UInt8]] {
        guard let value = head.value(of: "connection"), !namesNothing(value) else { return [] }
        return value.split(separator: UInt8(ascii: ",")).map { token in
            token.filter { $0 != 0x20 && $0 != 0x09 }.map { $0 >= 65 && $0 <= 90 ? $0 | 0x20 : $0 }
        }.filter { !$0.elementsEqual("close".utf8) && !$0.elementsEqual("keep-alive".utf8) }
    }

    /// What nearly every upstream sends.
    private static func namesNothing(_ value: ArraySlice<UInt8>) -> Bool {
        value.withUnsafeBufferPointer { $0.isNamed("keep-alive") || $0.isNamed("close") }
    }

    fileprivate static func lowercased(_ name: Slice<UnsafeRawBufferPointer>) -> [UInt8] {
        name.map { $0 >= 65 && $0 <= 90 ? $0 | 0x20 : $0 }
    }

    private static func number(_ digits: Slice<UnsafeRawBufferPointer>) -> Int64? {
        var value: Int64 = 0
        for digit in digits {
            let (tens, overflow) = value.multipliedReportingOverflow(by: 10)
            let (sum, carry) = tens.addingReportingOverflow(Int64(digit) - 0x30)
            if overflow || carry { return nil }
            value = sum
        }
        return value
    }

    // MARK: The gateway's own

    /// A problem (RFC 9457) with its body.
    ///
    /// - Parameter date: the value of `Date`, which the origin of an answer has to send (RFC 9110, 6.6.1).
    init(
        problem reason: ExchangeMachine.Reason, requestID: RequestID, own: Own, date: [UInt8], isHead: Bool, allocator: ByteBufferAllocator
    ) {
        let refusal = reason.refusal
        var body: [UInt8] = []
        body.reserveCapacity(384)
        Problem.append(refusal, requestID: requestID, retryAfter: reason.retryAfter, reason: reason.detail, to: &body)
        bytes = allocator.buffer(capacity: body.count + 448)
        bytes.writeStaticString("HTTP/1.1 ")
        writeDecimal(Int64(refusal.status))
        bytes.writeStaticString(" ")
        bytes.writeStaticString(refusal.title)
        bytes.writeStaticString("\r\nContent-Type: ")
        bytes.writeStaticString(Problem.contentType)
        bytes.writeStaticString("\r\nContent-Length: ")
        writeDecimal(Int64(body.count))
        bytes.writeStaticString("\r\nCache-Control: no-store\r\nDate: ")
        bytes.writeBytes(date)
        bytes.writeStaticString("\r\n")
        if refusal.status == 401 {
            bytes.writeStaticString("WWW-Authenticate: ")
            bytes.writeStaticString(Problem.challenge)
            bytes.writeStaticString("\r\n")
        }
        if let retryAfter = reason.retryAfter {
            bytes.writeStaticString("Retry-After: ")
            writeDecimal(retryAfter)
            bytes.writeStaticString("\r\n")
        }
        finish(own)
        if !isHead { bytes.writeBytes(body) }
    }

    /// The gateway's own answer to one of its endpoints.
    init(json body: [UInt8], own: Own, date: [UInt8], isHead: Bool, allocator: ByteBufferAllocator) {
        bytes = allocator.buffer(capacity: body.count + 384)
        bytes.writeStaticString("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ")
        writeDecimal(Int64(body.count))
        bytes.writeStaticString("\r\nCache-Control: no-store\r\nDate: ")
        bytes.writeBytes(date)
        bytes.writeStaticString("\r\n")
        finish(own)
        if !isHead { bytes.writeBytes(body) }
    }

    // MARK: Both

    private mutating func finish(_ own: Own) {
        bytes.writeStaticString("Pandora-Request-Id: ")
        own.requestID.withText { _ = bytes.writeBytes(UnsafeRawBufferPointer($0)) }
        if !own.startPoint.isEmpty {
            bytes.writeStaticString("\r\nPandora-Start-Point: ")
            bytes.writeBytes(own.startPoint)
        }
        if let quota = own.quota { write(quota) }
        if let flow = own.flow { write(flow) }
        switch framing {
        case .chunked: bytes.writeStaticString("\r\nTransfer-Encoding: chunked")
        // The only upgrade that a route lets through.
        case .tunnel: bytes.writeStaticString("\r\nConnection: Upgrade\r\nUpgrade: websocket")
        case .empty, .length, .close: break
        }
        if framing == .tunnel {
            // Its end is the other protocol's.
        } else if own.closes || framing == .close {
            bytes.writeStaticString("\r\nConnection: close")
        } else if !own.isHTTP11 {
            bytes.writeStaticString("\r\nConnection: keep-alive")
        }
        bytes.writeStaticString("\r\n\r\n")
    }

    /// RateLimit header fields for HTTP (draft-ietf-httpapi-ratelimit-headers-10): what a period has, what is left of it, and
    /// seconds to its end.
    private mutating func write(_ quota: QuotaView) {
        bytes.writeStaticString("\r\nRateLimit-Policy: \"quota\";q=")
        writeDecimal(max(quota.limit, 0))
        bytes.writeStaticString("\r\nRateLimit: \"quota\";r=")
        writeDecimal(max(quota.remaining, 0))
        if let seconds = quota.resetSeconds {
            bytes.writeStaticString(";t=")
            writeDecimal(seconds)
        }
    }

    private mutating func write(_ flow: FlowFields) {
        bytes.writeStaticString("\r\nPandora-Flow: ")
        flow.id.withText { _ = bytes.writeBytes(UnsafeRawBufferPointer($0)) }
        bytes.writeStaticString("\r\nPandora-Flow-State: ")
        bytes.writeString(flow.state)
    }

    private mutating func writeDecimal(_ number: Int64) { bytes.writeDecimal(number) }
}

/// What an answer's header field is to the gateway.
enum AnswerFieldKind {
    case endToEnd, contentLength, quota
    /// Of the upstream's connection alone, or a name that only the gateway uses.
    case dropped

    init(_ name: UnsafeRawBufferPointer) {
        let name = name.assumingMemoryBound(to: UInt8.self)
        self = .endToEnd
        switch name.count {
        case 2: if name.isNamed("te") { self = .dropped }
        case 7: if name.isNamed("upgrade") { self = .dropped }
        case 9: if name.isNamed("ratelimit") { self = .quota }
        case 10: if name.isNamed("connection") || name.isNamed("keep-alive") { self = .dropped }
        case 14: if name.isNamed("content-length") { self = .contentLength }
        case 16:
            if name.isNamed("proxy-connection") {
                self = .dropped
            } else if name.isNamed("ratelimit-policy") {
                self = .quota
            }
        case 17: if name.isNamed("transfer-encoding") { self = .dropped }
        default: break
        }
        if self == .endToEnd, name.count > 8, name[7] == UInt8(ascii: "-") {
            if UnsafeBufferPointer(rebasing: name[..<8]).isNamed("pandora-") { self = .dropped }
        }
    }
}

extension ByteBuffer {
    fileprivate mutating func writeEndToEndFields(of head: TransferHead, hiding hidden: [UInt8]?) {
        head.bytes.withUnsafeBytes { raw in
            for field in head.fields where AnswerFieldKind(UnsafeRawBufferPointer(rebasing: raw[field.name])) == .endToEnd {
                if let hidden, AnswerHead.lowercased(raw[field.name]) == hidden { continue }
                writeField(raw, field)
            }
        }
    }

    fileprivate mutating func writeField(_ raw: UnsafeRawBufferPointer, _ field: HeaderField) {
        writeBytes(UnsafeRawBufferPointer(rebasing: raw[field.name]))
        writeStaticString(": ")
        writeBytes(UnsafeRawBufferPointer(rebasing: raw[field.value]))
        writeStaticString("\r\n")
    }

    mutating func writeDecimal(_ number: Int64) {
        if number >= 0, number < 10 {
            writeInteger(UInt8(ascii: "0") + UInt8(number))
            return
        }
        withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 20) { digits in
            var (rest, index) = (number.magnitude, digits.count)
            repeat {
                index -= 1
                digits[index] = UInt8(ascii: "0") + UInt8(truncatingIfNeeded: rest % 10)
                rest /= 10
            } while rest > 0
            if number < 0 { writeInteger(UInt8(ascii: "-")) }
            writeBytes(UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(digits)[index...]))
        }
    }

    /// The head of a chunk (RFC 9112, 7.1): its length in hexadecimal digits.
    mutating func writeChunkHead(_ length: Int) {
        withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 16) { digits in
            var (rest, index) = (length, digits.count)
            repeat {
                index -= 1
                let digit = UInt8(rest & 15)
                digits[index] = digit < 10 ? 0x30 + digit : 0x57 + digit
                rest >>= 4
            } while rest > 0
            writeBytes(UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(digits)[index...]))
        }
        writeStaticString("\r\n")
    }
}
