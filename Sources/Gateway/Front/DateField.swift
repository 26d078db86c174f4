internal import Glibc

/// The value of `Date` (RFC 9110, 5.6.7), formatted once a second.
struct DateField {
    private var second: Int64 = .min
    private var text: [UInt8] = []

    /// - Parameter second: since 1970.
    mutating func value(at second: Int64) -> [UInt8] {
        guard second != self.second else { return text }
        self.second = second
        var time = time_t(second)
        var parts = tm()
        gmtime_r(&time, &parts)
        var buffer = [CChar](repeating: 0, count: 64)
        // The process never leaves the "C" locale, so the names of days and months are English.
        let length = strftime(&buffer, buffer.count, "%a, %d %b %Y %H:%M:%S GMT", &parts)
        text = buffer[..<length].map { UInt8(bitPattern: $0) }
        return text
    }
}
