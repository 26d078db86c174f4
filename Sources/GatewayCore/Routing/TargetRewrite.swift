/// What a route does to the path of a request target before it goes upstream.  The query always stays as it is.
public enum TargetRewrite: Sendable, Equatable {
    case none
    /// Takes the first `length` bytes (counted percent-decoded) of the path off and puts `replacement` there, which is
    /// empty or begins but does not end with `/`.  A path that would be empty becomes `/`.
    case prefix(length: Int, replacement: [UInt8])
    /// Makes a new path.
    case path([Part])

    public enum Part: Sendable, Equatable {
        case literal([UInt8])
        /// A segment of the client's path, with its escapes; the first is 0.
        case segment(Int)
    }

    /// The new target, or nil where the old one stays.  `target` is one that a ``RouteTable`` matched.
    public func apply(to target: UnsafeRawBufferPointer) -> [UInt8]? {
        switch self {
        case .none: return nil
        case .prefix(let length, let replacement):
            let rest = target[target.rawLength(ofDecoded: length)...]
            var result = replacement
            result.reserveCapacity(replacement.count + rest.count + 1)
            if result.isEmpty, rest.first != slash { result.append(slash) }
            result.append(contentsOf: rest)
            return result
        case .path(let parts):
            var result: [UInt8] = []
            result.reserveCapacity(target.count + 32)
            for part in parts {
                switch part {
                case .literal(let bytes): result.append(contentsOf: bytes)
                case .segment(let index): result.append(contentsOf: target[target.segment(index)])
                }
            }
            if let query = target.firstIndex(of: questionMark) { result.append(contentsOf: target[query...]) }
            return result
        }
    }
}

extension UnsafeRawBufferPointer {
    /// How many bytes of the path stand for its first `length` decoded ones.
    fileprivate func rawLength(ofDecoded length: Int) -> Int {
        var index = 0
        for _ in 0..<length where index < count { index += self[index] == percent ? 3 : 1 }
        return Swift.min(index, count)
    }

    fileprivate func segment(_ number: Int) -> Range<Int> {
        var (start, left) = (1, number)
        while start < count, left > 0, self[start] != questionMark {
            if self[start] == slash { left -= 1 }
            start += 1
        }
        var end = start
        while end < count, self[end] != slash, self[end] != questionMark { end += 1 }
        return Swift.min(start, end)..<end
    }
}
