/// A table of bounded size that gives up what was not used lately: the CLOCK algorithm, one bit a slot and a hand.
struct ClockTable<Value> {
    private struct Slot {
        var digest: KeyDigest
        var value: Value
        var isUsed: Bool
    }

    private let capacity: Int
    private var index: [KeyDigest: Int] = [:]
    private var slots: [Slot?] = []
    private var free: [Int] = []
    private var hand = 0

    init(capacity: Int) { self.capacity = max(capacity, 1) }

    var count: Int { index.count }

    /// The value, without counting as a use.
    func peek(_ digest: KeyDigest) -> Value? { index[digest].flatMap { slots[$0]?.value } }

    mutating func touch(_ digest: KeyDigest) -> Value? {
        guard let number = index[digest] else { return nil }
        slots[number]!.isUsed = true
        return slots[number]!.value
    }

    mutating func update(_ digest: KeyDigest, _ body: (inout Value) -> Void) {
        guard let number = index[digest] else { return }
        body(&slots[number]!.value)
    }

    /// The digest must not be in the table.
    mutating func insert(_ value: Value, for digest: KeyDigest) {
        let slot = Slot(digest: digest, value: value, isUsed: false)
        if let number = free.popLast() ?? (index.count >= capacity ? evict() : nil) {
            slots[number] = slot
            index[digest] = number
        } else {
            index[digest] = slots.count
            slots.append(slot)
        }
    }

    mutating func remove(_ digest: KeyDigest) {
        guard let number = index.removeValue(forKey: digest) else { return }
        slots[number] = nil
        free.append(number)
    }

    mutating func removeAll() {
        index.removeAll()
        slots.removeAll()
        free.removeAll()
        hand = 0
    }

    /// Empties the first slot under the hand that was not used since the hand last passed.
    private mutating func evict() -> Int {
        while true {
            let number = hand
            hand = (hand + 1) % slots.count
            guard let slot = slots[number] else { continue }
            if slot.isUsed {
                slots[number]!.isUsed = false
            } else {
                index[slot.digest] = nil
                slots[number] = nil
                return number
            }
        }
    }
}
