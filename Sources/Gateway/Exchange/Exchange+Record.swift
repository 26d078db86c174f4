internal import GatewayCore
internal import NIOCore
internal import Reactor

extension Exchange {
    /// The hop, as the log tells it.
    func record(_ ending: ExchangeMachine.Ending, _ charged: Int64) -> HopRecord {
        let now = worker.reactor.now
        var record = HopRecord(id: id, requestTime: requestTime, executionStatus: ending.status)
        record.startPoint = flow?.isRepeat == true ? nil : root
        record.reservationID = ownFlow
        record.refusal = ending.refusal
        record.statusCode = ending.statusCode
        record.environmentID = entry?.environmentID
        record.serviceID = machine.grant?.serviceID
        record.keyID = entry?.keyID
        if let hold = machine.hold {
            (record.units, record.period) = (charged, hold.period)
            (record.leased, record.outage) = (hold.leased, hold.outage)
        }
        record.attempts = UInt16(clamping: attempts)
        record.duration = Self.microseconds(now - startedAt)
        record.firstByte = firstByteAt.map { Self.microseconds($0 - startedAt) }
        record.bytesIn = bodyReceived
        record.bytesOut = answerBytes
        record.remoteAddress = connection?.remoteAddress
        record.traceID = trace?.traceID ?? head.trace?.traceID
        setTexts(of: &record)
        return record
    }

    /// The flow that the request was about. What it names is only the client's word, until the store has said whose it is.
    private var ownFlow: ReservationID? {
        if let endpoint { return endpoint.knowsFlow ? endpoint.id : nil }
        return flow?.id
    }

    private func setTexts(of record: inout HopRecord) {
        record.setMethod(head.method)
        record.setHost(head.host)
        if let target { record.setTarget(target.label) }
        if endpoint != nil { record.setRoute(FlowEndpoint.routeName) }
        guard let plan else { return setPath(of: &record, withQuery: false) }
        record.setRoute(plan.route.name)
        setPath(of: &record, withQuery: plan.route.settings.logsQuery)
    }

    /// A key in the query never reaches the log.
    private func setPath(of record: inout HopRecord, withQuery: Bool) {
        var target = head.target
        target.withUTF8 { bytes in
            let raw = UnsafeRawBufferPointer(bytes)
            if withQuery, let name = plan?.keyQuery, let without = TargetQuery.removing(name, from: raw) {
                return without.withUnsafeBufferPointer { record.setPath(bytes: $0) }
            }
            guard !withQuery, let end = bytes.firstIndex(of: UInt8(ascii: "?")) else { return record.setPath(head.target) }
            record.setPath(bytes: UnsafeBufferPointer(rebasing: bytes[..<end]))
        }
    }

    private static func microseconds(_ amount: TimeAmount) -> Int64 { amount.nanoseconds / 1_000 }
}
