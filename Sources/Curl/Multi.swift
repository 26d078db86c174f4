internal import CLibcurl
internal import Glibc
internal import NIOCore
internal import Reactor

/// One libcurl multi handle on the reactor. libcurl calls back from inside the calls that are made here: the callbacks only
/// note what is wanted, everything follows when the call has returned.
final class Multi {
    private unowned let client: CurlClient
    let raw: UnsafeMutableRawPointer
    private let reactor: Reactor
    /// By descriptor. A socket stays registered with epoll when libcurl has stopped watching it, because with keep-alive it
    /// mostly asks again in the same turn; an event that nobody wants is what ends the registration.
    private var sockets: [CInt: Socket] = [:]
    private(set) var deadline: NIODeadline?
    var active = 0

    private final class Socket {
        var watch: Watch?
        var wanted: Interest = []
    }

    init(_ client: CurlClient, _ reactor: Reactor, _ configuration: CurlConfiguration) throws {
        guard let raw = curl_multi_init() else { throw CurlClient.outOfMemory }
        (self.client, self.raw, self.reactor) = (client, raw, reactor)
        let me = Unmanaged.passUnretained(self).toOpaque()
        _ = pcurl_multi_set_socket_context(raw, me)
        _ = pcurl_multi_set_socket_function(raw) { _, descriptor, what, context, _ in
            Unmanaged<Multi>.fromOpaque(context).takeUnretainedValue().libcurlWants(what, of: descriptor)
            return 0
        }
        _ = pcurl_multi_set_timer_context(raw, me)
        _ = pcurl_multi_set_timer_function(raw) { _, milliseconds, context in
            Unmanaged<Multi>.fromOpaque(context).takeUnretainedValue().libcurlWakes(in: milliseconds)
            return 0
        }
        _ = pcurl_multi_set_max_idle_connections(raw, configuration.idleConnectionsPerMulti)
        _ = pcurl_multi_set_pipelining(raw, 0)
    }

    /// All transfers must have been removed before.
    func shutdown() {
        curl_multi_cleanup(raw)
        for socket in sockets.values { socket.watch?.cancel() }
        sockets.removeAll()
    }

    // MARK: What libcurl asks for

    private func libcurlWants(_ what: CInt, of descriptor: CInt) {
        let socket = socket(descriptor)
        switch what {
        case CURL_POLL_IN: socket.wanted = [.read]
        case CURL_POLL_OUT: socket.wanted = [.write]
        case CURL_POLL_INOUT: socket.wanted = [.read, .write]
        default: socket.wanted = []
        }
        guard !socket.wanted.isEmpty else {
            // Only a kept connection is worth keeping registered, and it waits to be read. One that was still connecting may
            // be closed by libcurl next without a word.
            if let watch = socket.watch, watch.interest.contains(.write) {
                watch.cancel()
                socket.watch = nil
            }
            return
        }
        do {
            if let watch = socket.watch {
                // More than is wanted may stay registered for reading only: a socket is nearly always writable.
                if !watch.interest.isSuperset(of: socket.wanted) || (watch.interest.contains(.write) && !socket.wanted.contains(.write)) {
                    try watch.update(socket.wanted)
                }
            } else {
                socket.watch = try reactor.watch(descriptor, for: socket.wanted) { [unowned self] in ready(descriptor, $0) }
            }
        } catch {
            // Without a registration the transfer meets its timeout; the descriptor table of the process is full.
            socket.watch = nil
        }
    }

    private func libcurlWakes(in milliseconds: Int) {
        deadline = milliseconds < 0 ? nil : .now() + .milliseconds(Int64(milliseconds))
    }

    private func socket(_ descriptor: CInt) -> Socket {
        if let known = sockets[descriptor] { return known }
        let made = Socket()
        sockets[descriptor] = made
        return made
    }

    // MARK: Sockets live longer than transfers: they are opened and closed by the client's callbacks

    /// libcurl may have closed a socket that was still connecting without telling: a new one starts clean.
    func opened(_ descriptor: CInt) { forget(descriptor) }

    func forget(_ descriptor: CInt) {
        sockets.removeValue(forKey: descriptor)?.watch?.cancel()
    }

    // MARK: Driving

    private func ready(_ descriptor: CInt, _ readiness: Readiness) {
        guard let socket = sockets[descriptor] else { return }
        guard !socket.wanted.isEmpty else {
            socket.watch?.cancel()
            socket.watch = nil
            return
        }
        var bits: CInt = 0
        if readiness.contains(.read) || readiness.contains(.hangup) { bits |= CURL_CSELECT_IN }
        if readiness.contains(.write) { bits |= CURL_CSELECT_OUT }
        if readiness.contains(.error) { bits |= CURL_CSELECT_ERR }
        act(descriptor, bits)
    }

    private func act(_ descriptor: CInt, _ bits: CInt) {
        var running: CInt = 0
        _ = curl_multi_socket_action(raw, descriptor, bits, &running)
    }

    /// Runs libcurl's timer when it is due, then takes the results that are there.
    func collect() {
        if let deadline, deadline <= .now() {
            self.deadline = nil
            act(CURL_SOCKET_TIMEOUT, 0)
        }
        var left: CInt = 0
        while let message = curl_multi_info_read(raw, &left) {
            // The message dies with the next call: copy first.
            let (what, easy, code) = (message.pointee.msg, message.pointee.easy_handle, message.pointee.data.result)
            guard what == CURLMSG_DONE, let easy else { continue }
            client.finished(easy, code)
        }
    }
}
