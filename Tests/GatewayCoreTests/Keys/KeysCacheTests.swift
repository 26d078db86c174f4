import GatewayCore
import Testing

private let second: Int64 = 1_000_000_000

private func digest(_ number: UInt8) -> KeyDigest { KeyDigest(bytes: [UInt8](repeating: number, count: 32))! }

/// A number spread over the digest's first word, as a hash would be.
private func digest(wide number: UInt32) -> KeyDigest {
    var bytes = [UInt8](repeating: 0, count: 32)
    for index in 0..<4 { bytes[index] = UInt8(truncatingIfNeeded: number >> (8 * UInt32(index))) }
    return KeyDigest(bytes: bytes)!
}

extension KeyCache {
    fileprivate mutating func ticket(_ digest: KeyDigest, now: Int64) -> KeyTicket {
        guard case .askStore(let ticket) = lookup(digest, now: now) else { fatalError("no question was asked") }
        return ticket
    }

    fileprivate mutating func fill(_ digest: KeyDigest, _ entry: KeyEntry?, now: Int64) {
        if case .askAgain = filled(ticket(digest, now: now), entry, now: now) { fatalError("nothing overtook") }
    }

    fileprivate mutating func tell(_ digest: KeyDigest, now: Int64) -> String {
        switch lookup(digest, now: now) {
        case .entry: "entry"
        case .absent: "absent"
        case .stale: "stale"
        case .askStore: "ask"
        case .waiting: "waiting"
        case .overloaded: "overloaded"
        }
    }
}

/// A cache whose connection listens and was proved at 0.
private func listening(_ change: (inout KeyCache.Limits) -> Void = { _ in }) -> KeyCache {
    var limits = KeyCache.Limits()
    change(&limits)
    var cache = KeyCache(limits: limits)
    cache.listening(now: 0)
    return cache
}

