internal import Curl
internal import GatewayCore
internal import NIOCore
internal import Reactor

/// One request of a client and its answer: carries out what its ``ExchangeMachine`` says. Confined to its worker.
///
/// Its client side is a ``ClientConnection``, its upstream side a `Transfer`. It ends exactly once, in `conclude`, which is
/// where the log hears of it and its units are settled.
final class Exchange {
    let worker: Worker
    /// Nil once the exchange has ended, which it has when the client is gone.
    var connection: ClientConnection?
    var head: RequestHead
    var machine = ExchangeMachine(charge: .onSuccess)

    let id: RequestID
    /// Microseconds since 1970.
    let requestTime: Int64
    let startedAt: NIODeadline
    var plan: RoutePlan?
    /// Asks the gateway itself instead of an upstream.
    var endpoint: FlowEndpoint?
    var entry: KeyEntry?
    /// The chain's root, where the client sent one back.
    var root: RequestID?
    /// `Pandora-Start-Point` of the answer; empty until the environment is known.
    var startPoint: [UInt8] = []
    var trace: TraceContext?
    var flow: FlowPart?
    /// Of the row whose quota a flow's start asked for.
    var quotaView: QuotaView?
    /// Came up while the answer waited for the flow.
    var lateFailure: ExchangeMachine.Reason?

    // The request's body.
    var waitingBody: [ByteBuffer] = []
    var waitingBodyBytes = 0
    var isRequestComplete = false
    var bodyReceived: Int64 = 0

    // The upstream.
    var transfer: Transfer?
    /// In the place of the transfer, where the client asked to change the protocol.
    var tunnel: Tunnel?
    var target: UpstreamPool.Member?
    var connectionTries = 0
    /// Went out, over all transfers.
    var attempts = 0

    // The answer.
    var framing = AnswerFraming.empty
    var answerLeft: Int64 = 0
    var answerBytes: Int64 = 0
    var trailers: TransferHead?
    var firstByteAt: NIODeadline?
    /// What completes the answer. It leaves once the hop is in the spool, and not at all where that takes none.
    var completion: ByteBuffer?
    var keepsAlive: Bool
    /// Place in the spool is kept for the hop.
    var hasPlace = false

    init(_ head: RequestHead, on connection: ClientConnection, _ worker: Worker) {
        (self.head, self.connection, self.worker) = (head, connection, worker)
        id = worker.makeRequestID()
        requestTime = WallClock.microseconds
        startedAt = worker.reactor.now
        keepsAlive = head.keepsAlive && !worker.isDraining
        isRequestComplete = head.body == .none || head.body == .length(0)
    }

    /// Its last phase is behind it: the connection can have its next.
    var isEnded: Bool { machine.phase == .ended }

    // MARK: Resolve

    /// Finds the route and the key. Whatever happens, an answer comes, perhaps before this returns.
    func begin() {
        if head.target.hasPrefix(FlowEndpoint.prefix) { return beginEndpoint() }
        switch matchRoute() {
        case .none: return refuse(.init(.routeNotFound))
        case .refused(let fault): return refuse(.init(.requestMalformed, detail: "path: \(fault)"))
        case .route(let route): plan = worker.traffic.plan(of: route)
        }
        let plan = plan!
        machine = ExchangeMachine(charge: plan.route.settings.charge)
        if let name = plan.keyQuery { takeQueryKey(name) }
        if head.asksForWebSocket, !isUpgrade { return refuse(.init(.upgradeRefused)) }
        if case .length(let length) = head.body, length > plan.bodyLimit {
            return refuse(.init(.bodyTooLarge, detail: "the route takes \(plan.bodyLimit) bytes"))
        }
        resolveKey()
    }

    func resolveKey() {
        if head.hasTwoKeys { return refuse(.init(.keyConflict)) }
        guard let key = head.key else { return refuse(.init(.keyMissing)) }
        guard case .candidate(let digest) = key else { return refuse(.init(.keyInvalid)) }
        worker.keys.resolve(digest) { [self] resolution in keyResolved(resolution) }
    }

    private func matchRoute() -> RouteTable.Outcome {
        var (method, host, target) = (head.method, head.host, head.target)
        return method.withUTF8 { method in
            host.withUTF8 { host in
                target.withUTF8 { target in
                    worker.traffic.routes.match(
                        method: UnsafeRawBufferPointer(method), host: UnsafeRawBufferPointer(host),
                        target: UnsafeRawBufferPointer(target), fields: head)
                }
            }
        }
    }

    private func takeQueryKey(_ name: [UInt8]) {
        var target = head.target
        let values = target.withUTF8 { TargetQuery.values(of: name, in: UnsafeRawBufferPointer($0)) }
        head.noteQueryKeys(values)
    }

    private func keyResolved(_ resolution: KeyResolution) {
        // The client may have gone while the store was asked.
        guard machine.phase == .resolving else { return }
        switch resolution {
        case .unknown: refuse(.init(.keyInvalid))
        case .unavailable(let retryAfter): refuse(.init(.storeUnavailable, retryAfter: retryAfter))
        case .entry(let entry): if endpoint == nil { admit(entry) } else { enterEndpoint(entry) }
        }
    }

    // MARK: Admit

