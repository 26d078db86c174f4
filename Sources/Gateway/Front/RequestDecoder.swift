internal import NIOCore
internal import NIOHTTP1

/// NIO's decoder of requests, and what comes behind a request that asks to change the protocol: NIO's understands nothing any
/// more then, although HTTP goes on where the change is declined. Those bytes are held until it is known what they are.
final class RequestDecoder: ByteToMessageDecoder {
    typealias InboundOut = HTTPServerRequestPart

    private enum Next {
        case http
        case held
        /// Everything is passed on as it comes, as pieces of a body.
        case raw
    }

    private var next = Next.http
    private var isSpent = false
    private var inner: HTTPRequestDecoder
    private let limits: NIOHTTPDecoderLimitConfiguration
    private let undecodedMax: Int
    /// Bytes of a head that can come to more only by blanks, which NIO's decoder does not count.
    let headMax: Int
    /// Bytes that were looked at and are still here: of a name or a value that is not whole, or held.
    private(set) var undecodedBytes = 0

    /// - blanksMax: bytes of a head that are counted neither as a target nor as a field
    init(_ limits: NIOHTTPDecoderLimitConfiguration, blanksMax: Int) {
        self.limits = limits
        undecodedMax = limits.maxHeaderFieldSize + blanksMax
        headMax = limits.maxHeaderListSize + limits.maxHeaderFieldCount * ": \r\n".utf8.count + blanksMax
        inner = Self.fresh(limits)
    }

    private static func fresh(_ limits: NIOHTTPDecoderLimitConfiguration) -> HTTPRequestDecoder {
        HTTPRequestDecoder(leftOverBytesStrategy: .dropBytes, limitConfiguration: limits)
    }

    var isHolding: Bool { next == .held }
    /// NIO's decoder is done: nothing more comes of it until another takes its place.
    var hasStopped: Bool { isSpent }

    /// With the end of a request that asks to change the protocol.
    func hold() { (next, isSpent) = (.held, true) }

    /// What was held, and what comes, is HTTP, or no HTTP any more. It is looked at with the next piece that is read, which may
    /// be an empty one.
    func goOn(raw: Bool) { (next, undecodedBytes) = (raw ? .raw : .http, 0) }

    // MARK: ByteToMessageDecoder

    func decoderAdded(context: ChannelHandlerContext) { inner.decoderAdded(context: context) }
    func decoderRemoved(context: ChannelHandlerContext) { inner.decoderRemoved(context: context) }

    func decode(context: ChannelHandlerContext, buffer: inout ByteBuffer) throws -> DecodingState {
        let undecodedBefore = undecodedBytes
        // Whoever is told of a part meanwhile does not take the bytes of that part for ones that are left.
        undecodedBytes = 0
        defer { undecodedBytes = buffer.readableBytes }
        while buffer.readableBytes > 0, next != .held {
            if next == .raw {
                context.fireChannelRead(wrapInboundOut(.body(buffer.readSlice(length: buffer.readableBytes)!)))
                break
            }
            if isSpent { renew(context) }
            _ = try inner.decode(context: context, buffer: &buffer)
            // It keeps a part of a head in the buffer: only behind such a request what is left is to be looked at again.
            if !isSpent { break }
        }
        // It keeps one name or one value at most. More are blanks, or it has stopped where nobody expected it, and would keep all.
        if next == .http, min(undecodedBefore, buffer.readableBytes) > undecodedMax { throw HTTPParserError.headerOverflow }
        return .needMoreData
    }

    func decodeLast(context: ChannelHandlerContext, buffer: inout ByteBuffer, seenEOF: Bool) throws -> DecodingState {
        guard next == .http, !isSpent else { return try decode(context: context, buffer: &buffer) }
        return try inner.decodeLast(context: context, buffer: &buffer, seenEOF: seenEOF)
    }

    private func renew(_ context: ChannelHandlerContext) {
        inner.decoderRemoved(context: context)
        inner = Self.fresh(limits)
        inner.decoderAdded(context: context)
        isSpent = false
    }
}
