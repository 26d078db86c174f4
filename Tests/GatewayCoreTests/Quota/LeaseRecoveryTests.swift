import QuotaModel
import Testing

@testable import GatewayCore

/// Lost messages, lost processes, lost commits, and periods that end in between.
@Suite struct LeaseRecoveryTests {
    let row = QuotaRow(environmentID: 1, serviceID: 1)

    func want(_ units: Int64 = 1, _ rule: OutageRule = .deny) -> QuotaWant {
        QuotaWant(environmentID: 1, serviceID: 1, units: units, limited: true, outage: rule)
    }

    func store(_ limit: Int64?, period: Int64? = nil) -> ModelStore {
        var store = ModelStore(periodLength: period)
        store.setLimit(limit, of: row)
        return store
    }

    func free(_ store: ModelStore) -> Int64? { store.quotas[row]?.free }

    func charged(_ hold: QuotaHold) -> ModelFrame {
        ModelFrame(row: hold.row, period: hold.period, units: hold.units, leased: hold.leased)
    }

    /// A desk that holds `units` of a lease.
    func desk(_ store: inout ModelStore, spool: Int = 1, holding units: Int64) throws -> (LeaseDesk, QuotaHold) {
        var desk = LeaseDesk(&store, spool: spool)
        desk.admit(want(units))
        desk.talk(to: &store)
        let hold = try #require(desk.answers.first?.admission.hold)
        desk.answers = []
        return (desk, hold)
    }

    @Test func aGrantWhoseAnswerWasLostIsFound() throws {
        var store = store(100)
        var desk = LeaseDesk(&store)
        desk.admit(want(60))
        desk.deliver(desk.outbox.removeFirst(), to: &store, losingAnswer: true)
        desk.loseConnection()
        #expect(desk.answers.first?.admission == .unavailable(retryAfter: 2))
        #expect(store.quotas[row]!.held == 60)
        desk.connect()
        desk.talk(to: &store)
        desk.wait(300_000)
        desk.talk(to: &store)
        #expect(store.quotas[row]!.held == 0)
        desk.admit(want(100))
        desk.talk(to: &store)
        #expect(desk.answers.last?.admission.hold?.units == 100)
    }

    /// Within one period; what was used before and is not booked yet is not there to be used again.
    @Test func aLimitThatWasLiftedAndSetAgainSellsNothingTwice() throws {
        var store = store(10)
        var (desk, hold) = try desk(&store, holding: 4)
        desk.settle(hold, charge: 4)
        store.setLimit(nil, of: row)
        desk.admit(want(8))
        desk.wait(5_000)
        desk.talk(to: &store)
        #expect(desk.answers.last?.admission.hold?.leased == false)
        for _ in 0..<10 {
            desk.wait(1_000_000)
            desk.talk(to: &store)
        }
        store.setLimit(10, of: row)
        desk.wait(1_000_000)
        desk.admit(want(6))
        desk.talk(to: &store)
        let second = try #require(desk.answers.last?.admission.hold)
        #expect(second.leased && second.units == 6 && desk.book.idleUnits(row) == 0)
        desk.settle(second, charge: 6)
        desk.ship([charged(hold), charged(second)], to: &store)
        #expect(store.ledger.values.allSatisfy { $0.overrun == 0 } && store.quotas[row]?.used == 10 && store.defect() == nil)
    }

    @Test func aGrantThatLandsAfterTheReconnectIsFoundByTheNextQuestion() throws {
        var store = store(100)
        var desk = LeaseDesk(&store)
        desk.admit(want(30))
        let straggler = desk.outbox.removeFirst()
        desk.loseConnection()
        desk.connect()
        desk.talk(to: &store)
        // The old connection's statement waited for a lock and commits only now.
        desk.deliver(straggler, to: &store, losingAnswer: true)
        #expect(store.quotas[row]!.held == 50)
        desk.admit(want(100))
        desk.wait(5_000)
        desk.talk(to: &store)
        #expect(desk.answers.last?.admission.hold?.units == 100)
    }

