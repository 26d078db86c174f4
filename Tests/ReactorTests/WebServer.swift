import NIOCore
import NIOHTTP1
import NIOHTTP2
import NIOSSL
import Reactor
import TestKit

/// A small server of NIO's own handlers, unchanged, on the reactor: GET answers with as many bytes as its target says
/// (`/100`), everything else sends the body back as it comes, held back where the client does not read.
final class WebServer: Sendable {
    private struct Seen { weak var channel: (any Channel)? }

    let port: Int
    private let seen = Locked<[Seen]>([])

    /// Connections whose channel somebody still holds.
    var channels: Int { seen.withLock { $0.count { $0.channel != nil } } }
    var accepted: Int { seen.withLock { $0.count } }

    static func start(on reactor: Reactor, _ certificate: TestCertificate? = nil) async throws -> WebServer {
        let context = try certificate.map { made in
            var configuration = TLSConfiguration.makeServerConfiguration(
                certificateChain: try NIOSSLCertificate.fromPEMFile(made.certificate).map { .certificate($0) },
                privateKey: .privateKey(try NIOSSLPrivateKey(file: made.key, format: .pem)))
            configuration.applicationProtocols = ["h2", "http/1.1"]
            return try NIOSSLContext(configuration: configuration)
        }
        return try await reactor.run { try WebServer(reactor, context) }
    }

    private init(_ reactor: Reactor, _ context: NIOSSLContext?) throws {
        let seen = self.seen
        port = try reactor.listen(on: SocketAddress(ipAddress: "127.0.0.1", port: 0)) { channel in
            seen.withLock { $0.append(Seen(channel: channel)) }
            let pipeline = channel.pipeline.syncOperations
            guard let context else {
                try pipeline.configureHTTPServerPipeline()
                return try pipeline.addHandlers(BackPressureHandler(), Echo())
            }
            try pipeline.addHandler(NIOSSLServerHandler(context: context))
            channel.configureCommonHTTPServerPipeline { stream in
                stream.eventLoop.makeCompletedFuture { try stream.pipeline.syncOperations.addHandlers(BackPressureHandler(), Echo()) }
            }.whenFailure { _ in channel.close(promise: nil) }
        }.localAddress.port!
    }
}

private final class Echo: ChannelInboundHandler {
    typealias InboundIn = HTTPServerRequestPart
    typealias OutboundOut = HTTPServerResponsePart

    private static let pattern: ByteBuffer = {
        var pattern = BytePattern()
        return ByteBuffer(bytes: pattern.next(60_000))
    }()
    private var length: Int?
    private var isKeptAlive = true

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        switch unwrapInboundIn(data) {
        case .head(let head):
            isKeptAlive = head.isKeepAlive
            length = head.method == .GET ? Int(head.uri.dropFirst()) ?? 0 : nil
            var answer = HTTPResponseHead(version: head.version, status: .ok)
            if let length { answer.headers.add(name: "content-length", value: "\(length)") }
            context.write(wrapOutboundOut(.head(answer)), promise: nil)
        case .body(let bytes): context.write(wrapOutboundOut(.body(.byteBuffer(bytes))), promise: nil)
        case .end:
            if let length {
                context.write(wrapOutboundOut(.body(.byteBuffer(Echo.pattern.getSlice(at: 0, length: length)!))), promise: nil)
            }
            let channel = context.channel
            let sent = context.writeAndFlush(wrapOutboundOut(.end(nil)))
            if !isKeptAlive { sent.whenComplete { _ in channel.close(promise: nil) } }
        }
    }

    func channelReadComplete(context: ChannelHandlerContext) { context.flush() }

    func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }
}
