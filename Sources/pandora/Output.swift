import Glibc

/// Where messages and results go.
enum Output {
    /// One line on standard output, at once: who follows a log through a pipe waits for no buffer.
    static func line(_ text: String) {
        if !write(text + "\n", to: STDOUT_FILENO) { exit(1) }
    }

    /// One line on standard error.
    static func error(_ text: String) { _ = write(text + "\n", to: STDERR_FILENO) }

    /// False where nobody reads any more.
    static func write(_ text: String, to descriptor: CInt) -> Bool {
        var bytes = Array(text.utf8)[...]
        while !bytes.isEmpty {
            let count = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress!, $0.count) }
            if count < 0, errno == EINTR { continue }
            if count <= 0 { return false }
            bytes = bytes.dropFirst(count)
        }
        return true
    }
}
