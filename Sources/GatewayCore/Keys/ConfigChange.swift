/// What a notification on `pandora_config` says has changed.
public enum ConfigChange: Hashable, Sendable {
    case key(KeyID)
    case environment(Int64)
    case project(Int64)
    case service(Int64)
    case client(Int64)
    case everything

    /// Reads `kind:id`. What is not understood may concern anything.
    public init(payload: String) {
        let parts = payload.utf8.split(separator: UInt8(ascii: ":"), maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.count == 2 else {
            self = .everything
            return
        }
        let number = Int64(decimal: parts[1])
        switch (String(decoding: parts[0], as: UTF8.self), number) {
        case ("api_key", _): self = KeyID(parts[1]).map { .key($0) } ?? .everything
        case ("environment", let number?): self = .environment(number)
        case ("project", let number?): self = .project(number)
        case ("service", let number?): self = .service(number)
        case ("client", let number?): self = .client(number)
        default: self = .everything
        }
    }
}

extension Int64 {
    /// Decimal digits only, at least one.
    fileprivate init?(decimal digits: some Sequence<UInt8>) {
        var value: Int64 = 0
        var isEmpty = true
        for digit in digits {
            guard (0x30...0x39).contains(digit) else { return nil }
            let (tens, overflow) = value.multipliedReportingOverflow(by: 10)
            let (sum, carry) = tens.addingReportingOverflow(Int64(digit - 0x30))
            guard !overflow, !carry else { return nil }
            (value, isEmpty) = (sum, false)
        }
        if isEmpty { return nil }
        self = value
    }
}

/// The changes announced lately, numbered from 1, and which of them concern what.
struct Announcements {
    private(set) var latest: UInt64 = 0
    private var changes: [ConfigChange: UInt64] = [:]
    /// Announcements up to this number are forgotten: they may have concerned anything.
    private var forgotten: UInt64 = 0
    private var latestKey: UInt64 = 0

    var count: Int { changes.count }

    mutating func add(_ change: ConfigChange) {
        latest += 1
        changes[change] = latest
        if case .key = change { latestKey = latest }
    }

    /// Forgets all of them: whoever asks about the time before is told yes.
    mutating func forget() {
        latest += 1
        changes.removeAll(keepingCapacity: true)
        (forgotten, latestKey) = (latest, latest)
    }

    /// Whether an announcement after `number` concerned the entry; nil: the absence of a key.
    func concern(_ entry: KeyEntry?, since number: UInt64) -> Bool {
        guard latest > number else { return false }
        guard number >= forgotten else { return true }
        // A new key is announced by an id that says nothing of its digest.
        guard let entry else { return latestKey > number }
        func isConcerned(_ change: ConfigChange) -> Bool { changes[change].map { $0 > number } ?? false }
        return isConcerned(.key(entry.keyID)) || isConcerned(.environment(entry.environmentID))
            || isConcerned(.project(entry.projectID)) || isConcerned(.client(entry.clientID))
            || entry.grants.contains { isConcerned(.service($0.serviceID)) }
    }
}

/// What is known of the connection that hears announcements. Connections are numbered from 1; 0 stands for none.
struct ListenProof {
    private(set) var connection: UInt64 = 0
    /// The last proof of the present connection.
    private(set) var latest = Int64.min / 2
    private var isListening = false
    private var count: UInt64 = 0
    /// The last proofs of earlier connections: what was current until then.
    private var earlier: [UInt64: Int64] = [:]

    mutating func began(_ now: Int64) {
        ended()
        count += 1
        (connection, latest, isListening) = (count, now, true)
    }

    mutating func proved(_ sent: Int64) {
        if isListening { latest = max(latest, sent) }
    }

    mutating func ended() {
        guard isListening else { return }
        if earlier.count >= 64, let oldest = earlier.keys.min() { earlier[oldest] = nil }
        earlier[connection] = latest
        (connection, isListening) = (0, false)
    }

    func holds(_ number: UInt64) -> Bool { isListening && number == connection }

    func lastProof(of number: UInt64) -> Int64 {
        holds(number) ? latest : earlier[number] ?? Int64.min / 2
    }
}
