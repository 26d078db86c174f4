/// Renders refusals as problem details (RFC 9457), from pieces made once.
///
/// `{"type":"urn:pandora:problem:key-invalid","title":…,"status":401,"detail":…,"code":"KEY_INVALID","request_id":"req_…"}`
public enum Problem {
    public static let contentType: StaticString = "application/problem+json"
    /// For `WWW-Authenticate`, which a 401 must carry (RFC 9110, section 15.5.2).
    public static let challenge: StaticString = "Bearer realm=\"pandora\""

    /// Everything up to the members that differ, by raw value.
    private static let pieces: [[UInt8]] = (0...UInt8.max).map { Refusal(rawValue: $0).map(head) ?? [] }

    /// Appends the JSON text of a refusal.
    ///
    /// - Parameters:
    ///   - requestID: member `request_id`, left out where no id was given yet.
    ///   - retryAfter: member `retry_after`, in seconds, as in the header field.
    ///   - reason: what exactly was wrong, as member `reason`; any text, escaped and cut to 200 bytes.
    public static func append(
        _ refusal: Refusal, requestID: RequestID?, retryAfter: Int64? = nil, reason: String? = nil, to bytes: inout [UInt8]
    ) {
        bytes.append(contentsOf: pieces[Int(refusal.rawValue)])
        if let retryAfter {
            bytes.append(static: ",\"retry_after\":")
            bytes.append(decimal: retryAfter)
        }
        if let reason {
            bytes.append(static: ",\"reason\":\"")
            bytes.append(jsonEscaped: HopText(reason, limit: 200).text)
            bytes.append(UInt8(ascii: "\""))
        }
        if let requestID {
            bytes.append(static: ",\"request_id\":\"")
            requestID.append(to: &bytes)
            bytes.append(UInt8(ascii: "\""))
        }
        bytes.append(UInt8(ascii: "}"))
    }

    private static func head(_ refusal: Refusal) -> [UInt8] {
        var bytes: [UInt8] = []
        let about = refusal.about
        bytes.append(static: "{\"type\":\"urn:pandora:problem:")
        // Codes are upper-case ASCII with underscores.
        for byte in UnsafeBufferPointer(start: about.code.utf8Start, count: about.code.utf8CodeUnitCount) {
            bytes.append(byte == UInt8(ascii: "_") ? UInt8(ascii: "-") : byte | 0x20)
        }
        bytes.append(static: "\",\"title\":\"")
        bytes.append(jsonEscaped: String(describing: about.title))
        bytes.append(static: "\",\"status\":")
        bytes.append(decimal: Int64(about.status))
        bytes.append(static: ",\"detail\":\"")
        bytes.append(jsonEscaped: String(describing: about.detail))
        bytes.append(static: "\",\"code\":\"")
        bytes.append(static: about.code)
        bytes.append(UInt8(ascii: "\""))
        return bytes
    }
}

extension [UInt8] {
    package mutating func append(static text: StaticString) {
        append(contentsOf: UnsafeBufferPointer(start: text.utf8Start, count: text.utf8CodeUnitCount))
    }

    package mutating func append(decimal number: Int64) {
        var rest = number.magnitude
        if number < 0 { append(UInt8(ascii: "-")) }
        let start = count
        repeat {
            append(UInt8(ascii: "0") + UInt8(truncatingIfNeeded: rest % 10))
            rest /= 10
        } while rest > 0
        self[start...].reverse()
    }

    /// Escapes what JSON does not take in a string (RFC 8259, section 7), and DEL.
    package mutating func append(jsonEscaped text: String) {
        for byte in text.utf8 {
            switch byte {
            case 0x22, 0x5c: append(contentsOf: [0x5c, byte])
            case 0x0a: append(static: "\\n")
            case 0x0d: append(static: "\\r")
            case 0x09: append(static: "\\t")
            case 0..<0x20, 0x7f:
                append(static: "\\u00")
                append(hex: byte >> 4)
                append(hex: byte & 15)
            default: append(byte)
            }
        }
    }

    mutating func append(hex digit: UInt8) { append(digit < 10 ? 0x30 + digit : 0x57 + digit) }
}
