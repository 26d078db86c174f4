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
        addToList("X-Forwarded-For", .forwardedFor) { $0.append(contentsOf: remote.utf8) }
        if !head.kinds.contains(.forwardedHost) { add("X-Forwarded-Host", head.host) }
        if !head.kinds.contains(.forwardedProto) { add("X-Forwarded-Proto", "http") }
        let host = head.host
        addToList("Forwarded", .forwarded) { value in
            let isIPv6 = remote.utf8.contains(UInt8(ascii: ":"))
            value.append(static: isIPv6 ? "for=\"[" : "for=")
            value.append(contentsOf: remote.utf8)
            if isIPv6 { value.append(static: "]\"") }
            if host.utf8.allSatisfy(Self.isQuotable) {
                value.append(static: ";host=\"")
                value.append(contentsOf: host.utf8)
                value.append(UInt8(ascii: "\""))
            }
            value.append(static: ";proto=http")
        }
        let version: StaticString = head.isHTTP11 ? "1.1 pandora" : "1.0 pandora"
        addToList("Via", .via) { $0.append(static: version) }
    }

    /// Every field of the kind that the client sent, and what `last` appends, as one list.
    private mutating func addToList(_ name: StaticString, _ kind: FieldKind, last: (inout [UInt8]) -> Void) {
        let head = head
        let isWhole = fields.add(name) { value in
            for (index, field) in head.fields.enumerated() where head.kinds[index] == kind && !field.value.isEmpty {
                value.append(contentsOf: field.value.utf8)
                value.append(static: ", ")
            }
            last(&value)
        }
        if !isWhole { isBroken = true }
    }

    private static func isQuotable(_ byte: UInt8) -> Bool { byte >= 0x20 && byte < 0x7f && byte != 0x22 && byte != 0x5c }

    // MARK: Whose it is

    private mutating func addIdentity(_ identity: Identity) {
        let (entry, grant) = (identity.entry, identity.grant)
        fields.add("Pandora-Client") { $0.append(decimal: entry.clientID) }
        add("Pandora-Project", entry.projectName)
        add("Pandora-Environment", entry.environmentName)
        let isWhole = fields.add("Pandora-Service") { value in
            value.append(contentsOf: grant.name.utf8)
            value.append(UInt8(ascii: "/"))
            value.append(contentsOf: grant.version.utf8)
        }
        if !isWhole { isBroken = true }
        fields.add("Pandora-Request-Id") { identity.requestID.append(to: &$0) }
        fields.add("Pandora-Start-Point") { $0.append(contentsOf: identity.startPoint) }
        fields.add("traceparent") { identity.trace.append(to: &$0) }
    }
}
