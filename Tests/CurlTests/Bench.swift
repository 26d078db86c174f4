import Curl
import NIOCore
import Reactor
import TestKit
import Testing

/// Collects what one transfer delivers. Used on its reactor only; the test reads it after `result()`.
final class Recorder: TransferDelegate, @unchecked Sendable {
    // Sendable: see above; `result()` orders the test's reads after the reactor's writes.
    var informational: [Int] = []
    var heads = 0
    var head: TransferHead?
    var body: [UInt8] = []
    var trailers: TransferHead?
    var ends = 0
    var onHead: ((Transfer) -> Void)?
    var onBody: ((Transfer, ByteBuffer) -> Void)?
    var onNeedsBody: ((Transfer) -> Void)?
    var onEnd: ((TransferResult) -> Void)?
    private let (results, end) = AsyncStream.makeStream(of: TransferResult.self)

    func transferInformational(_ transfer: Transfer, _ head: TransferHead) { informational.append(head.status) }
    func transferHead(_ transfer: Transfer, _ head: TransferHead) {
        self.head = head
        heads += 1
        onHead?(transfer)
    }
    func transferBody(_ transfer: Transfer, _ bytes: ByteBuffer) {
        if let onBody { onBody(transfer, bytes) } else { body += bytes.readableBytesView }
    }
    func transferTrailers(_ transfer: Transfer, _ trailers: TransferHead) { self.trailers = trailers }
    func transferNeedsBody(_ transfer: Transfer) { onNeedsBody?(transfer) }
    func transferEnded(_ transfer: Transfer, _ result: TransferResult) {
        ends += 1
        onEnd?(result)
        end.yield(result)
    }

    /// Waits for the end.
    func result() async throws -> TransferResult {
        for await result in results { return result }
        throw CancellationError()
    }
}

/// What a test asks of an upstream.
struct Ask: Sendable {
    var port: Int
    var method = "GET"
    var target = Array("/".utf8)
    var headers: [(String, String)] = []
    var body = BodyFraming.none
    /// Far longer than a loaded machine takes: what a test means to run out it sets to `short`.
    var timeouts = TransferTimeouts(connect: .seconds(120), firstByte: .seconds(120), idle: .seconds(120))
    var resend = ResendRule.never
    var scheme = Destination.Scheme.http
    var host = "service.test"
    var transfersMax = 1_024
    var waitingMax = 1_024

    init(_ port: Int, _ method: String = "GET") {
        self.port = port
        self.method = method
    }

    func destination() -> Destination {
        Destination(
            scheme: scheme, host: host, port: port, address: "127.0.0.1", transfersMax: transfersMax, waitingMax: waitingMax)!
    }

    func request(to destination: Destination? = nil) -> TransferRequest {
        var fields = TransferHeaders()
        fields.add(name: "Host", value: host)
        for (name, value) in headers { fields.add(name: name, value: value) }
        return TransferRequest(
            destination: destination ?? self.destination(), method: method, target: target, headers: fields, body: body, timeouts: timeouts,
            resend: resend)
    }
}

/// A reactor with a client on it, stopped at the end of the test.
final class Bench: @unchecked Sendable {
    // Sendable: `client` is touched on the reactor alone.
    let reactor: Reactor
    private(set) var client: CurlClient!

    init(_ configuration: CurlConfiguration = CurlConfiguration()) throws {
        var configuration = configuration
        configuration.deadlineTick = .milliseconds(20)
        reactor = try Reactor.start(name: "curl-test")
        let (loop, final) = (reactor, configuration)
        try loop.submit { [self] in client = try CurlClient(on: loop, configuration: final) }.wait()
    }

    deinit {
        let (loop, last) = (reactor, client!)
        loop._executeIsolatedUnsafeUnchecked {
            last.shutdown()
            loop.stop()
        }
    }

    func onLoop<T: Sendable>(_ body: @escaping @Sendable (CurlClient) throws -> T) async throws -> T {
        try await reactor.submit { [self] in try body(client) }.get()
    }

    /// Runs one transfer to its end. `begin` gets it right after its start, on the reactor.
    @discardableResult
    func run(
        _ ask: Ask, prepare: @escaping @Sendable (Recorder) -> Void = { _ in }, begin: @escaping @Sendable (Transfer) -> Void = { _ in }
    ) async throws -> (Recorder, TransferResult) {
        let recorder = Recorder()
        prepare(recorder)
        try await onLoop { client in begin(try client.start(ask.request(), delegate: recorder)) }
        let result = try await recorder.result()
        return (recorder, result)
    }

    /// The same with a body given whole.
    @discardableResult
    func run(_ ask: Ask, body: String) async throws -> (Recorder, TransferResult) {
        var ask = ask
        if ask.body == .none { ask.body = .length(Int64(body.utf8.count)) }
        let begin: @Sendable (Transfer) -> Void = { transfer in
            transfer.send(ByteBuffer(string: body))
            transfer.finishSending()
        }
        return try await run(ask, begin: begin)
    }
}

extension TransferResult {
    var isSuccess: Bool { error == nil }
    var error: TransferError? {
        if case .failure(let error) = self { error } else { nil }
    }
    var timings: TransferTimings? {
        if case .success(let timings) = self { timings } else { nil }
    }
}

/// For what is meant to pass.
let short = TimeAmount.milliseconds(150)
