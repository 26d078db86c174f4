import NIOCore
import NIOHTTP1
import Reactor

/// A service to put the gateway in front of: it answers with what it was asked, as JSON, so that one sees what a request looks
/// like behind the gateway. `/status/503` answers with that status.
final class DemoUpstream: Sendable {
    private let reactor: Reactor
    let address: SocketAddress

    /// Throws where the address is taken.
    init(on address: SocketAddress) async throws {
        let reactor = try Reactor.start(name: "demo-upstream")
        self.reactor = reactor
        self.address = try await reactor.submit {
            try reactor.listen(on: address) { channel in
                try channel.pipeline.syncOperations.configureHTTPServerPipeline()
                try channel.pipeline.syncOperations.addHandler(Answering())
            }.localAddress
        }.get()
    }

    func stop() {
        reactor.stop()
        reactor.join()
    }

    private final class Answering: ChannelInboundHandler {
        typealias InboundIn = HTTPServerRequestPart
        typealias OutboundOut = HTTPServerResponsePart
        private var head: HTTPRequestHead?
        private var bodyBytes = 0

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            switch unwrapInboundIn(data) {
            case .head(let head): (self.head, bodyBytes) = (head, 0)
            case .body(let bytes): bodyBytes += bytes.readableBytes
            case .end:
                guard let head else { return }
                answer(head, context)
            }
        }

        private func answer(_ request: HTTPRequestHead, _ context: ChannelHandlerContext) {
            let path = request.uri.prefix { $0 != "?" }
            let asked = path.hasPrefix("/status/") ? Int(path.dropFirst("/status/".count)) : nil
            let status = HTTPResponseStatus(statusCode: asked.flatMap { (200...599).contains($0) ? $0 : nil } ?? 200)
            let body = text(request)
            var head = HTTPResponseHead(version: .http1_1, status: status)
            head.headers.add(name: "Content-Type", value: "application/json")
            head.headers.add(name: "Content-Length", value: "\(body.utf8.count)")
            context.write(wrapOutboundOut(.head(head)), promise: nil)
            if request.method != .HEAD { context.write(wrapOutboundOut(.body(.byteBuffer(ByteBuffer(string: body)))), promise: nil) }
            context.writeAndFlush(wrapOutboundOut(.end(nil)), promise: nil)
        }

        private func text(_ request: HTTPRequestHead) -> String {
            let fields = request.headers.map { "    \(Self.quoted($0.name)): \(Self.quoted($0.value))" }.joined(separator: ",\n")
            return """
                {
                  "method": \(Self.quoted(request.method.rawValue)),
                  "target": \(Self.quoted(request.uri)),
                  "body_bytes": \(bodyBytes),
                  "headers": {
                \(fields)
                  }
                }

                """
        }

        private static func quoted(_ text: String) -> String { ProcessLog.quoted(text) }
    }
}
