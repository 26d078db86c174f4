import GatewayCore
import Testing

@Suite struct FlowRuleTests {
    func flow(_ onFailure: Flow.Failure) -> Flow {
        Flow(name: "f", start: "a", steps: ["b"], finish: "c", units: 5, onFailure: onFailure)
    }

    static let statuses: [UInt16?] = [nil, 200, 204, 304, 399, 400, 404, 429, 500, 503, 599]

    @Test(arguments: [Flow.Failure.keep, .rollback], statuses)
    func aFinishCommitsOnSuccessAndElseDoesWhatTheFileSays(_ onFailure: Flow.Failure, _ status: UInt16?) {
        let verdict = flow(onFailure).verdict(on: .finish(flow: "f"), status: status, wish: nil)
        let failed: FlowVerdict = onFailure == .keep ? .reopen : .rollback
        #expect(verdict == (status.map { $0 < 400 } ?? false ? .commit : failed))
    }

    @Test(arguments: [Flow.Failure.keep, .rollback], statuses)
    func aStartThatFailsBeginsNothing(_ onFailure: Flow.Failure, _ status: UInt16?) {
        let verdict = flow(onFailure).verdict(on: .start(flow: "f"), status: status, wish: nil)
        #expect(verdict == (status.map { $0 < 400 } ?? false ? .stay : .rollback))
    }

    @Test func theFileSaysWhatSuccessIs() {
        var flow = flow(.rollback)
        flow.success = [200...201, 404...404]
        for status in [200, 201, 202, 302, 403, 404, 405, 500] as [UInt16] {
            let succeeds = [200, 201, 404].contains(status)
            #expect(flow.verdict(on: .start(flow: "f"), status: status, wish: nil) == (succeeds ? .stay : .rollback), "\(status)")
            #expect(flow.verdict(on: .finish(flow: "f"), status: status, wish: nil) == (succeeds ? .commit : .rollback), "\(status)")
            #expect(flow.verdict(on: .step(flow: "f", index: 0), status: status, wish: nil) == .stay)
        }
    }

    @Test(arguments: [Flow.Failure.keep, .rollback], statuses)
    func aStepDecidesNothing(_ onFailure: Flow.Failure, _ status: UInt16?) {
        #expect(flow(onFailure).verdict(on: .step(flow: "f", index: 0), status: status, wish: nil) == .stay)
    }

    @Test(arguments: [FlowRole.start(flow: "f"), .step(flow: "f", index: 0), .finish(flow: "f")], statuses)
    func theUpstreamsOwnWordGoesFirst(_ role: FlowRole, _ status: UInt16?) {
        for onFailure in [Flow.Failure.keep, .rollback] {
            let flow = flow(onFailure)
            // Without a head there is no field in it.
            let without = flow.verdict(on: role, status: status, wish: nil)
            #expect(flow.verdict(on: role, status: status, wish: .commit) == (status == nil ? without : .commit))
            #expect(flow.verdict(on: role, status: status, wish: .rollback) == (status == nil ? without : .rollback))
        }
    }

    @Test func theFieldTakesTwoWords() {
        #expect(FlowWish(header: "commit".utf8) == .commit)
        #expect(FlowWish(header: "Rollback".utf8) == .rollback)
        for word in ["", "commits", " commit", "commit,rollback", "abort", "commıt"] {
            #expect(FlowWish(header: word.utf8) == nil, "\(word)")
        }
    }

    @Test func reportedUnitsAreChargedUpToWhatIsHeld() throws {
        let open = OpenFlow(
            id: ReservationID(.zero), row: QuotaRow(environmentID: 1, serviceID: 2), period: 3, units: 5,
            startPoint: RequestID(.zero), hops: 2, expiresIn: 1)
        let hop = RequestID(UUIDBits(high: 1, low: 1))
        func units(_ charge: Int64?) -> FlowSettlement.Action? {
            open.settlement(.commit, hop: hop, of: flow(.keep), charge: charge)?.action
        }
        #expect(units(nil) == .commit(units: 5) && units(3) == .commit(units: 3))
        #expect(units(9) == .commit(units: 5) && units(-9) == .commit(units: 0))
        #expect(open.settlement(.stay, hop: hop, of: flow(.keep)) == nil)
        #expect(open.settlement(.reopen, hop: hop, of: flow(.keep))?.action == .reopen(timeToLive: 300_000_000))
    }

    @Test func aStepKeyIsVisibleText() {
        #expect(StepKey("a b-1".utf8)?.text == "a b-1")
        #expect(StepKey([UInt8](repeating: 0x61, count: 255)) != nil)
        for bad in [[], [UInt8](repeating: 0x61, count: 256), [0x61, 0], [0x80], [0x0a]] as [[UInt8]] {
            #expect(StepKey(bad) == nil)
        }
    }
}
