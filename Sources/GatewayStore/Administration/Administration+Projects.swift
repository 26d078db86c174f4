internal import Postgres

public struct ProjectRecord: Sendable, Equatable {
    public var id: Int64
    public var clientID: Int64
    public var clientName: String
    public var name: String
    /// `enabled` or `disabled`.
    public var status: String
    public var revision: Int64
    /// Microseconds since 1970.
    public var createdAt: Int64
    public var updatedAt: Int64

    /// `client/project`
    public var path: String { "\(clientName)/\(name)" }
}

extension Administration {
    public func createProject(client: Int64, name: String, status: String) async throws(AdministrationError) -> ProjectRecord {
        let rows = try await change(ProjectSQL.create) {
            $0.append(client)
            $0.append(name)
            $0.append(status)
        }
        return ProjectRecord(rows[0])
    }

    /// In the order of their paths; at most ``listMax``.
    ///
    /// - Parameter client: of this one alone, unless nil.
    public func projects(client: Int64? = nil) async throws(AdministrationError) -> [ProjectRecord] {
        try await read(ProjectSQL.list) { $0.append(client) }.map(ProjectRecord.init)
    }

    /// - Parameter reference: `client/project` or an id; the client may be an id, too.
    public func project(_ reference: String) async throws(AdministrationError) -> ProjectRecord {
        if let id = Self.id(reference) {
            let rows = try await read(ProjectSQL.find) {
                $0.append(id)
                $0.append(Int64?.none)
                $0.append(String?.none)
            }
            return try Self.one(rows.map(ProjectRecord.init), "project", id)
        }
        let (parent, name) = try Self.split(reference, "a project is CLIENT/PROJECT or an id")
        let client = try await client(parent)
        let rows = try await read(ProjectSQL.find) {
            $0.append(Int64?.none)
            $0.append(client.id)
            $0.append(name)
        }
        guard let row = rows.first else {
            throw AdministrationError(
                .notFound, "the client '\(client.name)' has no project '\(name)'", hint: "pandora project list --client '\(client.name)'")
        }
        return ProjectRecord(row)
    }

    /// What is nil stays as it is.
    public func updateProject(
        _ id: Int64, name: String? = nil, status: String? = nil
    ) async throws(AdministrationError) -> ProjectRecord {
        let rows = try await change(ProjectSQL.update) {
            $0.append(id)
            $0.append(name)
            $0.append(status)
        }
        return try Self.one(rows.map(ProjectRecord.init), "project", id)
    }

    /// A path without its last part, and that. Only clients may have a slash in their name, and they come first.
    public static func split(_ reference: String, _ form: String) throws(AdministrationError) -> (parent: String, name: String) {
        guard let slash = reference.lastIndex(of: "/"), slash > reference.startIndex, reference.last != "/" else {
            throw AdministrationError(.invalidValue, "\(form), found '\(reference)'")
        }
        return (String(reference[..<slash]), String(reference[reference.index(after: slash)...]))
    }
}

extension ProjectRecord {
    fileprivate init(_ row: Row) {
        self.init(
            id: row.int64(0), clientID: row.int64(1), clientName: row.string(2), name: row.string(3), status: row.string(4),
            revision: row.int64(5), createdAt: row.timestampMicroseconds(6), updatedAt: row.timestampMicroseconds(7))
    }
}

private enum ProjectSQL {
    private static let columns =
        "p.id, p.client_id, c.name, p.name::text, p.status, p.revision, p.created_at, p.updated_at"
    private static let client = "JOIN pandora.client c ON c.id = p.client_id"

    static let create = Statement(
        name: "project_create",
        sql: Audited.create(
            "project", insert: "INSERT INTO pandora.project (client_id, name, status) VALUES ($2, $3, $4)",
            select: "SELECT \(columns) FROM changed p \(client)"),
        parameterTypes: [.text, .int8, .text, .text])

    static let list = Statement(
        name: "project_list",
        sql: """
            SELECT \(columns) FROM pandora.project p \(client) WHERE $1 IS NULL OR p.client_id = $1
             ORDER BY c.name, p.name LIMIT \(Administration.listMax)
            """,
        parameterTypes: [.int8])

    static let find = Statement(
        name: "project_find",
        sql: "SELECT \(columns) FROM pandora.project p \(client) WHERE p.id = $1 OR (p.client_id, p.name) = ($2, $3)",
        parameterTypes: [.int8, .int8, .text])

    static let update = Statement(
        name: "project_update",
        sql: Audited.update(
            "project", set: "name = coalesce($3, o.name), status = coalesce($4, o.status)",
            select: "SELECT \(columns) FROM changed p \(client)"),
        parameterTypes: [.text, .int8, .text, .text])
}
