internal import CLibcurl
internal import Glibc
internal import NIOCore

/// How bytes move, both ways, and what those from the upstream mean.
extension Tunnel {
    // MARK: To the upstream

    func sendWaiting() {
        while mayWrite, ended == nil, !outgoing.isEmpty {
            let first = outgoing.startIndex
            var count = 0
            let code = outgoing[first].withUnsafeReadableBytes { curl_easy_send(handle!.raw, $0.baseAddress!, $0.count, &count) }
            switch code {
            case CURLE_OK: sent(count)
            case CURLE_AGAIN: mayWrite = false
            default:
                // What the upstream sent before it left is still to be read.
                sendFailure = code
                outgoing.removeAll()
                outgoingBytes = 0
                (mayRead, owesRoom) = (true, false)
                if isReceivingEnded { return end(code) }
            }
        }
        if owesRoom, outgoingBytes < window / 2 {
            owesRoom = false
            delegate?.tunnelHasRoom(self)
        }
        if isSendingFinished, !hasSentEnd, outgoing.isEmpty, sendFailure == nil, ended == nil, !isOver { sendEnd() }
    }

    private func sent(_ count: Int) {
        let first = outgoing.startIndex
        outgoing[first].moveReaderIndex(forwardBy: count)
        if outgoing[first].readableBytes == 0 { outgoing.removeFirst() }
        outgoingBytes -= count
        bytesSent += Int64(count)
        lastProgress = now
    }

    private func sendEnd() {
        hasSentEnd = true
        if destination.scheme == .https || isReceivingEnded { return end(CURLE_OK) }
        shutdown(descriptor, CInt(SHUT_WR))
    }

    // MARK: From the upstream

    func receiveWaiting() {
        var budget = window
        while ended == nil, !isOver, !isReceivingPaused, !isReceivingEnded {
            if received.readableBytes > 0 {
                pass()
            } else if !mayRead {
                // The connection is broken, and everything was read.
                if let sendFailure { end(sendFailure) }
                return
            } else if budget > 0 {
                budget -= receive()
            } else {
                // Others are due; TLS would not be announced by epoll again.
                return enqueue()
            }
        }
    }

    /// One piece of what has arrived; its length.
    private func receive() -> Int {
        var count = 0
        let code = curl_easy_recv(handle!.raw, client.scratch.baseAddress!, client.scratch.count, &count)
        switch code {
        case CURLE_OK where count > 0:
            received.clear()
            received.writeBytes(UnsafeRawBufferPointer(rebasing: client.scratch[..<count]))
            bytesReceived += Int64(count)
            lastProgress = now
        case CURLE_OK: upstreamEnded()
        case CURLE_AGAIN: mayRead = false
        default: end(code)
        }
        return count
    }

    private func upstreamEnded() {
        switch stage {
        case .raw:
            isReceivingEnded = true
            delegate?.tunnelReceivedEnd(self)
            if hasSentEnd { end(CURLE_OK) } else if let sendFailure { end(sendFailure) }
        case .untilEnd: end(CURLE_OK)
        case .head, .length, .chunks: end(CURLE_PARTIAL_FILE)
        }
    }

    /// Hands on what was received, as far as it belongs together.
    private func pass() {
        switch stage {
        case .head: takeLine()
        case .raw, .untilEnd:
            let piece = received
            received = ByteBuffer()
            delegate?.tunnelReceived(self, piece)
        case .length(let left):
            let piece = received.readSlice(length: Int(min(left, Int64(received.readableBytes))))!
            stage = .length(left - Int64(piece.readableBytes))
            let isLast = left == piece.readableBytes
            delegate?.tunnelReceived(self, piece)
            if isLast { end(CURLE_OK) }
        case .chunks(var parser):
            let step = parser.take(&received)
            stage = .chunks(parser)
            switch step {
            case .data(let piece): delegate?.tunnelReceived(self, piece)
            case .more: break
            case .end: end(CURLE_OK)
            case .refused: abort(.diedMidBody, "a chunk of the answer is malformed")
            }
        }
    }

    private func takeLine() {
        let view = received.readableBytesView
        let end = view.firstIndex(of: UInt8(ascii: "\n"))
        line += view[..<(end.map { $0 + 1 } ?? view.endIndex)]
        received.moveReaderIndex(to: end.map { $0 + 1 } ?? view.endIndex)
        guard line.count <= client.configuration.headBytesMax else {
            return abort(.headTooLarge, HeadParser.Refusal.tooLarge.rawValue)
        }
        guard end != nil else { return }
        let step = line.withUnsafeBytes { heads.take($0) }
        line.removeAll(keepingCapacity: true)
        switch step {
        case .more: break
        case .informational(let head): delegate?.tunnelHead(self, head)
        case .final(let head): takeFinal(head)
        case .refused(let refusal): abort(refusal == .tooLarge ? .headTooLarge : .protocolError, refusal.rawValue)
        }
    }

    private func takeFinal(_ head: TransferHead) {
        line = []
        do throws(Unframed) { stage = try stage(after: head) } catch { return abort(.protocolError, error.detail) }
        delegate?.tunnelHead(self, head)
        if case .length(0) = stage { end(CURLE_OK) }
    }

    /// An answer whose end cannot be found (RFC 9112, 6.3).
    private struct Unframed: Error { let detail: String }

    private func stage(after head: TransferHead) throws(Unframed) -> Stage {
        if head.status == 101 { return .raw }
        if head.status == 204 || head.status == 304 { return .length(0) }
        let codings = head.fields.filter { head.isNamed($0, "transfer-encoding") }
        if let coding = codings.first {
            guard codings.count == 1, head.hasValue(coding, "chunked") else {
                throw Unframed(detail: "the transfer coding of the answer is not chunked")
            }
            return .chunks(ChunkParser(lineMax: client.configuration.chunkLineBytesMax))
        }
        guard let text = head.value(of: "content-length") else { return .untilEnd }
        guard let length = Int64(String(decoding: text, as: UTF8.self)) else {
            throw Unframed(detail: "the Content-Length of the answer is beyond 64 bits")
        }
        return .length(length)
    }
}
