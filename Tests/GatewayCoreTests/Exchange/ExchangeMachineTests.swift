import GatewayCore
import Testing

@testable import GatewayCore

@Suite struct ExchangeMachineTests {
    private static let upstream = Upstream(name: "u", targets: [Target(host: "127.0.0.1", port: 1)])

    private func route(_ edit: (inout Route.Settings) -> Void = { _ in }) -> Route {
        var settings = Route.Settings()
        edit(&settings)
        return Route(name: "r", match: RouteMatch(), service: .init(name: "s"), upstream: Self.upstream, settings: settings)
    }

    private func entry(
        _ status: TenantStatus = .enabled, expiresAt: Int64? = nil, environment: TenantStatus = .enabled, project: TenantStatus = .enabled,
        service: ServiceStatus? = .enabled, limited: Bool = true
    ) -> KeyEntry {
        KeyEntry(
            keyID: KeyID(UUIDBits(high: 1, low: 1)), status: status, expiresAt: expiresAt, environmentID: 7, environmentName: "e",
            environmentStatus: environment, projectID: 1, projectName: "p", projectStatus: project, clientID: 1,
            grants: service.map { [.init(serviceID: 9, name: "s", version: "1", status: $0, limited: limited)] } ?? [])
    }

    private func hold(_ units: Int64 = 1) -> QuotaHold {
        QuotaHold(row: QuotaRow(environmentID: 7, serviceID: 9), period: 3, units: units, leased: true, outage: false)
    }

    /// A machine whose request is on its way.
    private func forwarding(_ charge: Route.Charge = .onSuccess, units: Int64 = 1) -> ExchangeMachine {
        var machine = ExchangeMachine(charge: charge)
        _ = machine.keyResolved(entry(), route: route { ($0.charge, $0.units) = (charge, units) }, now: 0)
        #expect(machine.admitted(.held(hold(units))) == .forward)
        return machine
    }

    @Test func aKnownKeyWithItsServiceAsksForTheRoutesUnits() {
        var machine = ExchangeMachine(charge: .onSuccess)
        let step = machine.keyResolved(entry(), route: route { ($0.units, $0.outage) = (5, .allow) }, now: 0)
        #expect(step == .admit(QuotaWant(environmentID: 7, serviceID: 9, units: 5, limited: true, outage: .allow)))
        #expect(machine.phase == .admitting && machine.grant?.serviceID == 9)
    }

    @Test func whatIsNeverChargedHoldsNothing() {
        var machine = ExchangeMachine(charge: .never)
        let step = machine.keyResolved(entry(limited: false), route: route { ($0.units, $0.charge) = (5, .never) }, now: 0)
        #expect(step == .admit(QuotaWant(environmentID: 7, serviceID: 9, units: 0, limited: false, outage: .deny)))
    }

    @Test func everyRefusalOfAuthorityHasItsReason() {
        let cases: [(KeyEntry, Bool, Refusal)] = [
            (entry(.disabled), true, .keyDisabled), (entry(expiresAt: 10), true, .keyExpired),
            (entry(environment: .disabled), true, .environmentDisabled), (entry(project: .disabled), true, .projectDisabled),
            (entry(service: .disabled), true, .serviceDisabled), (entry(service: .deprecated), false, .serviceDeprecated),
            (entry(service: nil), true, .serviceNotAssigned),
        ]
        for (entry, deprecatedPasses, refusal) in cases {
            var machine = ExchangeMachine(charge: .onSuccess)
            let step = machine.keyResolved(entry, route: route { $0.deprecatedPasses = deprecatedPasses }, now: 10)
            #expect(step == .refuse(.init(refusal)))
            let ending = machine.refused(.init(refusal))
            #expect(ending.status == .unauthorized && ending.refusal == refusal && ending.charge == 0 && !ending.cutsAnswer)
            #expect(ending.statusCode == refusal.status && machine.phase == .ended)
        }
    }

    @Test func aKeyIsGoodUntilTheMomentOfItsExpiry() {
        var machine = ExchangeMachine(charge: .onSuccess)
        guard case .admit = machine.keyResolved(entry(expiresAt: 10), route: route(), now: 9) else {
            Issue.record("refused before its expiry")
            return
        }
    }

