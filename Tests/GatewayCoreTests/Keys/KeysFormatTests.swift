import GatewayCore
import Testing

/// Numbers that are the same in every run.
struct SeededRandom: RandomNumberGenerator {
    var state: UInt64

    init(_ seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ z >> 30) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ z >> 27) &* 0x94d0_49bb_1331_11eb
        return z ^ z >> 31
    }
}

@Suite struct KeysFormatTests {
    @Test func aSecretIsACandidateWithItsDigest() {
        var random = SeededRandom(1)
        for _ in 0..<100 {
            let secret = KeySecret(random: &random)
            #expect(secret.text.utf8.count == 42)
            #expect(KeyCandidate.parse(secret.text.utf8) == .candidate(secret.digest))
            #expect(secret.text.hasPrefix("pk_" + secret.prefix))
            #expect(secret.prefix.utf8.count == 8)
        }
    }

    @Test func everySingleCorruptionIsJunk() {
        var random = SeededRandom(2)
        let text = Array(KeySecret(random: &random).text.utf8)
        for position in text.indices {
            for byte in UInt8.min...UInt8.max where byte != text[position] {
                var corrupt = text
                corrupt[position] = byte
                #expect(KeyCandidate.parse(corrupt) == .junk)
            }
        }
    }

    @Test func swappedNeighboursAndOtherLengthsAreJunk() {
        var random = SeededRandom(3)
        let text = Array(KeySecret(random: &random).text.utf8)
        for position in 0..<(text.count - 1) where text[position] != text[position + 1] {
            var corrupt = text
            corrupt.swapAt(position, position + 1)
            #expect(KeyCandidate.parse(corrupt) == .junk)
        }
        for length in 0..<text.count { #expect(KeyCandidate.parse(text[..<length]) == .junk) }
        #expect(KeyCandidate.parse(text + [0x30]) == .junk)
    }

    @Test func aSecretPrintsAsNothing() {
        var random = SeededRandom(4)
        let secret = KeySecret(random: &random)
        var dumped = ""
        dump(secret, to: &dumped)
        #expect(!"\(secret) \(String(reflecting: secret)) \(dumped)".contains(secret.text))
    }

    @Test func aDigestIsSHA256() {
        // FIPS 180-2, appendix B.1.
        let digest = Array("abc".utf8).withUnsafeBytes { KeyDigest(hashing: $0) }
        #expect(digest.bytes.prefix(4) == [0xba, 0x78, 0x16, 0xbf] && digest.bytes.suffix(2) == [0x15, 0xad])
        #expect(KeyDigest(bytes: digest.bytes) == digest)
        #expect(KeyDigest(bytes: [1, 2, 3]) == nil)
    }

    @Test func secretsDoNotRepeat() {
        var random = SystemRandomNumberGenerator()
        #expect(Set((0..<1_000).map { _ in KeySecret(random: &random).text }).count == 1_000)
    }
}

@Suite struct KeysEntryTests {
    @Test func statusesAreToldInOrder() {
        #expect(makeEntry().refusal(at: 10) == nil)
        #expect(makeEntry(key: .disabled).refusal(at: 10) == .keyDisabled)
        #expect(makeEntry(expiresAt: 11).refusal(at: 10) == nil)
        #expect(makeEntry(expiresAt: 10).refusal(at: 10) == .keyExpired)
        #expect(makeEntry(project: .disabled).refusal(at: 10) == .projectDisabled)
        #expect(makeEntry(environment: .disabled).refusal(at: 10) == .environmentDisabled)
    }

    @Test func grantsAreFoundByNameAndVersion() {
        let entry = makeEntry(grants: [grant(1, "a", .enabled), grant(2, "b", .disabled), grant(3, "c", .deprecated)])
        #expect(entry.grant(for: .init(name: "a", version: "1"), deprecatedPasses: false) == .granted(grant(1, "a", .enabled)))
        #expect(entry.grant(for: .init(name: "a", version: "2"), deprecatedPasses: false) == .refused(.serviceNotAssigned, nil))
        #expect(
            entry.grant(for: .init(name: "b", version: "1"), deprecatedPasses: true)
                == .refused(.serviceDisabled, grant(2, "b", .disabled)))
        #expect(
            entry.grant(for: .init(name: "c", version: "1"), deprecatedPasses: false)
                == .refused(.serviceDeprecated, grant(3, "c", .deprecated)))
        #expect(entry.grant(for: .init(name: "c", version: "1"), deprecatedPasses: true) == .granted(grant(3, "c", .deprecated)))
    }

    private func grant(_ id: Int64, _ name: String, _ status: ServiceStatus) -> KeyEntry.Grant {
        KeyEntry.Grant(serviceID: id, name: name, version: "1", status: status, limited: true)
    }
}

func makeEntry(
    id: UInt64 = 1, key: TenantStatus = .enabled, expiresAt: Int64? = nil, environmentID: Int64 = 1,
    environment: TenantStatus = .enabled, project: TenantStatus = .enabled, grants: [KeyEntry.Grant] = []
) -> KeyEntry {
    KeyEntry(
        keyID: KeyID(UUIDBits(high: 0, low: id)), status: key, expiresAt: expiresAt, environmentID: environmentID,
        environmentName: "e", environmentStatus: environment, projectID: 2, projectName: "p", projectStatus: project,
        clientID: 3, grants: grants)
}
