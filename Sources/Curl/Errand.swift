internal import CLibcurl
internal import NIOCore

/// What the client does for somebody with an easy handle: a transfer or a tunnel.
protocol Errand: AnyObject {
    var destination: Destination { get }
    /// Both from the launch to the end; nil while it waits for its destination.
    var handle: EasyHandle? { get set }
    var multi: Multi? { get set }
    /// libcurl is done with it, or never got it.
    var ended: CURLcode? { get }

    func prepare(_ handle: EasyHandle)
    func launched(_ handle: EasyHandle, _ multi: Multi)
    /// libcurl has done what it was asked, or could not.
    func libcurlIsDone(_ code: CURLcode)
    /// It is out of libcurl; the end is delivered at the end of the turn.
    func finished(_ code: CURLcode)
    /// The timeout that has passed, if one has.
    func overdue(_ now: NIODeadline) -> TransferError.Kind?
    /// Ends it for a reason of ours; the delegate hears of it at the end of the turn.
    func abort(_ kind: TransferError.Kind, _ detail: String?)
    /// Ends it; the delegate hears nothing more.
    func cancel()
    /// At the end of a turn, when it asked for that.
    func deliver()
}
