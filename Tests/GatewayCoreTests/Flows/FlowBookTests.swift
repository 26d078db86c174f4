import GatewayCore
import QuotaModel
import Testing

/// What the flow book and the store say to starts, steps, finishes and resolutions.
@Suite struct FlowBookTests {
    @Test func aFlowIsHeldAtTheStartAndChargedAtTheEnd() throws {
        var fixture = FlowFixture(units: 3)
        var store = fixture.store(10)
        let desk = FlowDesk(store)
        let start = fixture.start()
        let answer = try #require(desk.start(start, at: &store))
        guard case .started(let open, let view) = answer else { Issue.record("\(answer)"); return }
        #expect(open.units == 3 && open.startPoint == start.requestID && open.period == 1 && open.hops == 1)
        #expect(view?.limit == 10 && view?.remaining == 7)
        #expect(store.quotas[fixture.row] == ModelStore.Quota(limit: 10, used: 0, held: 3, period: 1))
        let step = try #require(desk.take(fixture.step(0, of: start.id), at: &store)?.flow)
        #expect(step.hops == 2 && step.startPoint == start.requestID && step.row == fixture.row)
        let finish = fixture.finish(start.id)
        let claimed = try #require(desk.take(finish, at: &store)?.flow)
        #expect(claimed.hops == 3 && store.quotas[fixture.row]!.held == 3)
        let settlement = fixture.settlement(.commit, of: claimed, by: finish.requestID)
        #expect(desk.settle(settlement, at: &store) == .ended(.committed(units: 3)))
        #expect(store.quotas[fixture.row] == ModelStore.Quota(limit: 10, used: 3, held: 0, period: 1))
        #expect(store.reservations.isEmpty && store.defect() == nil)
    }

    @Test func heldAndUsedUpAreToldApart() throws {
        var fixture = FlowFixture(units: 6)
        var store = fixture.store(10, period: 3_600_000_000)
        let desk = FlowDesk(store)
        let first = try #require(desk.start(fixture.start(), at: &store)?.flow)
        let held = try #require(desk.start(fixture.start(), at: &store))
        guard case .held(let retryAfter, let view) = held else { Issue.record("\(held)"); return }
        // The first flow gives its units back in five minutes at the latest.
        #expect(retryAfter == 300 && view.remaining == 4)
        let tooMuch = desk.start(fixture.start(units: 11), at: &store)
        guard case .usedUp(3600, _) = tooMuch else { Issue.record("\(tooMuch as Any)"); return }
        let settlement = fixture.settlement(.commit, of: first, by: fixture.request())
        #expect(desk.settle(settlement, at: &store) == .ended(.committed(units: 6)))
        let usedUp = desk.start(fixture.start(), at: &store)
        guard case .usedUp(3600, _) = usedUp else { Issue.record("\(usedUp as Any)"); return }
    }

    @Test func aSumThatDoesNotFitDoesNotRefuseEverybody() throws {
        var fixture = FlowFixture()
        var store = fixture.store(10)
        let desk = FlowDesk(store)
        // They wait behind a turn that is in flight, so they share the next one.
        let blocker = desk.outbox.count
        desk.start(fixture.start(units: 1))
        let tickets = [4, 4, 4, 1, 1].map { desk.start(fixture.start(units: $0))! }
        #expect(desk.outbox.count == blocker + 1)
        desk.talk(to: &store)
        let started = tickets.map { desk.starts[$0]!.flow != nil }
        #expect(started == [true, true, false, true, false])
        #expect(store.quotas[fixture.row]!.held == 10)
        #expect(desk.book.counters.turns == 2)
    }

    @Test func aKeyHasNoMoreFlowsOpenThanItMay() throws {
        var fixture = FlowFixture { $0.open = 3 }
        var store = fixture.store(100)
        let desk = FlowDesk(store)
        desk.start(fixture.start())
        let tickets = (0..<5).map { _ in desk.start(fixture.start())! }
        let other = KeyID(UUIDBits(high: 2, low: 2))
        let foreign = desk.start(fixture.start(key: other))!
        desk.talk(to: &store)
        #expect(tickets.filter { desk.starts[$0]!.flow != nil }.count == 2)
        #expect(tickets.filter { desk.starts[$0] == .limitReached(retryAfter: 300) }.count == 3)
        #expect(desk.starts[foreign]?.flow != nil)
        // A flow that ends makes room.
        let id = try #require(store.reservations.first { $0.value.keyID == fixture.key }?.key)
        let resolution = FlowResolution(id: id, environmentID: 1, commits: false)
        #expect(desk.resolve(resolution, at: &store) == .ended(.rolledBack))
        #expect(desk.start(fixture.start(), at: &store)?.flow != nil)
    }

