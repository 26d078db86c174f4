/// Why a path is answered with 400 instead of being matched: a server behind the gateway might read it as another path
/// than the gateway does, and so be reached through a route that does not cover it.
public enum PathFault: Error, Sendable, Equatable, CaseIterable {
    /// Does not begin with `/`.
    case notAbsolute
    /// A `%` without two hexadecimal digits after it.
    case badEscape
    /// `.` or `..` as a segment, also escaped or before a `;`: servers resolve them (RFC 3986, section 5.2.4).
    case dotSegment
    /// `//`: many servers merge slashes.
    case emptySegment
    /// `%2F`, `%5C` or `\`: many servers take them for a `/`.
    case hiddenSlash
    /// A control character, also escaped.
    case controlByte
    /// More than ``Limits/pathSegments``.
    case tooManySegments
}

/// The path of a request target, measured once.
struct RequestPath {
    /// Where the path ends and a query or nothing follows.
    var end = 0
    /// Whether it holds a percent-encoded byte.
    var isEscaped = false
    var segments = 0

    /// Reads `target` up to its query.
    init(_ target: UnsafeRawBufferPointer) throws(PathFault) {
        guard target.first == slash else { throw .notAbsolute }
        var (index, length, dots, parameters) = (1, 0, 0, false)
        segments = 1
        while index < target.count {
            var byte = target[index]
            if byte == questionMark { break }
            if byte == slash {
                if length == 0 { throw .emptySegment }
                if length == dots, dots <= 2 { throw .dotSegment }
                segments += 1
                if segments > Limits.pathSegments { throw .tooManySegments }
                (length, dots, parameters) = (0, 0, false)
                index += 1
                continue
            }
            if byte == percent {
                guard let escaped = target.escapedByte(at: index) else { throw .badEscape }
                if escaped == slash { throw .hiddenSlash }
                (byte, isEscaped) = (escaped, true)
                index += 2
            }
            if byte == backslash { throw .hiddenSlash }
            if byte < 0x20 || byte == 0x7f { throw .controlByte }
            if byte == semicolon { parameters = true }
            // What follows a `;` does not make `..;x` another segment than `..` for servers that drop parameters.
            if !parameters {
                length += 1
                if byte == dot { dots += 1 }
            } else if length == 0 {
                throw .emptySegment
            }
            index += 1
        }
        if length > 0, length == dots, dots <= 2 { throw .dotSegment }
        end = index
    }
}

extension RequestPath {
    /// Whether a route could be reached by `path` at all.
    static func check(_ path: [UInt8]) throws(PathFault) {
        let fault: PathFault? = path.withUnsafeBytes { bytes in
            do throws(PathFault) { _ = try RequestPath(bytes) } catch { return error }
            return nil
        }
        if let fault { throw fault }
    }
}

extension UnsafeRawBufferPointer {
    /// The byte that the escape at `index` stands for.
    func escapedByte(at index: Int) -> UInt8? {
        guard index + 2 < count, let high = self[index + 1].hexDigit, let low = self[index + 2].hexDigit else { return nil }
        return high << 4 | low
    }

    /// The bytes with their percent-encoding undone; what is no escape stays.
    func percentDecoded(_ range: Range<Int>) -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: range.count) { output, written in
            var index = range.lowerBound
            while index < range.upperBound {
                if self[index] == percent, index + 2 < range.upperBound, let byte = escapedByte(at: index) {
                    output[written] = byte
                    index += 3
                } else {
                    output[written] = self[index]
                    index += 1
                }
                written += 1
            }
        }
    }
}

extension UInt8 {
    var hexDigit: UInt8? {
        switch self {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): self - UInt8(ascii: "0")
        case UInt8(ascii: "a")...UInt8(ascii: "f"): self - UInt8(ascii: "a") + 10
        case UInt8(ascii: "A")...UInt8(ascii: "F"): self - UInt8(ascii: "A") + 10
        default: nil
        }
    }

    /// ASCII upper case made lower case.
    var folded: UInt8 { self >= 0x41 && self <= 0x5a ? self | 0x20 : self }
}

let slash = UInt8(ascii: "/")
let backslash = UInt8(ascii: "\\")
let questionMark = UInt8(ascii: "?")
let percent = UInt8(ascii: "%")
let semicolon = UInt8(ascii: ";")
let dot = UInt8(ascii: ".")
