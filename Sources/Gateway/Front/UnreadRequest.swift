internal import GatewayCore
internal import Glibc
internal import NIOCore
internal import NIOHTTP1
internal import Reactor

/// A request that broke off or made no sense before there was an exchange: its answer and its hop.
struct UnreadRequest {
    let answer: ByteBuffer

    init(_ fault: RequestHead.Fault, _ worker: Worker, _ remote: RemoteAddress?) {
        let id = worker.makeRequestID()
        let own = AnswerHead.Own(requestID: id, startPoint: [], quota: nil, closes: true, isHTTP11: true)
        let reason = ExchangeMachine.Reason(fault.refusal, detail: fault.detail)
        answer = AnswerHead(
            problem: reason, requestID: id, own: own, date: worker.date, isHead: false, allocator: worker.allocator
        ).bytes
        var record = HopRecord(id: id, requestTime: WallClock.microseconds, executionStatus: ExecutionStatus(fault.refusal))
        record.refusal = fault.refusal
        record.statusCode = fault.refusal.status
        record.remoteAddress = remote
        worker.log(record, hasPlace: false)
    }
}

extension RequestHead.Fault {
    /// What the decoder refused.
    init(_ error: any Error) {
        switch error as? HTTPParserError {
        case .headerOverflow?: self.init(.headersTooLarge, "more, or longer ones, than the gateway takes")
        case .invalidVersion?: self.init(.requestMalformed, "not HTTP/1.0 or HTTP/1.1")
        case .invalidMethod?: self.init(.requestMalformed, "no method that HTTP knows")
        case .invalidURL?, .invalidHost?, .invalidPort?, .invalidPath?, .invalidQueryString?, .invalidFragment?:
            self.init(.requestMalformed, "the request target")
        case .invalidHeaderToken?, .lfExpected?, .invalidConstant?: self.init(.requestMalformed, "a line of the head")
        case .invalidContentLength?, .unexpectedContentLength?: self.init(.requestMalformed, "Content-Length")
        case .invalidChunkSize?: self.init(.requestMalformed, "the length of a chunk")
        default: self.init(.requestMalformed, "the syntax of the request")
        }
    }
}

extension RemoteAddress {
    /// The address of a peer, as text and as the log has it.
    static func read(_ address: SocketAddress?) -> (text: String, address: RemoteAddress?) {
        guard let text = address?.ipAddress else { return ("unknown", nil) }
        var v4 = in_addr()
        if inet_pton(AF_INET, text, &v4) == 1 { return (text, RemoteAddress(ipv4: UInt32(bigEndian: v4.s_addr))) }
        var v6 = in6_addr()
        guard inet_pton(AF_INET6, text, &v6) == 1 else { return (text, nil) }
        let words = withUnsafeBytes(of: v6) {
            (UInt64(bigEndian: $0.loadUnaligned(as: UInt64.self)), UInt64(bigEndian: $0.loadUnaligned(fromByteOffset: 8, as: UInt64.self)))
        }
        let remote = RemoteAddress(ipv6High: words.0, low: words.1)
        // ::ffff:127.0.0.1 is an IPv4 client on an IPv6 socket.
        return (remote.isIPv6 ? text : String(text.split(separator: ":").last ?? ""), remote)
    }
}
