internal import Postgres

public struct ClientRecord: Sendable, Equatable {
    public var id: Int64
    /// `organization` or `developer`.
    public var type: String
    public var name: String
    public var email: String?
    public var revision: Int64
    /// Microseconds since 1970.
    public var createdAt: Int64
    public var updatedAt: Int64
}

extension Administration {
    public func createClient(name: String, type: String, email: String?) async throws(AdministrationError) -> ClientRecord {
        let rows = try await change(ClientSQL.create) {
            $0.append(type)
            $0.append(name)
            $0.append(email)
        }
        return ClientRecord(rows[0])
    }

    /// In the order of their names; at most ``listMax``.
    public func clients() async throws(AdministrationError) -> [ClientRecord] {
        try await read(ClientSQL.list).map(ClientRecord.init)
    }

    /// - Parameter reference: a name or an id; digits alone are an id.
    public func client(_ reference: String) async throws(AdministrationError) -> ClientRecord {
        let id = Self.id(reference)
        let rows = try await read(ClientSQL.find) {
            $0.append(id)
            $0.append(id == nil ? reference : nil)
        }
        guard let row = rows.first else {
            throw AdministrationError(.notFound, "there is no client '\(reference)'", hint: "pandora client list shows all")
        }
        return ClientRecord(row)
    }

    /// What is nil stays as it is.
    public func updateClient(
        _ id: Int64, name: String? = nil, type: String? = nil, email: Edit<String?> = .keep
    ) async throws(AdministrationError) -> ClientRecord {
        let rows = try await change(ClientSQL.update) {
            $0.append(id)
            $0.append(name)
            $0.append(type)
            $0.append(email.isSet)
            if case .set(let address) = email { $0.append(address) } else { $0.append(String?.none) }
        }
        return try Self.one(rows.map(ClientRecord.init), "client", id)
    }

    /// The id that a reference is; nil where it is a name or a path.
    static func id(_ reference: String) -> Int64? {
        reference.utf8.allSatisfy { (0x30...0x39).contains($0) } ? Int64(reference) : nil
    }

    /// What a change by id gave back.
    static func one<Record>(_ records: [Record], _ noun: String, _ id: some CustomStringConvertible) throws(AdministrationError) -> Record {
        guard let record = records.first else { throw AdministrationError(.notFound, "there is no \(noun) \(id)") }
        return record
    }
}

extension ClientRecord {
    fileprivate init(_ row: Row) {
        self.init(
            id: row.int64(0), type: row.string(1), name: row.string(2), email: row.string(3), revision: row.int64(4),
            createdAt: row.timestampMicroseconds(5), updatedAt: row.timestampMicroseconds(6))
    }
}

private enum ClientSQL {
    private static let columns = "c.id, c.type, c.name, c.email, c.revision, c.created_at, c.updated_at"

    static let create = Statement(
        name: "client_create",
        sql: Audited.create(
            "client", insert: "INSERT INTO pandora.client (type, name, email) VALUES ($2, $3, $4)",
            select: "SELECT \(columns) FROM changed c"),
        parameterTypes: [.text, .text, .text, .text])

    static let list = Statement(
        name: "client_list",
        sql: "SELECT \(columns) FROM pandora.client c ORDER BY c.name LIMIT \(Administration.listMax)")

    static let find = Statement(
        name: "client_find", sql: "SELECT \(columns) FROM pandora.client c WHERE c.id = $1 OR c.name = $2",
        parameterTypes: [.int8, .text])

    static let update = Statement(
        name: "client_update",
        sql: Audited.update(
            "client",
            set: """
                name = coalesce($3, o.name), type = coalesce($4, o.type), email = CASE WHEN $5 THEN $6 ELSE o.email END
                """,
            select: "SELECT \(columns) FROM changed c"),
        parameterTypes: [.text, .int8, .text, .text, .bool, .text])
}
