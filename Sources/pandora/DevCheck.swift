import Curl
import GatewayCore
import GatewayStore
import NIOCore
import Postgres
import Reactor

/// `pandora dev --check`: one request through the gateway, and its row in the log.
struct DevCheck {
    let address: String
    let key: String
    let database: String

    /// How long the row may take to arrive.
    private static let patience = 100

    /// Says how it went, step by step; false where a step failed.
    func run() async -> Bool {
        do {
            let reactor = try Reactor.start(name: "check")
            defer { reactor.stop() }
            let (status, id) = try await ask(reactor)
            print("GET /hello: \(status), \(id)")
            guard status == 200, let request = RequestID(id) else { return false }
            guard let hop = try await find(request, reactor) else {
                print("its row did not arrive in request_logs")
                return false
            }
            print("its row in request_logs: \(hop.executionStatus), \(hop.units) unit, \(hop.duration ?? 0) µs, \(hop.route ?? "")")
            return hop.executionStatus == "success" && hop.units == 1
        } catch {
            print("check failed: \(error)")
            return false
        }
    }

    private func ask(_ reactor: Reactor) async throws -> (status: Int, id: String) {
        let answer = reactor.makePromise(of: (status: Int, id: String).self)
        let (address, key) = (address, key)
        reactor.execute {
            do {
                let asking = try Asking(reactor, address, key, answer)
                answer.futureResult.whenComplete { _ in asking.close() }
            } catch {
                answer.fail(error)
            }
        }
        return try await answer.futureResult.get()
    }

    private func find(_ id: RequestID, _ reactor: Reactor) async throws -> LogEntry? {
        let client = try await PostgresClient.connect(PostgresConfiguration(url: database), on: reactor)
        defer { Task { await client.shutdown() } }
        for _ in 0..<Self.patience {
            if let found = try await LogReader(client).chain(of: id)?.hops.first { return found }
            try await Task.sleep(for: .milliseconds(100))
        }
        return nil
    }

    /// One request by the gateway's own curl layer. Sendable: used on its reactor only.
    private final class Asking: TransferDelegate, @unchecked Sendable {
        private let client: CurlClient
        private let answer: EventLoopPromise<(status: Int, id: String)>
        private var head: TransferHead?

        init(_ reactor: Reactor, _ address: String, _ key: String, _ answer: EventLoopPromise<(status: Int, id: String)>) throws {
            client = try CurlClient(on: reactor)
            self.answer = answer
            let parts = address.split(separator: ":")
            let destination = Destination(scheme: .http, host: String(parts[0]), port: Int(parts[1])!, address: String(parts[0]))!
            var fields = TransferHeaders()
            fields.add(name: "Host", value: address)
            fields.add(name: "X-API-Key", value: key)
            _ = try client.start(
                TransferRequest(destination: destination, method: "GET", target: Array("/hello".utf8), headers: fields), delegate: self)
        }

        func close() { client.shutdown() }

        func transferInformational(_ transfer: Transfer, _ head: TransferHead) {}
        func transferHead(_ transfer: Transfer, _ head: TransferHead) { self.head = head }
        func transferBody(_ transfer: Transfer, _ bytes: ByteBuffer) {}
        func transferTrailers(_ transfer: Transfer, _ trailers: TransferHead) {}
        func transferNeedsBody(_ transfer: Transfer) {}

        func transferEnded(_ transfer: Transfer, _ result: TransferResult) {
            switch result {
            case .success:
                answer.succeed((head?.status ?? 0, head?.value(of: "pandora-request-id").map { String(decoding: $0, as: UTF8.self) } ?? ""))
            case .failure(let error): answer.fail(error)
            }
        }
    }
}
