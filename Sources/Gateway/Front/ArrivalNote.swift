internal import NIOCore

/// Tells a connection that bytes have arrived, before the decoder makes anything of them and after it.
final class ArrivalNote: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    private let connection: ClientConnection

    init(_ connection: ClientConnection) { self.connection = connection }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard connection.bytesArrived(unwrapInboundIn(data)) else { return }
        context.fireChannelRead(data)
        connection.bytesDecoded()
    }
}
