import Curl
import NIOCore
import NIOSSL
import NIOTLS
import Reactor
import TestKit

/// Collects what one tunnel delivers, and answers as its closures say. Used on its reactor only; the test reads it after
/// `end()`, or on the reactor.
final class TunnelRecorder: TunnelDelegate, @unchecked Sendable {
    // Sendable: see above; `end()` orders the test's reads after the reactor's writes.
    var heads: [TransferHead] = []
    var bytes: [UInt8] = []
    var hasEnd = false
    var ends = 0
    var onHead: ((Tunnel) -> Void)?
    var onBytes: ((Tunnel, ByteBuffer) -> Void)?
    var onEnd: ((Tunnel) -> Void)?
    var onRoom: ((Tunnel) -> Void)?
    private let (errors, over) = AsyncStream.makeStream(of: TransferError?.self)

    var status: Int? { heads.last?.status }
    var text: String { String(decoding: bytes, as: UTF8.self) }

    func tunnelHead(_ tunnel: Tunnel, _ head: TransferHead) {
        heads.append(head)
        onHead?(tunnel)
    }
    func tunnelReceived(_ tunnel: Tunnel, _ bytes: ByteBuffer) {
        if let onBytes { onBytes(tunnel, bytes) } else { self.bytes += bytes.readableBytesView }
    }
    func tunnelReceivedEnd(_ tunnel: Tunnel) {
        hasEnd = true
        onEnd?(tunnel)
    }
    func tunnelHasRoom(_ tunnel: Tunnel) { onRoom?(tunnel) }
    func tunnelEnded(_ tunnel: Tunnel, _ error: TransferError?) {
        ends += 1
        over.yield(error)
    }

    /// Waits for the end.
    func end() async throws -> TransferError? {
        for await error in errors { return error }
        throw CancellationError()
    }
}

extension Bench {
    /// Opens a tunnel; `prepare` sets up the recorder, `begin` gets the tunnel right after, on the reactor.
    func open(
        _ ask: Ask, prepare: @escaping @Sendable (TunnelRecorder) -> Void = { _ in },
        begin: @escaping @Sendable (Tunnel) -> Void = { _ in }
    ) async throws -> (TunnelRecorder, NIOLoopBound<Tunnel>) {
        let recorder = TunnelRecorder()
        prepare(recorder)
        let tunnel = try await onLoop { [reactor] client in
            let tunnel = try client.open(ask.request(), upgrade: "websocket", delegate: recorder)
            begin(tunnel)
            return NIOLoopBound(tunnel, eventLoop: reactor)
        }
        return (recorder, tunnel)
    }

    /// Runs one to its end.
    func tunnel(
        _ ask: Ask, prepare: @escaping @Sendable (TunnelRecorder) -> Void = { _ in },
        begin: @escaping @Sendable (Tunnel) -> Void = { _ in }
    ) async throws -> (TunnelRecorder, TransferError?) {
        let (recorder, _) = try await open(ask, prepare: prepare, begin: begin)
        let error = try await recorder.end()
        return (recorder, error)
    }
}

let switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"

/// A TLS server of NIO's on a reactor of ours: answers the first head with 101 and then sends back what comes, holding the
/// client back when that does not take it.
final class TLSEcho: Sendable {
    let port: Int
    let bundle: String
    private let folder: TemporaryFolder

    /// What it does instead, or besides.
    enum Manner: Sendable { case echoes, closesAtOnce, closesAfterHead, speaksFirst }

    init(on reactor: Reactor, _ manner: Manner = .echoes) async throws {
        folder = try TemporaryFolder("curl-tunnel")
        let made = try await TestCertificate(for: "DNS:service.test", in: folder.path)
        bundle = made.certificate
        let configuration = TLSConfiguration.makeServerConfiguration(
            certificateChain: try NIOSSLCertificate.fromPEMFile(made.certificate).map { .certificate($0) },
            privateKey: .privateKey(try NIOSSLPrivateKey(file: made.key, format: .pem)))
        let context = try NIOSSLContext(configuration: configuration)
        port = try await reactor.submit {
            try reactor.listen(on: SocketAddress(ipAddress: "127.0.0.1", port: 0)) { channel in
                let pipeline = channel.pipeline.syncOperations
                try pipeline.addHandler(NIOSSLServerHandler(context: context))
                try pipeline.addHandler(Switcher(manner))
            }.localAddress.port!
        }.get()
    }

    private final class Switcher: ChannelInboundHandler {
        typealias InboundIn = ByteBuffer
        typealias OutboundOut = ByteBuffer
        private let manner: Manner
        private var head: [UInt8]? = []

        init(_ manner: Manner) { self.manner = manner }

        func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
            guard let event = event as? TLSUserEvent, case .handshakeCompleted = event else { return }
            switch manner {
            case .closesAtOnce: context.close(promise: nil)
            case .speaksFirst: write(context, ByteBuffer(string: switching + "first "))
            default: break
            }
        }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            var bytes = unwrapInboundIn(data)
            guard head != nil else { return write(context, bytes) }
            head! += bytes.readBytes(length: bytes.readableBytes)!
            guard let end = head!.firstRange(of: Array("\r\n\r\n".utf8)) else { return }
            if manner != .speaksFirst { write(context, ByteBuffer(string: switching)) }
            write(context, ByteBuffer(bytes: head![end.upperBound...]))
            head = nil
            if manner == .closesAfterHead { context.close(promise: nil) }
        }

        private func write(_ context: ChannelHandlerContext, _ bytes: ByteBuffer) {
            context.writeAndFlush(wrapOutboundOut(bytes), promise: nil)
        }

        func channelWritabilityChanged(context: ChannelHandlerContext) {
            try? context.channel.syncOptions?.setOption(.autoRead, value: context.channel.isWritable)
        }
    }
}

/// Sends a pattern through a tunnel as its window allows, checks that it comes back, and stops reading now and then.
final class TunnelPump {
    private var sent = BytePattern()
    private var came = BytePattern()
    private let total: Int
    private let reactor: Reactor
    private(set) var isRight = true
    private(set) var mostUnsent: Int64 = 0
    private(set) var largestPiece = 0
    private var pieces = 0
    var received: Int { came.position }

    init(_ reactor: Reactor, _ total: Int) { (self.reactor, self.total) = (reactor, total) }

    func feed(_ tunnel: Tunnel) {
        while sent.position < total {
            pieces += 1
            let count = min([1, 40_000, 777, 65_521, 16_384][pieces % 5], total - sent.position)
            let hasRoom = tunnel.send(ByteBuffer(bytes: sent.next(count)))
            mostUnsent = max(mostUnsent, Int64(sent.position) - tunnel.bytesSent)
            if !hasRoom { return }
        }
    }

    func take(_ tunnel: Tunnel, _ bytes: ByteBuffer) {
        isRight = bytes.withUnsafeReadableBytes { came.matches($0) } && isRight
        largestPiece = max(largestPiece, bytes.readableBytes)
        pieces += 1
        if came.position == total { return tunnel.finishSending() }
        if pieces % 10 == 0 {
            tunnel.pauseReceiving()
            _ = reactor.startTimer(in: .milliseconds(1)) { tunnel.resumeReceiving() }
        }
    }
}
