internal import CLinux
public import NIOCore

/// What a watched descriptor is asked for.
public struct Interest: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    public static let read = Interest(rawValue: UInt32(CLINUX_READ))
    public static let write = Interest(rawValue: UInt32(CLINUX_WRITE))
    static let readHangup = Interest(rawValue: UInt32(CLINUX_READ_HANGUP))

    var kernelEvents: UInt32 { rawValue }
}

/// What the kernel said of a descriptor. `error` and `hangup` come unasked (epoll_ctl(2)).
public struct Readiness: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    init(_ events: UInt32) { rawValue = events }

    public static let read = Readiness(rawValue: UInt32(CLINUX_READ))
    public static let write = Readiness(rawValue: UInt32(CLINUX_WRITE))
    public static let error = Readiness(rawValue: UInt32(CLINUX_ERROR))
    public static let hangup = Readiness(rawValue: UInt32(CLINUX_HANGUP))
    /// The peer sent FIN.
    static let readHangup = Readiness(rawValue: UInt32(CLINUX_READ_HANGUP))
}

/// The end of a turn, in this order: `collect` takes what libcurl and libpq have ready, `persist` writes what must be on
/// disk before anybody is told, `flush` tells them.
public enum TurnPhase: Sendable {
    case collect, persist, flush
}

/// Something that works at the end of every turn.
public protocol TurnHook: AnyObject {
    func endOfTurn()
    /// The loop wakes by then even when nothing else happens; nil when there is nothing to wake for.
    var nextDeadline: NIODeadline? { get }
}

/// A foreign descriptor (libcurl's, libpq's) that the loop watches. Confined to the reactor.
public final class Watch: EventSink {
    private let reactor: Reactor
    public let descriptor: CInt
    private var key: UInt64?
    public private(set) var interest: Interest
    private var handler: ((Readiness) -> Void)?

    init(reactor: Reactor, descriptor: CInt, interest: Interest, handler: @escaping (Readiness) -> Void) throws {
        self.reactor = reactor
        self.descriptor = descriptor
        self.interest = interest
        self.handler = handler
        key = try reactor.register(descriptor, interest, self)
    }

    /// Throws `IOError` when the descriptor was closed under the watch.
    public func update(_ interest: Interest) throws {
        guard let key, interest != self.interest else { return }
        try reactor.reregister(descriptor, interest, key)
        self.interest = interest
    }

    /// No call of the handler comes after this, whatever the turn has fetched already. Harmless when repeated.
    public func cancel() {
        guard let key else { return }
        reactor.deregister(descriptor, key)
        self.key = nil
        handler = nil
    }

    func descriptorReady(_ readiness: Readiness) { handler?(readiness) }
    func reactorStopped() {
        key = nil
        handler = nil
    }
}

/// Takes the events of one registration.
protocol EventSink: AnyObject {
    func descriptorReady(_ readiness: Readiness)
    /// The loop has ended; the registration is gone.
    func reactorStopped()
}

/// Who gets which event: a slot and a generation make the key that epoll carries, so that an event fetched before its
/// descriptor was closed never reaches the next owner of the slot.
struct Registrations {
    private struct Slot {
        var generation: UInt32 = 0
        var sink: (any EventSink)?
    }

    private var slots: [Slot] = []
    private var free: [Int] = []
    /// Slots emptied in this turn rest until its events are dispatched.
    private var resting: [Int] = []

    func sink(for key: UInt64) -> (any EventSink)? {
        let slot = Int(key & 0xffff_ffff)
        guard slots[slot].generation == UInt32(key >> 32) else { return nil }
        return slots[slot].sink
    }

    mutating func add(_ sink: any EventSink) -> UInt64 {
        let slot: Int
        if let reused = free.popLast() {
            slot = reused
        } else {
            slot = slots.count
            slots.append(Slot())
        }
        slots[slot].sink = sink
        return UInt64(slots[slot].generation) << 32 | UInt64(slot)
    }

    mutating func remove(_ key: UInt64) {
        let slot = Int(key & 0xffff_ffff)
        guard slots[slot].generation == UInt32(key >> 32) else { return }
        slots[slot].sink = nil
        // 2^31 keeps the all-ones key, the wake-up's, out of reach.
        slots[slot].generation = (slots[slot].generation &+ 1) & 0x7fff_ffff
        resting.append(slot)
    }

    mutating func endOfDispatch() {
        guard !resting.isEmpty else { return }
        free.append(contentsOf: resting)
        resting.removeAll(keepingCapacity: true)
    }

    mutating func removeAll() -> [any EventSink] {
        let sinks = slots.compactMap(\.sink)
        for slot in slots.indices where slots[slot].sink != nil {
            remove(UInt64(slots[slot].generation) << 32 | UInt64(slot))
        }
        return sinks
    }
}

/// Turns a negative result of CLinux into an error.
@discardableResult
func check(_ result: CInt, _ call: StaticString) throws -> CInt {
    guard result < 0 else { return result }
    throw IOError(errnoCode: -result, reason: "\(call)")
}