    @Test func aReturnWhoseAnswerWasLostCountsOnce() throws {
        var store = store(100)
        var (desk, hold) = try desk(&store, holding: 1)
        desk.wait(1_300_000)
        let giveBack = try #require(desk.outbox.last)
        desk.deliver(giveBack, to: &store, losingAnswer: true)
        #expect(store.quotas[row]!.held == 1)
        desk.loseConnection()
        desk.connect()
        desk.talk(to: &store)
        desk.deliver(giveBack, to: &store, losingAnswer: true)
        #expect(store.quotas[row]!.held == 1 && store.defect() == nil)
        desk.settle(hold, charge: 1)
        desk.ship([charged(hold)], to: &store)
        #expect(store.quotas[row]!.held == 0 && store.quotas[row]!.used == 1)
        #expect(store.ledger.values.allSatisfy { $0.overrun == 0 })
    }

    @Test func aReturnThatNeverArrivedIsSaidAgain() throws {
        var store = store(100)
        var (desk, _) = try desk(&store, holding: 1)
        desk.wait(1_300_000)
        #expect(!desk.outbox.isEmpty)
        desk.loseConnection()
        desk.connect()
        desk.talk(to: &store)
        #expect(store.quotas[row]!.held == 1)
    }

    @Test func aHolderThatSleptAsksBeforeItAdmits() throws {
        var store = store(100)
        var (desk, hold) = try desk(&store, holding: 1)
        // Suspended before anything went back; its units were not sold meanwhile.
        store.now += 10_000_000
        #expect(store.quotas[row]!.held == 50)
        desk.now += 10_000_000
        #expect(desk.admit(want()) == nil)
        desk.talk(to: &store)
        #expect(desk.answers.first?.admission.hold != nil)
        desk.settle(hold, charge: 0)
    }

    @Test func aHolderThatWasWrittenOffSettlesAgainstTheWriteOff() throws {
        var store = store(100)
        var (desk, hold) = try desk(&store, holding: 10)
        store.now += 600_000_001
        store.writeOff(silence: 600_000_000)
        #expect(store.quotas[row]!.used == 50 && store.quotas[row]!.held == 0)
        desk.now = store.now
        desk.settle(hold, charge: 10)
        desk.ship([charged(hold)], to: &store)
        desk.wait(1_000)
        desk.talk(to: &store)
        #expect(store.quotas[row]!.used == 10 && store.quotas[row]!.held == 0)
        #expect(store.defect() == nil)
    }

    @Test func aRestartedHolderReturnsWhatItsForerunnerHeld() throws {
        var store = store(100)
        let (first, hold) = try desk(&store, holding: 10)
        _ = first
        // Ten were charged and shipped by the new process before it begins; the rest was never used.
        #expect(try store.ship(1, epoch: 1, from: 0, [charged(hold)][...]) == 1)
        var second = LeaseDesk(&store)
        second.talk(to: &store)
        #expect(store.quotas[row]!.held == 0 && store.quotas[row]!.used == 10)
        #expect(second.epoch == 2)
    }

    @Test func aSecondProcessFencesTheFirst() throws {
        var store = store(100)
        var (first, _) = try desk(&store, holding: 1)
        _ = LeaseDesk(&store)
        first.admit(want(90))
        first.wait(5_000)
        first.talk(to: &store)
        #expect(first.book.isFenced)
        #expect(first.answers.first?.admission == .unavailable(retryAfter: 2))
        #expect(first.admit(want(1, .allow)) == .unavailable(retryAfter: 2))
    }

