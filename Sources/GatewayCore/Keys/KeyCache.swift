/// What a worker knows of keys: an entry per digest, absent keys too, and the rules by which it may still be believed.
///
/// A state machine without I/O. `now` is nanoseconds of a monotonic clock, the same everywhere.
///
/// **When an entry is current.** The database announces every change of configuration on a LISTEN connection, which proves
/// itself by notifications to itself. An entry whose fill began under the present connection is current as long as the last
/// proof is younger than `proofWindow`, and no announcement concerned it. Any other entry is *stale*: it is asked for again,
/// and serves while the database cannot answer, up to `staleMax` after the moment it was last known to be current.
///
/// **An announcement** makes what it concerns worthless at once, in the cache and on its way: a fill that began before it is
/// thrown away and asked again. It costs the same whatever the cache holds; entries are checked against the announcements
/// since their fill when they are next looked up.
public struct KeyCache {
    public struct Limits: Sendable {
        /// Entries, and absent keys, kept at most.
        public var entries = 100_000
        public var absent = 10_000
        /// Questions to the store under way at most.
        public var questions = 1_000
        /// Announcements remembered; beyond, everything cached is dropped.
        public var announcements = 4_096
        public var absentFor: Int64 = 30_000_000_000
        public var staleMax: Int64 = 3_600_000_000_000
        public var proofWindow: Int64 = 900_000_000
        /// Entries asked for without a proven connection are believed this long.
        public var unprovenFor: Int64 = 500_000_000
        /// After a failed question, stale entries serve this long without another.
        public var pauseAfterFailure: Int64 = 500_000_000
        /// Fills overtaken by announcements before the last one is believed, once.
        public var overtakenMax = 5

        public init() {}
    }

    public enum Lookup {
        case entry(KeyEntry)
        case absent
        /// Not current, but the database was just found away.
        case stale(KeyEntry)
        /// Ask the store, then report `filled` or `failed` with the ticket.
        case askStore(KeyTicket)
        /// A question for this key is under way.
        case waiting
        /// Too many questions are under way.
        case overloaded
    }

    public enum Filled {
        case entry(KeyEntry)
        case absent
        /// An announcement overtook the answer: ask again with this ticket.
        case askAgain(KeyTicket)
    }

    public enum Failed {
        case stale(KeyEntry)
        case unavailable
    }

    struct Slot {
        /// Nil: no such key.
        var entry: KeyEntry?
        /// When the question was sent.
        var asked: Int64
        /// The connection's number at that moment; 0 stands for none.
        var connection: UInt64
        /// The last announcement that the slot was checked against.
        var checked: UInt64
    }

    private struct Question {
        var ticket: KeyTicket
        var overtaken = 0
        /// The store takes its time: stale entries serve meanwhile.
        var isSlow = false
    }

    private let limits: Limits
    private var entries: ClockTable<Slot>
    private var absent: ClockTable<Slot>
    private var questions: [KeyDigest: Question] = [:]
    private var announcements = Announcements()
    private var proof = ListenProof()
    private var tickets: UInt64 = 0
    private var pausedUntil = Int64.min

    public init(limits: Limits = Limits()) {
        self.limits = limits
        entries = ClockTable(capacity: limits.entries)
        absent = ClockTable(capacity: limits.absent)
    }

    /// Entries and absent keys cached.
    public var count: (entries: Int, absent: Int) { (entries.count, absent.count) }

    // MARK: - Requests

    public mutating func lookup(_ digest: KeyDigest, now: Int64) -> Lookup {
        if let slot = valid(digest, now: now) {
            if isCurrent(slot, now: now) {
                return slot.entry.map { .entry($0) } ?? .absent
            }
            if now < pausedUntil || questions[digest]?.isSlow == true, let entry = slot.entry, isUsable(slot, now: now) {
                return .stale(entry)
            }
        }
        guard questions[digest] == nil else { return .waiting }
        guard questions.count < limits.questions else {
            if let slot = entries.peek(digest), let entry = slot.entry, isUsable(slot, now: now) { return .stale(entry) }
            return .overloaded
        }
        return .askStore(ask(digest, now: now, overtaken: 0))
    }

    /// Whether the question could be done without for now.
    public func hasFallback(_ ticket: KeyTicket) -> Bool { entries.peek(ticket.digest) != nil }