    @Test func aClockThatJumpsDecidesOfEachRequestAnew() {
        let second: Int64 = 1_000_000
        let entry = entry(expiresAt: 100 * second)
        for (now, isGood) in [(99, true), (101, false), (99, true), (90_000, false), (100, false), (-90_000, true), (100, false)] {
            var machine = ExchangeMachine(charge: .onSuccess)
            let step = machine.keyResolved(entry, route: route(), now: Int64(now) * second)
            #expect((step == .refuse(.init(.keyExpired))) == !isGood, "at \(now)")
            #expect((machine.phase == .admitting) == isGood, "at \(now)")
        }
    }

    @Test func refusalsOfQuotaSayWhenToComeBack() {
        let view = QuotaView(limit: 1, remaining: 0, resetSeconds: 60)
        let endless = QuotaView(limit: 1, remaining: 0, resetSeconds: nil)
        let neverReset = ExchangeMachine.Reason(
            .quotaExceeded, retryAfter: 3600, detail: "no reset of the quota is scheduled: an operator has to raise it")
        #expect(ExchangeMachine.Reason(FlowStartAnswer.usedUp(retryAfter: 3600, endless)) == neverReset)
        let cases: [(Admission, ExchangeMachine.Reason, ExecutionStatus)] = [
            (.refusedUsedUp(retryAfter: 60, view), .init(.quotaExceeded, retryAfter: 60), .unauthorized),
            (.refusedUsedUp(retryAfter: 3600, endless), neverReset, .unauthorized),
            (.refusedHeld(retryAfter: 1, view), .init(.quotaHeld, retryAfter: 1), .unauthorized),
            (.notAssigned, .init(.serviceNotAssigned), .unauthorized),
            (.unavailable(retryAfter: 2), .init(.quotaUnavailable, retryAfter: 2), .serverError),
        ]
        for (admission, reason, status) in cases {
            var machine = ExchangeMachine(charge: .always)
            _ = machine.keyResolved(entry(), route: route(), now: 0)
            #expect(machine.admitted(admission) == .refuse(reason))
            let ending = machine.refused(reason)
            #expect(ending.status == status && ending.charge == 0 && machine.hold == nil)
        }
    }

    /// quota.md, 6: decided on the upstream's head; what dies before or in its answer is given back.
    @Test(arguments: [
        (Route.Charge.onSuccess, UInt16(200), true), (.onSuccess, 302, true), (.onSuccess, 399, true), (.onSuccess, 404, false),
        (.onSuccess, 500, false), (.always, 200, true), (.always, 500, true), (.never, 200, false),
    ])
    func theHeadDecidesWhatACompleteAnswerCosts(_ charge: Route.Charge, _ status: UInt16, _ isCharged: Bool) {
        let units: Int64 = charge == .never ? 0 : 3
        var complete = forwarding(charge, units: units)
        complete.upstreamAnswered(status: status)
        let ending = complete.upstreamCompleted()
        #expect(ending.charge == (isCharged ? 3 : 0) && ending.statusCode == status && ending.refusal == nil && !ending.cutsAnswer)
        #expect(ending.status == ExecutionStatus(upstreamStatus: status))
        var abandoned = forwarding(charge, units: units)
        abandoned.upstreamAnswered(status: status)
        let gone = abandoned.clientGone(attempts: 1)
        #expect(gone.charge == ending.charge && gone.status == .clientAborted)
        var died = forwarding(charge, units: units)
        died.upstreamAnswered(status: status)
        let cut = died.upstreamFailed(.init(.upstreamClosed), attempts: 1)
        #expect(cut.charge == (charge == .always ? 3 : 0) && cut.cutsAnswer && cut.status == .upstreamError && cut.statusCode == status)
    }

    /// quota.md, 6: the declared bound is held, the rest given back, on the head; what the answer costs in the end is never more.
    @Test(arguments: [
        (Route.Charge.onSuccess, UInt16(200), Int64(4), Int64(4)), (.onSuccess, 200, 0, 0), (.onSuccess, 200, 10, 10),
        (.onSuccess, 200, 11, 10),
        (.onSuccess, 500, 4, 10), (.always, 500, 4, 4),
    ])
    func unitsThatTheUpstreamReportsAreWhatTheHoldHasLeft(_ charge: Route.Charge, _ status: UInt16, _ reported: Int64, _ kept: Int64) {
        let costs = charge == .always || status == 200 ? kept : 0
        var complete = forwarding(charge, units: 10)
        complete.upstreamAnswered(status: status, reported: reported)
        #expect(complete.hold?.units == kept && complete.upstreamCompleted().charge == costs)
        var abandoned = forwarding(charge, units: 10)
        abandoned.upstreamAnswered(status: status, reported: reported)
        #expect(abandoned.clientGone(attempts: 1).charge == costs)
        var died = forwarding(charge, units: 10)
        died.upstreamAnswered(status: status, reported: reported)
        #expect(died.upstreamFailed(.init(.upstreamClosed), attempts: 1).charge == (charge == .always ? kept : 0))
    }