    @Test func idleLeasesAreRecalledBeforeAStartIsRefused() throws {
        var fixture = FlowFixture(units: 8)
        var store = fixture.store(10)
        var holder = LeaseDesk(&store)
        holder.admit(QuotaWant(environmentID: 1, serviceID: 1, units: 1, limited: true, outage: .deny))
        holder.talk(to: &store)
        #expect(store.quotas[fixture.row]!.free < 8)
        let desk = FlowDesk(store)
        let ticket = try #require(desk.start(fixture.start()))
        desk.talk(to: &store)
        #expect(desk.starts[ticket] == nil && desk.recalls == [fixture.row])
        holder.recalled(fixture.row)
        holder.talk(to: &store)
        desk.wait(10_000)
        desk.talk(to: &store)
        #expect(desk.starts[ticket]?.flow != nil && desk.recalls.count == 1)
    }

    @Test func aRecallThatBringsNothingEndsInHeld() throws {
        var fixture = FlowFixture(units: 8)
        var store = fixture.store(10)
        var holder = LeaseDesk(&store)
        for _ in 0..<5 {
            holder.admit(QuotaWant(environmentID: 1, serviceID: 1, units: 1, limited: true, outage: .deny))
            holder.talk(to: &store)
        }
        let desk = FlowDesk(store)
        let ticket = try #require(desk.start(fixture.start()))
        for _ in 0..<11 {
            desk.talk(to: &store)
            desk.wait(10_000)
        }
        #expect(desk.starts[ticket] == nil, "the recall reached the store a hundred milliseconds ago, but nobody asked since")
        desk.talk(to: &store)
        guard case .held(1, _) = desk.starts[ticket] else { Issue.record("\(desk.starts)"); return }
        #expect(desk.recalls.count <= 3 && desk.book.counters.turns <= 12)
    }

    @Test func anAnswerThatTravelledForLongRefusesNoStart() throws {
        var fixture = FlowFixture(units: 8)
        var store = fixture.store(10)
        var holder = LeaseDesk(&store)
        holder.admit(QuotaWant(environmentID: 1, serviceID: 1, units: 3, limited: true, outage: .deny))
        holder.talk(to: &store)
        let hold = try #require(holder.answers[0].admission.hold)
        let desk = FlowDesk(store)
        let ticket = try #require(desk.start(fixture.start()))
        for _ in 0..<2 {
            desk.talk(to: &store)
            desk.wait(10_000)
        }
        // The recall is ten milliseconds old; the store answers at once, and this process stands still.
        guard case .turn(let number, let turn) = desk.outbox.removeFirst() else { fatalError("no turn") }
        let late = store.take(turn)
        holder.settle(hold, charge: 0)
        holder.recalled(fixture.row)
        holder.talk(to: &store)
        desk.now += 500_000
        desk.book.answered(number, late, now: desk.now)
        desk.wait(10_000)
        desk.talk(to: &store)
        #expect(desk.starts[ticket]?.flow != nil)
    }

    @Test func startsThatWaitForARecallKeepNobodyFromTheStore() throws {
        var fixture = FlowFixture(units: 8)
        var store = fixture.store(10)
        var holder = LeaseDesk(&store)
        holder.admit(QuotaWant(environmentID: 1, serviceID: 1, units: 3, limited: true, outage: .deny))
        holder.talk(to: &store)
        var limits = FlowLimits()
        limits.rowsPerTurn = 2
        let desk = FlowDesk(store, limits: limits)
        let large = (0..<4).compactMap { _ in desk.start(fixture.start()) }
        let small = try #require(desk.start(fixture.start(units: 1)))
        // Turns take as long as a denied start waits before it is asked again.
        for _ in 0..<3 {
            desk.wait(10_000)
            let turn = desk.outbox
            desk.outbox = []
            for action in turn { desk.deliver(action, to: &store) }
        }
        #expect(desk.starts[small]?.flow != nil && large.allSatisfy { desk.starts[$0] == nil })
    }

