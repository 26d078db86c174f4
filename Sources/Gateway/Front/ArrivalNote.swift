internal import NIOCore

/// Tells a connection that bytes have arrived, before the decoder makes anything of them.
final class ArrivalNote: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    private let connection: ClientConnection

    init(_ connection: ClientConnection) { self.connection = connection }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        if connection.bytesArrived(unwrapInboundIn(data)) { context.fireChannelRead(data) }
    }
}
