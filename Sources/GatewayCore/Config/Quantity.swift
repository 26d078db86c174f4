/// Durations and sizes as they are written in a configuration file: a whole number and a unit, nothing between them.
package enum Quantity {
    static let durationUnits: [(name: String, nanoseconds: Int)] = [
        ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000),
        ("d", 86_400_000_000_000),
    ]
    static let sizeUnits: [(name: String, bytes: Int)] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)]

    /// What is wrong with a text that is no quantity.
    package struct Fault: Error, Equatable { package var message: String }

    package static func duration(_ text: String) throws(Fault) -> Duration {
        let (number, unit) = split(text)
        guard let number else { throw Fault(message: "expected a duration such as 250ms, 10s or 5m, found '\(text)'") }
        if unit.isEmpty { throw Fault(message: "a duration needs a unit; did you mean '\(number)s'?") }
        guard let factor = durationUnits.first(where: { $0.name == unit })?.nanoseconds else {
            throw Fault(message: "'\(unit)' is no unit of time; use us, ms, s, m, h or d")
        }
        let (product, overflow) = number.multipliedReportingOverflow(by: factor)
        if overflow { throw Fault(message: "'\(text)' is too long") }
        return .nanoseconds(product)
    }

    static func size(_ text: String) throws(Fault) -> Int {
        let (number, unit) = split(text)
        guard let number else { throw Fault(message: "expected a size such as 16KiB or 1MiB, found '\(text)'") }
        if unit.isEmpty { throw Fault(message: "a size needs a unit; did you mean '\(number)B'?") }
        guard let factor = sizeUnits.first(where: { $0.name == unit })?.bytes else {
            let binary = sizeUnits.dropFirst().first { $0.name.first?.lowercased() == unit.first?.lowercased() }?.name
            let suggestion = binary.map { "; did you mean '\(number)\($0)'?" } ?? ""
            throw Fault(message: "'\(unit)' is no unit of size; use B, KiB, MiB, GiB or TiB\(suggestion)")
        }
        let (product, overflow) = number.multipliedReportingOverflow(by: factor)
        if overflow { throw Fault(message: "'\(text)' is too large") }
        return product
    }

    private static func split(_ text: String) -> (Int?, String) {
        let digits = text.prefix { $0.isASCII && $0.isNumber }
        return (Int(digits), String(text.dropFirst(digits.count)))
    }

    /// The largest unit that says it with a whole number.
    static func text(_ duration: Duration) -> String {
        let nanoseconds = Int(duration.wholeNanoseconds)
        let unit = durationUnits.last { nanoseconds % $0.nanoseconds == 0 && nanoseconds != 0 } ?? durationUnits[2]
        return "\(nanoseconds / unit.nanoseconds)\(unit.name)"
    }

    static func text(size: Int) -> String {
        let unit = sizeUnits.last { size % $0.bytes == 0 && size != 0 } ?? sizeUnits[0]
        return "\(size / unit.bytes)\(unit.name)"
    }
}
