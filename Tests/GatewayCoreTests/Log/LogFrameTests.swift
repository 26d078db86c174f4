@testable import GatewayCore
import Testing

func makeHop(_ seed: UInt64) -> HopRecord {
    var random = SeededRandom(seed)
    var hop = HopRecord(
        id: RequestID(UUIDBits(high: random.next(), low: random.next())), requestTime: 1_700_000_000_000_000 + Int64(seed),
        executionStatus: .success)
    hop.startPoint = RequestID(UUIDBits(high: random.next(), low: random.next()))
    hop.statusCode = 200
    hop.environmentID = 5
    hop.serviceID = 6
    hop.keyID = KeyID(UUIDBits(high: random.next(), low: random.next()))
    hop.units = 3
    hop.period = 2
    hop.leased = true
    hop.attempts = 1
    hop.duration = 1_234
    hop.firstByte = 1_000
    hop.bytesIn = 0
    hop.bytesOut = 99
    hop.remoteAddress = RemoteAddress(ipv4: 0x7f00_0001)
    hop.traceID = UUIDBits(high: random.next(), low: random.next())
    hop.setRoute("orders")
    hop.setTarget("10.0.0.1:8080")
    hop.setMethod("GET")
    hop.setHost("api.example")
    hop.setPath("/orders/\(seed)")
    return hop
}

func frame(_ hop: HopRecord, at position: Int64) -> [UInt8] {
    [UInt8](unsafeUninitializedCapacity: Frame.maximumLength) { buffer, count in
        count = hop.encode(into: UnsafeMutableRawBufferPointer(buffer), at: position)
    }
}

private func read(_ bytes: [UInt8], at position: Int64) -> Frame.Reading {
    bytes.withUnsafeBytes { Frame.read($0, at: position) }
}

@Suite struct LogFrameTests {
    @Test func checksumIsCRC32C() {
        // RFC 3720, appendix B.4.
        let vectors: [([UInt8], UInt32)] = [
            ([UInt8](repeating: 0, count: 32), 0x8a91_36aa), ([UInt8](repeating: 0xff, count: 32), 0x62a8_ab43),
            ((0..<32).map { UInt8($0) }, 0x46dd_794e), (Array("123456789".utf8), 0xe306_9283), ([], 0),
        ]
        for (bytes, expected) in vectors {
            #expect(bytes.withUnsafeBytes { CRC32C.checksum($0) } == expected)
            for cut in bytes.indices {
                let head = Array(bytes[..<cut]).withUnsafeBytes { CRC32C.checksum($0) }
                #expect(Array(bytes[cut...]).withUnsafeBytes { CRC32C.checksum($0, seed: head) } == expected)
            }
        }
    }

    @Test func whatIsWrittenIsRead() {
        let hop = makeHop(1)
        let bytes = frame(hop, at: 77)
        #expect(read(bytes, at: 77) == .frame(length: bytes.count))
        bytes.withUnsafeBytes { raw in
            guard let view = HopFrame(raw) else { Issue.record("no hop"); return }
            #expect(view.id == hop.id && view.startPoint == hop.startPoint && view.keyID == hop.keyID)
            #expect(view.requestTime == hop.requestTime && view.executionStatus == .success && view.refusal == nil)
            #expect(view.environmentID == 5 && view.serviceID == 6 && view.units == 3 && view.period == 2)
            #expect(view.leased && !view.outage && view.attempts == 1 && view.repeats == 1 && view.statusCode == 200)
            #expect(view.duration == 1_234 && view.firstByte == 1_000 && view.bytesIn == 0 && view.bytesOut == 99)
            #expect(view.remoteAddress == hop.remoteAddress && view.traceID == hop.traceID && view.reservationID == nil)
            #expect(view.path.map { String(decoding: $0, as: UTF8.self) } == "/orders/1")
            #expect(view.route.map { String(decoding: $0, as: UTF8.self) } == "orders")
        }
    }

    @Test func absentFieldsStayAbsent() {
        let hop = HopRecord(id: RequestID(UUIDBits(high: 1, low: 1)), requestTime: -5, executionStatus: .clientError)
        frame(hop, at: 0).withUnsafeBytes { raw in
            guard let view = HopFrame(raw) else { Issue.record("no hop"); return }
            #expect(view.startPoint == nil && view.keyID == nil && view.environmentID == nil && view.serviceID == nil)
            #expect(view.duration == nil && view.bytesIn == nil && view.remoteAddress == nil && view.traceID == nil)
            #expect(view.route == nil && view.path == nil && view.host == nil && view.statusCode == nil)
            #expect(view.requestTime == -5)
        }
    }

    @Test func aFrameCutAnywhereIsNone() {
        let bytes = frame(makeHop(2), at: 0)
        for length in 0..<bytes.count {
            if case .frame = read(Array(bytes[..<length]), at: 0) { Issue.record("cut at \(length)") }
            // As a crash leaves it in a file allocated ahead.
            let torn = Array(bytes[..<length]) + [UInt8](repeating: 0, count: 4_096)
            if case .frame = read(torn, at: 0) { Issue.record("torn at \(length)") }
        }
        #expect(read([UInt8](repeating: 0, count: 100), at: 0) == .end)
        #expect(read([], at: 0) == .end)
    }

