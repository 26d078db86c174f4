import CLinux
import Foundation
import NIOCore
import TestKit

/// The other end of a connection: a plain blocking socket in the hands of a test.
final class Peer: Sendable {
    private let descriptor: Int32
    private let isOpen = Locked(true)

    private let port: Int

    /// Connects, which the kernel does without waiting for the listener.
    convenience init(port: Int, receiveBuffer: Int32? = nil) throws {
        try self.init(unconnectedTo: port)
        if let receiveBuffer { _ = clinux_set_option(descriptor, SOL_SOCKET, SO_RCVBUF, receiveBuffer) }
        try connect()
    }

    /// `connect` follows.
    init(unconnectedTo port: Int) throws {
        self.port = port
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw POSIXError(POSIXErrorCode(rawValue: errno) ?? .EIO) }
    }

    func connect() throws {
        let status = try SocketAddress(ipAddress: "127.0.0.1", port: port).withSockAddr {
            Foundation.connect(descriptor, $0, socklen_t($1))
        }
        guard status == 0 else { throw POSIXError(POSIXErrorCode(rawValue: errno) ?? .EIO) }
    }

    deinit { close() }

    func send(_ text: String) throws { try send(Array(text.utf8)) }

    func send(_ bytes: [UInt8]) throws {
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes {
                Foundation.send(descriptor, $0.baseAddress! + sent, bytes.count - sent, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { throw POSIXError(POSIXErrorCode(rawValue: errno) ?? .EIO) }
            sent += count
        }
    }

    /// What comes until the connection ends; a reset is an end, too.
    func receiveAll() async throws -> [UInt8] { try await receive(.max) }

    /// Waits for this many bytes, or fewer at the end.
    func receive(_ count: Int) async throws -> [UInt8] {
        try await offTheCooperativePool { [descriptor] in
            var all: [UInt8] = []
            var piece = [UInt8](repeating: 0, count: 65_536)
            while all.count < count {
                let received = recv(descriptor, &piece, min(piece.count, count - all.count), 0)
                guard received > 0 else { break }
                all += piece[..<received]
            }
            return all
        }
    }

    func text(_ count: Int) async throws -> String { String(decoding: try await receive(count), as: UTF8.self) }

    /// FIN; the other direction stays open.
    func finishSending() { shutdown(descriptor, Int32(SHUT_WR)) }

    /// RST instead of FIN.
    func reset() {
        var linger = linger(l_onoff: 1, l_linger: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_LINGER, &linger, socklen_t(MemoryLayout<Foundation.linger>.size))
        close()
    }

    func close() {
        isOpen.withLock { isOpen in
            if isOpen { Foundation.close(descriptor) }
            isOpen = false
        }
    }
}

/// Two connected descriptors for `watch`; closed with the pair.
final class DescriptorPair: Sendable {
    let ours: Int32
    let theirs: Int32

    init() throws {
        var ends: [Int32] = [0, 0]
        let kind = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        guard socketpair(AF_UNIX, kind, 0, &ends) == 0 else { throw POSIXError(.EIO) }
        (ours, theirs) = (ends[0], ends[1])
    }

    deinit {
        close(ours)
        close(theirs)
    }

    func write(_ text: String = "x") { _ = text.withCString { Foundation.write(theirs, $0, strlen($0)) } }
    /// What waits on our end.
    func drain() -> String {
        var bytes = [UInt8](repeating: 0, count: 1_000)
        let count = read(ours, &bytes, bytes.count)
        return String(decoding: bytes[..<max(0, count)], as: UTF8.self)
    }
}
