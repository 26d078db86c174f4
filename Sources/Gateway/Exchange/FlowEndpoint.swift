internal import GatewayCore
internal import NIOCore
internal import Reactor

/// What the gateway itself answers: `GET /.pandora/flows/{id}`, and `POST` of `…/commit` and `…/rollback`, with a key of the
/// flow's environment.
struct FlowEndpoint {
    enum Action { case show, commit, rollback }

    static let prefix = "/.pandora/"
    /// In the place of a route's name in the log.
    static let routeName = ".pandora/flows"

    let id: ReservationID
    let action: Action
    /// The store has said, to a commit or a rollback, that the flow is or was one of the key's environment.
    var knowsFlow = false

    enum Fault: Error { case unknown, badID }

    init(method: String, target: String) throws(Fault) {
        let path = target.prefix { $0 != "?" }
        let parts = path.split(separator: "/", omittingEmptySubsequences: false).dropFirst(2)
        guard parts.first == "flows", parts.count == 2 || parts.count == 3 else { throw .unknown }
        switch (method, parts.count == 3 ? parts.last! : "") {
        case ("GET", ""), ("HEAD", ""): action = .show
        case ("POST", "commit"): action = .commit
        case ("POST", "rollback"): action = .rollback
        default: throw .unknown
        }
        guard let id = ReservationID(String(parts[parts.startIndex + 1])) else { throw .badID }
        self.id = id
    }
}

extension Exchange {
    func beginEndpoint() {
        do throws(FlowEndpoint.Fault) {
            endpoint = try FlowEndpoint(method: head.method, target: head.target)
        } catch {
            return refuse(.init(error == .badID ? .flowInvalid : .routeNotFound))
        }
        resolveKey()
    }

    func enterEndpoint(_ entry: KeyEntry) {
        self.entry = entry
        worker.signer.append(environment: entry.environmentID, root: id, to: &startPoint)
        if let refusal = entry.refusal(at: requestTime) { return refuse(.init(refusal)) }
        worker.keys.noteUsed(entry, at: requestTime)
        let endpoint = endpoint!
        switch endpoint.action {
        case .show: worker.flows.show(endpoint.id, environment: entry.environmentID) { [self] in shown($0) }
        case .commit, .rollback:
            let resolution = FlowResolution(
                id: endpoint.id, environmentID: entry.environmentID, commits: endpoint.action == .commit)
            worker.flows.resolve(resolution) { [self] in resolved($0, endpoint) }
        }
    }

    private func shown(_ result: Result<FlowView?, some Error>) {
        guard !isEnded else { return }
        switch result {
        case .success(let view?): answer(json: view.json)
        case .success(nil): refuse(.init(.flowNotFound))
        case .failure: refuse(.init(.quotaUnavailable))
        }
    }

    private func resolved(_ settled: FlowSettled, _ endpoint: FlowEndpoint) {
        guard !isEnded else { return }
        self.endpoint?.knowsFlow = settled.knowsFlow
        if let reason = ExchangeMachine.Reason(settled) { return refuse(reason) }
        // A resolution ends the flow, or is refused.
        guard case .ended(let outcome) = settled else { return refuse(.init(.quotaUnavailable)) }
        // Said again, it is the same word; the other word comes too late.
        switch (endpoint.action, outcome) {
        case (.commit, .committed), (.rollback, .rolledBack):
            answer(json: Array("{\"id\":\"\(endpoint.id)\",\"state\":\"\(outcome.text)\"}\n".utf8))
        default:
            refuse(.init(outcome))
        }
    }

    private func answer(json body: [UInt8]) {
        if !isRequestComplete { keepsAlive = false }
        let answer = AnswerHead(json: body, own: own(), date: worker.date, isHead: head.method == "HEAD", allocator: worker.allocator)
        firstByteAt = worker.reactor.now
        answerBytes = head.method == "HEAD" ? 0 : Int64(body.count)
        completion = answer.bytes
        conclude(machine.answeredByGateway(status: 200))
    }
}

extension FlowView {
    /// One object; durations in whole seconds, rounded up.
    var json: [UInt8] {
        var text: String
        switch state {
        case .open: text = "\"open\""
        case .finishing: text = "\"finishing\""
        case .ended(let outcome, _): text = "\"\(outcome.text)\""
        }
        text = "{\"id\":\"\(id)\",\"state\":\(text),\"period\":\(period)"
        switch state {
        case .ended(.committed(let units), _): text += ",\"units\":\(units)"
        // A hop succeeded after it had expired.
        case .ended(.expired(let charged), _) where charged > 0: text += ",\"units\":\(charged)"
        default: break
        }
        if let progress {
            var name: [UInt8] = []
            name.append(jsonEscaped: progress.flow)
            text += ",\"flow\":\"\(String(decoding: name, as: UTF8.self))\",\"units\":\(progress.units),\"hops\":\(progress.hops)"
            if let startPoint = progress.startPoint { text += ",\"start_point\":\"\(startPoint)\"" }
            text += ",\"expires_in\":\(max(0, (progress.expiresIn + 999_999) / 1_000_000))"
        }
        return Array((text + "}\n").utf8)
    }
}
