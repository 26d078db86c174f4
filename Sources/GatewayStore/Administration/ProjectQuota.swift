internal import Postgres

/// How often a quota begins anew.
public enum ResetFrequency: String, Sendable, CaseIterable { case daily, weekly, biweekly, monthly }

/// When the quota of a project's service begins anew.
public struct ResetRule: Sendable, Equatable {
    /// Nil: never.
    public var frequency: ResetFrequency?
    /// Wall-clock time in the time zone, `2024-01-01 00:00:00`; boundaries are counted from it.
    public var anchor: String
    public var timeZone: String
    /// Microseconds since 1970; in the past where the reset is still to be done.
    public var nextReset: Int64?
}

/// A service that a project may use, and how much of it.
public struct ProjectQuota: Sendable, Equatable {
    public var projectID: Int64
    public var serviceID: Int64
    /// `client/project`
    public var projectPath: String
    /// `name/version`
    public var servicePath: String
    /// Units a period; nil: unlimited.
    public var limit: Int64?
    /// The sum of what its environments may use, and how many of them there are.
    public var shared: Int64
    public var environments: Int64
    public var reset: ResetRule
    /// Microseconds since 1970.
    public var createdAt: Int64
    public var updatedAt: Int64
}

/// What to change of a ``ProjectQuota``; nil and `.keep` leave things as they are.
public struct ProjectQuotaEdit: Sendable {
    public var limit: Edit<Int64?> = .keep
    public var frequency: Edit<ResetFrequency?> = .keep
    /// `2026-01-31 06:00`
    public var anchor: String?
    /// As the server knows it, `Europe/Madrid`.
    public var timeZone: String?

    public init() {}
}

extension Administration {
    /// Assigns a service to a project, or edits what is assigned.
    public func setQuota(
        project: ProjectRecord, service: ServiceRecord, _ edit: ProjectQuotaEdit
    ) async throws(AdministrationError) -> ProjectQuota {
        let rows = try await change(ProjectQuotaSQL.set) {
            $0.append(project.id)
            $0.append(service.id)
            $0.append(edit.limit.isSet)
            if case .set(let limit) = edit.limit { $0.append(limit) } else { $0.append(Int64?.none) }
            $0.append(edit.frequency.isSet)
            if case .set(let frequency) = edit.frequency { $0.append(frequency?.rawValue) } else { $0.append(String?.none) }
            $0.append(edit.anchor)
            $0.append(edit.timeZone)
        }
        guard !rows.isEmpty else {
            throw AdministrationError(
                .notAssigned, "the service '\(service.path)' is not assigned to '\(project.path)' yet",
                hint: "say --max N or --max unlimited to assign it")
        }
        return try await quota(project: project, service: service)
    }

    /// Takes a service away from a project; refused while an environment has it.
    public func unsetQuota(project: ProjectRecord, service: ServiceRecord) async throws(AdministrationError) {
        let rows: Rows
        do {
            rows = try await change(ProjectQuotaSQL.unset) {
                $0.append(project.id)
                $0.append(service.id)
            }
        } catch where error.cause?.sqlState == .foreignKeyViolation {
            throw AdministrationError(
                .inUse, "environments of '\(project.path)' still have the service '\(service.path)'",
                hint: "take it from them first: pandora quota unset --environment", cause: error.cause)
        }
        if rows.isEmpty { throw Self.notAssigned(service, project.path) }
    }

    public func quota(project: ProjectRecord, service: ServiceRecord) async throws(AdministrationError) -> ProjectQuota {
        guard let quota = try await quotas(project: project.id, service: service.id).first else {
            throw Self.notAssigned(service, project.path)
        }
        return quota
    }

    /// In the order of projects and services; at most ``listMax``.
    ///
    /// - Parameters: of this project and service alone, unless nil.
    public func quotas(project: Int64? = nil, service: Int64? = nil) async throws(AdministrationError) -> [ProjectQuota] {
        let rows = try await read(ProjectQuotaSQL.list) {
            $0.append(project)
            $0.append(service)
        }
        return rows.map(ProjectQuota.init)
    }

    static func notAssigned(_ service: ServiceRecord, _ path: String) -> AdministrationError {
        AdministrationError(
            .notAssigned, "the service '\(service.path)' is not assigned to '\(path)'", hint: "pandora quota set assigns it")
    }
}

