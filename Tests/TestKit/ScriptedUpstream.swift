import Foundation

/// A service on a plain socket that does exactly what its script says, one thread per connection, and records every request
/// that it read. `misbehave` is the script: it gets each connection and how many there were before it.
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
    }

    /// Everything that was read so far.
    public var requests: [Request] { state.withLock { $0.requests } }
    /// Connections accepted so far.
    public var connections: Int { state.withLock { $0.connections } }

    public init(_ misbehave: @escaping @Sendable (Connection) throws -> Void) {
        let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
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
            while true {
                let descriptor = accept(listener, nil, nil)
                guard descriptor >= 0 else { return }
                let number = state.withLock { state -> Int in
                    state.open.insert(descriptor)
                    defer { state.connections += 1 }
                    return state.connections
                }
                Thread.detachNewThread {
                    let connection = Connection(descriptor: descriptor, number: number, state: state)
                    try? misbehave(connection)
                    connection.close()
                }
            }
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
        shutdown(listener, Int32(SHUT_RDWR))
        Foundation.close(listener)
        state.withLock { for descriptor in $0.open { shutdown(descriptor, Int32(SHUT_RDWR)) } }
    }

    public final class Connection {
        private let descriptor: Int32
        /// Connections that came before.
        public let number: Int
        private let state: Locked<State>
        private var buffered: [UInt8] = []
        private var isClosed = false

        init(descriptor: Int32, number: Int, state: Locked<State>) {
            (self.descriptor, self.number, self.state) = (descriptor, number, state)
        }

        /// The next request with its body (Content-Length or chunked, decoded); nil at the end of the connection.
        public func readRequest() throws -> Request? {
            guard var request = try readHead() else { return nil }
            if let length = request.values(of: "content-length").first.flatMap({ Int($0) }) {
                request.body = try readExactly(length)
            } else if request.values(of: "transfer-encoding").contains("chunked") {
                while true {
                    let size = Int(try readLine(), radix: 16) ?? 0
                    if size > 0 { request.body += try readExactly(size) }
                    if size == 0 {
                        while try !readLine().isEmpty {}
                        break
                    }
                    _ = try readLine()
                }
            }
            record(request)
            return request
        }

        /// The next head alone; its body stays on the wire.
        public func readHead() throws -> Request? {
            let end: [UInt8] = [13, 10, 13, 10]
            while true {
                if let position = buffered.firstRange(of: end) {
                    let head = Array(buffered[..<position.upperBound])
                    buffered.removeFirst(head.count)
                    return Request(connection: number, head: head, body: [])
                }
                guard try fill() else { return nil }
            }
        }

        public func record(_ request: Request) { state.withLock { $0.requests.append(request) } }

        /// At most this many bytes of whatever comes; empty at the end.
        public func read(_ count: Int) throws -> [UInt8] {
            if buffered.isEmpty { _ = try fill() }
            let taken = Array(buffered.prefix(count))
            buffered.removeFirst(taken.count)
            return taken
        }

        public func send(_ text: String) throws { try send(Array(text.utf8)) }

        public func send(_ bytes: [UInt8]) throws {
            var sent = 0
            while sent < bytes.count {
                let count = bytes.withUnsafeBytes { Foundation.send(descriptor, $0.baseAddress! + sent, bytes.count - sent, Int32(MSG_NOSIGNAL)) }
                guard count > 0 else { throw Ended() }
                sent += count
            }
        }

        /// Waits until the peer is gone.
        public func waitForEnd() throws { while try fill() { buffered.removeAll() } }

        /// RST instead of FIN.
        public func reset() {
            var linger = linger(l_onoff: 1, l_linger: 0)
            setsockopt(descriptor, SOL_SOCKET, SO_LINGER, &linger, socklen_t(MemoryLayout<Foundation.linger>.size))
            close()
        }

        public func close() {
            guard !isClosed else { return }
            isClosed = true
            state.withLock { _ = $0.open.remove(descriptor) }
            Foundation.close(descriptor)
        }

        public struct Ended: Error {}

        private func fill() throws -> Bool {
            var chunk = [UInt8](repeating: 0, count: 65_536)
            let count = recv(descriptor, &chunk, chunk.count, 0)
            guard count > 0 else { return false }
            buffered += chunk[..<count]
            return true
        }

        private func readExactly(_ count: Int) throws -> [UInt8] {
            while buffered.count < count { guard try fill() else { throw Ended() } }
            defer { buffered.removeFirst(count) }
            return Array(buffered[..<count])
        }

        private func readLine() throws -> String {
            while true {
                if let position = buffered.firstRange(of: [13, 10]) {
                    let line = String(decoding: buffered[..<position.lowerBound], as: UTF8.self)
                    buffered.removeFirst(position.upperBound)
                    return line
                }
                guard try fill() else { throw Ended() }
            }
        }
    }
}

/// A value behind a lock, for what tests share between threads.
public final class Locked<Value>: @unchecked Sendable {
    // Sendable because the value is only ever reached with the lock held.
    private let lock = NSLock()
    private var value: Value

    public init(_ value: Value) { self.value = value }

    public func withLock<Result>(_ body: (inout Value) throws -> Result) rethrows -> Result {
        lock.lock()
        defer { lock.unlock() }
        return try body(&value)
    }
}
