internal import Curl
internal import NIOCore

/// Moves bytes between a client's connection and a tunnel, after 101 and until both have ended. Whichever side takes none holds
/// the other back.
final class TunnelRelay: TunnelDelegate {
    private let tunnel: Tunnel
    private weak var connection: ClientConnection?

    init(_ tunnel: Tunnel, _ connection: ClientConnection) {
        (self.tunnel, self.connection) = (tunnel, connection)
        tunnel.delegate = self
    }

    // MARK: The client

    func clientSent(_ bytes: ByteBuffer) { if !tunnel.send(bytes) { connection?.pauseBody() } }

    func clientWritable() { tunnel.resumeReceiving() }

    func clientFull() { tunnel.pauseReceiving() }

    /// It sends no more, but may still read.
    func clientEnded() { tunnel.finishSending() }

    func clientGone() { tunnel.cancel() }

    // MARK: The upstream

    func tunnelHead(_ tunnel: Tunnel, _ head: TransferHead) {}

    func tunnelReceived(_ tunnel: Tunnel, _ bytes: ByteBuffer) {
        guard let connection else { return }
        connection.write(bytes)
        connection.flushSoon()
        if !connection.isWritable { tunnel.pauseReceiving() }
    }

    func tunnelReceivedEnd(_ tunnel: Tunnel) { connection?.endOutput() }

    func tunnelHasRoom(_ tunnel: Tunnel) { connection?.resumeBody() }

    /// Silence is an end like another. What broke is to look broken to the client, too.
    func tunnelEnded(_ tunnel: Tunnel, _ error: TransferError?) {
        connection?.tunnelEnded(isBroken: error != nil && error?.kind != .idleTimeout)
    }
}
