internal import Crypto

/// Signs and checks `Pandora-Start-Point: req_….<tag>`.
///
/// The tag is a 64-bit MAC over environment and root id, so a valid one chains without a lookup and none can be made for
/// another environment's chain.
public struct StartPointSigner: Sendable {
    private let hash: SipHash

    /// - Parameter secret: the cluster's secret, the same on every node; 32 bytes.
    public init(secret: some Collection<UInt8>) {
        // A key of its own, so that the secret can serve other purposes too.
        var digest = SHA256()
        let material = Array("pandora start point".utf8) + Array(secret)
        material.withUnsafeBytes { digest.update(bufferPointer: $0) }
        var words: (UInt64, UInt64) = (0, 0)
        for (index, byte) in digest.finalize().prefix(16).enumerated() {
            if index < 8 { words.0 |= UInt64(byte) << (8 * UInt64(index)) }
            else { words.1 |= UInt64(byte) << (8 * UInt64(index - 8)) }
        }
        hash = SipHash(k0: words.0, k1: words.1)
    }

    /// Bytes of a start point's text: root id, a full stop, 13 characters of tag.
    public static let textLength = RequestID.textLength + 1 + tagLength
    static let tagLength = 13

    func tag(environment: Int64, root: RequestID) -> UInt64 {
        hash.tag(UInt64(bitPattern: environment), root.uuid.high, root.uuid.low)
    }

    /// Appends the header's value.
    public func append(environment: Int64, root: RequestID, to bytes: inout [UInt8]) {
        root.append(to: &bytes)
        bytes.append(UInt8(ascii: "."))
        let tag = tag(environment: environment, root: root)
        for position in stride(from: Self.tagLength - 1, through: 0, by: -1) {
            bytes.append(Base32.character(tag >> (5 * UInt64(position))))
        }
    }

    /// The root of the chain that a client sent back; nil unless this cluster made it for this environment.
    public func verify(_ text: some Collection<UInt8>, environment: Int64) -> RequestID? {
        let root = text.withContiguousStorageIfAvailable { verify(bytes: $0, environment) }
        return root ?? Array(text).withUnsafeBufferPointer { verify(bytes: $0, environment) }
    }

    private func verify(bytes text: UnsafeBufferPointer<UInt8>, _ environment: Int64) -> RequestID? {
        let dot = RequestID.textLength
        guard text.count == Self.textLength, text[dot] == UInt8(ascii: "."), let root = RequestID(text[..<dot]) else { return nil }
        var sent: UInt64 = 0
        for index in dot + 1..<text.count {
            // 13 characters carry 65 bits: the first has four.
            guard let bits = Base32.value(text[index]), index > dot + 1 || bits < 16 else { return nil }
            sent = sent << 5 | bits
        }
        // One comparison of two words takes the same time wherever they differ.
        return sent ^ tag(environment: environment, root: root) == 0 ? root : nil
    }
}
