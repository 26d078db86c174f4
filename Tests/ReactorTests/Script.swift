import NIOCore
import Reactor
import TestKit
import Testing

/// What a channel fired, in the order of firing.
enum Event: Sendable, Equatable, CustomStringConvertible {
    case active, readComplete, inputClosed, outputClosed, inactive, unregistered, removed
    case read(String)
    case writable(Bool)
    case error(String)

    var description: String {
        switch self {
        case .active: "active"
        case .readComplete: "readComplete"
        case .inputClosed: "inputClosed"
        case .outputClosed: "outputClosed"
        case .inactive: "inactive"
        case .unregistered: "unregistered"
        case .removed: "removed"
        case .read(let text): "read \(text)"
        case .writable(let isWritable): isWritable ? "writable" : "not writable"
        case .error(let text): "error \(text)"
        }
    }
}

/// What one channel has shown, for the test's thread to look at.
final class Diary: Sendable {
    private struct State {
        var events: [Event] = []
        var received = 0
        var isRight = true
        var pattern = BytePattern()
    }

    private let state = Locked(State())

    var events: [Event] { state.withLock { $0.events } }
    /// Bytes read so far.
    var received: Int { state.withLock { $0.received } }
    /// Whether they are those of a `BytePattern`.
    var isPattern: Bool { state.withLock { $0.isRight } }

    fileprivate func note(_ event: Event) { state.withLock { $0.events.append(event) } }
    fileprivate func take(_ bytes: ByteBuffer) {
        state.withLock { state in
            state.received += bytes.readableBytes
            let isRight = bytes.withUnsafeReadableBytes { state.pattern.matches($0) }
            state.isRight = state.isRight && isRight
        }
    }

    func count(_ event: Event) -> Int { events.count { $0 == event } }
    func waits(for event: Event) async throws {
        do { try await eventually("\(event)") { events.contains(event) } } catch {
            throw NeverHappened(description: "\(error), only \(events)")
        }
    }
}

/// The last handler of a channel: notes what it is fired, then does what the test wants at that moment.
final class Script: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias Reaction = @Sendable (Event, ChannelHandlerContext) -> Void

    private let diary: Diary
    private let react: Reaction

    init(_ diary: Diary, _ react: @escaping Reaction) { (self.diary, self.react) = (diary, react) }

    private func happen(_ event: Event, _ context: ChannelHandlerContext) {
        diary.note(event)
        react(event, context)
    }

    func channelActive(context: ChannelHandlerContext) { happen(.active, context) }
    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let bytes = unwrapInboundIn(data)
        diary.take(bytes)
        happen(.read(bytes.readableBytes > 100 ? "\(bytes.readableBytes) bytes" : String(buffer: bytes)), context)
    }
    func channelReadComplete(context: ChannelHandlerContext) { happen(.readComplete, context) }
    func channelWritabilityChanged(context: ChannelHandlerContext) { happen(.writable(context.channel.isWritable), context) }
    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        switch event as? ChannelEvent {
        case .inputClosed?: happen(.inputClosed, context)
        case .outputClosed?: happen(.outputClosed, context)
        case nil: break
        }
    }
    func errorCaught(context: ChannelHandlerContext, error: any Error) { happen(.error("\(error)"), context) }
    func channelInactive(context: ChannelHandlerContext) { happen(.inactive, context) }
    func channelUnregistered(context: ChannelHandlerContext) { happen(.unregistered, context) }
    func handlerRemoved(context: ChannelHandlerContext) { happen(.removed, context) }
}

/// A listener whose channels follow a script.
final class Host: Sendable {
    private struct Guest {
        weak var channel: (any Channel)?
        let diary: Diary
    }

    let reactor: Reactor
    let port: Int
    private let guests = Locked<[Guest]>([])

    static func start(on reactor: Reactor, _ react: @escaping Script.Reaction = { _, _ in }) async throws -> Host {
        try await reactor.run { try Host(reactor, { _ in }, react) }
    }

    /// `prepare` sets options before the channel is active.
    static func start(
        on reactor: Reactor, prepare: @escaping @Sendable (any Channel) throws -> Void, _ react: @escaping Script.Reaction = { _, _ in }
    ) async throws -> Host {
        try await reactor.run { try Host(reactor, prepare, react) }
    }

    private init(
        _ reactor: Reactor, _ prepare: @escaping @Sendable (any Channel) throws -> Void, _ react: @escaping Script.Reaction
    ) throws {
        self.reactor = reactor
        let guests = self.guests
        port = try reactor.listen(on: SocketAddress(ipAddress: "127.0.0.1", port: 0)) { channel in
            let diary = Diary()
            guests.withLock { $0.append(Guest(channel: channel, diary: diary)) }
            try channel.pipeline.syncOperations.addHandler(Script(diary, react))
            try prepare(channel)
        }.localAddress.port!
    }

    /// Connections so far.
    var accepted: Int { guests.withLock { $0.count } }
    /// Channels that somebody still holds.
    var channels: Int { guests.withLock { $0.count { $0.channel != nil } } }

    /// One connection of a plain socket to it.
    func connect(receiveBuffer: Int32? = nil) async throws -> (peer: Peer, channel: any Channel, diary: Diary) {
        let index = accepted
        let peer = try Peer(port: port, receiveBuffer: receiveBuffer)
        try await eventually("a connection") { accepted > index }
        let guest = guests.withLock { $0[index] }
        return (peer, try #require(guest.channel), guest.diary)
    }

    /// The same where the channel may be gone before anybody could take it.
    func visit() async throws -> (peer: Peer, diary: Diary) {
        let index = accepted
        let peer = try Peer(port: port)
        try await eventually("a connection") { accepted > index }
        return (peer, guests.withLock { $0[index].diary })
    }
}
