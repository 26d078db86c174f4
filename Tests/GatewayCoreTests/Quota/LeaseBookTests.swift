import GatewayCore
import QuotaModel
import Testing

/// The interleavings that a lease has to survive, one by one.
@Suite struct LeaseBookTests {
    let row = QuotaRow(environmentID: 1, serviceID: 1)
    let other = QuotaRow(environmentID: 2, serviceID: 1)

    func want(_ units: Int64 = 1, _ rule: OutageRule = .deny, row: QuotaRow? = nil) -> QuotaWant {
        let row = row ?? self.row
        return QuotaWant(
            environmentID: row.environmentID, serviceID: row.serviceID, units: units, limited: true, outage: rule)
    }

    func store(_ limit: Int64?, period: Int64? = nil) -> ModelStore {
        var store = ModelStore(periodLength: period)
        store.setLimit(limit, of: row)
        return store
    }

    func charged(_ hold: QuotaHold, _ units: Int64? = nil) -> ModelFrame {
        ModelFrame(row: hold.row, period: hold.period, units: units ?? hold.units, leased: hold.leased)
    }

    func free(_ store: ModelStore) -> Int64 { store.quotas[row]!.free }

    // MARK: - Units that the upstream reports

    @Test func whatTheUpstreamDidNotTakeServesWhoWaitsAtOnce() throws {
        var store = store(10)
        var desk = LeaseDesk(&store)
        desk.admit(want(10))
        desk.talk(to: &store)
        var hold = try #require(desk.answers[0].admission.hold)
        desk.admit(want(6))
        // Not by the desk's hand, which looks after the book at every turn: the book has to say that somebody can be answered.
        desk.book.reduce(hold, to: 4, now: desk.now)
        #expect(desk.book.isDue)
        let answered = desk.book.takeActions().compactMap { if case .answer(_, let admission) = $0 { admission.hold?.units } else { nil } }
        #expect(answered == [6])
        hold.units = 4
        desk.settle(hold, charge: 4)
        desk.ship([charged(hold)], to: &store)
        #expect(store.quotas[row]?.used == 4 && free(store) == 0 && store.defect() == nil)
    }

    @Test(arguments: [OutageRule.allow, nil]) func whatHasNoLeaseIsChargedWhatWasReportedAllTheSame(_ outage: OutageRule?) throws {
        var store = store(outage == nil ? nil : 10)
        var desk = LeaseDesk(&store)
        if outage != nil { desk.loseConnection() }
        let admission = desk.admit(
            QuotaWant(environmentID: 1, serviceID: 1, units: 10, limited: outage != nil, outage: outage ?? .deny))
        var hold = try #require(admission?.hold)
        #expect(!hold.leased && hold.outage == (outage != nil))
        desk.reduce(hold, to: 4)
        hold.units = 4
        #expect(desk.book.settle(hold, charge: hold.units, now: desk.now) == 4)
        desk.ship([charged(hold)], to: &store)
        #expect(store.quotas[row]?.used == 4 && store.quotas[row]?.held == 0 && store.defect() == nil)
    }

    @Test func aHoldOfWhichNothingIsLeftEndsWithoutItsLease() throws {
        var store = store(10, period: 60_000_000)
        var desk = LeaseDesk(&store)
        desk.admit(want(10))
        desk.talk(to: &store)
        var hold = try #require(desk.answers[0].admission.hold)
        desk.reduce(hold, to: 0)
        hold.units = 0
        desk.wait(61_000_000)
        desk.talk(to: &store)
        desk.wait(5_000_000)
        desk.talk(to: &store)
        desk.settle(hold, charge: 0)
        desk.ship([charged(hold)], to: &store)
        #expect(store.quotas[row]?.used == 0 && store.quotas[row]?.held == 0 && store.defect() == nil)
    }

    // MARK: - Asking