@Suite struct KeysCacheTests {
    @Test func missesOfOneKeyAskOnce() {
        var cache = listening()
        let ticket = cache.ticket(digest(1), now: 0)
        for _ in 0..<10 { #expect(cache.tell(digest(1), now: 0) == "waiting") }
        guard case .entry = cache.filled(ticket, makeEntry(), now: 1) else { Issue.record("not filled"); return }
        #expect(cache.tell(digest(1), now: 2) == "entry")
    }

    @Test func entriesAreCurrentAsLongAsTheConnectionIsProved() {
        var cache = listening()
        cache.fill(digest(1), makeEntry(), now: 0)
        for at in 1...100 {
            cache.proved(sent: Int64(at) * second / 2)
            #expect(cache.tell(digest(1), now: Int64(at) * second / 2 + second / 4) == "entry")
        }
        #expect(cache.tell(digest(1), now: 51 * second) == "ask")
    }

    @Test func aProofAfterAPauseMakesEntriesCurrentAgain() {
        var cache = listening()
        cache.fill(digest(1), makeEntry(), now: 0)
        let ticket = cache.ticket(digest(1), now: 10 * second)
        guard case .stale = cache.failed(ticket, now: 10 * second) else { Issue.record("no fallback"); return }
        cache.proved(sent: 11 * second)
        #expect(cache.tell(digest(1), now: 11 * second) == "entry")
    }

    @Test func aReconnectionHasEverythingAskedAgain() {
        var cache = listening()
        cache.fill(digest(1), makeEntry(), now: 0)
        cache.proved(sent: second)
        cache.listenLost()
        cache.listening(now: second)
        cache.proved(sent: second)
        #expect(cache.tell(digest(1), now: second) == "ask")
    }

    @Test func aFillThatBeganBeforeTheConnectionIsNotCurrentForLong() {
        var cache = KeyCache()
        let ticket = cache.ticket(digest(1), now: 0)
        cache.listening(now: 1)
        _ = cache.filled(ticket, makeEntry(), now: 2)
        #expect(cache.tell(digest(1), now: 3) == "entry")
        cache.proved(sent: second)
        #expect(cache.tell(digest(1), now: second) == "ask")
    }

    @Test func staleEntriesServeWhileTheStoreIsAwayForAnHour() {
        var cache = listening()
        cache.fill(digest(1), makeEntry(), now: 0)
        cache.proved(sent: 100 * second)
        cache.listenLost()
        for at in stride(from: Int64(102), to: 3_700, by: 50) {
            let ticket = cache.ticket(digest(1), now: at * second)
            guard case .stale = cache.failed(ticket, now: at * second) else { Issue.record("at \(at)"); return }
            // The next ones do not ask for a moment.
            #expect(cache.tell(digest(1), now: at * second + 1) == "stale")
        }
        let late = cache.ticket(digest(1), now: 3_701 * second)
        guard case .unavailable = cache.failed(late, now: 3_701 * second) else { Issue.record("too old"); return }
    }

    @Test func unknownKeysAreUnavailableAndNeverAbsentWhileTheStoreIsAway() {
        var cache = listening()
        let ticket = cache.ticket(digest(9), now: 0)
        guard case .unavailable = cache.failed(ticket, now: 0) else { Issue.record("answered"); return }
        #expect(cache.tell(digest(9), now: 1) == "ask")
        // Nor once a negative entry has run out.
        var other = listening()
        other.fill(digest(9), nil, now: 0)
        let again = other.ticket(digest(9), now: 31 * second)
        guard case .unavailable = other.failed(again, now: 31 * second) else { Issue.record("answered"); return }
    }

    @Test func absentKeysAreRememberedForHalfAMinute() {
        var cache = listening()
        cache.fill(digest(1), nil, now: 0)
        cache.proved(sent: 29 * second)
        #expect(cache.tell(digest(1), now: 29 * second) == "absent")
        cache.proved(sent: 30 * second)
        #expect(cache.tell(digest(1), now: 30 * second) == "ask")
    }

    @Test func aNewKeyEndsAbsence() {
        var cache = listening()
        cache.fill(digest(1), nil, now: 0)
        cache.invalidate(.environment(1))
        #expect(cache.tell(digest(1), now: 1) == "absent")
        cache.invalidate(.key(KeyID(UUIDBits(high: 7, low: 7))))
        #expect(cache.tell(digest(1), now: 1) == "ask")
    }

    @Test(arguments: [
        (ConfigChange.key(KeyID(UUIDBits(high: 0, low: 1))), true), (.key(KeyID(UUIDBits(high: 0, low: 2))), false),
        (.environment(1), true), (.environment(5), false), (.project(2), true), (.project(5), false),
        (.client(3), true), (.client(5), false), (.service(4), true), (.service(5), false), (.everything, true),
    ])
    func anAnnouncementEndsWhatItConcerns(_ change: ConfigChange, _ concerns: Bool) {
        let entry = makeEntry(grants: [
            .init(serviceID: 4, name: "s", version: "1", status: .enabled, limited: false)
        ])
        var cache = listening()
        cache.fill(digest(1), entry, now: 0)
        cache.invalidate(change)
        #expect(cache.tell(digest(1), now: 1) == (concerns ? "ask" : "entry"))
        // A key that is known to have changed is not served stale either.
        if concerns {
            var away = listening()
            away.fill(digest(1), entry, now: 0)
            away.invalidate(change)
            let ticket = away.ticket(digest(1), now: 2)
            guard case .unavailable = away.failed(ticket, now: 2) else { Issue.record("served"); return }
        }
        // And a fill that it overtook is thrown away.
        var raced = listening()
        let ticket = raced.ticket(digest(1), now: 0)
        raced.invalidate(change)
        switch raced.filled(ticket, entry, now: 1) {
        case .askAgain(let again):
            #expect(concerns)
            _ = raced.filled(again, makeEntry(key: .disabled), now: 2)
        case .entry: #expect(!concerns)
        case .absent: Issue.record("absent")
        }
    }

    @Test func absenceOvertakenByANewKeyIsAskedAgain() {
        var cache = listening()
        let ticket = cache.ticket(digest(1), now: 0)
        cache.invalidate(.key(KeyID(UUIDBits(high: 0, low: 1))))
        guard case .askAgain(let again) = cache.filled(ticket, nil, now: 1) else { Issue.record("believed"); return }
        guard case .entry = cache.filled(again, makeEntry(), now: 2) else { Issue.record("not filled"); return }
        #expect(cache.tell(digest(1), now: 3) == "entry")
    }

    @Test func aFloodOfAnnouncementsEndsInAnAnswerThatIsNotKept() {
        var cache = listening()
        var ticket = cache.ticket(digest(1), now: 0)
        for round in 0..<5 {
            cache.invalidate(.environment(1))
            guard case .askAgain(let again) = cache.filled(ticket, makeEntry(), now: 0) else {
                Issue.record("round \(round)")
                return
            }
            ticket = again
        }
        cache.invalidate(.environment(1))
        guard case .entry = cache.filled(ticket, makeEntry(), now: 0) else { Issue.record("no answer"); return }
        #expect(cache.tell(digest(1), now: 0) == "ask")
    }

    @Test func moreAnnouncementsThanAreRememberedDropEverything() {
        var cache = listening { $0.announcements = 10 }
        cache.fill(digest(1), makeEntry(), now: 0)
        for number in 0..<10 { cache.invalidate(.service(Int64(100 + number))) }
        #expect(cache.tell(digest(1), now: 0) == "entry")
        let onItsWay = cache.ticket(digest(2), now: 0)
        cache.invalidate(.service(110))
        #expect(cache.count.entries == 0)
        guard case .askAgain = cache.filled(onItsWay, makeEntry(id: 2), now: 0) else { Issue.record("kept"); return }
    }

    @Test func sizeIsBoundedAndWhatIsUsedStays() {
        var cache = listening { ($0.entries, $0.absent) = (100, 50) }
        for number in 0..<1_000 {
            cache.fill(digest(wide: UInt32(number)), makeEntry(), now: 0)
            // Used all the time.
            #expect(cache.tell(digest(wide: 0), now: 0) == "entry")
        }
        #expect(cache.count.entries == 100)
        for number in 0..<1_000 { cache.fill(digest(wide: UInt32(10_000 + number)), nil, now: 0) }
        #expect(cache.count.absent == 50)
        #expect(cache.tell(digest(wide: 0), now: 0) == "entry")
    }

    @Test func aSlowStoreHoldsNobodyUpWhoHasAStaleEntry() {
        var cache = listening { $0.pauseAfterFailure = second / 2 }
        cache.fill(digest(1), makeEntry(), now: 0)
        let ticket = cache.ticket(digest(1), now: 10 * second)
        #expect(cache.hasFallback(ticket))
        #expect(cache.tell(digest(1), now: 10 * second) == "waiting")
        #expect(cache.fallback(ticket, now: 10 * second) != nil)
        // Not only during the pause, but as long as the question is open.
        for tenth in 0..<30 { #expect(cache.tell(digest(1), now: 10 * second + Int64(tenth) * second / 10) == "stale") }
        // Unless a change concerned it.
        var changed = cache
        changed.invalidate(.environment(1))
        #expect(changed.tell(digest(1), now: 13 * second) == "waiting")
        guard case .absent = cache.filled(ticket, nil, now: 13 * second) else { Issue.record("not filled"); return }
        cache.proved(sent: 13 * second)
        #expect(cache.tell(digest(1), now: 13 * second) == "absent")
        // A key that nothing is known of has nothing to fall back on.
        let other = cache.ticket(digest(2), now: 13 * second)
        #expect(!cache.hasFallback(other) && cache.fallback(other, now: 13 * second) == nil)
    }

    @Test func questionsAreBounded() {
        var cache = listening { $0.questions = 2 }
        let first = cache.ticket(digest(1), now: 0)
        _ = cache.ticket(digest(2), now: 0)
        #expect(cache.tell(digest(3), now: 0) == "overloaded")
        _ = cache.filled(first, nil, now: 0)
        #expect(cache.tell(digest(3), now: 0) == "ask")
    }

    /// A model that remembers the truth at every moment: a current answer is never older than the last announcement.
    @Test(arguments: [1, 2, 3, 4, 5, 6, 7, 8] as [UInt64])
    func noAnswerIsOlderThanWhatWasAnnounced(_ seed: UInt64) {
        var random = SeededRandom(seed)
        var cache = listening { $0.unprovenFor = 0 }
        // The version of each key is told by its expiry; the store answers with the one that it had when it looked.
        var truth = [Int64](repeating: 0, count: 4)
        var announced = truth
        var open: [(ticket: KeyTicket, key: Int, seen: Int64)] = []
        var now: Int64 = 1
        for _ in 0..<5_000 {
            now += 1
            cache.proved(sent: now - 1)
            let key = Int.random(in: 0..<4, using: &random)
            let id = KeyID(UUIDBits(high: 0, low: UInt64(key)))
            switch Int.random(in: 0..<5, using: &random) {
            case 0:
                truth[key] += 1
            case 1:
                announced[key] = truth[key]
                cache.invalidate(Bool.random(using: &random) ? .key(id) : .environment(Int64(key)))
            case 2, 3:
                switch cache.lookup(digest(UInt8(key)), now: now) {
                case .entry(let entry): #expect(entry.expiresAt! >= announced[key])
                case .askStore(let ticket): open.append((ticket, key, truth[key]))
                default: break
                }
            default:
                guard !open.isEmpty else { continue }
                let (ticket, key, seen) = open.remove(at: Int.random(in: open.indices, using: &random))
                let entry = makeEntry(id: UInt64(key), expiresAt: seen, environmentID: Int64(key))
                if case .askAgain(let again) = cache.filled(ticket, entry, now: now) { open.append((again, key, truth[key])) }
            }
        }
    }

    @Test func payloadsAreRead() {
        let key = KeyID(UUIDBits(high: 1, low: 2))
        #expect(ConfigChange(payload: "api_key:\(key)") == .key(key))
        #expect(ConfigChange(payload: "environment:7") == .environment(7))
        #expect(ConfigChange(payload: "project:8") == .project(8))
        #expect(ConfigChange(payload: "service:9") == .service(9))
        #expect(ConfigChange(payload: "client:10") == .client(10))
        for strange in ["", "environment", "environment:", "environment:+7", "environment:99999999999999999999", "x:1", "api_key:1"] {
            #expect(ConfigChange(payload: strange) == .everything)
        }
    }
}