    @Test(arguments: [
        (["0"], UnitsReport.units(0)), (["10"], .units(10)), (["007"], .units(7)), ([], .faulty(.absent)), (["1", "1"], .faulty(.repeated)),
        ([""], .faulty(.malformed)), (["-1"], .faulty(.malformed)), (["+1"], .faulty(.malformed)), (["1.0"], .faulty(.malformed)),
        (["1, 1"], .faulty(.malformed)), (["0x1"], .faulty(.malformed)), (["\u{0661}"], .faulty(.malformed)), (["1 "], .faulty(.malformed)),
        (["11"], .faulty(.aboveBound)), (["99999999999999999999999"], .faulty(.aboveBound)),
    ])
    func aReportIsOneWholeNumberUpToTheBound(_ values: [String], _ report: UnitsReport) {
        #expect(UnitsReport(values.map { Array($0.utf8)[...] }, bound: 10) == report)
    }

    @Test(arguments: [(Route.Charge.onSuccess, 1, Int64(0)), (.always, 0, 0), (.always, 1, 3)])
    func withoutAHeadOnlyWhatIsAlwaysChargedCosts(_ charge: Route.Charge, _ attempts: Int, _ units: Int64) {
        var failed = forwarding(charge, units: 3)
        let ending = failed.upstreamFailed(.init(.upstreamTimeout), attempts: attempts)
        #expect(ending.charge == units && ending.statusCode == 504 && ending.refusal == .upstreamTimeout && !ending.cutsAnswer)
        var gone = forwarding(charge, units: 3)
        let aborted = gone.clientGone(attempts: attempts)
        #expect(aborted.charge == units && aborted.statusCode == nil && aborted.status == .clientAborted)
    }

    @Test func aClientThatGoesWhileItWaitsCostsNothing() {
        var resolving = ExchangeMachine(charge: .always)
        #expect(resolving.clientGone(attempts: 0).charge == 0 && resolving.phase == .ended)
        var admitting = ExchangeMachine(charge: .always)
        _ = admitting.keyResolved(entry(), route: route(), now: 0)
        #expect(admitting.clientGone(attempts: 0).charge == 0 && admitting.phase == .ended)
    }

    /// The gateway's own limits end a request that is on its way: the answer is cut once it has begun.
    @Test func aLimitThatIsPassedOnTheWayEndsTheAnswerThatHasBegun() {
        var before = forwarding()
        #expect(before.refused(.init(.bodyTooLarge), attempts: 1).cutsAnswer == false)
        var after = forwarding()
        after.upstreamAnswered(status: 200)
        let ending = after.refused(.init(.bodyTooLarge), attempts: 1)
        #expect(ending.cutsAnswer && ending.status == .clientError)
    }

    /// quota.md, 6: who breaks a request off after the head is charged like who goes away; what the gateway cuts is given back.
    @Test(arguments: [
        (Refusal.bodyTooLarge, UInt16(200), Int64(1)), (.requestMalformed, 200, 1), (.requestTimeout, 200, 1), (.requestTimeout, 500, 0),
        (.draining, 200, 0), (.upstreamTimeout, 200, 0),
    ])
    func aClientThatBreaksItsRequestOffAfterTheHeadPays(_ refusal: Refusal, _ status: UInt16, _ charge: Int64) {
        var streaming = forwarding()
        streaming.upstreamAnswered(status: status)
        let ending = streaming.refused(.init(refusal), attempts: 1)
        #expect(ending.charge == charge && ending.cutsAnswer && ending.statusCode == status)
        var before = forwarding()
        #expect(before.refused(.init(refusal), attempts: 1).charge == 0)
    }

    // MARK: Flows

    /// A machine whose hop the flow let pass.
    private func hop(_ role: FlowRole = .finish(flow: "f")) -> ExchangeMachine {
        var machine = ExchangeMachine(charge: .onSuccess)
        let step = machine.keyResolved(entry(), route: route { $0.flow = role }, now: 0)
        #expect(step == .enterFlow(role, QuotaRow(environmentID: 7, serviceID: 9)))
        machine.flowEntered()
        return machine
    }

