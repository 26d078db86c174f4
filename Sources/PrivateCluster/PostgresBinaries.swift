internal import Glibc

/// Where the server's programs are.
public struct PostgresBinaries: Sendable {
    public let directory: String
    public let version: Int

    static let oldestVersion = 15

    /// The newest version that Debian's packages installed, 15 or later; `PANDORA_POSTGRES_BIN` overrides the search.
    public static func find() throws -> PostgresBinaries {
        if let given = getenv("PANDORA_POSTGRES_BIN") {
            return PostgresBinaries(directory: String(cString: given), version: oldestVersion)
        }
        let root = "/usr/lib/postgresql"
        for version in (oldestVersion...oldestVersion + 25).reversed() {
            let directory = "\(root)/\(version)/bin"
            if ["initdb", "postgres"].allSatisfy({ access("\(directory)/\($0)", X_OK) == 0 }) {
                return PostgresBinaries(directory: directory, version: version)
            }
        }
        throw PrivateClusterError(
            "no PostgreSQL server, version \(oldestVersion) or later, under \(root): install the package postgresql")
    }

    public func path(_ program: String) -> String { "\(directory)/\(program)" }
}

/// Whom the server runs as: PostgreSQL refuses root.
struct Account {
    var user: uid_t
    var group: gid_t
    /// What is put before a command so that it runs as this account.
    var command: [String]

    /// Ourselves; for root the user `postgres`, or `nobody` where there is none.
    static func ofServer() throws -> Account {
        guard geteuid() == 0 else { return Account(user: geteuid(), group: getegid(), command: []) }
        for name in ["postgres", "nobody"] {
            guard let entry = getpwnam(name) else { continue }
            let (user, group) = (entry.pointee.pw_uid, entry.pointee.pw_gid)
            let command = ["/usr/bin/setpriv", "--reuid=\(user)", "--regid=\(group)", "--clear-groups", "--"]
            return Account(user: user, group: group, command: command)
        }
        throw PrivateClusterError("PostgreSQL does not run as root, and there is no user postgres to run it as")
    }
}

func makeDirectory(_ path: String, for owner: Account) throws {
    if mkdir(path, 0o700) != 0, errno != EEXIST { throw PrivateClusterError("\(path): \(lastError())") }
    guard geteuid() == 0 else { return }
    guard chown(path, owner.user, owner.group) == 0 else { throw PrivateClusterError("\(path): \(lastError())") }
    // The server must be able to walk to its folder.
    var parent = path[...]
    while let slash = parent.lastIndex(of: "/"), slash > parent.startIndex {
        parent = parent[..<slash]
        var status = stat()
        guard stat(String(parent), &status) == 0 else { throw PrivateClusterError("\(parent): \(lastError())") }
        let mayWalk =
            status.st_mode & 0o001 != 0 || (status.st_uid == owner.user && status.st_mode & 0o100 != 0)
            || (status.st_gid == owner.group && status.st_mode & 0o010 != 0)
        guard mayWalk else {
            throw PrivateClusterError(
                "\(parent) is closed to the user that runs PostgreSQL: choose a folder under /var/lib or /tmp, for instance")
        }
    }
}
