/// What the upstream itself wants to become of the flow, said in `Pandora-Flow-Outcome`.
public enum FlowWish: UInt8, Sendable, CaseIterable {
    case commit, rollback

    /// Reads the field's value; nil for anything but the two words, in any case of letters.
    public init?(header value: some Sequence<UInt8>) {
        let word = value.map { 0x41...0x5a ~= $0 ? $0 | 0x20 : $0 }
        switch word {
        case Array("commit".utf8): self = .commit
        case Array("rollback".utf8): self = .rollback
        default: return nil
        }
    }
}

/// What a hop's answer does to its flow.
public enum FlowVerdict: Sendable, Equatable {
    /// The flow goes on; nothing is to be settled.
    case stay
    case commit
    case rollback
    /// The finish failed and the flow goes on: its claim is to be given up.
    case reopen
}

extension Flow {
    /// Decides on the upstream's answer head.
    ///
    /// The upstream's own word goes first, on any hop.  Otherwise a start that fails begins nothing, a step decides
    /// nothing, and a finish commits or does what the file says.  The file also says which statuses are success.
    ///
    /// - Parameters:
    ///   - status: of the final head; nil where there was none: the upstream failed, or the client left before.
    ///   - wish: from a head only.
    public func verdict(on role: FlowRole, status: UInt16?, wish: FlowWish?) -> FlowVerdict {
        if status != nil, let wish { return wish == .commit ? .commit : .rollback }
        let succeeded = status.map { status in success.contains { $0.contains(status) } } ?? false
        switch (role, succeeded) {
        case (.start, true), (.step, _): return .stay
        case (.start, false): return .rollback
        case (.finish, true): return .commit
        case (.finish, false): return onFailure == .keep ? .reopen : .rollback
        }
    }
}
