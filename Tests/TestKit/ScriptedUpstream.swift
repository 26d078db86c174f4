internal import CLinux
import Foundation

/// A service on a plain socket that does exactly what its script says, one thread per connection, and records every request
/// that it read. `misbehave` is the script: it gets each connection and how many there were before it.
///
/// Scripts for every kind of misbehaviour are a line or two:
///
///     ScriptedUpstream { try $0.waitForEnd() }                          // never answers
///     ScriptedUpstream { _ = try $0.readRequest(); $0.reset() }         // RST instead of an answer
///     ScriptedUpstream.answering(body: "hello")                         // behaves
///     ScriptedUpstream { c in                                           // dies within the body
///         _ = try c.readRequest()
///         try c.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123")
///     }
public final class ScriptedUpstream: Sendable {
    public struct Request: Sendable {
        /// Which connection it came on, counted from 0.
        public var connection: Int
        /// The head as it was on the wire, with its empty line.
        public var head: [UInt8]
        public var body: [UInt8]

        public var lines: [String] { String(decoding: head, as: UTF8.self).components(separatedBy: "\r\n").filter { !$0.isEmpty } }
        public var requestLine: String { lines.first ?? "" }
        /// The values of a field, in order.
        public func values(of name: String) -> [String] {
            lines.dropFirst().compactMap { line in
                let parts = line.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
                guard parts.count == 2, parts[0].lowercased() == name.lowercased() else { return nil }
                return parts[1].trimmingCharacters(in: .whitespaces)
            }
        }
    }

    public let port: Int
    private let listener: Int32
    private let state: Locked<State>

    struct State {
        var requests: [Request] = []
        var connections = 0
        var open: Set<Int32> = []
        var isClosed = false
    }

    /// Everything that was read so far.
    public var requests: [Request] { state.withLock { $0.requests } }
    /// Connections accepted so far.
    public var connections: Int { state.withLock { $0.connections } }
    /// Connections that neither side's end has closed yet.
    public var openConnections: Int { state.withLock { $0.open.count } }

    public init(_ misbehave: @escaping @Sendable (Connection) throws -> Void) {
        // Close-on-exec, as is every connection: a server that a test starts meanwhile would keep it open.
        let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        precondition(listener >= 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let bound = withUnsafeMutableBytes(of: &address) { bytes in
            let pointer = bytes.assumingMemoryBound(to: sockaddr.self).baseAddress!
            return bind(listener, pointer, length) == 0 && listen(listener, 1024) == 0 && getsockname(listener, pointer, &length) == 0
        }
        precondition(bound, "no port on the loopback")
        let state = Locked(State())
        (self.listener, self.state, port) = (listener, state, Int(UInt16(bigEndian: address.sin_port)))
        Thread.detachNewThread {
            while let connection = ScriptedUpstream.nextConnection(listener, state) {
                Thread.detachNewThread {
                    try? misbehave(connection.value)
                    connection.value.close()
                }
            }
            // Only here: a number that was closed while this thread accepts might be another upstream's listener by then.
            Foundation.close(listener)
        }
    }

    /// Carries a connection from the accepting thread to its own.
    private struct Accepted: @unchecked Sendable { let value: Connection }

    /// nil when the upstream is closed.
    private static func nextConnection(_ listener: Int32, _ state: Locked<State>) -> Accepted? {
        while true {
            let descriptor = clinux_accept(listener, nil, nil)
            let number = state.withLock { state -> Int? in
                guard !state.isClosed, descriptor >= 0 else { return nil }
                state.open.insert(descriptor)
                defer { state.connections += 1 }
                return state.connections
            }
            if let number {
                // A script's calls block.
                _ = fcntl(descriptor, F_SETFL, 0)
                return Accepted(value: Connection(descriptor: descriptor, number: number, state: state))
            }
            if descriptor >= 0 { Foundation.close(descriptor) }
            if state.withLock({ $0.isClosed }) { return nil }
            // ECONNABORTED, or the process is short of descriptors for a moment.
            usleep(1_000)
        }
    }

    /// Answers every request on kept connections with what `answer` makes of it (status line, fields and body).
    public static func answering(_ answer: @escaping @Sendable (Request) -> String) -> ScriptedUpstream {
        ScriptedUpstream { connection in
            while let request = try connection.readRequest() { try connection.send(answer(request)) }
        }
    }

    /// 200 with this body, kept alive.
    public static func answering(body: String) -> ScriptedUpstream {
        answering { _ in "HTTP/1.1 200 OK\r\nContent-Length: \(body.utf8.count)\r\n\r\n\(body)" }
    }

    /// Stops accepting and ends every connection.
    public func close() {
        state.withLock { state in
            guard !state.isClosed else { return }
            state.isClosed = true
            shutdown(listener, Int32(SHUT_RDWR))
            for descriptor in state.open { shutdown(descriptor, Int32(SHUT_RDWR)) }
        }
    }
}
