/// Whether something may be used.
public enum TenantStatus: UInt8, Sendable {
    case enabled, disabled

    public init?(_ text: String) {
        switch text {
        case "enabled": self = .enabled
        case "disabled": self = .disabled
        default: return nil
        }
    }
}

public enum ServiceStatus: UInt8, Sendable {
    case enabled, disabled, deprecated

    public init?(_ text: String) {
        switch text {
        case "enabled": self = .enabled
        case "disabled": self = .disabled
        case "deprecated": self = .deprecated
        default: return nil
        }
    }

    /// How good a choice a service of this status is; less is better.
    fileprivate var rank: Int {
        switch self {
        case .enabled: 0
        case .deprecated: 1
        case .disabled: 2
        }
    }
}

/// Everything that decides whether a key's request may pass, except quota. Immutable; shared by the cache and by requests
/// in flight.
public final class KeyEntry: Sendable {
    /// A service that the key's environment may use.
    public struct Grant: Sendable, Equatable {
        public let serviceID: Int64
        public let name: String
        public let version: String
        public let status: ServiceStatus
        /// Whether requests need units; false where the environment is unlimited.
        public let limited: Bool

        public init(serviceID: Int64, name: String, version: String, status: ServiceStatus, limited: Bool) {
            self.serviceID = serviceID
            self.name = name
            self.version = version
            self.status = status
            self.limited = limited
        }
    }

    public let keyID: KeyID
    public let status: TenantStatus
    /// Microseconds since 1970; nil: never.
    public let expiresAt: Int64?
    public let environmentID: Int64
    public let environmentName: String
    public let environmentStatus: TenantStatus
    public let projectID: Int64
    public let projectName: String
    public let projectStatus: TenantStatus
    public let clientID: Int64
    public let grants: [Grant]

    public init(
        keyID: KeyID, status: TenantStatus, expiresAt: Int64?,
        environmentID: Int64, environmentName: String, environmentStatus: TenantStatus,
        projectID: Int64, projectName: String, projectStatus: TenantStatus,
        clientID: Int64, grants: [Grant]
    ) {
        self.keyID = keyID
        self.status = status
        self.expiresAt = expiresAt
        self.environmentID = environmentID
        self.environmentName = environmentName
        self.environmentStatus = environmentStatus
        self.projectID = projectID
        self.projectName = projectName
        self.projectStatus = projectStatus
        self.clientID = clientID
        self.grants = grants
    }

    /// Why the key may not be used at this moment, whatever the service; nil if it may.
    ///
    /// - Parameter now: microseconds since 1970. A key is expired from its `expiresAt` on.
    public func refusal(at now: Int64) -> Refusal? {
        if status == .disabled { return .keyDisabled }
        if let expiresAt, now >= expiresAt { return .keyExpired }
        if projectStatus == .disabled { return .projectDisabled }
        if environmentStatus == .disabled { return .environmentDisabled }
        return nil
    }

    /// The grant for a service, or why it may not be used. Where the reference names no version, the best that the environment
    /// was given: an enabled one before a deprecated one before a disabled one, then the one assigned to a service made later.
    ///
    /// - Parameter deprecatedPasses: whether a deprecated service still serves those it is assigned to; the route says.
    public func grant(for service: Route.ServiceReference, deprecatedPasses: Bool) -> GrantVerdict {
        var best: Grant?
        for grant in grants where grant.name == service.name {
            if let version = service.version {
                guard grant.version == version else { continue }
                best = grant
                break
            }
            if best.map({ grant.status.rank <= $0.status.rank }) ?? true { best = grant }
        }
        guard let best else { return .refused(.serviceNotAssigned, nil) }
        switch best.status {
        case .enabled: return .granted(best)
        case .disabled: return .refused(.serviceDisabled, best)
        case .deprecated: return deprecatedPasses ? .granted(best) : .refused(.serviceDeprecated, best)
        }
    }
}

public enum GrantVerdict: Sendable, Equatable {
    case granted(KeyEntry.Grant)
    /// With the grant where there is one, so that the log can name the service.
    case refused(Refusal, KeyEntry.Grant?)
}
