/// The query of a request target, for routes that take the key from it.
public enum TargetQuery {
    /// The values of the parameter `name`, percent-decoded.
    public static func values(of name: [UInt8], in target: UnsafeRawBufferPointer) -> [[UInt8]] {
        parameters(target).filter { target.percentDecoded($0.name) == name }.map { target.percentDecoded($0.value) }
    }

    /// The target without the parameter `name`, all other bytes as they were; nil where it does not have it.
    public static func removing(_ name: [UInt8], from target: UnsafeRawBufferPointer) -> [UInt8]? {
        let all = parameters(target)
        let kept = all.filter { target.percentDecoded($0.name) != name }
        guard kept.count < all.count, let query = target.firstIndex(of: questionMark) else { return nil }
        var result = Array(target[..<query])
        for (index, parameter) in kept.enumerated() {
            result.append(index == 0 ? questionMark : UInt8(ascii: "&"))
            result.append(contentsOf: target[parameter.name.lowerBound..<parameter.value.upperBound])
        }
        return result
    }

    private static func parameters(_ target: UnsafeRawBufferPointer) -> [(name: Range<Int>, value: Range<Int>)] {
        guard let query = target.firstIndex(of: questionMark) else { return [] }
        var list: [(name: Range<Int>, value: Range<Int>)] = []
        var start = query + 1
        while start <= target.count {
            let end = target[start...].firstIndex(of: UInt8(ascii: "&")) ?? target.count
            let equals = target[start..<end].firstIndex(of: UInt8(ascii: "="))
            list.append((name: start..<(equals ?? end), value: (equals.map { $0 + 1 } ?? end)..<end))
            start = end + 1
        }
        return list
    }
}
