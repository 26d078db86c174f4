internal import Glibc
internal import Yams

extension ConfigurationReader {
    func readBoot(_ top: Section) -> BootSettings? {
        var boot = BootSettings(listen: [])
        boot.node = top.text("node")
        if let node = boot.node, node.utf8.count > 63 { faults.add(top.mark("node"), "node must be at most 63 bytes long") }
        if let workers = top.node("workers"), workers.string != "auto" {
            top.integer("workers", in: Limits.workers) { boot.workers = $0 }
        }
        boot.listen = readListen(top)
        top.section("database") { boot.database = readDatabase($0) }
        top.section("spool") { section in
            if let directory = section.text("directory") { boot.spool.directory = directory }
            section.choice("sync") { boot.spool.sync = $0 }
            section.size("size", in: (32 << 20)...(1 << 40)) { boot.spool.size = $0 }
            section.duration("keep", to: .seconds(30 * 86_400)) { boot.spool.keep = $0 }
        }
        top.section("limits") { readLimits($0, &boot.limits) }
        top.section("keys") { section in
            section.integer("cache", in: 16...10_000_000) { boot.keys.cache = $0 }
            section.integer("negative_cache", in: 16...10_000_000) { boot.keys.negativeCache = $0 }
            section.duration("negative_time", to: .seconds(3600)) { boot.keys.negativeTime = $0 }
            section.duration("stale", from: .seconds(0)) { boot.keys.stale = $0 }
        }
        top.section("quota") { section in
            section.duration("lease_use", from: .milliseconds(100), to: .seconds(300)) { boot.quota.leaseUse = $0 }
            section.duration("lost_after", from: .seconds(10)) { boot.quota.lostAfter = $0 }
            section.duration("recall_wait", from: .milliseconds(10), to: .seconds(1)) { boot.quota.recallWait = $0 }
        }
        top.section("log") { section in
            section.choice("level") { boot.log.level = $0 }
            section.choice("format") { boot.log.format = $0 }
            section.integer("batch_rows", in: 1...100_000) { boot.log.batchRows = $0 }
            section.size("batch_size", in: (16 << 10)...(64 << 20)) { boot.log.batchBytes = $0 }
            section.duration("batch_time", to: .seconds(60)) { boot.log.batchTime = $0 }
            section.duration("keep", from: .seconds(86_400), to: .seconds(36_500 * 86_400)) { boot.log.keep = $0 }
        }
        top.duration("drain", from: .seconds(0), to: .seconds(3600)) { boot.drain = $0 }
        return boot
    }

    private func readLimits(_ section: Section, _ limits: inout LimitSettings) {
        section.size("request_target", in: 256...(64 << 10)) { limits.requestTarget = $0 }
        section.size("header_field", in: 256...(256 << 10)) { limits.headerField = $0 }
        section.size("header_list", in: 1024...(1 << 20)) { limits.headerList = $0 }
        section.integer("header_fields", in: 8...4096) { limits.headerFields = $0 }
        section.size("request_body", in: 0...(1 << 40)) { limits.requestBody = $0 }
        section.duration("request_head") { limits.requestHead = $0 }
        section.duration("body_idle") { limits.bodyIdle = $0 }
        section.duration("keep_alive") { limits.keepAlive = $0 }
        section.integer("connections", in: 1...1_000_000) { limits.connections = $0 }
    }

    private func readListen(_ top: Section) -> [ListenAddress] {
        guard top.has("listen") else {
            _ = top.node("listen")
            faults.add(nil, "the file needs 'listen', such as listen: [0.0.0.0:8080]")
            return []
        }
        // One address may stand alone.
        if let text = top.node("listen")?.scalar?.string, !text.isEmpty {
            return top.text("listen").flatMap { listenAddress($0, top.mark("listen"), "listen") }.map { [$0] } ?? []
        }
        var seen: Set<ListenAddress> = []
        return top.list("listen").compactMap { item in
            guard let text = faults.text(item.node, item.name), let address = listenAddress(text, item.node.mark, item.name) else {
                return nil
            }
            if address.port != 0, !seen.insert(address).inserted { faults.add(item.node.mark, "\(address) is listed twice") }
            return address
        }
    }

    private func listenAddress(_ text: String, _ mark: Mark?, _ what: String) -> ListenAddress? {
        guard let (host, port) = HostPort.split(text), let port else {
            faults.add(mark, "\(what) must be an address and a port such as 0.0.0.0:8080 or [::]:8080, found '\(text)'")
            return nil
        }
        guard HostPort.isLiteral(host) else {
            let suggestion =
                host == "localhost" ? "; did you mean '127.0.0.1:\(port)'?" : host.isEmpty ? "; did you mean '0.0.0.0:\(port)'?" : ""
            faults.add(mark, "\(what) must be a numeric address, found '\(host)'\(suggestion)")
            return nil
        }
        return ListenAddress(host: host, port: port)
    }

    private func readDatabase(_ section: Section) -> Secret? {
        guard let text = section.required("url") else { return nil }
        var url = text
        if text.hasPrefix("file:") {
            let path = String(text.dropFirst(5))
            guard let contents = faults.surroundings.contents(path) else {
                faults.add(section.mark("url"), "database.url: cannot read file '\(path)'")
                return nil
            }
            url = contents
            while let last = url.last, last.isWhitespace { url.removeLast() }
        }
        guard url.hasPrefix("postgres://") || url.hasPrefix("postgresql://") else {
            // Not shown: it may hold a password.
            faults.add(section.mark("url"), "database.url must begin with postgres:// or postgresql:// or file:")
            return nil
        }
        return Secret(url)
    }
}

/// `host:port`, `[v6]:port`, `host`.
enum HostPort {
    /// Nil where the text is neither.
    static func split(_ text: String) -> (host: String, port: Int?)? {
        if text.hasPrefix("[") {
            guard let close = text.firstIndex(of: "]") else { return nil }
            let host = String(text[text.index(after: text.startIndex)..<close])
            let rest = text[text.index(after: close)...]
            if rest.isEmpty { return (host, nil) }
            guard rest.first == ":", let port = number(rest.dropFirst()) else { return nil }
            return (host, port)
        }
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        switch parts.count {
        case 1: return (text, nil)
        case 2: return number(parts[1]).map { (String(parts[0]), $0) }
        default: return nil
        }
    }

    private static func number(_ text: Substring) -> Int? {
        guard !text.isEmpty, text.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }), let port = Int(text), port <= 65_535 else { return nil }
        return port
    }

    static func isLiteral(_ host: String) -> Bool {
        var room = in6_addr()
        return inet_pton(AF_INET, host, &room) == 1 || inet_pton(AF_INET6, host, &room) == 1
    }

    /// Letters, digits, `-`, `.` and `_`, or an IP literal.
    static func isName(_ host: String) -> Bool {
        if isLiteral(host) { return true }
        return !host.isEmpty && host.utf8.count <= 253 && !host.hasPrefix(".")
            && host.utf8.allSatisfy { byte in
                switch byte.folded {
                case 0x30...0x39, 0x61...0x7a, 0x2d, 0x2e, 0x5f: true
                default: false
                }
            }
    }
}