    @Test func whoseSpoolAFailoverForgotIsFencedUntilItIsOpenedAgain() throws {
        var store = store(100)
        var (desk, hold) = try desk(&store, holding: 10)
        desk.loseConnection()
        // The commit that opened the spool is lost, and with it all of its leases.
        store = self.store(100)
        _ = store.open(1).epoch
        desk.epoch = 0
        desk.connect()
        desk.talk(to: &store)
        #expect(desk.book.isFenced && desk.admit(want(1)) == .unavailable(retryAfter: 2))
        // The shipper opens it again, and tells.
        desk.epoch = store.open(1).epoch
        desk.book.opened()
        desk.connect()
        desk.talk(to: &store)
        desk.admit(want(1))
        for _ in 0..<3 {
            desk.talk(to: &store)
            desk.wait(5_000)
        }
        #expect(desk.answers.last?.admission.hold?.units == 1 && !desk.book.isFenced)
        desk.settle(hold, charge: 10)
        #expect(store.defect() == nil)
    }

    @Test func aFailoverThatLostAGrantStopsTheLeaseAndBooksAnOverrun() throws {
        var store = store(100)
        let standby = store
        var (desk, hold) = try desk(&store, holding: 10)
        var promoted = standby
        _ = promoted.open(1)
        promoted.now = desk.now
        desk.loseConnection()
        desk.connect()
        desk.talk(to: &promoted)
        #expect(desk.book.counters.leasesLost == 1)
        #expect(desk.admit(want()) == nil, "nothing may be admitted from units the store does not know")
        desk.settle(hold, charge: 10)
        desk.outbox = []
        desk.ship([charged(hold)], to: &promoted)
        let booked = promoted.ledger.values.reduce(0) { $0 + $1.overrun }
        #expect(booked == 10 && promoted.quotas[row]!.used == 10 && promoted.defect() == nil)
    }

    /// The question did not know yet that it had to make up for what was used.
    @Test func whatAFailoverLeftUncoveredIsAskedForBeforeAnybodyIsRefused() throws {
        var store = store(39)
        var promoted = store
        var (desk, hold) = try desk(&store, holding: 30)
        desk.settle(hold, charge: 30)
        // The failover forgets that a new period began, and that there was a lease in the one before.
        store.unassign(row)
        store.setLimit(39, of: row)
        desk.wait(10_000_000)
        desk.admit(want())
        desk.wait(5_000)
        desk.talk(to: &store)
        #expect(desk.answers.last?.admission.hold?.period == 2)
        desk.loseConnection()
        desk.answers = []
        _ = promoted.open(1)
        promoted.now = desk.now
        desk.connect()
        desk.talk(to: &promoted)
        desk.admit(want(10))
        desk.wait(5_000)
        desk.talk(to: &promoted)
        #expect(desk.answers.isEmpty && free(promoted) == 20, "a refusal answers for what is free")
        desk.wait(10_000)
        desk.talk(to: &promoted)
        #expect(desk.answers.last?.admission.isUsedUp == true && free(promoted) == 0)
        desk.ship([charged(hold)], to: &promoted)
        #expect(promoted.ledger.values.allSatisfy { $0.overrun == 0 } && promoted.defect() == nil)
    }

    @Test func aRowIsNotForgottenWhileWhatALostLeaseChargedIsUnbooked() throws {
        var (store, limits) = (store(100), LeaseLimits())
        limits.rowsMax = 1
        var promoted = store
        var desk = LeaseDesk(&store, limits: limits)
        desk.admit(want(10))
        desk.talk(to: &store)
        let hold = try #require(desk.answers.first?.admission.hold)
        desk.settle(hold, charge: 10)
        desk.wait(2_000_000)
        desk.loseConnection()
        _ = promoted.open(1)
        desk.connect()
        for _ in 0..<62 {
            desk.talk(to: &promoted)
            desk.wait(1_000_000)
        }
        desk.answers = []
        desk.admit(want(95))
        for _ in 0..<4 {
            desk.talk(to: &promoted)
            desk.wait(20_000)
        }
        #expect(desk.answers.last?.admission.isUsedUp == true, "90 are left")
    }

