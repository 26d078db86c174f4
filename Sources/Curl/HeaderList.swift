internal import CLibcurl
internal import Glibc

/// The fields of a request as the linked list that libcurl reads, made without a call per field. It lives in memory of its own
/// until the transfer has ended, because libcurl keeps the pointer (CURLOPT_HTTPHEADER(3)).
final class HeaderList {
    private var nodes: UnsafeMutableBufferPointer<curl_slist> = .allocate(capacity: 32)
    private var text: UnsafeMutableBufferPointer<CChar> = .allocate(capacity: 2048)

    /// A name and a colon alone keep libcurl from adding that field by itself.
    private static let noAccept: StaticString = "Accept:"
    private static let noExpect: StaticString = "Expect:"

    deinit {
        nodes.deallocate()
        text.deallocate()
    }

    /// The request's own fields, and none of libcurl's: no Accept or Expect that nobody sent.
    func fill(_ headers: borrowing TransferHeaders, hasBody: Bool) -> UnsafeMutablePointer<curl_slist>? {
        reserve(nodes: headers.starts.count + 2, text: headers.bytes.count)
        headers.bytes.withUnsafeBytes { UnsafeMutableRawBufferPointer(text).copyMemory(from: $0) }
        var count = 0
        for start in headers.starts { append(text.baseAddress! + start, &count) }
        if !headers.contains("accept") { append(HeaderList.noAccept, &count) }
        if hasBody { append(HeaderList.noExpect, &count) }
        guard count > 0 else { return nil }
        nodes[count - 1].next = nil
        return nodes.baseAddress
    }

    private func append(_ data: UnsafeMutablePointer<CChar>, _ count: inout Int) {
        (nodes.baseAddress! + count).initialize(to: curl_slist(data: data, next: nodes.baseAddress! + count + 1))
        count += 1
    }

    private func append(_ text: StaticString, _ count: inout Int) {
        // libcurl reads the strings of this list only (its C type knows no const).
        append(UnsafeMutableRawPointer(mutating: text.utf8Start).assumingMemoryBound(to: CChar.self), &count)
    }

    private func reserve(nodes nodeCount: Int, text byteCount: Int) {
        if nodes.count < nodeCount {
            nodes.deallocate()
            nodes = .allocate(capacity: nodeCount * 2)
        }
        if text.count < byteCount {
            text.deallocate()
            text = .allocate(capacity: byteCount * 2)
        }
    }
}