    @Test func aHopOfAFlowHoldsAndCostsNothingByItself() {
        var machine = hop(.step(flow: "f", index: 0))
        #expect(machine.hold == nil)
        machine.upstreamAnswered(status: 200)
        #expect(machine.upstreamCompleted().charge == 0)
    }

    @Test func theAnswerWaitsForTheFlow() {
        var machine = hop()
        machine.upstreamAnswered(status: 200, settles: true)
        #expect(machine.phase == .settling)
        machine.flowSettled()
        #expect(machine.phase == .streaming && machine.upstreamCompleted().statusCode == 200)
    }

    @Test func aClientThatGoesBeforeTheFlowIsSettledWasNotAnswered() {
        var machine = hop()
        machine.upstreamAnswered(status: 200, settles: true)
        let ending = machine.clientGone(attempts: 1)
        #expect(ending.status == .clientAborted && ending.statusCode == nil && ending.charge == 0)
    }

    @Test func whatAFlowRefusesHasACodeOfItsOwn() {
        let starts: [(FlowStartAnswer, Refusal)] = [
            (.usedUp(retryAfter: 9, QuotaView(limit: 1, remaining: 0, resetSeconds: 9)), .quotaExceeded),
            (.held(retryAfter: 2, QuotaView(limit: 1, remaining: 0, resetSeconds: 9)), .quotaHeld),
            (.limitReached(retryAfter: 3), .flowLimit),
            (.notAssigned, .serviceNotAssigned), (.unavailable(retryAfter: 2), .quotaUnavailable),
        ]
        for (answer, refusal) in starts { #expect(ExchangeMachine.Reason(answer)?.refusal == refusal) }
        let hops: [(FlowHopAnswer, Refusal, String?)] = [
            (.finishing, .flowFinishing, nil), (.ended(.committed(units: 1)), .flowClosed, "committed"),
            (.ended(.rolledBack), .flowClosed, "rolled_back"),
            (.ended(.expired(charged: 0)), .flowExpired, nil), (.unknown, .flowNotFound, nil),
            (.ended(.expired(charged: 1)), .flowExpired, "its finish succeeded after that, and was charged"),
            (.refused(.foreign), .flowRouteRefused, "the route is not of this flow"), (.refused(.order), .flowStepRefused, nil),
            (.refused(.hops), .flowHopsExceeded, nil), (.unavailable(retryAfter: 2), .quotaUnavailable, nil),
        ]
        for (answer, refusal, detail) in hops {
            let reason = ExchangeMachine.Reason(answer)
            #expect(reason?.refusal == refusal && reason?.detail == detail)
        }
        #expect(ExchangeMachine.Reason(FlowSettled.finishing)?.refusal == .flowFinishing)
        #expect(ExchangeMachine.Reason(FlowSettled.unknown)?.refusal == .flowNotFound)
        #expect(ExchangeMachine.Reason(FlowSettled.ended(.rolledBack)) == nil)
    }

    @Test func withoutAVersionTheBestAssignedServiceServes() {
        func entry(_ grants: [(Int64, String, ServiceStatus)]) -> KeyEntry {
            KeyEntry(
                keyID: KeyID(UUIDBits(high: 1, low: 1)), status: .enabled, expiresAt: nil, environmentID: 1, environmentName: "e",
                environmentStatus: .enabled, projectID: 1, projectName: "p", projectStatus: .enabled, clientID: 1,
                grants: grants.map { .init(serviceID: $0.0, name: "s", version: $0.1, status: $0.2, limited: false) })
        }
        func chosen(_ grants: [(Int64, String, ServiceStatus)]) -> Int64? {
            switch entry(grants).grant(for: .init(name: "s"), deprecatedPasses: true) {
            case .granted(let grant): grant.serviceID
            case .refused(_, let grant): grant.map { -$0.serviceID }
            }
        }
        #expect(chosen([]) == nil)
        #expect(chosen([(1, "1", .enabled), (2, "2", .enabled)]) == 2)
        #expect(chosen([(1, "1", .enabled), (2, "2", .deprecated), (3, "3", .disabled)]) == 1)
        #expect(chosen([(1, "1", .disabled), (2, "2", .deprecated)]) == 2)
        #expect(chosen([(1, "1", .disabled)]) == -1)
    }
}