    @Test func leasesOfThePeriodsThatAreForgottenStayForgotten() {
        var shelf = LeaseShelf(row: row)
        for period in [2, 3, 4, 1] as [Int64] { shelf.drop(Lease(period: period, totals: .zero, open: 0), remembering: 2) }
        #expect(shelf.forgottenPeriod == 2 && shelf.takeDropped(of: 1) == nil && shelf.takeDropped(of: 2) == nil)
        #expect(shelf.takeDropped(of: 4) != nil && shelf.takeDropped(of: 3) != nil && shelf.takeDropped(of: 3) == nil)
    }

    /// Dropped by the store long after its period ended, while its holder still knew it.
    @Test func aLeaseThatTheStoreDroppedIsOverForItsHolder() throws {
        var store = store(100, period: 60_000_000)
        let (first, _) = try desk(&store, holding: 1)
        _ = first
        // The next process finds it and gives it back; nobody asks for the row any more.
        var desk = LeaseDesk(&store)
        store.now = 61_000_000
        store.resetIfDue()
        desk.now = 7_200_000_000
        store.now = desk.now
        #expect(store.dropSettledLeases(olderThan: 3_600_000_000) == 1)
        desk.loseConnection()
        desk.connect()
        desk.talk(to: &store)
        desk.book.close(now: desk.now)
        desk.wait(1_000_000)
        #expect(desk.book.isClosed && desk.book.counters.leasesLost == 0)
    }

    @Test(arguments: [1, 3] as [Int64]) func aFailoverThatLostTheReturnOfAnEndedPeriodIsMended(_ periods: Int64) throws {
        var store = store(100, period: 60_000_000)
        var (desk, hold) = try desk(&store, holding: 10)
        desk.settle(hold, charge: 10)
        desk.ship([charged(hold)], to: &store)
        var standby = store
        for period in 1...periods {
            desk.wait(1_300_000)
            desk.talk(to: &store)
            desk.now = period * 60_000_000
            desk.admit(want())
            desk.talk(to: &store)
            let next = try #require(desk.answers.last?.admission.hold)
            #expect(next.period == period + 1)
            desk.settle(next, charge: 0)
        }
        desk.wait(1_300_000)
        desk.talk(to: &store)
        #expect(standby.leases.values.map(\.open) == [40])
        desk.loseConnection()
        desk.connect()
        desk.talk(to: &standby)
        desk.wait(1_000)
        desk.talk(to: &standby)
        #expect(standby.leases.values.allSatisfy { $0.open == 0 } && standby.defect() == nil)
    }

    /// The batch comes before the period is opened once more, or after.
    @Test(arguments: [true, false]) func whatAPeriodUsedThatAFailoverForgotIsInTheBooks(_ comesFirst: Bool) throws {
        var store = store(100, period: 60_000_000)
        var desk = LeaseDesk(&store)
        var promoted = store
        desk.now = 60_000_000
        desk.admit(want(10))
        desk.talk(to: &store)
        let hold = try #require(desk.answers.last?.admission.hold)
        #expect(hold.period == 2)
        desk.settle(hold, charge: 10)
        desk.loseConnection()
        promoted.now = desk.now
        if comesFirst { desk.ship([charged(hold)], to: &promoted) }
        promoted.resetIfDue()
        if !comesFirst { desk.ship([charged(hold)], to: &promoted) }
        #expect(promoted.quotas[row]!.period == (comesFirst ? 3 : 2) && promoted.quotas[row]!.used == (comesFirst ? 0 : 10))
        #expect(promoted.ledger[ModelStore.RowPeriod(row: row, period: 2)]!.used == 10 && promoted.defect() == nil)
    }

