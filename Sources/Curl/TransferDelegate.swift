public import NIOCore

/// Takes what a transfer receives. All calls come on the reactor at the end of a turn, never from inside libcurl, so they may
/// do anything with any transfer.
public protocol TransferDelegate: AnyObject {
    /// A 1xx answer other than 100 and 101.
    func transferInformational(_ transfer: Transfer, _ head: TransferHead)
    /// The final head, once.
    func transferHead(_ transfer: Transfer, _ head: TransferHead)
    func transferBody(_ transfer: Transfer, _ bytes: ByteBuffer)
    /// Fields after a chunked body.
    func transferTrailers(_ transfer: Transfer, _ trailers: TransferHead)
    /// There is room again after `send` returned false.
    func transferNeedsBody(_ transfer: Transfer)
    /// Exactly once, and the last call; never after `cancel()`.
    func transferEnded(_ transfer: Transfer, _ result: TransferResult)
}
