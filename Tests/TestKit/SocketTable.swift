import Foundation

/// The kernel's table of TCP sockets of this network namespace (proc(5), /proc/net/tcp).
///
/// It is made while it is read: an entry may show twice or not at all while others come and go, so ask again until it says
/// what is expected.
public enum SocketTable {
    /// include/net/tcp_states.h
    public enum State: String {
        case established = "01", synSent = "02", closeWait = "08"
    }

    /// Sockets in this state whose peer is this port of 127.0.0.1.
    public static func count(_ state: State, peerPort: Int) throws -> Int {
        // A file of size 0 that is made while it is read: read it as a stream.
        let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: "/proc/self/net/tcp"))
        defer { try? file.close() }
        let table = String(decoding: try file.readToEnd() ?? Data(), as: UTF8.self)
        let remote = "0100007F:" + String(format: "%04X", peerPort)
        return table.split(separator: "\n").count { line in
            let columns = line.split(separator: " ", maxSplits: 4)
            return columns.count > 3 && columns[2] == remote && columns[3] == state.rawValue
        }
    }
}
