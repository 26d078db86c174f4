import ArgumentParser
import GatewayCore
import GatewayStore
import Glibc

/// Moments as people write and read them, always in UTC. Numbers are microseconds since 1970.
enum Moment {
    /// `2026-11-24T22:46:01.123456Z`
    static func iso(_ moment: Int64) -> String { text(moment, separator: "T", digits: 6) }

    /// `2026-11-24 22:46:01Z`, with milliseconds if wanted.
    static func table(_ moment: Int64, milliseconds: Bool = false) -> String {
        text(moment, separator: " ", digits: milliseconds ? 3 : 0)
    }

    private static func text(_ moment: Int64, separator: String, digits: Int) -> String {
        if moment == .max { return "infinity" }
        if moment == .min { return "-infinity" }
        var fraction = moment % 1_000_000
        if fraction < 0 { fraction += 1_000_000 }
        var seconds = time_t((moment - fraction) / 1_000_000)
        var parts = tm()
        gmtime_r(&seconds, &parts)
        let date = [Int(parts.tm_year) + 1900, Int(parts.tm_mon) + 1, Int(parts.tm_mday)]
        let time = [parts.tm_hour, parts.tm_min, parts.tm_sec].map { padded(Int($0), 2) }.joined(separator: ":")
        let fractionText = digits == 0 ? "" : "." + padded(Int(fraction), 6).prefix(digits)
        return "\(padded(date[0], 4))-\(padded(date[1], 2))-\(padded(date[2], 2))\(separator)\(time)\(fractionText)Z"
    }

    private static func padded(_ number: Int, _ width: Int) -> String {
        let text = String(number)
        return String(repeating: "0", count: max(width - text.count, 0)) + text
    }

    /// `2027-01-31`, `2027-01-31T18:00`, `2027-01-31 18:00:30Z`: UTC; nil for anything else.
    static func parse(_ text: String) -> Int64? {
        let halves = text.split(maxSplits: 1, omittingEmptySubsequences: false) { $0 == "T" || $0 == " " }
        guard let date = numbers(halves[0], "-", widths: [4, 2, 2]) else { return nil }
        var time = [0, 0, 0]
        if halves.count == 2 {
            let clock = halves[1].hasSuffix("Z") ? halves[1].dropLast() : halves[1]
            guard let found = numbers(clock, ":", widths: [2, 2, 2]) ?? numbers(clock, ":", widths: [2, 2]) else { return nil }
            time = found.count == 2 ? found + [0] : found
        }
        var parts = tm()
        (parts.tm_year, parts.tm_mon, parts.tm_mday) = (CInt(date[0] - 1900), CInt(date[1] - 1), CInt(date[2]))
        (parts.tm_hour, parts.tm_min, parts.tm_sec) = (CInt(time[0]), CInt(time[1]), CInt(time[2]))
        let asked = parts
        let seconds = timegm(&parts)
        // timegm carries 31 February on into March.
        guard parts.tm_mday == asked.tm_mday, parts.tm_mon == asked.tm_mon, parts.tm_hour == asked.tm_hour,
            parts.tm_min == asked.tm_min, parts.tm_sec == asked.tm_sec
        else { return nil }
        return Int64(seconds) * 1_000_000
    }

    private static func numbers(_ text: Substring, _ separator: Character, widths: [Int]) -> [Int]? {
        let parts = text.split(separator: separator, omittingEmptySubsequences: false)
        guard parts.count == widths.count else { return nil }
        var numbers: [Int] = []
        for (part, width) in zip(parts, widths) {
            guard part.utf8.count == width, part.utf8.allSatisfy({ (0x30...0x39).contains($0) }), let number = Int(part) else { return nil }
            numbers.append(number)
        }
        return numbers
    }

    /// Now, by this machine's clock.
    static var now: Int64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return Int64(time.tv_sec) * 1_000_000 + Int64(time.tv_nsec) / 1_000
    }

    // MARK: Options

    /// `24h`, in microseconds.
    static func duration(_ text: String) throws -> Int64 {
        do throws(Quantity.Fault) {
            return try Quantity.duration(text).wholeMicroseconds
        } catch {
            throw ValidationError(error.message)
        }
    }

    /// `30d`, `2027-01-31`, `never`.
    static func expiry(_ text: String) throws -> KeyExpiry {
        if text == "never" { return .never }
        if let moment = parse(text) { return .at(moment) }
        guard let duration = try? duration(text) else {
            throw ValidationError("expected 30d, 2027-01-31, 2027-01-31T18:00 (UTC) or never, found '\(text)'")
        }
        return .after(duration)
    }
}
