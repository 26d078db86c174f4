internal import Glibc
internal import NIOCore

/// What a channel was given to write and the kernel has not taken yet, oldest first.
struct PendingWrites {
    private struct Write {
        var buffer: ByteBuffer
        var promise: EventLoopPromise<Void>?
    }

    private var queue = CircularBuffer<Write>()
    private var flushed = 0
    private(set) var bytes = 0

    /// writev(2) takes this many pieces at once.
    private static let piecesPerWrite = 64

    var isEmpty: Bool { queue.isEmpty }
    /// Whether something flushed waits, if only the promise of an empty buffer.
    var hasFlushed: Bool { flushed > 0 }

    mutating func append(_ buffer: ByteBuffer, _ promise: EventLoopPromise<Void>?) {
        queue.append(Write(buffer: buffer, promise: promise))
        bytes += buffer.readableBytes
    }

    mutating func markFlushed() { flushed = queue.count }

    /// One write(2) or writev(2); the result is the kernel's.
    func writeOnce(to descriptor: CInt) -> Int {
        if flushed == 1 {
            let buffer = queue[queue.startIndex].buffer
            guard buffer.readableBytes > 0 else { return 0 }
            return buffer.withUnsafeReadableBytes { send(descriptor, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL)) }
        }
        return withUnsafeTemporaryAllocation(of: iovec.self, capacity: PendingWrites.piecesPerWrite) { pieces in
            gather(into: pieces, count: 0, from: queue.startIndex, descriptor)
        }
    }

    /// Nests one scope per buffer, because a buffer's memory may be used only inside its own.
    private func gather(
        into pieces: UnsafeMutableBufferPointer<iovec>, count: Int, from index: CircularBuffer<Write>.Index, _ descriptor: CInt
    ) -> Int {
        let taken = queue.distance(from: queue.startIndex, to: index)
        guard taken < flushed, taken < pieces.count else {
            guard count > 0 else { return 0 }
            var message = msghdr()
            message.msg_iov = pieces.baseAddress
            message.msg_iovlen = count
            return sendmsg(descriptor, &message, CInt(MSG_NOSIGNAL))
        }
        return queue[index].buffer.withUnsafeReadableBytes { bytes in
            var next = count
            if bytes.count > 0 {
                pieces[count] = iovec(iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
                next += 1
            }
            return gather(into: pieces, count: next, from: queue.index(after: index), descriptor)
        }
    }

    /// Takes what was written off the queue and returns the promises that it fulfils.
    mutating func consume(_ written: Int) -> [EventLoopPromise<Void>] {
        var rest = written
        bytes -= written
        var fulfilled: [EventLoopPromise<Void>] = []
        while flushed > 0 {
            let readable = queue[queue.startIndex].buffer.readableBytes
            guard readable <= rest else {
                queue[queue.startIndex].buffer.moveReaderIndex(forwardBy: rest)
                break
            }
            rest -= readable
            if let promise = queue.removeFirst().promise { fulfilled.append(promise) }
            flushed -= 1
        }
        return fulfilled
    }

    mutating func removeAll() -> [EventLoopPromise<Void>] {
        let promises = queue.compactMap(\.promise)
        queue.removeAll()
        flushed = 0
        bytes = 0
        return promises
    }
}
