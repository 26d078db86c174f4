internal import CLinux
internal import Glibc

/// A shell that does something when we say so or when we die, by whatever signal: it reads a socket whose other end only this
/// process holds (close-on-exec). A death signal (PR_SET_PDEATHSIG) would not do: it follows the thread that forked, not the
/// process.
struct Watchdog: ~Copyable {
    private let shell: pid_t
    private let socket: CInt
    private var isReaped = false

    /// The script finds the socket as its standard input.
    init(script: String, arguments: [String], logFile: String) throws {
        var ends: [CInt] = [0, 0]
        let kind = CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, kind, 0, &ends) == 0 else { throw PrivateClusterError("socketpair: \(lastError())") }
        defer { close(ends[0]) }
        do {
            shell = try spawn(["/bin/sh", "-c", script, "pandora-postgres"] + arguments, input: ends[0], logFile: logFile)
        } catch {
            close(ends[1])
            throw error
        }
        socket = ends[1]
    }

    deinit { close(socket) }

    mutating func hasEnded() -> Bool {
        if !isReaped { isReaped = waitpid(shell, nil, WNOHANG) == shell }
        return isReaped
    }

    /// Says so, and waits for the end of the shell.
    consuming func end() {
        shutdown(socket, CInt(SHUT_WR))
        while !isReaped, waitpid(shell, nil, 0) < 0, errno == EINTR {}
    }

    /// Runs the command that the arguments are and stops it; ends when the command does.
    static let server = """
        exec 3<&0
        "$@" </dev/null 3<&- &
        child=$!
        {
            read -r _ <&3
            kill -INT $child 2>/dev/null
        } &
        exec 3<&-
        wait $child
        # Whoever gets the number of the dead server next must not be signalled.
        kill $! 2>/dev/null
        """

    /// Removes the folders that the arguments are, once no server runs in the first.
    static let remover = """
        read -r _
        while process=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) && kill -0 "$process" 2>/dev/null; do sleep 0.02; done
        rm -rf "$@"
        """
}

/// Runs a command to its end. Its output and errors come back together.
func run(_ command: [String]) throws -> (status: CInt, output: String) {
    var template = Array("/tmp/pandora-output-XXXXXX".utf8CString)
    let file = mkstemp(&template)
    guard file >= 0 else { throw PrivateClusterError("no file under /tmp: \(lastError())") }
    defer { close(file) }
    let path = String(decoding: template.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
    let null = open("/dev/null", O_RDONLY | O_CLOEXEC)
    defer { close(null) }
    // Once the command has opened the file nobody needs its name.
    let spawned = Result { try spawn(command, input: null, logFile: path) }
    unlink(path)
    let process = try spawned.get()
    var status: CInt = 0
    while waitpid(process, &status, 0) < 0 {
        guard errno == EINTR else { throw PrivateClusterError("waitpid: \(lastError())") }
    }
    return (status, readFile("/proc/self/fd/\(file)"))
}

/// Starts a command in a session of its own, so that the terminal's signals pass it by, with no signal blocked or ignored and
/// no descriptor but its three: a connection that a server inherited would end for its peer only when the server does.
private func spawn(_ command: [String], input: CInt, logFile: String) throws -> pid_t {
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_adddup2(&actions, input, 0)
    posix_spawn_file_actions_addopen(&actions, 1, logFile, O_WRONLY | O_CREAT | O_APPEND, 0o600)
    posix_spawn_file_actions_adddup2(&actions, 1, 2)
    clinux_spawn_close_from(&actions, 3)
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var signals = sigset_t()
    sigfillset(&signals)
    posix_spawnattr_setsigdefault(&attributes, &signals)
    sigemptyset(&signals)
    posix_spawnattr_setsigmask(&attributes, &signals)
    let newSession: Int32 = 0x80  // POSIX_SPAWN_SETSID
    posix_spawnattr_setflags(&attributes, Int16(newSession | Int32(POSIX_SPAWN_SETSIGDEF) | Int32(POSIX_SPAWN_SETSIGMASK)))

    var arguments: [UnsafeMutablePointer<CChar>?] = command.map { $0.withCString { strdup($0) } }
    arguments.append(nil)
    // Nothing of the environment may reach the server: PGDATA and its kind would.
    let variables = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"]
    var environment: [UnsafeMutablePointer<CChar>?] = variables.map { $0.withCString { strdup($0) } }
    environment.append(nil)
    defer { for pointer in arguments + environment { free(pointer) } }
    var process = pid_t()
    let status = posix_spawn(&process, command[0], &actions, &attributes, arguments, environment)
    guard status == 0 else { throw PrivateClusterError("\(command[0]): \(String(cString: strerror(status)))") }
    return process
}
