internal import Postgres

/// A row of `request_logs` with the names of what it refers to. Moments are microseconds since 1970, durations microseconds.
public struct LogEntry: Sendable, Equatable {
    /// `req_…`
    public var id: String
    /// Id of the chain's first hop; nil where this one starts a chain or stands alone.
    public var startPoint: String?
    public var requestTime: Int64
    /// `success`, `client_error`, `server_error`, `upstream_error`, `client_aborted` or `unauthorized`.
    public var executionStatus: String
    /// Why the gateway answered itself, if it did.
    public var refusal: String?
    public var statusCode: Int16?
    public var environmentID: Int64?
    /// Nil where there is no such environment any more.
    public var environmentPath: String?
    public var serviceID: Int64?
    public var servicePath: String?
    /// The key's public id.
    public var apiKey: String?
    public var reservationID: String?
    public var units: Int64
    public var period: Int64?
    public var isOutage: Bool
    public var route: String?
    public var target: String?
    public var attempts: Int16
    public var repeats: Int32
    public var method: String?
    public var host: String?
    public var path: String?
    public var duration: Int64?
    public var firstByte: Int64?
    public var bytesIn: Int64?
    public var bytesOut: Int64?
    public var remoteAddress: String?
    public var traceID: String?
    public var node: String?

    /// Reads what ``sql(from:)`` selects.
    init(_ row: Row) {
        id = row.string(0)
        startPoint = row.string(1)
        requestTime = row.timestampMicroseconds(2)
        executionStatus = row.string(3)
        refusal = row.string(4)
        statusCode = row.int16(5)
        environmentID = row.int64(6)
        environmentPath = row.string(7)
        serviceID = row.int64(8)
        servicePath = row.string(9)
        apiKey = row.string(10)
        reservationID = row.string(11)
        units = row.int64(12)
        period = row.int64(13)
        isOutage = row.bool(14)
        route = row.string(15)
        target = row.string(16)
        attempts = row.int16(17)
        repeats = row.int32(18)
        method = row.string(19)
        host = row.string(20)
        path = row.string(21)
        duration = row.int64(22)
        firstByte = row.int64(23)
        bytesIn = row.int64(24)
        bytesOut = row.int64(25)
        remoteAddress = row.string(26)
        traceID = row.string(27)
        node = row.string(28)
    }

    /// Rows in the order of their ids.
    ///
    /// - Parameter rows: a query over `request_logs`, in parentheses.
    static func sql(from rows: String) -> String {
        """
        SELECT l.id, l.start_point, l.request_time, l.execution_status, l.unauthorized_reason, l.status_code,
               l.environment_id, c.name || '/' || p.name || '/' || e.name, l.service_id, s.name || '/' || s.version,
               l.api_key, l.reservation_id, l.units, l.period, l.outage, l.route, l.target, l.attempts, l.repeats,
               l.method, l.host, l.path, l.duration_us, l.first_byte_us, l.bytes_in, l.bytes_out,
               abbrev(l.remote_address), l.trace_id, l.node
          FROM \(rows) AS l
          LEFT JOIN pandora.environment e ON e.id = l.environment_id
          LEFT JOIN pandora.project p ON p.id = e.project_id
          LEFT JOIN pandora.client c ON c.id = p.client_id
          LEFT JOIN pandora.service s ON s.id = l.service_id
         ORDER BY l.id
        """
    }
}