    @Test func leasedUnitsCostNoQuestion() throws {
        var store = store(100_000)
        var desk = LeaseDesk(&store)
        #expect(desk.admit(want()) == nil)
        desk.talk(to: &store)
        #expect(desk.answers.count == 1)
        for _ in 0..<30 { #expect(desk.admit(want())?.hold != nil) }
        #expect(desk.book.counters.asks == 1)
    }

    @Test func waitingRequestsShareOneQuestionForAllRows() throws {
        var store = store(100)
        store.setLimit(100, of: other)
        var desk = LeaseDesk(&store)
        for _ in 0..<3 { desk.admit(want()) }
        desk.admit(want(4, row: other))
        desk.admit(want(2, row: other))
        // The first went out at once; the others wait for its answer and five milliseconds.
        #expect(desk.outbox.count == 1)
        desk.talk(to: &store)
        #expect(desk.outbox.isEmpty)
        desk.wait(4_999)
        #expect(desk.outbox.isEmpty)
        desk.wait(1)
        guard case .ask(_, let questions) = try #require(desk.outbox.first) else { fatalError("not a question") }
        #expect(questions.map(\.row) == [other])
        #expect(questions.map(\.need) == [6])
        desk.talk(to: &store)
        #expect(desk.answers.count == 5 && desk.answers.allSatisfy { $0.admission.hold != nil })
    }

    @Test func unitsReachWhomTheyCanInOrderOfArrival() throws {
        var store = store(5)
        var desk = LeaseDesk(&store)
        desk.admit(want(3))
        desk.admit(want(4))
        desk.admit(want(2))
        desk.talk(to: &store)
        desk.wait(5_000)
        desk.talk(to: &store)
        // Three and two fit, four does not, and refuses nobody but itself.
        #expect(desk.answers.compactMap { $0.admission.hold?.units } == [3, 2])
        desk.settle(desk.answers[0].admission.hold!, charge: 3)
        desk.settle(desk.answers[1].admission.hold!, charge: 2)
        desk.ship([charged(desk.answers[0].admission.hold!), charged(desk.answers[1].admission.hold!)], to: &store)
        desk.wait(10_000)
        desk.talk(to: &store)
        #expect(desk.answers.last?.admission.isUsedUp == true)
    }

    @Test func anAnswerRefusesOnlyThoseWhoAskedBeforeIt() throws {
        var store = store(1)
        var desk = LeaseDesk(&store)
        desk.admit(want(2))
        let question = desk.outbox.removeFirst()
        // Arrives while the question is on its way; meanwhile the limit is raised.
        desk.admit(want(2))
        desk.deliver(question, to: &store)
        #expect(desk.answers.count == 1 && desk.answers[0].admission.isUsedUp)
        store.setLimit(10, of: row)
        desk.wait(5_000)
        desk.talk(to: &store)
        #expect(desk.answers.count == 2 && desk.answers[1].admission.hold != nil)
    }

    @Test func usedUpIsSaidAtOnceAndHeldAfterARecall() throws {
        var store = store(10)
        var holder = LeaseDesk(&store, spool: 1)
        holder.admit(want(10))
        holder.talk(to: &store)
        let hold = try #require(holder.answers[0].admission.hold)

        var asker = LeaseDesk(&store, spool: 2)
        asker.admit(want())
        var asked: Int64 = 0
        while asker.answers.isEmpty, asked < 1_000_000 {
            asker.talk(to: &store)
            asker.wait(1_000)
            asked += 1_000
        }
        guard case .refusedHeld(let retryAfter, _) = asker.answers[0].admission else { fatalError("not held") }
        #expect(retryAfter == 1 && asked >= 110_000 && asked <= 130_000)
        #expect((2...3).contains(asker.recalls.count))
        #expect(asker.book.counters.asks <= 13)

        holder.settle(hold, charge: 10)
        holder.ship([charged(hold)], to: &store)
        asker.answers = []
        asker.admit(want())
        asker.wait(5_000)
        asker.talk(to: &store)
        #expect(asker.answers.first?.admission.isUsedUp == true)
    }

    @Test func idleUnitsGoBackOnRecall() throws {
        var store = store(100)
        var holder = LeaseDesk(&store, spool: 1)
        holder.admit(want())
        holder.talk(to: &store)
        #expect(free(store) == 50)
        var asker = LeaseDesk(&store, spool: 2)
        asker.admit(want(99))
        asker.talk(to: &store)
        #expect(asker.answers.isEmpty && asker.recalls == [row])
        holder.recalled(row)
        holder.talk(to: &store)
        asker.wait(10_000)
        asker.talk(to: &store)
        #expect(asker.answers.first?.admission.hold?.units == 99)
    }

    @Test func unitsThatComeFreeAfterARecallGoToWhoeverRecalled() throws {
        var store = store(10)
        var holder = LeaseDesk(&store, spool: 1)
        holder.admit(want(10))
        holder.talk(to: &store)
        var hold = try #require(holder.answers[0].admission.hold)
        var asker = LeaseDesk(&store, spool: 2)
        asker.admit(want(5))
        asker.talk(to: &store)
        #expect(asker.recalls == [row])
        // All of them are in use when it hears the recall, and half of them no more before there would be another.
        holder.recalled(row)
        holder.talk(to: &store)
        #expect(free(store) == 0)
        holder.wait(49_000)
        holder.reduce(hold, to: 5)
        hold.units = 5
        holder.talk(to: &store)
        #expect(free(store) == 5)
        asker.wait(50_000)
        asker.talk(to: &store)
        #expect(asker.answers.first?.admission.hold?.units == 5)
        // Whoever still waits would have recalled again: what comes free later stays for the holder's own traffic.
        holder.wait(1_000)
        holder.settle(hold, charge: 0)
        holder.talk(to: &store)
        #expect(free(store) == 0 && holder.book.idleUnits(row) == 5)
    }

    @Test func anAnswerThatTravelledForLongRefusesNobody() throws {
        var store = store(1)
        var holder = LeaseDesk(&store, spool: 1)
        holder.admit(want())
        holder.talk(to: &store)
        let hold = try #require(holder.answers[0].admission.hold)
        var asker = LeaseDesk(&store, spool: 2)
        asker.admit(want())
        for _ in 0..<2 {
            asker.talk(to: &store)
            asker.wait(10_000)
        }
        // The recall is ten milliseconds old; the store answers at once, and this process stands still.
        guard case .ask(let number, let questions) = asker.outbox.removeFirst() else { fatalError("no question") }
        let late = try store.acquire(asker.spool, epoch: asker.epoch, questions)
        holder.settle(hold, charge: 0)
        holder.recalled(row)
        holder.talk(to: &store)
        #expect(free(store) == 1)
        asker.now += 500_000
        asker.book.answered(number, late, now: asker.now)
        asker.wait(10_000)
        asker.talk(to: &store)
        #expect(asker.answers.count == 1 && asker.answers.first?.admission.hold != nil)
    }

    @Test func theWaitForARecallBeginsWhenTheStoreHasHeardIt() throws {
        var store = store(1)
        var holder = LeaseDesk(&store, spool: 1)
        holder.admit(want())
        holder.talk(to: &store)
        var asker = LeaseDesk(&store, spool: 2)
        asker.admit(want())
        asker.deliver(asker.outbox.removeFirst(), to: &store)
        // The recall and the next question stand before a connection that nobody serves.
        #expect(asker.outbox == [.recall(row)])
        asker.wait(500_000)
        #expect(asker.outbox.count == 2)
        var heard: Int64 = 0
        while asker.answers.isEmpty, heard < 1_000_000 {
            asker.talk(to: &store)
            asker.wait(1_000)
            heard += 1_000
        }
        #expect(asker.answers.first?.admission.isRefusedAsHeld == true && heard >= 100_000 && heard <= 120_000)
    }

    @Test func aRecallTakesNothingThatCannotGoBack() throws {
        var store = store(10)
        var desk = LeaseDesk(&store)
        desk.admit(want())
        desk.talk(to: &store)
        let (hold, idle) = (try #require(desk.answers[0].admission.hold), desk.book.idleUnits(row))
        desk.loseConnection()
        desk.recalled(row)
        desk.settle(hold, charge: 0)
        #expect(idle > 0 && desk.book.idleUnits(row) == idle + 1)
        #expect(desk.admit(want(idle + 1))?.hold != nil, "they serve while the store is away")
    }

    @Test func aReadOfTheLeasesThatFailsIsTriedAgain() throws {
        var store = store(10)
        var desk = LeaseDesk(&store)
        desk.connect()
        guard case .readLeases(let number) = desk.outbox.removeFirst() else { fatalError("no read") }
        desk.admit(want())
        desk.book.readFailed(number, now: desk.now)
        desk.wait(LeaseLimits().retryInterval)
        desk.talk(to: &store)
        #expect(desk.answers.first?.admission.hold != nil)
    }

    @Test func idleUnitsGoBackAfterASecond() throws {
        var store = store(100)
        var desk = LeaseDesk(&store)
        desk.admit(want(7))
        desk.talk(to: &store)
        desk.wait(900_000)
        desk.talk(to: &store)
        #expect(store.quotas[row]!.held > 7)
        desk.wait(400_000)
        desk.talk(to: &store)
        #expect(store.quotas[row]!.held == 7)
        // What the upstream reported counts, the rest of the hold goes back.
        let hold = try #require(desk.answers[0].admission.hold)
        desk.settle(hold, charge: 3)
        desk.ship([charged(hold, 3)], to: &store)
        desk.wait(2_000_000)
        desk.talk(to: &store)
        #expect(store.quotas[row]!.held == 0 && store.quotas[row]!.used == 3)
    }

    /// A desk that has 49 idle units, which are all that is left of a hundred, and has slept: it has to ask before it admits.
    private func sleeper(_ store: inout ModelStore) throws -> LeaseDesk {
        var desk = LeaseDesk(&store)
        desk.admit(want())
        desk.talk(to: &store)
        let hold = try #require(desk.answers[0].admission.hold)
        desk.answers = []
        desk.settle(hold, charge: 1)
        var other = LeaseDesk(&store, spool: 2)
        other.admit(want(50))
        other.talk(to: &store)
        let rest = try #require(other.answers.last?.admission.hold)
        other.settle(rest, charge: 50)
        other.ship([charged(rest)], to: &store)
        desk.ship([charged(hold)], to: &store)
        desk.now += 10_000_000
        store.now = desk.now
        #expect(desk.book.idleUnits(row) == 49 && store.quotas[row]?.used == 51 && free(store) == 0)
        return desk
    }

    @Test(arguments: [1, 49] as [Int64]) func unitsThatGoBackWhileAQuestionTravelsAreNoReasonToRefuse(_ units: Int64) throws {
        var store = store(100)
        var desk = try sleeper(&store)
        #expect(desk.admit(want(units)) == nil)
        let question = desk.outbox.removeLast()
        guard case .ask = question else { fatalError("not a question") }
        // Somebody else recalled the row; the store hears of the return after the question.
        desk.recalled(row)
        #expect(desk.book.idleUnits(row) == 0)
        desk.deliver(question, to: &store)
        #expect(desk.answers.isEmpty)
        desk.wait(5_000)
        desk.talk(to: &store)
        #expect(desk.answers.first?.admission.hold?.units == units && store.defect() == nil)
    }

    @Test func unitsThatGoBackAndAreTooFewAreNoReasonToWait() throws {
        var store = store(100)
        var desk = try sleeper(&store)
        desk.admit(want(50))
        let question = desk.outbox.removeLast()
        desk.recalled(row)
        desk.deliver(question, to: &store)
        #expect(desk.answers.first?.admission.isUsedUp == true)
    }

    @Test func idleUnitsBeyondALoweredLimitAreNotAdmittedFrom() throws {
        var store = store(100)
        var desk = LeaseDesk(&store)
        desk.admit(want())
        desk.talk(to: &store)
        store.setLimit(4, of: row)
        // It did not hear of the edit; the next answer tells that three of its units are within the limit, beside the one in use.
        desk.now += 10_000_000
        desk.admit(want())
        desk.talk(to: &store)
        for _ in 0..<2 { #expect(desk.admit(want())?.hold != nil) }
        #expect(desk.admit(want()) == nil)
        for _ in 0..<300 where desk.answers.count < 3 {
            desk.wait(1_000)
            desk.talk(to: &store)
        }
        guard case .refusedHeld = desk.answers.last?.admission else { Issue.record("\(desk.answers)"); return }
        #expect(store.quotas[row]?.held == 4 && store.defect() == nil)
    }

    @Test func theLastUnitComesBack() throws {
        var store = store(1)
        var desk = LeaseDesk(&store)
        desk.admit(want())
        desk.talk(to: &store)
        desk.settle(try #require(desk.answers[0].admission.hold), charge: 0)
        #expect(desk.admit(want())?.hold != nil)
    }

    @Test func anUnlimitedRowIsNeverRefused() throws {
        var store = store(nil)
        var desk = LeaseDesk(&store)
        desk.admit(want(5))
        desk.talk(to: &store)
        let hold = try #require(desk.answers[0].admission.hold)
        #expect(!hold.leased && hold.period == 0)
        desk.ship([charged(hold)], to: &store)
        #expect(store.quotas[row]!.used == 5 && store.defect() == nil)
    }

    // MARK: - Bounds

    @Test func theQueueIsBounded() throws {
        var limits = LeaseLimits()
        limits.waitingMax = 3
        var store = store(100)
        var desk = LeaseDesk(&store, limits: limits)
        for _ in 0..<3 { #expect(desk.admit(want()) == nil) }
        #expect(desk.admit(want()) == .unavailable(retryAfter: limits.retryAfterOutage))
        desk.talk(to: &store)
        #expect(desk.answers.count >= 1)
    }

    @Test func unitsThatWouldOverflowAreRefused() throws {
        var store = store(100)
        var desk = LeaseDesk(&store)
        #expect(desk.admit(want(.max)) == .unavailable(retryAfter: 2))
        #expect(desk.outbox.isEmpty)
    }

    @Test func aStoreThatSaysNothingIsAnOutageAfterTwoSeconds() throws {
        var store = store(100)
        var desk = LeaseDesk(&store)
        desk.admit(want())
        desk.admit(want(1, .allow))
        desk.wait(1_999_999)
        #expect(desk.answers.isEmpty)
        desk.wait(1)
        #expect(desk.answers[0].admission == .unavailable(retryAfter: 2))
        #expect(desk.answers[1].admission.hold?.outage == true)
    }
}

extension Admission {
    var hold: QuotaHold? { if case .held(let hold) = self { hold } else { nil } }
    var isUsedUp: Bool { if case .refusedUsedUp = self { true } else { false } }
    var isRefusedAsHeld: Bool { if case .refusedHeld = self { true } else { false } }
}
