public import Postgres

/// Why something was not shown or changed. `message` and `hint` are for the person who asked; `cause` is for operators.
public struct AdministrationError: Error, Sendable, Equatable, CustomStringConvertible {
    /// Stable words, for programs.
    public enum Code: String, Sendable {
        case notFound = "NOT_FOUND"
        /// The reference fits several.
        case ambiguous = "AMBIGUOUS"
        case alreadyExists = "ALREADY_EXISTS"
        case invalidValue = "INVALID_VALUE"
        /// An environment cannot be renamed.
        case nameIsFixed = "NAME_IS_FIXED"
        /// The environments of a project would have more than the project.
        case shareExceeded = "SHARE_EXCEEDED"
        /// An environment would be unlimited in a limited project.
        case unlimitedShare = "UNLIMITED_SHARE"
        /// The service is not assigned to the project, or not to the environment.
        case notAssigned = "NOT_ASSIGNED"
        /// Something else still refers to it.
        case inUse = "IN_USE"
        /// The object's state does not allow it.
        case conflict = "CONFLICT"
        /// The database is not at the version of this binary.
        case schemaMismatch = "SCHEMA_MISMATCH"
        case databaseUnavailable = "DATABASE_UNAVAILABLE"
        /// The server refused for a reason that is not foreseen here.
        case refused = "REFUSED"
    }

    public var code: Code
    public var message: String
    public var hint: String?
    public var cause: PostgresError?

    init(_ code: Code, _ message: String, hint: String? = nil, cause: PostgresError? = nil) {
        (self.code, self.message, self.hint, self.cause) = (code, message, hint, cause)
    }

    public var description: String { message + (hint.map { " (\($0))" } ?? "") }

    /// Puts what the server said into words.
    public init(_ error: PostgresError) {
        let (code, message, hint) = Self.explain(error)
        self.init(code, message, hint: hint, cause: error)
    }

    private static func explain(_ error: PostgresError) -> (Code, String, String?) {
        guard case .server(let state) = error.kind, !error.isConnectionLoss else {
            return (.databaseUnavailable, error.description, error.mayHaveTakenEffect ? "it may have been done all the same" : nil)
        }
        switch state.code {
        // Those of the schema bring their own words.
        case "PN001": return (.nameIsFixed, error.message, error.hint)
        case "PN002": return (.shareExceeded, error.message, error.hint)
        case "PN003": return (.unlimitedShare, error.message, error.hint)
        case "PN004", "PN005", "PN006": return (.conflict, error.message, error.hint)
        case "3F000", "42P01", "42703", "42883":
            return (.schemaMismatch, "the database does not have the schema of this pandora", "run pandora migrate")
        case "22003", "22007", "22008", "22023": return (.invalidValue, error.message, error.hint)
        case SQLState.uniqueViolation.code, SQLState.checkViolation.code, SQLState.foreignKeyViolation.code:
            guard let rule = rules[error.constraint ?? ""] else { break }
            return rule
        default: break
        }
        return (.refused, error.description, error.hint ?? error.detail)
    }

    private static let slug = "lower-case letters, digits, '.', '_' and '-', at most 63, a letter or digit first and last"

    /// What the constraints of the schema mean, by name.
    private static let rules: [String: (Code, String, String?)] = [
        "slug_shape": (.invalidValue, "that is no name for a project, an environment or a service", "use \(slug)"),
        "service_version_check": (.invalidValue, "that is no version of a service", "use letters, digits, '.', '_' and '-', at most 25"),
        "client_name_check": (.invalidValue, "a client's name has 1 to 200 characters", nil),
        "client_email_check": (.invalidValue, "that is no mail address", "use name@host"),
        "api_key_name_check": (.invalidValue, "a key's name has 1 to 200 characters", nil),
        "project_service_max_request_check": (.invalidValue, "a limit is 0 or more", nil),
        "environment_service_max_request_check": (.invalidValue, "a limit is 0 or more", nil),
        "project_service_anchor_check": (.invalidValue, "an anchor is a moment such as 2026-01-31 06:00", nil),
        "client_name_key": (.alreadyExists, "there is a client of that name already", "names of clients are unique"),
        "project_client_id_name_key": (.alreadyExists, "the client has a project of that name already", nil),
        "environment_project_id_name_key": (.alreadyExists, "the project has an environment of that name already", nil),
        "service_name_version_key": (.alreadyExists, "there is a service of that name and version already", nil),
        "environment_service_project_id_service_id_fkey":
            (
                .notAssigned, "the service is not assigned to the environment's project",
                "assign it to the project first: pandora quota set --project"
            ),
        "environment_service_environment_id_project_id_fkey":
            (.invalidValue, "the environment belongs to another project", nil),
    ]
}
