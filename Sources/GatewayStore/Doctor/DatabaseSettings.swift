public import Postgres

/// How the server is set up, as far as the promises rest on it.
public struct DatabaseSettings: Sendable, Equatable {
    /// As this session has it.
    public var synchronousCommit: String
    public var fsync: Bool
    public var fullPageWrites: Bool
    /// The server is itself a standby.
    public var isStandby: Bool
    public var standbys: Int64
    /// A commit waits for one of them.
    public var hasSynchronousStandby: Bool
    /// That this user may have to this database, and that the server has now.
    public var connectionsMax: Int64
    public var connectionsUsed: Int64

    public static func read(_ client: PostgresClient) async throws(PostgresError) -> DatabaseSettings {
        DatabaseSettings(try await client.query(statement)[0])
    }

    /// Why a commit that was acknowledged may be lost all the same; empty: it is not.
    public var durabilityFaults: [String] {
        var faults: [String] = []
        if isStandby { faults.append("the server is a standby: it takes no changes") }
        if !fsync { faults.append("fsync is off: a crash of the host loses commits, and may lose the database") }
        if !fullPageWrites { faults.append("full_page_writes is off: a crash of the host may damage the database") }
        if synchronousCommit == "off" { faults.append("synchronous_commit is off: a crash loses commits that were acknowledged") }
        if standbys > 0, !isStandby {
            if !hasSynchronousStandby {
                faults.append("none of \(standbys) standbys is synchronous: a failover loses commits that were acknowledged")
            } else if synchronousCommit == "local" {
                faults.append("synchronous_commit is local: a failover loses commits that were acknowledged")
            }
        }
        return faults
    }

    /// - Parameter needed: connections that somebody is about to make.
    public func connectionFault(needed: Int) -> String? {
        guard connectionsUsed + Int64(needed) > connectionsMax else { return nil }
        let free = max(connectionsMax - connectionsUsed, 0)
        return "\(needed) connections are needed, but of \(connectionsMax) that the server allows \(free) are free"
    }

    /// Connections that ``Doctor`` wants to see free: as many as a node of one worker needs.
    static let spareConnections = 6

    var findings: [Finding] {
        var findings = durabilityFaults.map { Finding(.durability, $0, hint: "the promises assume that no acknowledged commit is lost") }
        if let fault = connectionFault(needed: Self.spareConnections) {
            findings.append(
                Finding(
                    .connections, fault + ": there is no room for one more node", hint: "raise max_connections",
                    .init("max", connectionsMax), .init("used", connectionsUsed)))
        }
        return findings
    }

    init(
        synchronousCommit: String, fsync: Bool, fullPageWrites: Bool, isStandby: Bool, standbys: Int64,
        hasSynchronousStandby: Bool, connectionsMax: Int64, connectionsUsed: Int64
    ) {
        (self.synchronousCommit, self.fsync, self.fullPageWrites) = (synchronousCommit, fsync, fullPageWrites)
        (self.isStandby, self.standbys, self.hasSynchronousStandby) = (isStandby, standbys, hasSynchronousStandby)
        (self.connectionsMax, self.connectionsUsed) = (connectionsMax, connectionsUsed)
    }

    /// Reads what ``statement`` selects.
    init(_ row: Row) {
        self.init(
            synchronousCommit: row.string(0), fsync: row.bool(1), fullPageWrites: row.bool(2), isStandby: row.bool(3),
            standbys: row.int64(4), hasSynchronousStandby: row.bool(5), connectionsMax: row.int64(6), connectionsUsed: row.int64(7))
    }

    /// Subscribers to logical changes and backups under way are no standbys. Who may not see their state (pg_monitor may) is
    /// told what was configured.
    static let statement = Statement(
        name: "database_settings",
        sql: """
            WITH standby AS (
                SELECT r.sync_state FROM pg_stat_replication r
                 WHERE coalesce(r.state, 'streaming') IN ('streaming', 'catchup')
                   AND coalesce(r.application_name, '') <> 'pg_basebackup'
                   AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical'))
            SELECT current_setting('synchronous_commit'), current_setting('fsync')::boolean,
                   current_setting('full_page_writes')::boolean, pg_is_in_recovery(), (SELECT count(*) FROM standby),
                   coalesce((SELECT bool_or(s.sync_state IN ('sync', 'quorum')) FROM standby s),
                            current_setting('synchronous_standby_names') <> ''),
                   least(current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
                             - coalesce(current_setting('reserved_connections', true)::bigint, 0),
                         (SELECT nullif(d.datconnlimit, -1) FROM pg_database d WHERE d.datname = current_database()),
                         (SELECT nullif(u.rolconnlimit, -1) FROM pg_roles u WHERE u.rolname = current_user))::bigint,
                   (SELECT sum(d.numbackends)::bigint FROM pg_stat_database d)
            """,
        isPrepared: false)
}