    @Test func aFlippedBitAnywhereIsSeen() {
        let bytes = frame(makeHop(3), at: 12)
        for position in bytes.indices {
            for bit in 0..<8 {
                var flipped = bytes
                flipped[position] ^= 1 << UInt8(bit)
                if case .frame = read(flipped, at: 12) { Issue.record("byte \(position), bit \(bit)") }
            }
        }
    }

    @Test func aFrameElsewhereIsNone() {
        let bytes = frame(makeHop(4), at: 12)
        for position in [0, 11, 13, 16 << 20] as [Int64] { #expect(read(bytes, at: position) == .broken) }
    }

    @Test func randomBytesAreNoFrames() {
        var random = SeededRandom(9)
        for _ in 0..<2_000 {
            let bytes = (0..<Int.random(in: 0...400, using: &random)).map { _ in UInt8.random(in: 0...255, using: &random) }
            if case .frame = read(bytes, at: 0) { Issue.record("\(bytes)") }
        }
    }

    @Test func theLargestRecordFits() {
        var hop = makeHop(5)
        let long = String(repeating: "x", count: 100_000)
        hop.setRoute(long)
        hop.setTarget(long)
        hop.setMethod(long)
        hop.setHost(long)
        hop.setPath(long)
        #expect(frame(hop, at: 0).count <= Frame.maximumLength)
    }
}

@Suite struct LogFrameVersionTests {
    private func isHop(_ change: (inout [UInt8]) -> Void) -> Bool {
        var bytes = frame(makeHop(6), at: 0)
        change(&bytes)
        return bytes.withUnsafeBytes { HopFrame($0) != nil }
    }

    @Test func whatThisVersionDoesNotKnowIsNoHop() {
        #expect(isHop { _ in })
        // Version, status, and lengths of texts that do not add up.
        for (offset, value) in [(0, 2), (0, 0), (1, 0), (1, 7), (182, 200), (183, 1), (190, 0xfe)] as [(Int, UInt8)] {
            #expect(!isHop { $0[Frame.headerLength + offset] = value }, "\(offset)")
        }
        #expect(!isHop { $0.removeLast() })
        #expect(!isHop { $0.append(0) })
        #expect(!isHop { $0.removeSubrange((Frame.headerLength + 100)...) })
        // A reason for a refusal that a later version has is none that we know, but the hop is one.
        #expect(isHop { $0[Frame.headerLength + 2] = 250 })
    }

    @Test func randomContentIsNeverReadBeyondItsEnd() {
        var random = SeededRandom(12)
        let whole = frame(makeHop(7), at: 0)
        for _ in 0..<20_000 {
            var bytes = whole
            for _ in 0..<3 {
                let position = Int.random(in: Frame.headerLength..<bytes.count, using: &random)
                bytes[position] = UInt8.random(in: 0...255, using: &random)
            }
            bytes.withUnsafeBytes { raw in
                guard let view = HopFrame(raw) else { return }
                let texts = [view.route, view.target, view.method, view.host, view.path].compactMap { $0?.count }
                #expect(texts.reduce(192 + Frame.headerLength, +) == bytes.count)
            }
        }
    }
}

@Suite struct LogTextTests {
    @Test func textIsCutBetweenCharacters() {
        for limit in 0..<20 {
            let text = HopText("aé€😀bé€😀", limit: limit).text
            #expect(text.utf8.count <= limit && "aé€😀bé€😀".hasPrefix(text))
            #expect(limit < 20 && text.utf8.count > limit - 4)
        }
    }

    @Test func hostileBytesBecomeText() {
        var random = SeededRandom(10)
        for _ in 0..<2_000 {
            let bytes = (0..<Int.random(in: 0...60, using: &random)).map { _ in
                Bool.random(using: &random) ? UInt8.random(in: 0...255, using: &random) : 0
            }
            let text = bytes.withUnsafeBufferPointer { HopText(bytes: $0, limit: 40) }.text
            #expect(text.utf8.count <= 40 && !text.utf8.contains(0))
            #expect(String(validating: text.utf8, as: UTF8.self) == text)
        }
        #expect(HopText("plain", limit: 40).text == "plain")
    }
}

@Suite struct LogCompressorTests {
    private func refused(_ address: UInt32, _ reason: Refusal = .keyInvalid) -> HopRecord {
        var hop = HopRecord(id: RequestID(UUIDBits(high: 1, low: UInt64(address))), requestTime: 0, executionStatus: .unauthorized)
        hop.refusal = reason
        hop.remoteAddress = RemoteAddress(ipv4: address)
        return hop
    }