extension ProjectQuota {
    fileprivate init(_ row: Row) {
        self.init(
            projectID: row.int64(0), serviceID: row.int64(1), projectPath: row.string(2), servicePath: row.string(3),
            limit: row.int64(4), shared: row.int64(5), environments: row.int64(6), reset: ResetRule(row, at: 7),
            createdAt: row.timestampMicroseconds(11), updatedAt: row.timestampMicroseconds(12))
    }
}

extension ResetRule {
    /// Columns: `q.reset_frequency, q.anchor::text, q.time_zone, q.next_reset`
    init(_ row: Row, at column: Int) {
        let frequency: String? = row.string(column)
        self.init(
            frequency: frequency.flatMap(ResetFrequency.init), anchor: row.string(column + 1), timeZone: row.string(column + 2),
            nextReset: row.timestampMicroseconds(column + 3))
    }
}

private enum ProjectQuotaSQL {
    /// What is not given of a new row is what the table's defaults are. `before` is read first, because after a change of the
    /// same statement it would find nothing to lock.
    static let set = Statement(
        name: "project_quota_set",
        sql: """
            WITH before AS MATERIALIZED (
                SELECT * FROM pandora.project_service WHERE (project_id, service_id) = ($2, $3) FOR NO KEY UPDATE),
            changed AS (
                INSERT INTO pandora.project_service AS q
                       (project_id, service_id, max_request, reset_frequency, anchor, time_zone)
                SELECT $2, $3, $5, $7, coalesce($8::timestamp, '2024-01-01 00:00'), coalesce($9, 'UTC')
                  FROM (SELECT count(*) AS rows FROM before) AS locked WHERE $4 OR locked.rows > 0
                ON CONFLICT (project_id, service_id) DO UPDATE
                   SET max_request = CASE WHEN $4 THEN $5 ELSE q.max_request END,
                       reset_frequency = CASE WHEN $6 THEN $7 ELSE q.reset_frequency END,
                       anchor = coalesce($8::timestamp, q.anchor), time_zone = coalesce($9, q.time_zone)
                RETURNING q.*),
            audited AS (
                INSERT INTO pandora.audit_log (actor, action, object_kind, object_id, detail)
                SELECT $1, CASE WHEN o.project_id IS NULL THEN 'assign' ELSE 'update' END, 'project_service',
                       n.project_id || ':' || n.service_id,
                       CASE WHEN o.project_id IS NULL THEN \(Audited.row) ELSE \(Audited.difference) END
                  FROM changed n LEFT JOIN before o ON true)
            SELECT project_id FROM changed
            """,
        parameterTypes: [.text, .int8, .int8, .bool, .int8, .bool, .text, .text, .text])

    static let unset = Statement(
        name: "project_quota_unset",
        sql: """
            WITH changed AS (
                DELETE FROM pandora.project_service WHERE (project_id, service_id) = ($2, $3) RETURNING *),
            audited AS (
                INSERT INTO pandora.audit_log (actor, action, object_kind, object_id, detail)
                SELECT $1, 'unassign', 'project_service', n.project_id || ':' || n.service_id, \(Audited.row) FROM changed n)
            SELECT project_id FROM changed
            """,
        parameterTypes: [.text, .int8, .int8])

    static let list = Statement(
        name: "project_quota_list",
        sql: """
            SELECT q.project_id, q.service_id, c.name || '/' || p.name, s.name || '/' || s.version, q.max_request,
                   shares.units, shares.environments, q.reset_frequency, q.anchor::text, q.time_zone, q.next_reset,
                   q.created_at, q.updated_at
              FROM pandora.project_service q
              JOIN pandora.project p ON p.id = q.project_id JOIN pandora.client c ON c.id = p.client_id
              JOIN pandora.service s ON s.id = q.service_id
             CROSS JOIN LATERAL (
                   SELECT least(coalesce(sum(a.max_request), 0), 9223372036854775807)::bigint AS units,
                          count(*) AS environments
                     FROM pandora.environment_service a
                    WHERE (a.project_id, a.service_id) = (q.project_id, q.service_id)) AS shares
             WHERE ($1 IS NULL OR q.project_id = $1) AND ($2 IS NULL OR q.service_id = $2)
             ORDER BY c.name, p.name, s.name, s.version LIMIT \(Administration.listMax)
            """,
        parameterTypes: [.int8, .int8])
}