    @Test func aDueResetHappensBeforeAStartIsRefused() throws {
        var fixture = FlowFixture(units: 10)
        var store = fixture.store(10, period: 1_000_000)
        let desk = FlowDesk(store)
        #expect(desk.start(fixture.start(), at: &store)?.flow?.period == 1)
        desk.wait(1_000_000)
        #expect(desk.start(fixture.start(), at: &store)?.flow?.period == 2)
        #expect(store.defect() == nil)
    }

    @Test(arguments: [0, -20_000] as [Int64]) func aStartThatWaitedOverTheEndOfThePeriodIsAskedAgain(_ left: Int64) throws {
        var fixture = FlowFixture(units: 10)
        var store = fixture.store(10, period: 1_000_000)
        let desk = FlowDesk(store)
        #expect(desk.start(fixture.start(), at: &store)?.flow?.period == 1)
        let ticket = try #require(desk.start(fixture.start()))
        guard case .turn(let number, _) = desk.outbox.removeFirst() else { fatalError("no turn") }
        // It had its row only after the end of the period, which was not due when it asked.
        var answers = FlowTurnAnswers()
        let numbers = FlowNumbers(period: 1, limit: 10, available: 0, held: 0, resetIn: left)
        answers.starts = [.short(numbers, leased: 0, deadlineIn: nil)]
        desk.now = 1_000_000 - left
        desk.book.answered(number, answers, now: desk.now)
        desk.wait(0)
        desk.talk(to: &store)
        #expect(desk.starts[ticket]?.flow?.period == 2 && store.defect() == nil)
    }

    @Test func aServiceThatIsNotAssignedIsRefused() {
        var fixture = FlowFixture()
        var store = fixture.store(10)
        store.unassign(fixture.row)
        let desk = FlowDesk(store)
        #expect(desk.start(fixture.start(), at: &store) == .notAssigned)
    }

    // MARK: - Steps

    @Test func declaredOrderIsKeptAndTheLastStepMayBeRepeated() throws {
        var fixture = FlowFixture { $0.ordered = true }
        var store = fixture.store(10)
        let desk = FlowDesk(store)
        let id = fixture.start().id
        #expect(desk.take(fixture.step(0, of: id), at: &store) == .unknown)
        let start = fixture.start()
        #expect(desk.start(start, at: &store)?.flow != nil)
        #expect(desk.take(fixture.step(1, of: start.id), at: &store) == .refused(.order))
        #expect(desk.take(fixture.finish(start.id), at: &store) == .refused(.order))
        #expect(desk.take(fixture.step(0, of: start.id), at: &store)?.flow != nil)
        #expect(desk.take(fixture.step(0, of: start.id), at: &store)?.flow != nil)
        #expect(desk.take(fixture.step(1, of: start.id), at: &store)?.flow != nil)
        #expect(desk.take(fixture.step(0, of: start.id), at: &store) == .refused(.order))
        #expect(desk.take(fixture.finish(start.id), at: &store)?.flow != nil)
    }

