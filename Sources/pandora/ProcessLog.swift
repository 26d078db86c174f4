import Gateway
import GatewayCore
import Glibc
import Logging

/// The process's own messages: one line each on standard error, as JSON or as text for people.
struct ProcessLog: LogHandler {
    var metadata: Logger.Metadata = [:]
    var logLevel: Logger.Level
    private let format: LogSettings.Format

    static func logger(_ settings: LogSettings) -> Logger {
        Logger(label: "pandora") { _ in
            ProcessLog(logLevel: Logger.Level(rawValue: settings.level.rawValue) ?? .info, format: settings.format)
        }
    }

    private init(logLevel: Logger.Level, format: LogSettings.Format) { (self.logLevel, self.format) = (logLevel, format) }

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        let all = event.metadata.map { metadata.merging($0) { $1 } } ?? metadata
        let pairs = all.sorted { $0.key < $1.key }.map { ($0.key, "\($0.value)") }
        var line = ""
        switch format {
        case .json:
            let fields = [("time", Self.time), ("level", event.level.rawValue), ("message", "\(event.message)")] + pairs
            line = "{" + fields.map { "\(Self.quoted($0.0)):\(Self.quoted($0.1))" }.joined(separator: ",") + "}"
        case .text:
            line = "\(Self.time) \(event.level.rawValue.uppercased()) \(event.message)"
            for (name, value) in pairs { line += " \(name)=\(Self.quoted(value))" }
        }
        Output.error(line)
    }

    /// RFC 3339, UTC, with milliseconds.
    private static var time: String {
        let now = WallClock.microseconds
        var seconds = time_t(now / 1_000_000)
        var parts = tm()
        gmtime_r(&seconds, &parts)
        var buffer = [CChar](repeating: 0, count: 32)
        let length = strftime(&buffer, buffer.count, "%Y-%m-%dT%H:%M:%S", &parts)
        let milliseconds = String(1_000 + now / 1_000 % 1_000).dropFirst()
        return String(decoding: buffer[..<length].map(UInt8.init(bitPattern:)), as: UTF8.self) + ".\(milliseconds)Z"
    }

    /// A JSON string (RFC 8259, 7).
    static func quoted(_ text: String) -> String {
        var result = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"", "\\": result += "\\\(scalar)"
            case "\n": result += "\\n"
            case let scalar where scalar.value < 0x20 || scalar.value == 0x7f:
                let digits = String(scalar.value, radix: 16)
                result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result + "\""
    }
}

extension Logger {
    func log(_ event: NodeEvent) { log(level: event.level, event.message, metadata: event.metadata) }
}
