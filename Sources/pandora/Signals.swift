@preconcurrency import Dispatch
import Glibc
import Synchronization

/// Signals as values. Until `isOrderly` is set, there is nothing to end in order: SIGTERM and SIGINT end the process at once.
final class Signals: Sendable {
    /// In the order of their coming.
    let received: AsyncStream<CInt>
    private let continuation: AsyncStream<CInt>.Continuation
    private let sources: [any DispatchSourceSignal]
    private let orderly: Atomic<Bool>

    var isOrderly: Bool {
        get { orderly.load(ordering: .relaxed) }
        set { orderly.store(newValue, ordering: .relaxed) }
    }

    init(_ numbers: [CInt]) {
        let (stream, continuation) = AsyncStream.makeStream(of: CInt.self)
        (received, self.continuation) = (stream, continuation)
        orderly = Atomic(false)
        sources = numbers.map { number in
            // Ignored by default, or it would end the process before the source hears of it.
            signal(number, SIG_IGN)
            return DispatchSource.makeSignalSource(signal: number, queue: .global())
        }
        for (number, source) in zip(numbers, sources) {
            source.setEventHandler { [weak self] in
                if number != SIGHUP, self?.isOrderly != true { exit(0) }
                continuation.yield(number)
            }
            source.resume()
        }
    }

    /// Not a signal, but received as one: the process has to end by itself.
    static let fault: CInt = 0

    func tellFault() { continuation.yield(Self.fault) }
}