    @Test func hopsAreCountedAndAFinishAlwaysHasItsPlace() throws {
        var fixture = FlowFixture { $0.hops = 4 }
        var store = fixture.store(10)
        let desk = FlowDesk(store)
        let start = fixture.start()
        #expect(desk.start(start, at: &store)?.flow != nil)
        for _ in 0..<2 { #expect(desk.take(fixture.step(0, of: start.id), at: &store)?.flow != nil) }
        #expect(desk.take(fixture.step(0, of: start.id), at: &store) == .refused(.hops))
        #expect(desk.take(fixture.finish(start.id), at: &store)?.flow?.hops == 4)
    }

    @Test func aStepWithItsKeyIsTheSameStep() throws {
        var fixture = FlowFixture()
        var store = fixture.store(10)
        let desk = FlowDesk(store)
        let start = fixture.start()
        #expect(desk.start(start, at: &store)?.flow != nil)
        let step = fixture.step(0, of: start.id, key: "k")
        #expect(desk.take(step, at: &store)?.flow?.hops == 2)
        // The node's own repetition, after a lost answer.
        #expect(desk.take(step, at: &store)?.flow?.hops == 2)
        desk.book.note(FlowNote(id: start.id, key: step.key!, status: 201), now: desk.now)
        desk.wait(0)
        desk.talk(to: &store)
        let again = desk.take(fixture.step(0, of: start.id, key: "k"), at: &store)
        guard case .repeated(let open, let first, let status) = again else { Issue.record("\(again as Any)"); return }
        #expect(open.hops == 2 && first == step.requestID && status == 201)
        #expect(desk.take(fixture.step(0, of: start.id, key: "other"), at: &store)?.flow?.hops == 3)
    }

    @Test func aStepExtendsTheFlowUpToItsLastMoment() throws {
        var fixture = FlowFixture {
            $0.timeToLive = .seconds(10)
            $0.timeMax = .seconds(15)
        }
        var store = fixture.store(10)
        let desk = FlowDesk(store)
        let start = fixture.start()
        #expect(desk.start(start, at: &store)?.flow?.expiresIn == 10_000_000)
        desk.wait(4_000_000)
        #expect(desk.take(fixture.step(0, of: start.id), at: &store)?.flow?.expiresIn == 10_000_000)
        desk.wait(4_000_000)
        #expect(desk.take(fixture.step(0, of: start.id), at: &store)?.flow?.expiresIn == 7_000_000)
    }

    @Test func aForeignFlowIsUnknownAndAForeignRouteRefused() throws {
        var fixture = FlowFixture()
        var store = fixture.store(10)
        let desk = FlowDesk(store)
        let start = fixture.start()
        #expect(desk.start(start, at: &store)?.flow != nil)
        var foreign = fixture.finish(start.id)
        foreign.environmentID = 2
        #expect(desk.take(foreign, at: &store) == .unknown)
        var elsewhere = fixture.step(0, of: start.id)
        elsewhere.flow = "g"
        #expect(desk.take(elsewhere, at: &store) == .refused(.foreign))
        let stranger = FlowResolution(id: start.id, environmentID: 2, commits: true)
        #expect(desk.resolve(stranger, at: &store) == .unknown)
        #expect(desk.resolve(FlowResolution(id: start.id, environmentID: nil, commits: true), at: &store) == .ended(.committed(units: 1)))
        // It stays foreign when it is over.
        #expect(desk.take(foreign, at: &store) == .unknown && desk.resolve(stranger, at: &store) == .unknown)
    }

    // MARK: - Bounds

    @Test func unitsThatOverflowAreRefused() {
        var fixture = FlowFixture()
        var store = fixture.store(nil)
        let desk = FlowDesk(store)
        for units in [-1, 1_000_000_000_001, Int64.max] {
            #expect(desk.book.start(fixture.start(units: units), now: desk.now) == .answered(.unavailable(retryAfter: 2)))
        }
        #expect(desk.start(fixture.start(units: 1_000_000_000_000), at: &store)?.flow != nil)
    }

    @Test func noMoreWaitThanMay() throws {
        var fixture = FlowFixture()
        let store = fixture.store(10)
        var limits = FlowLimits()
        limits.waitingMax = 2
        let desk = FlowDesk(store, limits: limits)
        for _ in 0..<2 { #expect(desk.start(fixture.start()) != nil) }
        #expect(desk.book.start(fixture.start(), now: desk.now) == .answered(.unavailable(retryAfter: 2)))
        let open = OpenFlow(
            id: fixture.start().id, row: fixture.row, period: 1, units: 1, startPoint: fixture.request(), hops: 1, expiresIn: 1)
        let settlements = (0..<3).map { _ in
            var other = open
            other.id = fixture.start().id
            return fixture.settlement(.commit, of: other, by: fixture.request())
        }
        for settlement in settlements.dropLast() { #expect(desk.settle(settlement) != nil) }
        // What cannot wait goes to the spool.
        #expect(desk.book.settle(settlements[2], now: desk.now) == .answered(.pending(settlements[2])))
    }

    @Test func aTurnTakesOneRequestOfAFlow() throws {
        var fixture = FlowFixture()
        var store = fixture.store(10)
        let desk = FlowDesk(store)
        let start = fixture.start()
        #expect(desk.start(start, at: &store)?.flow != nil)
        desk.take(fixture.step(0, of: start.id))
        let first = desk.take(fixture.finish(start.id))!
        let second = desk.take(fixture.finish(start.id))!
        desk.talk(to: &store)
        #expect(desk.hops[first]?.flow != nil && desk.hops[second] == .finishing)
    }

    @Test func manyWaitersShareFewTurns() throws {
        var fixture = FlowFixture()
        var store = fixture.store(1_000)
        let desk = FlowDesk(store)
        let tickets = (0..<600).map { index in desk.start(fixture.start(key: KeyID(UUIDBits(high: UInt64(index), low: 1))))! }
        desk.talk(to: &store)
        #expect(tickets.allSatisfy { desk.starts[$0]?.flow != nil })
        #expect(desk.book.counters.turns == 4 && desk.book.isIdle)
    }

    @Test func allKindsShareATurn() throws {
        var fixture = FlowFixture()
        var store = fixture.store(10)
        let desk = FlowDesk(store)
        let (stepped, claimed) = (fixture.start(), fixture.start())
        _ = desk.start(stepped, at: &store)
        let open = try #require(desk.start(claimed, at: &store)?.flow)
        let finish = fixture.finish(claimed.id)
        _ = desk.take(finish, at: &store)
        let before = desk.book.counters.turns
        // They wait behind a turn that is in flight.
        desk.start(fixture.start())
        let step = desk.take(fixture.step(0, of: stepped.id, key: "k"))!
        desk.book.note(FlowNote(id: stepped.id, key: StepKey("k".utf8)!, status: 200), now: desk.now)
        let settled = desk.settle(fixture.settlement(.commit, of: open, by: finish.requestID))!
        let started = desk.start(fixture.start())!
        desk.deliver(desk.outbox.removeFirst(), to: &store)
        guard case .turn(_, let turn) = desk.outbox[0] else { Issue.record("\(desk.outbox)"); return }
        #expect([turn.hops.count, turn.orders.count, turn.starts.count, turn.notes.count] == [1, 1, 1, 1])
        desk.talk(to: &store)
        #expect(desk.hops[step]?.flow?.hops == 2 && desk.starts[started]?.flow != nil)
        #expect(desk.orders[settled] == .ended(.committed(units: 1)))
        #expect(store.reservations[stepped.id]?.steps.values.first?.status == 200)
        #expect(desk.book.counters.turns == before + 2 && desk.book.isIdle)
    }

    /// The store refuses every turn that starts a flow: everything else goes on.
    @Test func aKindThatIsRefusedHoldsUpNoOther() throws {
        var fixture = FlowFixture()
        var store = fixture.store(100)
        let desk = FlowDesk(store)
        let opens = try (0..<20).map { _ in try #require(desk.start(fixture.start(), at: &store)?.flow) }
        desk.start(fixture.start(key: KeyID(UUIDBits(high: 2, low: 2))))
        let steps = opens.prefix(10).map { desk.take(fixture.step(0, of: $0.id))! }
        let orders = opens.suffix(10).map { desk.settle(fixture.settlement(.rollback, of: $0, by: fixture.request()))! }
        var refused = 0
        for _ in 0..<30 where desk.book.waiting > 1 {
            while !desk.outbox.isEmpty {
                let action = desk.outbox.removeFirst()
                if case .turn(let number, let turn) = action, !turn.starts.isEmpty {
                    refused += 1
                    desk.book.failed(number, now: desk.now)
                    desk.wait(0)
                } else {
                    desk.deliver(action, to: &store)
                }
            }
            // Everybody waits for some answer all the time.
            desk.wait(desk.book.limits.retryInterval / 2)
        }
        #expect(refused > 0 && steps.allSatisfy { desk.hops[$0]?.flow != nil })
        #expect(orders.allSatisfy { desk.orders[$0] == .ended(.rolledBack) })
        #expect(desk.book.waiting == 1)
        // The refusals were the start's alone, and what it may have left behind is taken back.
        desk.wait(2_000_000)
        desk.talk(to: &store)
        #expect(desk.book.isIdle && desk.book.counters.undone == 1 && store.defect() == nil)
    }
}
