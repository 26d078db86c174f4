@testable import GatewayCore
import Testing

@Suite struct IdentifiersTests {
    /// Pairs of the TypeID specification's valid.yml and of its README.
    @Test(arguments: [
        ("00000000000000000000000000", "00000000-0000-0000-0000-000000000000"),
        ("00000000000000000000000001", "00000000-0000-0000-0000-000000000001"),
        ("0000000000000000000000000a", "00000000-0000-0000-0000-00000000000a"),
        ("0000000000000000000000000g", "00000000-0000-0000-0000-000000000010"),
        ("00000000000000000000000010", "00000000-0000-0000-0000-000000000020"),
        ("7zzzzzzzzzzzzzzzzzzzzzzzzz", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
        ("0123456789abcdefghjkmnpqrs", "0110c853-1d09-52d8-d73e-1194e95b5f19"),
        ("01h455vb4pex5vsknk084sn02q", "01890a5d-ac96-774b-bcce-b302099a8057"),
    ])
    func theSpecificationsPairs(_ text: String, _ uuid: String) throws {
        let bits = try #require(UUIDBits(uuid))
        #expect("\(bits)" == uuid)
        #expect("\(RequestID(bits))" == "req_\(text)")
        #expect(RequestID("req_\(text)") == RequestID(bits))
        #expect(KeyID("req_\(text)") == nil)
    }

    @Test(arguments: [
        "req_", "req_0000000000000000000000000", "req_000000000000000000000000000", "req_80000000000000000000000000",
        "req_0000000000000000000000000O", "req_0000000000000000000000000i", "req_0000000000000000000000000u",
        "REQ_00000000000000000000000000", "req-00000000000000000000000000", "rsv_00000000000000000000000000",
        "req_0000000000000000000000000A", "req_0000000000000000000000000\u{e9}",
    ])
    func anyOtherTextIsNone(_ text: String) { #expect(RequestID(text) == nil) }

    @Test func textsSortAsTheirBits() {
        var random = SeededRandom(5)
        let ids = (0..<500).map { _ in RequestID(UUIDBits(high: random.next(), low: random.next())) }.sorted()
        let texts = ids.map { Array("\($0)".utf8) }
        for (a, b) in zip(texts, texts.dropFirst()) { #expect(a.lexicographicallyPrecedes(b)) }
    }

    @Test func versionAndVariantAreRFC9562() {
        var generator = IdentifierGenerator()
        var random = SeededRandom(6)
        for step in 0..<1_000 {
            let id = generator.next(milliseconds: 1_700_000_000_000 + UInt64(step / 100), random: &random)
            #expect(id.high >> 12 & 0xf == 7)
            #expect(id.low >> 62 == 2)
        }
    }

    @Test func idsRiseThroughSmallStepsOfTheClock() {
        var generator = IdentifierGenerator()
        var random = SeededRandom(7)
        var (clock, last) = (Self.now, UUIDBits.zero)
        for step in 0..<100_000 {
            if step % 1_000 == 0 { clock = Self.now + UInt64.random(in: 0...IdentifierGenerator.stepBackMax, using: &random) }
            let id = generator.next(milliseconds: clock, random: &random)
            #expect(last < id)
            last = id
        }
    }

    @Test func idsGoForwardWithTheClock() {
        var (generator, random) = (IdentifierGenerator(), SeededRandom(9))
        let last = generator.next(milliseconds: Self.now, random: &random)
        let ahead = generator.next(milliseconds: Self.now + Self.day, random: &random)
        #expect(last < ahead && ahead.milliseconds == Self.now + Self.day)
    }

    @Test(arguments: [1, 5_000, IdentifierGenerator.stepBackMax])
    func idsRiseWhileTheClockIsALittleBehindThem(_ behind: UInt64) {
        var (generator, random) = (IdentifierGenerator(), SeededRandom(10))
        var last = generator.next(milliseconds: Self.now, random: &random)
        for _ in 0..<100 {
            let id = generator.next(milliseconds: Self.now - behind, random: &random)
            #expect(last < id && id.milliseconds == Self.now)
            last = id
        }
    }

    /// An hour ahead for a moment, then right again: only the ids of that moment are of a wrong time.
    @Test(arguments: [IdentifierGenerator.stepBackMax + 1, 3_600_000, Self.day])
    func idsBeginAgainAtAClockThatIsFarBehindThem(_ jump: UInt64) {
        var (generator, random) = (IdentifierGenerator(), SeededRandom(11))
        _ = generator.next(milliseconds: Self.now + jump, random: &random)
        var last = UUIDBits.zero
        for step in 0..<100 as Range<UInt64> {
            let id = generator.next(milliseconds: Self.now + step / 10, random: &random)
            #expect(last < id && id.milliseconds == Self.now + step / 10)
            last = id
        }
    }

    @Test func idsOfATimeThatComesTwiceAreOthers() {
        var (generator, random) = (IdentifierGenerator(), SeededRandom(12))
        var ids: Set<UUIDBits> = []
        for step in 0..<1_000 as Range<UInt64> {
            let time = Self.now + step % 2 * Self.day
            let id = generator.next(milliseconds: time, random: &random)
            #expect(id.milliseconds == time && ids.insert(id).inserted)
        }
    }

    private static let now: UInt64 = 1_700_000_000_000
    private static let day: UInt64 = 86_400_000

    @Test func aFullMillisecondRunsIntoTheNext() {
        struct Ones: RandomNumberGenerator { func next() -> UInt64 { .max } }
        var generator = IdentifierGenerator()
        var random = Ones()
        var last = generator.next(milliseconds: 1_000, random: &random)
        #expect(last.milliseconds == 1_000)
        let next = generator.next(milliseconds: 1_000, random: &random)
        #expect(last < next && next.milliseconds == 1_001)
        last = generator.next(milliseconds: 1_001, random: &random)
        #expect(next < last)
    }

    @Test func theTimeIsInFront() {
        var generator = IdentifierGenerator()
        var random = SeededRandom(8)
        #expect(generator.next(milliseconds: 1_700_000_000_123, random: &random).milliseconds == 1_700_000_000_123)
    }
}

@Suite struct ChainsTests {
    /// The reference implementation's vectors for SipHash-2-4: key 00…0f, message 00, 01, … of that length.
    @Test func sipHashMatchesItsReference() {
        let hash = SipHash(k0: 0x0706_0504_0302_0100, k1: 0x0f0e_0d0c_0b0a_0908)
        #expect(hash.tag(of: 0x0706_0504_0302_0100) == 0x93f5_f579_9a93_2462)
        #expect(hash.tag(of: 0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908) == 0x3f2a_cc7f_57c2_9bdb)
        #expect(hash.tag(of: 1, 2, 3) == hash.tag(1, 2, 3))
    }

    @Test func aStartPointIsBelievedOnlyWhole() {
        let signer = StartPointSigner(secret: [UInt8](repeating: 7, count: 32))
        let root = RequestID(UUIDBits(high: 0x1234_5678_9abc_7def, low: 0x8123_4567_89ab_cdef))
        var text: [UInt8] = []
        signer.append(environment: 42, root: root, to: &text)
        #expect(text.count == StartPointSigner.textLength)
        #expect(signer.verify(text, environment: 42) == root)
        #expect(signer.verify(text, environment: 43) == nil)
        #expect(StartPointSigner(secret: [UInt8](repeating: 8, count: 32)).verify(text, environment: 42) == nil)
        for position in text.indices {
            for byte in UInt8.min...UInt8.max where byte != text[position] {
                var forged = text
                forged[position] = byte
                #expect(signer.verify(forged, environment: 42) == nil)
            }
        }
        for length in 0..<text.count { #expect(signer.verify(text[..<length], environment: 42) == nil) }
        #expect(signer.verify(text + [0x30], environment: 42) == nil)
    }
}