    private func admit(_ entry: KeyEntry) {
        self.entry = entry
        guard takeStartPoint(entry) else { return refuse(.init(.startPointInvalid)) }
        let route = plan!.route
        let step = machine.keyResolved(entry, route: route, now: requestTime)
        if case .refuse(let reason) = step { return refuse(reason) }
        if let reason = flowMismatch(route.settings.flow) { return refuse(reason) }
        worker.keys.noteUsed(entry, at: requestTime)
        hasPlace = worker.spool.reserve()
        guard hasPlace || route.settings.outage == .allow else { return refuse(.init(.logUnavailable)) }
        switch step {
        case .admit(let want): worker.quota.admit(want) { [self] admission in admitted(admission) }
        case .enterFlow(let role, let row): enterFlow(role, row)
        case .forward, .refuse: preconditionFailure("nothing is forwarded before it is admitted")
        }
    }

    /// False where the client sent a start point that is not one of this environment.
    private func takeStartPoint(_ entry: KeyEntry) -> Bool {
        if let text = head.startPoint {
            guard let sent = worker.signer.verify(text.utf8, environment: entry.environmentID) else { return false }
            root = sent
        }
        startPoint.reserveCapacity(StartPointSigner.textLength)
        worker.signer.append(environment: entry.environmentID, root: root ?? id, to: &startPoint)
        return true
    }

    private func admitted(_ admission: Admission) {
        guard machine.phase == .admitting else {
            // The client went away while it waited: what was granted goes back.
            if case .held(let hold) = admission { worker.quota.release(hold) }
            return
        }
        switch machine.admitted(admission) {
        case .refuse(let reason): refuse(reason)
        case .forward: forward()
        case .admit, .enterFlow: preconditionFailure("admitted twice")
        }
    }

    // MARK: Ends

    /// The gateway answers itself, or cuts an answer that has begun. What that means for a flow is said first.
    func refuse(_ reason: ExchangeMachine.Reason) {
        guard !isEnded else { return }
        collectAttempts()
        if machine.phase == .settling {
            // What became of the flow is known in a moment: its answer begins with that, and is cut then.
            lateFailure = reason
            return
        }
        if isAnswerWhole {
            // What breaks off is the rest of the request.
            keepsAlive = false
            return conclude(machine.upstreamCompleted())
        }
        guard settlement(status: nil, wish: nil) != nil, machine.phase == .forwarding else { return refuseNow(reason) }
        settleFlow(status: nil, wish: nil) { [self] in refuseNow(reason) }
    }

    private func refuseNow(_ reason: ExchangeMachine.Reason) {
        guard !isEnded else { return }
        let ending = machine.refused(reason, attempts: attempts)
        if !ending.cutsAnswer { answer(reason) }
        conclude(ending)
    }

    /// The client's connection is gone.
    func clientGone() {
        guard !isEnded else { return }
        collectAttempts()
        if machine.phase == .forwarding { settleFlow(status: nil, wish: nil) {} }
        conclude(machine.clientGone(attempts: attempts))
    }

    private func answer(_ reason: ExchangeMachine.Reason) {
        if !isRequestComplete { keepsAlive = false }
        let problem = AnswerHead(
            problem: reason, requestID: id, own: own(), date: worker.date, isHead: head.method == "HEAD", allocator: worker.allocator)
        firstByteAt = worker.reactor.now
        completion = problem.bytes
    }

    func own() -> AnswerHead.Own {
        let view = quotaView ?? entry.flatMap { entry in
            machine.grant.flatMap { $0.limited ? worker.quota.view(environment: entry.environmentID, service: $0.serviceID) : nil }
        }
        return AnswerHead.Own(
            requestID: id, startPoint: startPoint, quota: view, closes: !keepsAlive || worker.isDraining, isHTTP11: head.isHTTP11,
            flow: flow?.fields)
    }

    func collectAttempts() {
        attempts += (transfer?.attempts ?? 0) + (tunnel?.attempts ?? 0)
        transfer?.cancel()
        tunnel?.cancel()
        (transfer, tunnel) = (nil, nil)
    }

    /// The one end of every exchange: log, settle, and give the connection back.
    func conclude(_ ending: ExchangeMachine.Ending) {
        let charge = machine.hold?.charge(ending.charge) ?? 0
        let isLogged = worker.log(record(ending, charge), hasPlace: hasPlace)
        // Units are booked by their hop: where it is lost they go back, or they would be held until this process ends.
        if let hold = machine.hold { worker.quota.settle(hold, charge: isLogged ? charge : 0) }
        // An answer whose hop is lost must not look complete, unless the route would rather serve than count.
        let isUnaccounted = !isLogged && attempts > 0 && plan?.route.settings.outage == .deny
        releaseFlowPlace()
        waitingBody.removeAll()
        let connection = connection
        self.connection = nil
        let tunnel = tunnel
        self.tunnel = nil
        let completion = completion
        self.completion = nil
        if ending.cutsAnswer || isUnaccounted {
            tunnel?.cancel()
            connection?.cut(framing == .close ? .resetting : .closing)
            return
        }
        if let completion { connection?.write(completion) }
        if let tunnel, framing == .tunnel {
            if let connection { connection.becomeTunnel(tunnel) } else { tunnel.cancel() }
        } else {
            connection?.exchangeEnded(keepsAlive: keepsAlive)
        }
    }
}
