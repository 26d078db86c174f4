internal import Glibc

/// Puts the lines that libcurl hands over together to heads, and refuses what must not be handed on (RFC 9112, 2.2 to 5): a
/// line that we read one way and the client another is how answers are smuggled.
struct HeadParser {
    enum Step {
        case more
        /// 1xx other than 100, which nobody asked for.
        case informational(TransferHead)
        case final(TransferHead)
        case refused(Refusal)
    }

    enum Refusal: String {
        case tooLarge = "the head is larger than the limit"
        case statusLine = "the status line is malformed"
        case field = "a header field is malformed"
        case framing = "the framing fields contradict each other"
        case switching = "the upstream changed the protocol unasked"
        case otherProtocol = "the upstream changed to another protocol than was asked for"
    }

    private let bytesMax: Int
    /// The protocol that the request asked to change to, in lower case.
    private let upgrade: StaticString?
    private var bytes = 0
    private var head = TransferHead()
    private(set) var isFinished = false
    /// The fields after a chunked body, when there were any.
    private(set) var trailers: TransferHead?

    init(bytesMax: Int, upgrade: StaticString? = nil) { (self.bytesMax, self.upgrade) = (bytesMax, upgrade) }

    /// - line: one line with its line end, or the empty one that ends a head. Every head begins with its status line; after
    ///   the final head come the trailers.
    mutating func take(_ line: UnsafeRawBufferPointer) -> Step {
        bytes += line.count
        guard bytes <= bytesMax else { return .refused(.tooLarge) }
        let content = HeadParser.withoutEnd(line)
        if isFinished { return takeTrailer(content) }
        if content.isEmpty { return endOfHead() }
        if head.bytes.isEmpty { return head.takeStatusLine(content) ? .more : .refused(.statusLine) }
        return head.takeField(content) ? .more : .refused(.field)
    }

    private mutating func takeTrailer(_ content: UnsafeRawBufferPointer) -> Step {
        guard !content.isEmpty else { return .more }
        var fields = trailers ?? TransferHead()
        trailers = nil
        guard fields.takeField(content) else { return .refused(.field) }
        trailers = fields
        return .more
    }

    private mutating func endOfHead() -> Step {
        let complete = head
        head = TransferHead()
        switch complete.status {
        case 0: return .refused(.statusLine)
        case 100: return .more
        case 101:
            guard let upgrade else { return .refused(.switching) }
            guard complete.fields.contains(where: { complete.isNamed($0, "upgrade") && complete.hasValue($0, upgrade) }) else {
                return .refused(.otherProtocol)
            }
            isFinished = true
            return .final(complete)
        case 102..<200: return .informational(complete)
        default:
            guard complete.isFramedOnce else { return .refused(.framing) }
            isFinished = true
            return .final(complete)
        }
    }

    private static func withoutEnd(_ line: UnsafeRawBufferPointer) -> UnsafeRawBufferPointer {
        var count = line.count
        if count > 0, line[count - 1] == UInt8(ascii: "\n") { count -= 1 }
        if count > 0, line[count - 1] == UInt8(ascii: "\r") { count -= 1 }
        return UnsafeRawBufferPointer(rebasing: line[..<count])
    }
}

extension TransferHead {
    /// `HTTP/1.1 200 OK`, the reason optional (RFC 9112, 4).
    fileprivate mutating func takeStatusLine(_ line: UnsafeRawBufferPointer) -> Bool {
        // libcurl has looked at the version of its own answers; a tunnel's nobody else has.
        guard line.starts(with: "HTTP/1.".utf8), let space = line.firstIndex(of: UInt8(ascii: " ")), space == 8, isDigit(line[7]),
            line.count >= space + 4, !line.holdsControl
        else { return false }
        var code = 0
        for index in (space + 1)...(space + 3) {
            guard isDigit(line[index]) else { return false }
            code = code * 10 + Int(line[index] - UInt8(ascii: "0"))
        }
        guard code >= 100, line.count == space + 4 || line[space + 4] == UInt8(ascii: " ") else { return false }
        status = code
        bytes.reserveCapacity(512)
        fields.reserveCapacity(16)
        bytes.append(contentsOf: line)
        reason = min(space + 5, line.count)..<line.count
        return true
    }

    /// `Name: value`. White space before the colon and folded lines are refused: they are what parsers disagree about (RFC
    /// 9112, 5.1 and 5.2).
    fileprivate mutating func takeField(_ line: UnsafeRawBufferPointer) -> Bool {
        guard let colon = line.firstIndex(of: UInt8(ascii: ":")), colon > 0, !line.holdsControl else { return false }
        guard line[..<colon].allSatisfy(isTokenByte) else { return false }
        var from = colon + 1
        var to = line.count
        while from < to, isBlank(line[from]) { from += 1 }
        while to > from, isBlank(line[to - 1]) { to -= 1 }
        let base = bytes.count
        bytes.append(contentsOf: line)
        fields.append(HeaderField(name: base..<(base + colon), value: (base + from)..<(base + to)))
        return true
    }

    /// At most one length, of digits only, and not beside a transfer coding (RFC 9112, 6.3).
    fileprivate var isFramedOnce: Bool {
        var length: ArraySlice<UInt8>?
        var isCoded = false
        for field in fields {
            if isNamed(field, "content-length") {
                let value = bytes[field.value]
                guard !value.isEmpty, value.allSatisfy(isDigit), length.map({ $0.elementsEqual(value) }) ?? true else { return false }
                length = value
            } else if isNamed(field, "transfer-encoding") {
                isCoded = true
            }
        }
        return length == nil || !isCoded
    }
}

extension UnsafeRawBufferPointer {
    /// CR, LF or NUL within a line.
    fileprivate var holdsControl: Bool { contains { $0 == 0 || $0 == 10 || $0 == 13 } }
}

private func isDigit(_ byte: UInt8) -> Bool { byte >= UInt8(ascii: "0") && byte <= UInt8(ascii: "9") }

private func isBlank(_ byte: UInt8) -> Bool { byte == UInt8(ascii: " ") || byte == UInt8(ascii: "\t") }

/// `tchar` of RFC 9110, 5.6.2: letters, digits and ``!#$%&'*+-.^_`|~``, as one bit for each byte below 128.
func isTokenByte(_ byte: UInt8) -> Bool {
    let bits: UInt64 = byte < 64 ? 0x03ff_6cfa_0000_0000 : byte < 128 ? 0x57ff_ffff_c7ff_fffe : 0
    return bits >> UInt64(byte & 63) & 1 == 1
}
