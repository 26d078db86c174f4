import Foundation
import NIOCore
import NIOHTTP1
import Reactor
import Testing

private final class Answer: ChannelInboundHandler {
    typealias InboundIn = HTTPServerRequestPart
    typealias OutboundOut = HTTPServerResponsePart
    var received = 0
    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        switch unwrapInboundIn(data) {
        case .head: received = 0
        case .body(let bytes): received += bytes.readableBytes
        case .end:
            let body = ByteBuffer(string: "received \(received)")
            var head = HTTPResponseHead(version: .http1_1, status: .ok)
            head.headers.add(name: "Content-Length", value: "\(body.readableBytes)")
            context.write(wrapOutboundOut(.head(head)), promise: nil)
            context.write(wrapOutboundOut(.body(.byteBuffer(body))), promise: nil)
            context.writeAndFlush(wrapOutboundOut(.end(nil)), promise: nil)
        }
    }
}

@Suite struct ReactorTests {
    @Test func curlTalksToNIOHandlersOnTheReactor() async throws {
        let reactor = try Reactor.start(name: "test")
        let port = try await reactor.submit {
            try reactor.listen(on: SocketAddress(ipAddress: "127.0.0.1", port: 0)) { channel in
                try channel.pipeline.syncOperations.configureHTTPServerPipeline()
                try channel.pipeline.syncOperations.addHandler(Answer())
            }.localAddress.port!
        }.get()
        let curl = Process()
        curl.executableURL = URL(fileURLWithPath: "/usr/bin/curl")
        curl.arguments = ["-sS", "--data", String(repeating: "x", count: 100_000), "http://127.0.0.1:\(port)/a", "http://127.0.0.1:\(port)/b"]
        let pipe = Pipe()
        curl.standardOutput = pipe
        try curl.run()
        curl.waitUntilExit()
        let text = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        #expect(text.hasPrefix("received 100000"))
        reactor.stop()
        reactor.join()
    }
}