    /// The store is slow to answer a question, which stays open: what can serve meanwhile. Nil: nothing.
    public mutating func fallback(_ ticket: KeyTicket, now: Int64) -> KeyEntry? {
        guard questions[ticket.digest]?.ticket == ticket, let slot = valid(ticket.digest, now: now), let entry = slot.entry,
            isUsable(slot, now: now)
        else { return nil }
        pausedUntil = now + limits.pauseAfterFailure
        questions[ticket.digest]?.isSlow = true
        return entry
    }

    /// The store answered; nil: there is no such key.
    public mutating func filled(_ ticket: KeyTicket, _ entry: KeyEntry?, now: Int64) -> Filled {
        guard let question = questions[ticket.digest], question.ticket == ticket else {
            preconditionFailure("a ticket is answered once")
        }
        questions[ticket.digest] = nil
        pausedUntil = .min
        let overtaken = announcements.concern(entry, since: ticket.announcement)
        if overtaken, question.overtaken < limits.overtakenMax {
            return .askAgain(ask(ticket.digest, now: now, overtaken: question.overtaken + 1))
        }
        entries.remove(ticket.digest)
        absent.remove(ticket.digest)
        if !overtaken {
            let slot = Slot(
                entry: entry, asked: ticket.asked, connection: ticket.connection, checked: announcements.latest)
            if entry != nil { entries.insert(slot, for: ticket.digest) } else { absent.insert(slot, for: ticket.digest) }
        }
        return entry.map { .entry($0) } ?? .absent
    }

    /// The store could not answer.
    public mutating func failed(_ ticket: KeyTicket, now: Int64) -> Failed {
        guard let question = questions[ticket.digest], question.ticket == ticket else {
            preconditionFailure("a ticket is answered once")
        }
        questions[ticket.digest] = nil
        pausedUntil = now + limits.pauseAfterFailure
        guard let slot = valid(ticket.digest, now: now), let entry = slot.entry, isUsable(slot, now: now) else {
            return .unavailable
        }
        return .stale(entry)
    }

    // MARK: - The LISTEN connection

    /// The connection listens from now on; what happened before it is unknown.
    public mutating func listening(now: Int64) { proof.began(now) }

    /// A notification that the connection sent itself came back.
    ///
    /// - Parameter sent: when it was sent: everything announced before that has been heard.
    public mutating func proved(sent: Int64) { proof.proved(sent) }

    public mutating func listenLost() { proof.ended() }

    /// Something changed.
    public mutating func invalidate(_ change: ConfigChange) {
        if announcements.count >= limits.announcements || change == .everything {
            // What is on its way began before this one, and counts as concerned.
            entries.removeAll()
            absent.removeAll()
            announcements.forget()
        } else {
            announcements.add(change)
        }
    }

    // MARK: - Rules

    private mutating func ask(_ digest: KeyDigest, now: Int64, overtaken: Int) -> KeyTicket {
        tickets += 1
        let ticket = KeyTicket(
            digest: digest, number: tickets, asked: now, connection: proof.connection,
            announcement: announcements.latest)
        questions[digest] = Question(ticket: ticket, overtaken: overtaken)
        return ticket
    }

    /// The slot of a key, unless an announcement concerned it.
    private mutating func valid(_ digest: KeyDigest, now: Int64) -> Slot? {
        if let slot = entries.touch(digest) {
            if slot.checked == announcements.latest { return slot }
            guard !announcements.concern(slot.entry, since: slot.checked) else {
                entries.remove(digest)
                return nil
            }
            entries.update(digest) { [latest = announcements.latest] in $0.checked = latest }
            return slot
        }
        guard let slot = absent.touch(digest) else { return nil }
        guard now - slot.asked < limits.absentFor, !announcements.concern(nil, since: slot.checked) else {
            absent.remove(digest)
            return nil
        }
        return slot
    }

    private func isCurrent(_ slot: Slot, now: Int64) -> Bool {
        if now - slot.asked <= limits.unprovenFor { return true }
        return proof.holds(slot.connection) && now - proof.latest <= limits.proofWindow
    }

    private func isUsable(_ slot: Slot, now: Int64) -> Bool {
        now - max(slot.asked, proof.lastProof(of: slot.connection)) <= limits.staleMax
    }
}

/// Names one question to the store.
public struct KeyTicket: Hashable, Sendable {
    public let digest: KeyDigest
    let number: UInt64
    let asked: Int64
    let connection: UInt64
    let announcement: UInt64
}
