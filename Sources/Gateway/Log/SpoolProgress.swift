public import GatewayCore
internal import Synchronization

/// How far a spool is written and shipped: what its worker and the shipper tell each other without a lock.
public final class SpoolProgress: Sendable {
    public let id: UUIDBits
    let path: String
    let node: String

    private let end = Atomic<Int64>(0)
    private let frames = Atomic<Int64>(0)
    private let shippedEnd = Atomic<Int64>(0)
    private let shippedFrames = Atomic<Int64>(0)
    private let lostCount = Atomic<Int64>(0)
    private let writeFailures = Atomic<Int64>(0)
    private let awaited = Atomic<UInt8>(Await.nothing.rawValue)
    private let wake = Mutex<(@Sendable () -> Void)?>(nil)

    /// What the shipper waits for.
    enum Await: UInt8 {
        case nothing, anything, fullBatch
    }

    static let batchFrames: Int64 = 5_000
    static let batchBytes: Int64 = 1 << 20

    init(id: UUIDBits, path: String, node: String) {
        self.id = id
        self.path = path
        self.node = node
    }

    /// Offset after the last frame written.
    public var writtenTo: Int64 { end.load(ordering: .acquiring) }
    /// Offset up to which the database has the frames, as far as known.
    public var shippedTo: Int64 { shippedEnd.load(ordering: .acquiring) }
    /// Frames between the two, as far as known: exact whenever the shipper has caught up.
    public var pendingFrames: Int64 {
        max(frames.load(ordering: .relaxed) - shippedFrames.load(ordering: .relaxed), 0)
    }
    public var pendingBytes: Int64 { writtenTo - shippedTo }
    /// Records that found no place, and writes that the disk refused.
    public var lost: Int64 { lostCount.load(ordering: .relaxed) }
    public var failures: Int64 { writeFailures.load(ordering: .relaxed) }

    // MARK: The worker

    func wrote(to offset: Int64, frames count: Int64) {
        frames.add(count, ordering: .relaxed)
        end.store(offset, ordering: .sequentiallyConsistent)
        let waitsFor = awaited.load(ordering: .sequentiallyConsistent)
        guard waitsFor != Await.nothing.rawValue, waitsFor == Await.anything.rawValue || isBatchFull else { return }
        let (won, _) = awaited.compareExchange(
            expected: waitsFor, desired: Await.nothing.rawValue, ordering: .sequentiallyConsistent)
        if won { wake.withLock { $0 }?() }
    }

    func lostRecords(_ count: Int64) { lostCount.add(count, ordering: .relaxed) }
    func failedToWrite() { writeFailures.add(1, ordering: .relaxed) }

    // MARK: The shipper

    var isBatchFull: Bool { pendingBytes >= Self.batchBytes || pendingFrames >= Self.batchFrames }

    func onWake(_ body: @escaping @Sendable () -> Void) { wake.withLock { $0 = body } }

    /// Asks to be woken.
    ///
    /// - Returns: false where what is awaited is there already; then nobody wakes.
    func await(_ what: Await) -> Bool {
        awaited.store(what.rawValue, ordering: .sequentiallyConsistent)
        // In one order with both stores, or the worker and we could miss each other.
        let pending = end.load(ordering: .sequentiallyConsistent) - shippedTo
        guard what == .anything ? pending > 0 : pending >= Self.batchBytes || isBatchFull else { return true }
        awaited.store(Await.nothing.rawValue, ordering: .sequentiallyConsistent)
        return false
    }

    func shipped(to offset: Int64, frames count: Int64) {
        shippedFrames.add(count, ordering: .relaxed)
        shippedEnd.store(offset, ordering: .releasing)
        // Nobody counted the frames of a batch whose answer was lost, and those shipped twice were counted twice.
        if offset >= writtenTo { shippedFrames.store(frames.load(ordering: .relaxed), ordering: .relaxed) }
    }
}
