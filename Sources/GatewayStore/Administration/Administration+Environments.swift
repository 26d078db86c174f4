internal import Postgres

public struct EnvironmentRecord: Sendable, Equatable {
    public var id: Int64
    public var projectID: Int64
    public var clientName: String
    public var projectName: String
    public var name: String
    /// `enabled` or `disabled`.
    public var status: String
    public var revision: Int64
    /// Microseconds since 1970.
    public var createdAt: Int64
    public var updatedAt: Int64

    /// `client/project/environment`
    public var path: String { "\(clientName)/\(projectName)/\(name)" }
}

extension Administration {
    public func createEnvironment(project: Int64, name: String, status: String) async throws(AdministrationError) -> EnvironmentRecord {
        let rows = try await change(EnvironmentSQL.create) {
            $0.append(project)
            $0.append(name)
            $0.append(status)
        }
        return EnvironmentRecord(rows[0])
    }

    /// In the order of their paths; at most ``listMax``.
    ///
    /// - Parameter project: of this one alone, unless nil.
    public func environments(project: Int64? = nil) async throws(AdministrationError) -> [EnvironmentRecord] {
        try await read(EnvironmentSQL.list) { $0.append(project) }.map(EnvironmentRecord.init)
    }

    /// - Parameter reference: `client/project/environment` or an id.
    public func environment(_ reference: String) async throws(AdministrationError) -> EnvironmentRecord {
        if let id = Self.id(reference) {
            let rows = try await read(EnvironmentSQL.find) {
                $0.append(id)
                $0.append(Int64?.none)
                $0.append(String?.none)
            }
            return try Self.one(rows.map(EnvironmentRecord.init), "environment", id)
        }
        let form = "an environment is CLIENT/PROJECT/ENVIRONMENT or an id"
        let (parent, name) = try Self.split(reference, form)
        // Said here, or the refusal would speak of a project.
        if Self.id(parent) == nil { _ = try Self.split(parent, form) }
        let project = try await project(parent)
        let rows = try await read(EnvironmentSQL.find) {
            $0.append(Int64?.none)
            $0.append(project.id)
            $0.append(name)
        }
        guard let row = rows.first else {
            throw AdministrationError(
                .notFound, "the project '\(project.path)' has no environment '\(name)'",
                hint: "pandora environment list --project '\(project.path)'")
        }
        return EnvironmentRecord(row)
    }

    /// What is nil stays as it is.
    ///
    /// - Parameter name: another one than it has is refused, by the database, with ``AdministrationError/Code/nameIsFixed``.
    public func updateEnvironment(
        _ id: Int64, name: String? = nil, status: String? = nil
    ) async throws(AdministrationError) -> EnvironmentRecord {
        let rows = try await change(EnvironmentSQL.update) {
            $0.append(id)
            $0.append(name)
            $0.append(status)
        }
        return try Self.one(rows.map(EnvironmentRecord.init), "environment", id)
    }
}

extension EnvironmentRecord {
    fileprivate init(_ row: Row) {
        self.init(
            id: row.int64(0), projectID: row.int64(1), clientName: row.string(2), projectName: row.string(3), name: row.string(4),
            status: row.string(5), revision: row.int64(6), createdAt: row.timestampMicroseconds(7),
            updatedAt: row.timestampMicroseconds(8))
    }
}

private enum EnvironmentSQL {
    private static let columns = """
        e.id, e.project_id, c.name, p.name::text, e.name::text, e.status, e.revision, e.created_at, e.updated_at
        """
    private static let parents = "JOIN pandora.project p ON p.id = e.project_id JOIN pandora.client c ON c.id = p.client_id"

    static let create = Statement(
        name: "environment_create",
        sql: Audited.create(
            "environment", insert: "INSERT INTO pandora.environment (project_id, name, status) VALUES ($2, $3, $4)",
            select: "SELECT \(columns) FROM changed e \(parents)"),
        parameterTypes: [.text, .int8, .text, .text])

    static let list = Statement(
        name: "environment_list",
        sql: """
            SELECT \(columns) FROM pandora.environment e \(parents) WHERE $1 IS NULL OR e.project_id = $1
             ORDER BY c.name, p.name, e.name LIMIT \(Administration.listMax)
            """,
        parameterTypes: [.int8])

    static let find = Statement(
        name: "environment_find",
        sql: "SELECT \(columns) FROM pandora.environment e \(parents) WHERE e.id = $1 OR (e.project_id, e.name) = ($2, $3)",
        parameterTypes: [.int8, .int8, .text])

    static let update = Statement(
        name: "environment_update",
        sql: Audited.update(
            "environment", set: "name = coalesce($3, o.name), status = coalesce($4, o.status)",
            select: "SELECT \(columns) FROM changed e \(parents)"),
        parameterTypes: [.text, .int8, .text, .text])
}