    @Test func nothingIsUncounted() {
        var compressor = RefusalCompressor(RefusalRows(perSecond: 100), groupsMax: 10)
        var random = SeededRandom(11)
        var (sent, logged, rows): (UInt32, UInt32, Int) = (0, 0, 0)
        var now: Int64 = 0
        while now < 10_000_000 {
            now += Int64.random(in: 0...500, using: &random)
            for group in compressor.takeDue(now: now) {
                logged += group.repeats
                rows += 1
            }
            let reason: Refusal = Bool.random(using: &random) ? .keyInvalid : .keyMissing
            let hop = refused(UInt32.random(in: 0...0xffff_ffff, using: &random), reason)
            sent += 1
            if compressor.judge(hop, reason: reason, now: now) == .log {
                logged += 1
                rows += 1
            }
        }
        for group in compressor.takeDue(now: now, all: true) {
            logged += group.repeats
            rows += 1
        }
        #expect(sent == logged)
        // Each second: 100 of each reason, the groups, and one group of each reason for the rest.
        #expect(rows <= 11 * (200 + 10 + 2))
    }

    @Test func groupsAreNetworks() throws {
        var compressor = RefusalCompressor(RefusalRows(perSecond: 1))
        #expect(compressor.judge(refused(0x0a00_0001), reason: .keyInvalid, now: 0) == .log)
        #expect(compressor.judge(refused(0x0a00_0002), reason: .keyInvalid, now: 1) == .opened)
        #expect(compressor.judge(refused(0x0a00_0003), reason: .keyInvalid, now: 2) == .counted)
        #expect(compressor.judge(refused(0x0a00_0103), reason: .keyInvalid, now: 3) == .opened)
        #expect(compressor.judge(refused(0x0a00_0003), reason: .keyMissing, now: 4) == .log)
        #expect(compressor.due == 1_000_000)
        #expect(compressor.takeDue(now: 999_999).isEmpty)
        let groups = compressor.takeDue(now: 1_000_000).sorted { $0.repeats > $1.repeats }
        #expect(groups.map(\.repeats) == [2, 1])
        let network = try #require(groups[0].remoteAddress)
        #expect(network.high >> 32 == 0x0a00_0000 && network.prefixLength == 24)
        #expect(compressor.due == nil)
        #expect(compressor.judge(refused(0x0a00_0001), reason: .keyInvalid, now: 1_000_000) == .log)
    }

    @Test func networksBeyondWhatASecondTellsApartShareAGroup() throws {
        var compressor = RefusalCompressor(RefusalRows(perSecond: 0), groupsMax: 3)
        for network in 0..<10 { _ = compressor.judge(refused(UInt32(network) << 8), reason: .keyInvalid, now: 0) }
        let groups = compressor.takeDue(now: 1_000_000)
        #expect(groups.count == 4 && groups.map(\.repeats).reduce(0, +) == 10)
        #expect(groups.filter { $0.remoteAddress == nil }.map(\.repeats) == [7])
    }

    /// quota.md, 4: so many a second of each reason for the whole node, whichever of its workers gets them.
    @Test func workersShareTheRowsOfASecond() {
        let rows = RefusalRows(perSecond: 100)
        var workers = (0..<3).map { _ in RefusalCompressor(rows) }
        func logged(_ count: Int, by worker: Int, _ reason: Refusal = .keyInvalid, at now: Int64) -> Int {
            _ = workers[worker].takeDue(now: now)
            return (0..<count).filter { _ in workers[worker].judge(refused(1), reason: reason, now: now) == .log }.count
        }
        #expect(logged(90, by: 0, at: 5_000_000) == 90)
        #expect(logged(90, by: 1, at: 5_500_000) == 10)
        #expect(logged(90, by: 2, .keyMissing, at: 5_600_000) == 90)
        #expect(logged(70, by: 2, at: 6_000_001) == 70)
        // Its turn began before the second of the others.
        #expect(logged(70, by: 1, at: 5_999_999) == 30)
        #expect(logged(200, by: 0, at: 7_000_000) == 100)
    }

    @Test func rowsAreTakenOnceByManyThreads() async {
        let rows = RefusalRows(perSecond: 1_000)
        let taken = await withTaskGroup(of: Int.self) { group in
            for _ in 0..<8 { group.addTask { (0..<1_000).filter { _ in rows.take(.keyInvalid, second: 9) }.count } }
            return await group.reduce(0, +)
        }
        #expect(taken == 1_000)
    }

    @Test func aCountNeverWraps() {
        var compressor = RefusalCompressor(RefusalRows(perSecond: 0))
        var hop = refused(1)
        hop.repeats = .max - 1
        for _ in 0..<3 { _ = compressor.judge(hop, reason: .keyInvalid, now: 0) }
        #expect(compressor.takeDue(now: 0, all: true).map(\.repeats) == [.max])
    }

    @Test func addressesHaveTheirNetworks() {
        let mapped = RemoteAddress(ipv6High: 0, low: 0xffff_0a01_0203)
        #expect(mapped == RemoteAddress(ipv4: 0x0a01_0203))
        let six = RemoteAddress(ipv6High: 0x2001_0db8_0001_0002, low: 77)
        #expect(six.network.high == 0x2001_0db8_0001_0002 && six.network.low == 0 && six.network.prefixLength == 64)
    }
}
