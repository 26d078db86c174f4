internal import Postgres

/// A service that an environment may use, and how it stands. Numbers are units.
public struct EnvironmentQuota: Sendable, Equatable {
    public var environmentID: Int64
    public var serviceID: Int64
    /// `client/project/environment`
    public var environmentPath: String
    /// `name/version`
    public var servicePath: String
    /// A period's; nil: unlimited.
    public var limit: Int64?
    public var used: Int64
    /// limit − used; negative after a limit was lowered below what is used, nil where unlimited.
    public var available: Int64?
    /// In leases and reservations: taken, not yet used.
    public var held: Int64
    /// What of it gateways hold ahead of traffic, and what open flows have reserved.
    public var leased: Int64
    public var reserved: Int64
    public var period: Int64
    public var reset: ResetRule
    /// The period is over, but nothing has reset it yet: the numbers are those of the old one.
    public var isResetDue: Bool
    /// Microseconds since 1970.
    public var createdAt: Int64
    public var updatedAt: Int64

    /// What can still be taken; nil where unlimited.
    public var free: Int64? { available.map { max($0 - held, 0) } }
    public var isOvercommitted: Bool { available.map { $0 < 0 } ?? false }
}

extension Administration {
    /// Assigns a service to an environment, or edits its limit.
    public func setQuota(
        environment: EnvironmentRecord, service: ServiceRecord, limit: Int64?
    ) async throws(AdministrationError) -> EnvironmentQuota {
        do {
            _ = try await change(EnvironmentQuotaSQL.set) {
                $0.append(environment.id)
                $0.append(service.id)
                $0.append(limit)
            }
        } catch where error.code == .notAssigned {
            let project = "\(environment.clientName)/\(environment.projectName)"
            throw AdministrationError(
                .notAssigned, "the service '\(service.path)' is not assigned to the project '\(project)'",
                hint: "first: pandora quota set --project '\(project)' --service \(service.path) --max N", cause: error.cause)
        }
        return try await quota(environment: environment, service: service)
    }

    /// Takes a service away from an environment. What it used stays in the ledger.
    public func unsetQuota(environment: EnvironmentRecord, service: ServiceRecord) async throws(AdministrationError) {
        let rows = try await change(EnvironmentQuotaSQL.unset) {
            $0.append(environment.id)
            $0.append(service.id)
        }
        if rows.isEmpty { throw Self.notAssigned(service, environment.path) }
    }

    public func quota(environment: EnvironmentRecord, service: ServiceRecord) async throws(AdministrationError) -> EnvironmentQuota {
        guard let quota = try await quotas(environment: environment.id, service: service.id).first else {
            throw Self.notAssigned(service, environment.path)
        }
        return quota
    }

    /// In the order of environments and services; at most ``listMax``.
    ///
    /// - Parameters: of this environment, project and service alone, unless nil.
    public func quotas(
        environment: Int64? = nil, inProject project: Int64? = nil, service: Int64? = nil
    ) async throws(AdministrationError) -> [EnvironmentQuota] {
        let rows = try await read(EnvironmentQuotaSQL.list) {
            $0.append(environment)
            $0.append(project)
            $0.append(service)
        }
        return rows.map(EnvironmentQuota.init)
    }
}

extension EnvironmentQuota {
    fileprivate init(_ row: Row) {
        self.init(
            environmentID: row.int64(0), serviceID: row.int64(1), environmentPath: row.string(2), servicePath: row.string(3),
            limit: row.int64(4), used: row.int64(5), available: row.int64(6), held: row.int64(7), leased: row.int64(16),
            reserved: row.int64(17), period: row.int64(8), reset: ResetRule(row, at: 9), isResetDue: row.bool(13),
            createdAt: row.timestampMicroseconds(14), updatedAt: row.timestampMicroseconds(15))
    }
}

private enum EnvironmentQuotaSQL {
    /// Locks in the order of everybody else: the project's row, then the environment's; and `before` is read before the change,
    /// after which it would find nothing to lock.
    static let set = Statement(
        name: "environment_quota_set",
        sql: """
            WITH share AS MATERIALIZED (
                SELECT 1 FROM pandora.project_service q JOIN pandora.environment e ON e.project_id = q.project_id
                 WHERE (e.id, q.service_id) = ($2, $3) FOR NO KEY UPDATE OF q),
            before AS MATERIALIZED (
                SELECT a.* FROM pandora.environment_service a, (SELECT count(*) FROM share) AS locked
                 WHERE (a.environment_id, a.service_id) = ($2, $3) FOR NO KEY UPDATE OF a),
            changed AS (
                INSERT INTO pandora.environment_service (environment_id, service_id, max_request)
                SELECT $2, $3, $4 FROM (SELECT count(*) FROM before) AS locked
                ON CONFLICT (environment_id, service_id) DO UPDATE SET max_request = excluded.max_request
                RETURNING *),
            audited AS (
                INSERT INTO pandora.audit_log (actor, action, object_kind, object_id, detail)
                SELECT $1, CASE WHEN o.environment_id IS NULL THEN 'assign' ELSE 'update' END, 'environment_service',
                       n.environment_id || ':' || n.service_id,
                       CASE WHEN o.environment_id IS NULL THEN \(Audited.row) ELSE \(Audited.difference) END
                  FROM changed n LEFT JOIN before o ON true)
            SELECT environment_id FROM changed
            """,
        parameterTypes: [.text, .int8, .int8, .int8])

    static let unset = Statement(
        name: "environment_quota_unset",
        sql: """
            WITH changed AS (
                DELETE FROM pandora.environment_service WHERE (environment_id, service_id) = ($2, $3) RETURNING *),
            audited AS (
                INSERT INTO pandora.audit_log (actor, action, object_kind, object_id, detail)
                SELECT $1, 'unassign', 'environment_service', n.environment_id || ':' || n.service_id, to_jsonb(n) FROM changed n)
            SELECT environment_id FROM changed
            """,
        parameterTypes: [.text, .int8, .int8])

    static let list = Statement(
        name: "environment_quota_list",
        sql: """
            SELECT a.environment_id, a.service_id, c.name || '/' || p.name || '/' || e.name, s.name || '/' || s.version,
                   a.max_request, a.used_request, a.available_request, a.held_request, a.period,
                   q.reset_frequency, q.anchor::text, q.time_zone, q.next_reset,
                   coalesce(q.next_reset <= clock_timestamp(), false), a.created_at, a.updated_at,
                   (SELECT coalesce(sum(l.granted - l.settled), 0)::bigint FROM pandora.quota_lease l
                     WHERE (l.environment_id, l.service_id, l.period) = (a.environment_id, a.service_id, a.period)),
                   (SELECT coalesce(sum(r.units), 0)::bigint FROM pandora.reservations r
                     WHERE (r.environment_id, r.service_id, r.period) = (a.environment_id, a.service_id, a.period))
              FROM pandora.environment_service a
              JOIN pandora.project_service q ON (q.project_id, q.service_id) = (a.project_id, a.service_id)
              JOIN pandora.environment e ON e.id = a.environment_id
              JOIN pandora.project p ON p.id = e.project_id JOIN pandora.client c ON c.id = p.client_id
              JOIN pandora.service s ON s.id = a.service_id
             WHERE ($1 IS NULL OR a.environment_id = $1) AND ($2 IS NULL OR a.project_id = $2)
               AND ($3 IS NULL OR a.service_id = $3)
             ORDER BY c.name, p.name, e.name, s.name, s.version LIMIT \(Administration.listMax)
            """,
        parameterTypes: [.int8, .int8, .int8])
}
