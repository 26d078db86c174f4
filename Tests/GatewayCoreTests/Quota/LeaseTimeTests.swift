import GatewayCore
import QuotaModel
import Testing

/// An answer that travelled long says nothing of the time that it took.
@Suite struct LeaseTimeTests {
    private let row = QuotaRow(environmentID: 1, serviceID: 1)
    private let want = QuotaWant(environmentID: 1, serviceID: 1, units: 1, limited: true, outage: .deny)

    /// A desk whose first question went out when `now` was 0 and was answered 1.9 s later.
    private func desk(_ store: inout ModelStore) throws -> LeaseDesk {
        store.setLimit(1_000, of: row)
        var desk = LeaseDesk(&store)
        #expect(desk.now == 0)
        desk.admit(want)
        guard case .ask(let number, let questions) = desk.outbox.removeFirst() else { fatalError("not a question") }
        let answers = try store.acquire(1, epoch: 1, questions)
        desk.now = 1_900_000
        desk.book.answered(number, answers, now: desk.now)
        desk.wait(0)
        _ = try #require(desk.answers.first?.admission.hold)
        return desk
    }

    @Test func aLeaseIsUsedForTenSecondsFromBeforeTheQuestionWasSent() throws {
        var store = ModelStore(periodLength: nil)
        var desk = try desk(&store)
        desk.loseConnection()
        desk.now = 9_999_999
        #expect(desk.admit(want)?.hold?.leased == true)
        desk.now = 10_000_000
        #expect(desk.admit(want) == .unavailable(retryAfter: 2))
    }

    @Test func aPeriodEndsAsLateAsTheAnswerSaidFromBeforeTheQuestionWasSent() throws {
        var store = ModelStore(periodLength: 5_000_000)
        var desk = try desk(&store)
        desk.loseConnection()
        desk.now = 4_999_999
        #expect(desk.admit(want)?.hold?.leased == true)
        desk.now = 5_000_000
        #expect(desk.admit(want) == .unavailable(retryAfter: 2))
    }
}
