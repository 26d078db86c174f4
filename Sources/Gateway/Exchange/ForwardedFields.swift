internal import Curl
internal import GatewayCore

/// The header fields of a request as the upstream gets them: the client's, in order and with duplicates, without what is of
/// the client's connection and without the key; then where the request came from, and whose it is.
struct ForwardedFields {
    /// What the gateway says of a request.
    struct Identity {
        var entry: KeyEntry
        var grant: KeyEntry.Grant
        var requestID: RequestID
        /// `Pandora-Start-Point`, signed.
        var startPoint: [UInt8]
        var trace: TraceContext
    }

    private let head: RequestHead
    private let plan: RoutePlan
    private(set) var fields = TransferHeaders()
    /// A field that cannot be forwarded as one (a control character in its value).
    private(set) var isBroken = false

    init(_ head: RequestHead, _ plan: RoutePlan, host: String, remote: String, identity: Identity) {
        (self.head, self.plan) = (head, plan)
        add("Host", host)
        for (index, field) in head.fields.enumerated() where isKept(head.kinds[index]) && !isRemoved(field.name) {
            add(field.name, field.value)
        }
        for field in plan.route.settings.headers.replace { add(field.name, field.value) }
        addOrigin(remote)
        addIdentity(identity)
    }

    private mutating func add(_ name: String, _ value: String) {
        if !fields.add(name: name, value: value) { isBroken = true }
    }

    private func isKept(_ kind: FieldKind) -> Bool {
        switch kind {
        case .endToEnd, .forwardedHost, .forwardedProto: true
        case .authorization: !head.isAuthorizationKey
        default: false
        }
    }

    private func isRemoved(_ name: String) -> Bool {
        !plan.removedFields.isEmpty && plan.removedFields.contains(name.lowercased())
    }

    // MARK: Where it came from

    /// `X-Forwarded-…`, `Forwarded` (RFC 7239) and `Via` (RFC 9110, 7.6.3): what earlier proxies said stays in front.
    private mutating func addOrigin(_ remote: String) {
        add("X-Forwarded-For", joined(.forwardedFor, remote))
        if !head.kinds.contains(.forwardedHost) { add("X-Forwarded-Host", head.host) }
        if !head.kinds.contains(.forwardedProto) { add("X-Forwarded-Proto", "http") }
        let node = remote.utf8.contains(UInt8(ascii: ":")) ? "\"[\(remote)]\"" : remote
        let host = head.host.utf8.allSatisfy(Self.isQuotable) ? ";host=\"\(head.host)\"" : ""
        add("Forwarded", joined(.forwarded, "for=\(node)\(host);proto=http"))
        add("Via", joined(.via, head.isHTTP11 ? "1.1 pandora" : "1.0 pandora"))
    }

    /// Every field of the kind, and `last`, as one list.
    private func joined(_ kind: FieldKind, _ last: String) -> String {
        guard head.kinds.contains(kind) else { return last }
        var text = ""
        for (index, field) in head.fields.enumerated() where head.kinds[index] == kind && !field.value.isEmpty {
            text += field.value
            text += ", "
        }
        return text + last
    }

    private static func isQuotable(_ byte: UInt8) -> Bool { byte >= 0x20 && byte < 0x7f && byte != 0x22 && byte != 0x5c }

    // MARK: Whose it is

    private mutating func addIdentity(_ identity: Identity) {
        let (entry, grant) = (identity.entry, identity.grant)
        add("Pandora-Client", String(entry.clientID))
        add("Pandora-Project", entry.projectName)
        add("Pandora-Environment", entry.environmentName)
        add("Pandora-Service", grant.name + "/" + grant.version)
        identity.requestID.withText { _ = fields.add(name: "Pandora-Request-Id", value: $0) }
        fields.add(name: "Pandora-Start-Point", value: identity.startPoint)
        var trace: [UInt8] = []
        trace.reserveCapacity(55)
        identity.trace.append(to: &trace)
        fields.add(name: "traceparent", value: trace)
    }
}
