import Foundation

/// An address where connecting takes for ever: its queue is full, so that the kernel drops every further SYN.
public final class SilentListener: Sendable {
    public let port: Int
    private let descriptors: [Int32]

    public init() {
        let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        var filling: [Int32] = []
        withUnsafeMutableBytes(of: &address) { bytes in
            let pointer = bytes.assumingMemoryBound(to: sockaddr.self).baseAddress!
            precondition(bind(listener, pointer, length) == 0 && listen(listener, 0) == 0 && getsockname(listener, pointer, &length) == 0)
            for _ in 0..<4 {
                let filler = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_NONBLOCK.rawValue | SOCK_CLOEXEC.rawValue), 0)
                _ = connect(filler, pointer, length)
                filling.append(filler)
            }
        }
        port = Int(UInt16(bigEndian: address.sin_port))
        descriptors = filling + [listener]
        fillers = filling.count
    }

    private let fillers: Int

    /// Connections to it that this host is trying to make, those that fill its queue left out.
    public func connecting() throws -> Int {
        max(0, try SocketTable.count(.synSent, peerPort: port) - (fillers - 1))
    }

    deinit { for descriptor in descriptors { close(descriptor) } }
}
