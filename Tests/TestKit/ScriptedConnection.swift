import Foundation

extension ScriptedUpstream {
    /// One connection of a scripted upstream, for its script.
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
                while case let chunk = try readChunk(), !chunk.isEmpty { request.body += chunk }
            }
            record(request)
            return request
        }

        /// The next chunk of a body (RFC 9112, 7.1); empty for the last one, whose trailers are dropped.
        public func readChunk() throws -> [UInt8] {
            let size = Int(try readLine().prefix { $0 != ";" }, radix: 16) ?? 0
            guard size > 0 else {
                while try !readLine().isEmpty {}
                return []
            }
            let chunk = try readExactly(size)
            _ = try readLine()
            return chunk
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
                let count = bytes.withUnsafeBytes {
                    Foundation.send(descriptor, $0.baseAddress! + sent, bytes.count - sent, Int32(MSG_NOSIGNAL))
                }
                guard count > 0 else { throw Ended() }
                sent += count
            }
        }

        /// Sends these bytes in pieces with a pause between them.
        public func sendSlowly(_ text: String, piece: Int = 1, pauseSeconds: Double = 0.001) throws {
            let bytes = Array(text.utf8)
            for start in stride(from: 0, to: bytes.count, by: piece) {
                try send(Array(bytes[start..<min(start + piece, bytes.count)]))
                Thread.sleep(forTimeInterval: pauseSeconds)
            }
        }

        /// FIN: nothing more is sent, what comes is still read.
        public func finishSending() { shutdown(descriptor, Int32(SHUT_WR)) }

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
            // In one step: who sees the connection gone may rely on its end being on the way, and nobody shuts down a number
            // that is another's by then.
            state.withLock { state in
                state.open.remove(descriptor)
                Foundation.close(descriptor)
            }
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
