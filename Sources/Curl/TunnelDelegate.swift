public import NIOCore

/// Takes what a tunnel receives. All calls come on the reactor at the end of a turn, never from inside libcurl, so they may do
/// anything with any tunnel or transfer.
public protocol TunnelDelegate: AnyObject {
    /// A head of the answer: any number of 1xx other than 100 and 101, then the final one. 101: the protocol has changed, and
    /// every byte from now on is the new protocol's, both ways. Any other: the upstream declined, and its answer follows.
    func tunnelHead(_ tunnel: Tunnel, _ head: TransferHead)
    /// After 101 bytes as they come, otherwise a piece of the answer's body, its framing taken off.
    func tunnelReceived(_ tunnel: Tunnel, _ bytes: ByteBuffer)
    /// After 101: the upstream sends no more, but may still read.
    func tunnelReceivedEnd(_ tunnel: Tunnel)
    /// There is room again after `send` returned false.
    func tunnelHasRoom(_ tunnel: Tunnel)
    /// Exactly once, and the last call; never after `cancel()`. Without an error both sides have said their end, or the answer
    /// of an upstream that declined is complete.
    func tunnelEnded(_ tunnel: Tunnel, _ error: TransferError?)
}
