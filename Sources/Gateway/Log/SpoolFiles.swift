internal import Glibc

/// A call on a file failed.
public struct FileError: Error, CustomStringConvertible {
    public var call: String
    public var path: String
    public var code: CInt

    public var description: String { "\(call) \(path): \(String(cString: strerror(code)))" }

    /// What the last call on this thread left in errno.
    static func last(_ call: String, _ path: String) -> FileError { FileError(call: call, path: path, code: errno) }
}

/// An open file; closed with its last reference.
final class FileDescriptor: Sendable {
    let number: CInt
    let path: String

    init(_ path: String, flags: CInt, mode: mode_t = 0o600) throws(FileError) {
        number = Glibc.open(path, flags | O_CLOEXEC, mode)
        self.path = path
        if number < 0 { throw .last("open", path) }
    }

    deinit { if number >= 0 { Glibc.close(number) } }

    /// Writes all of it, however often the kernel takes only a part.
    func write(_ bytes: UnsafeRawBufferPointer, at offset: Int64) throws(FileError) {
        var done = 0
        while done < bytes.count {
            let count = pwrite(number, bytes.baseAddress! + done, bytes.count - done, off_t(offset) + off_t(done))
            if count < 0 {
                if errno == EINTR { continue }
                throw .last("pwrite", path)
            }
            done += count
        }
    }

    /// Reads until the buffer is full or the file ends.
    ///
    /// - Returns: how many bytes were read.
    func read(into bytes: UnsafeMutableRawBufferPointer, at offset: Int64) throws(FileError) -> Int {
        var done = 0
        while done < bytes.count {
            let count = pread(number, bytes.baseAddress! + done, bytes.count - done, off_t(offset) + off_t(done))
            if count < 0 {
                if errno == EINTR { continue }
                throw .last("pread", path)
            }
            if count == 0 { break }
            done += count
        }
        return done
    }

    var size: Int64 {
        var status = stat()
        return fstat(number, &status) == 0 ? Int64(status.st_size) : 0
    }

    func truncate(to size: Int64) throws(FileError) {
        if ftruncate(number, off_t(size)) != 0 { throw .last("ftruncate", path) }
    }

    /// Blocks of the disk for the first `size` bytes, so that writing there cannot fail for want of room.
    func allocate(_ size: Int64) throws(FileError) {
        let code = posix_fallocate(number, 0, off_t(size))
        if code != 0 { throw FileError(call: "posix_fallocate", path: path, code: code) }
    }

    func syncData() throws(FileError) { if fdatasync(number) != 0 { throw .last("fdatasync", path) } }

    /// False where another open file holds the lock.
    func lock() -> Bool { flock(number, LOCK_EX | LOCK_NB) == 0 }
}

/// What spools ask of directories.
enum Directory {
    static func create(_ path: String) throws(FileError) {
        if mkdir(path, 0o700) != 0, errno != EEXIST { throw .last("mkdir", path) }
    }

    /// Names in it, sorted, without `.` and `..`.
    static func names(_ path: String) throws(FileError) -> [String] {
        guard let stream = opendir(path) else { throw .last("opendir", path) }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names.sorted()
    }

    static func rename(_ from: String, _ to: String) throws(FileError) {
        if Glibc.rename(from, to) != 0 { throw .last("rename", to) }
    }

    static func remove(_ path: String) { unlink(path) }

    /// Nothing happens where something is in it.
    static func removeEmpty(_ path: String) { rmdir(path) }

    /// What was created or renamed in it survives the death of the host.
    static func sync(_ path: String) throws(FileError) {
        let directory = try FileDescriptor(path, flags: O_RDONLY | O_DIRECTORY)
        if fsync(directory.number) != 0 { throw .last("fsync", path) }
    }
}
