internal import Glibc

func lastError() -> String { String(cString: strerror(errno)) }

func isFile(_ path: String) -> Bool { access(path, F_OK) == 0 }

/// Empty when there is no such file.
func readFile(_ path: String) -> String {
    guard let file = fopen(path, "re") else { return "" }
    defer { fclose(file) }
    var bytes: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 65_536)
    while true {
        let count = fread(&buffer, 1, buffer.count, file)
        if count == 0 { break }
        bytes.append(contentsOf: buffer[..<count])
    }
    return String(decoding: bytes, as: UTF8.self)
}

/// Keeps the file's owner and mode.
func writeFile(_ path: String, _ text: String) throws {
    guard let file = fopen(path, "we") else { throw PrivateClusterError("\(path): \(lastError())") }
    let bytes = Array(text.utf8)
    let written = fwrite(bytes, 1, bytes.count, file)
    guard fclose(file) == 0, written == bytes.count else { throw PrivateClusterError("\(path): \(lastError())") }
}

func pause(_ duration: Duration) {
    usleep(useconds_t(duration / .microseconds(1)))
}

/// A GiB for everybody is enough for the clusters of tests.
func hasRoom(_ directory: String) -> Bool {
    var status = statvfs()
    guard access(directory, W_OK) == 0, statvfs(directory, &status) == 0 else { return false }
    return UInt64(status.f_bavail) * UInt64(status.f_frsize) >= 1 << 30
}