    @Test func aHoldThatStraddlesAResetNeitherMintsNorEats() throws {
        var store = store(10, period: 60_000_000)
        var (desk, hold) = try desk(&store, holding: 6)
        desk.wait(60_000_000)
        desk.admit(want(10))
        desk.talk(to: &store)
        let next = try #require(desk.answers.last?.admission.hold)
        #expect(hold.period == 1 && next.period == 2)
        desk.settle(hold, charge: 6)
        desk.ship([charged(hold)], to: &store)
        desk.wait(1_000_000)
        desk.talk(to: &store)
        let quota = store.quotas[row]!
        #expect(quota.used == 0 && quota.held == 10 && quota.available == 10)
        #expect(store.ledger[ModelStore.RowPeriod(row: row, period: 1)]!.used == 6)
        // The given-back part of an old hold stays in the old period as well.
        desk.settle(next, charge: 0)
        desk.wait(2_000_000)
        desk.talk(to: &store)
        #expect(store.quotas[row]!.free == 10 && store.defect() == nil)
    }

    @Test func aLeaseIsUnusableOnceItsPeriodEnded() throws {
        var store = store(1_000, period: 60_000_000)
        var (desk, _) = try desk(&store, holding: 1)
        desk.now = 59_999_999
        desk.admit(want())
        desk.talk(to: &store)
        #expect(desk.answers.last?.admission.hold?.period == 1)
        desk.now += 1
        #expect(desk.admit(want()) == nil)
        desk.wait(5_000)
        desk.talk(to: &store)
        #expect(desk.answers.last?.admission.hold?.period == 2)
    }

    @Test func aPeriodThatEndsWhileTheAnswerTravelsIsNotARefusal() throws {
        var store = store(5, period: 60_000_000)
        var (desk, hold) = try desk(&store, holding: 5)
        desk.settle(hold, charge: 5)
        desk.ship([charged(hold)], to: &store)
        desk.now = 59_999_000
        store.now = 59_999_000
        desk.admit(want())
        let question = desk.outbox.removeLast()
        guard case .ask(let number, let questions) = question else { fatalError("not a question") }
        let answers = try store.acquire(1, epoch: 1, questions)
        desk.now += 2_000
        desk.book.answered(number, answers, now: desk.now)
        desk.wait(5_000)
        #expect(desk.answers.isEmpty)
        desk.talk(to: &store)
        #expect(desk.answers.first?.admission.hold?.period == 2)
    }

    @Test func aLoweredLimitAdmitsNothingNewAndSettlesWhatIsOpen() throws {
        var store = store(100)
        var (desk, hold) = try desk(&store, holding: 80)
        store.setLimit(50, of: row)
        #expect(store.quotas[row]!.free < 0)
        desk.settle(hold, charge: 80)
        desk.ship([charged(hold)], to: &store)
        desk.wait(2_000_000)
        desk.talk(to: &store)
        #expect(store.quotas[row]!.available == -30 && store.defect() == nil)
        desk.admit(want())
        desk.wait(5_000)
        desk.talk(to: &store)
        #expect(desk.answers.last?.admission.isUsedUp == true)
    }

    @Test func whileTheStoreIsAwayLeasedUnitsServeForTenSeconds() throws {
        var store = store(1_000)
        var (desk, _) = try desk(&store, holding: 1)
        desk.loseConnection()
        desk.wait(9_999_999)
        #expect(desk.admit(want())?.hold?.leased == true)
        desk.wait(1)
        #expect(desk.admit(want()) == .unavailable(retryAfter: 2))
        let allowed = try #require(desk.admit(want(1, .allow))?.hold)
        #expect(allowed.outage && !allowed.leased && allowed.period == 1)
        #expect(desk.book.counters.allowed == 1)
    }

    @Test func aServiceTakenAwayIsNotUsedUp() {
        var store = store(10)
        var desk = LeaseDesk(&store)
        store.unassign(row)
        desk.admit(want())
        desk.talk(to: &store)
        #expect(desk.answers.first?.admission == .notAssigned)
    }
}
