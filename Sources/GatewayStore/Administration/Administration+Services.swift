internal import Postgres

public struct ServiceRecord: Sendable, Equatable {
    public var id: Int64
    public var name: String
    public var version: String
    /// `enabled`, `disabled` or `deprecated`.
    public var status: String
    public var revision: Int64
    /// Microseconds since 1970.
    public var createdAt: Int64
    public var updatedAt: Int64

    /// `name/version`
    public var path: String { "\(name)/\(version)" }
}

extension Administration {
    public func createService(name: String, version: String, status: String) async throws(AdministrationError) -> ServiceRecord {
        let rows = try await change(ServiceSQL.create) {
            $0.append(name)
            $0.append(version)
            $0.append(status)
        }
        return ServiceRecord(rows[0])
    }

    /// In the order of names and versions; at most ``listMax``.
    public func services() async throws(AdministrationError) -> [ServiceRecord] {
        try await services(id: nil, name: nil, version: nil)
    }

    /// - Parameter reference: `name/version`, an id, or a name alone where it has one version.
    public func service(_ reference: String) async throws(AdministrationError) -> ServiceRecord {
        let found = try await services(matching: reference)
        guard found.count == 1, let service = found.first else {
            let versions = found.map(\.path).joined(separator: ", ")
            throw AdministrationError(.ambiguous, "the service '\(reference)' has several versions: \(versions)", hint: "name one of them")
        }
        return service
    }

    /// All versions where the reference names none; at least one.
    public func services(matching reference: String) async throws(AdministrationError) -> [ServiceRecord] {
        let id = Self.id(reference)
        let parts = reference.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
        guard parts.count <= 2, !parts.contains("") else {
            throw AdministrationError(.invalidValue, "a service is NAME, NAME/VERSION or an id, found '\(reference)'")
        }
        let found = try await services(id: id, name: id == nil ? parts[0] : nil, version: parts.count == 2 ? parts[1] : nil)
        if found.isEmpty {
            throw AdministrationError(.notFound, "there is no service '\(reference)'", hint: "pandora service list shows all")
        }
        return found
    }

    /// What is nil stays as it is. Routes name a service by name and version, so neither changes.
    public func updateService(_ id: Int64, status: String? = nil) async throws(AdministrationError) -> ServiceRecord {
        let rows = try await change(ServiceSQL.update) {
            $0.append(id)
            $0.append(status)
        }
        return try Self.one(rows.map(ServiceRecord.init), "service", id)
    }

    private func services(id: Int64?, name: String?, version: String?) async throws(AdministrationError) -> [ServiceRecord] {
        let rows = try await read(ServiceSQL.list) {
            $0.append(id)
            $0.append(name)
            $0.append(version)
        }
        return rows.map(ServiceRecord.init)
    }
}

extension ServiceRecord {
    fileprivate init(_ row: Row) {
        self.init(
            id: row.int64(0), name: row.string(1), version: row.string(2), status: row.string(3), revision: row.int64(4),
            createdAt: row.timestampMicroseconds(5), updatedAt: row.timestampMicroseconds(6))
    }
}

private enum ServiceSQL {
    private static let columns = "s.id, s.name::text, s.version, s.status, s.revision, s.created_at, s.updated_at"

    static let create = Statement(
        name: "service_create",
        sql: Audited.create(
            "service", insert: "INSERT INTO pandora.service (name, version, status) VALUES ($2, $3, $4)",
            select: "SELECT \(columns) FROM changed s"),
        parameterTypes: [.text, .text, .text, .text])

    static let list = Statement(
        name: "service_list",
        sql: """
            SELECT \(columns) FROM pandora.service s
             WHERE ($1 IS NULL OR s.id = $1) AND ($2 IS NULL OR s.name = $2) AND ($3 IS NULL OR s.version = $3)
             ORDER BY s.name, s.version LIMIT \(Administration.listMax)
            """,
        parameterTypes: [.int8, .text, .text])

    static let update = Statement(
        name: "service_update",
        sql: Audited.update("service", set: "status = coalesce($3, o.status)", select: "SELECT \(columns) FROM changed s"),
        parameterTypes: [.text, .int8, .text])
}
