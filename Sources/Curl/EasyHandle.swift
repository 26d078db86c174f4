internal import CLibcurl
internal import Glibc
internal import NIOCore

/// A libcurl easy handle with the memory that libcurl points into while a transfer runs. Reused: what does not change is set
/// once, the rest before every transfer, and nothing is reset.
final class EasyHandle {
    let raw: UnsafeMutableRawPointer
    private let headers = HeaderList()
    private let errorText = UnsafeMutablePointer<CChar>.allocate(capacity: Int(CURL_ERROR_SIZE))
    private var hadBody = false
    private var wasHead = false
    private var method = ""
    private var tls = Destination.TLS()
    private let certificateBundle: String
    /// For tunnels: libcurl makes the connection and no more (CURLOPT_CONNECT_ONLY). Such a handle is used once.
    let isConnectOnly: Bool
    /// Who uses it; kept by the client for as long as libcurl has the handle.
    unowned var errand: (any Errand)?

    init(_ client: CurlClient, isConnectOnly: Bool = false) throws {
        guard let raw = curl_easy_init() else { throw CurlClient.outOfMemory }
        (self.raw, self.isConnectOnly) = (raw, isConnectOnly)
        certificateBundle = client.configuration.certificateBundle
        errorText.pointee = 0
        setFixedOptions(client)
    }

    deinit {
        curl_easy_cleanup(raw)
        errorText.deallocate()
    }

    /// What libcurl says of the last failure, if anything.
    var message: String? { errorText.pointee == 0 ? nil : String(cString: errorText) }

    /// Options never fail here for a reason but a libcurl built without them, which the first transfer of a test shows.
    private func setFixedOptions(_ client: CurlClient) {
        let configuration = client.configuration
        _ = pcurl_set_no_signal(raw, 1)
        _ = pcurl_set_no_progress(raw, 1)
        _ = pcurl_set_quick_exit(raw, 1)
        _ = pcurl_set_tcp_no_delay(raw, 1)
        _ = pcurl_set_path_as_is(raw, 1)
        _ = pcurl_set_follow_location(raw, 0)
        _ = pcurl_set_http_content_decoding(raw, 0)
        _ = pcurl_set_allow_http09(raw, 0)
        _ = pcurl_set_http_version(raw, Int(CURL_HTTP_VERSION_1_1))
        _ = pcurl_set_protocols(raw, "http,https")
        _ = pcurl_set_proxy(raw, "")
        _ = pcurl_set_buffer_size(raw, configuration.receiveBufferBytes)
        _ = pcurl_set_upload_buffer_size(raw, configuration.uploadBufferBytes)
        _ = pcurl_set_ca_path(raw, nil)
        setTLS(tls)
        _ = pcurl_set_error_buffer(raw, errorText)
        _ = pcurl_set_private(raw, Unmanaged.passUnretained(self).toOpaque())
        setSocketFunctions(client)
        if isConnectOnly { _ = pcurl_set_connect_only(raw, 1) } else { setTransferFunctions() }
    }

    private func setTransferFunctions() {
        _ = pcurl_set_write_function(raw) { bytes, _, count, context in
            Transfer.from(context).libcurlWrites(UnsafeRawBufferPointer(start: bytes, count: count))
        }
        _ = pcurl_set_read_function(raw) { bytes, size, count, context in
            Transfer.from(context).libcurlReads(into: UnsafeMutableRawBufferPointer(start: bytes, count: size * count))
        }
        _ = pcurl_set_header_function(raw) { bytes, _, count, context in
            Transfer.from(context).libcurlHeads(UnsafeRawBufferPointer(start: bytes, count: count)) ? count : 0
        }
        _ = pcurl_set_prereq_function(raw) { context, _, _, _, _ in
            Transfer.from(context).libcurlAttempts() ? CURL_PREREQFUNC_OK : CURL_PREREQFUNC_ABORT
        }
    }

    private func setSocketFunctions(_ client: CurlClient) {
        // Sockets outlive transfers in libcurl's pool: their callbacks point at the client.
        let owner = Unmanaged.passUnretained(client).toOpaque()
        _ = pcurl_set_open_context(raw, owner)
        _ = pcurl_set_open_function(raw) { context, _, address in
            Unmanaged<CurlClient>.fromOpaque(context).takeUnretainedValue().openSocket(address)
        }
        _ = pcurl_set_close_context(raw, owner)
        _ = pcurl_set_close_function(raw) { context, descriptor in
            Unmanaged<CurlClient>.fromOpaque(context).takeUnretainedValue().closeSocket(descriptor)
            return 0
        }
    }

    /// Points the handle at where a request goes, for one that uses it now.
    private func prepare(_ request: TransferRequest, for errand: any Errand) {
        self.errand = errand
        errorText.pointee = 0
        _ = pcurl_set_url_handle(raw, request.destination.url)
        _ = pcurl_set_connect_to(raw, request.destination.connectTo)
        if request.destination.tls != tls { setTLS(request.destination.tls) }
        _ = pcurl_set_connect_timeout_ms(raw, Int(request.timeouts.connect.nanoseconds / 1_000_000))
    }

    /// The tunnel writes its request itself, when libcurl has made the connection.
    func prepare(_ tunnel: Tunnel) { prepare(tunnel.request, for: tunnel) }

    /// Points the handle at a transfer, which must outlive libcurl's use of the handle.
    func prepare(_ transfer: Transfer) {
        let request = transfer.request
        prepare(request, for: transfer)
        let context = Unmanaged.passUnretained(transfer).toOpaque()
        _ = pcurl_set_write_context(raw, context)
        _ = pcurl_set_read_context(raw, context)
        _ = pcurl_set_header_context(raw, context)
        _ = pcurl_set_prereq_context(raw, context)
        withUnsafeTemporaryAllocation(of: CChar.self, capacity: request.target.count + 1) { target in
            UnsafeMutableRawBufferPointer(target).copyBytes(from: request.target)
            target[request.target.count] = 0
            _ = pcurl_set_request_target(raw, target.baseAddress)
        }
        setMethod(request)
        _ = pcurl_set_headers(raw, headers.fill(request.headers, hasBody: request.body != .none))
    }

    private func setTLS(_ wanted: Destination.TLS) {
        tls = wanted
        _ = pcurl_set_ca_file(raw, wanted.authorities ?? certificateBundle)
        _ = pcurl_set_verify_peer(raw, wanted.verifies ? 1 : 0)
        _ = pcurl_set_verify_host(raw, wanted.verifies ? 2 : 0)
    }

    private func setMethod(_ request: TransferRequest) {
        let isHead = request.method == "HEAD"
        if wasHead, !isHead { _ = pcurl_set_no_body(raw, 0) }
        switch request.body {
        case .none:
            if hadBody || wasHead { _ = pcurl_set_http_get(raw, 1) }
            hadBody = false
        case .length(let count):
            _ = pcurl_set_upload(raw, 1)
            _ = pcurl_set_upload_length(raw, curl_off_t(count))
            hadBody = true
        case .chunked:
            _ = pcurl_set_upload(raw, 1)
            _ = pcurl_set_upload_length(raw, -1)
            hadBody = true
        }
        if isHead { _ = pcurl_set_no_body(raw, 1) }
        wasHead = isHead
        if request.method != method {
            method = request.method
            _ = pcurl_set_custom_request(raw, method)
        }
    }
}

extension Transfer {
    fileprivate static func from(_ context: UnsafeMutableRawPointer) -> Transfer {
        Unmanaged<Transfer>.fromOpaque(context).takeUnretainedValue()
    }
}
