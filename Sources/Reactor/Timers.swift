/// The pending timers of a reactor: a binary heap by deadline with lazy deletion.
///
/// Starting costs O(log n), cancelling O(1): the slot is emptied and its heap entry is dropped when it surfaces, or all at
/// once when more than half of the heap is dead. 100,000 pending timers are about 6 MiB.
struct Timers {
    /// What `start` returned: a slot and the generation that tells its users apart.
    struct Token: Equatable, Sendable {
        fileprivate var slot: Int
        fileprivate var generation: UInt32
    }

    private struct Entry {
        var deadline: UInt64
        var sequence: UInt64
        var token: Token
    }

    private struct Slot {
        var generation: UInt32 = 0
        var handler: (() -> Void)?
        var abandoned: (() -> Void)?
    }

    private var heap: [Entry] = []
    private var slots: [Slot] = []
    private var freeSlots: [Int] = []
    private var dead = 0
    private var nextSequence: UInt64 = 0

    /// Timers that are neither fired nor cancelled.
    var count: Int { heap.count - dead }
    /// With the dead ones that still take up room.
    var entries: Int { heap.count }
    var slotCount: Int { slots.count }
    /// The number of timers started so far: see `popDue`.
    var started: UInt64 { nextSequence }

    /// Nanoseconds of the monotonic clock at which the earliest timer is due.
    mutating func earliest() -> UInt64? {
        dropDeadAtTop()
        return heap.first?.deadline
    }

    /// - Parameter abandoned: called by whoever runs what `removeAll` returns, instead of the handler.
    mutating func start(at deadline: UInt64, abandoned: (() -> Void)? = nil, _ handler: @escaping () -> Void) -> Token {
        let slot: Int
        if let reused = freeSlots.popLast() {
            slot = reused
        } else {
            slot = slots.count
            slots.append(Slot())
        }
        slots[slot].handler = handler
        slots[slot].abandoned = abandoned
        let token = Token(slot: slot, generation: slots[slot].generation)
        heap.append(Entry(deadline: deadline, sequence: nextSequence, token: token))
        nextSequence += 1
        siftUp(heap.count - 1)
        return token
    }

    /// Nothing happens when the timer has fired or was cancelled before.
    mutating func cancel(_ token: Token) {
        guard release(token) != nil else { return }
        dead += 1
        if dead > 64, dead > heap.count / 2 { compact() }
    }

    /// The handler of one timer due at `now`, in order of deadline, then of starting; nil when none is, or when the next one
    /// was not among the first `limit` that were started: a timer that starts itself anew is due in the next turn only.
    mutating func popDue(_ now: UInt64, limit: UInt64) -> (() -> Void)? {
        dropDeadAtTop()
        guard let first = heap.first, first.deadline <= now, first.sequence < limit else { return nil }
        removeTop()
        return release(first.token)
    }

    /// Cancels every timer and returns what their owners are to be told.
    mutating func removeAll() -> [() -> Void] {
        let abandoned = slots.compactMap(\.abandoned)
        for slot in slots.indices where slots[slot].handler != nil {
            _ = release(Token(slot: slot, generation: slots[slot].generation))
        }
        heap.removeAll()
        dead = 0
        return abandoned
    }

    private mutating func release(_ token: Token) -> (() -> Void)? {
        guard slots[token.slot].generation == token.generation, let handler = slots[token.slot].handler else { return nil }
        slots[token.slot].handler = nil
        slots[token.slot].abandoned = nil
        slots[token.slot].generation &+= 1
        freeSlots.append(token.slot)
        return handler
    }

    private func isDead(_ entry: Entry) -> Bool {
        slots[entry.token.slot].generation != entry.token.generation
    }

    private mutating func dropDeadAtTop() {
        while dead > 0, let first = heap.first, isDead(first) {
            removeTop()
            dead -= 1
        }
    }

    private mutating func compact() {
        let all = slots
        heap.removeAll { all[$0.token.slot].generation != $0.token.generation }
        dead = 0
        for index in stride(from: heap.count / 2 - 1, through: 0, by: -1) { siftDown(index) }
    }

    private mutating func removeTop() {
        let last = heap.removeLast()
        if !heap.isEmpty {
            heap[0] = last
            siftDown(0)
        }
    }

    private func precedes(_ a: Entry, _ b: Entry) -> Bool {
        a.deadline != b.deadline ? a.deadline < b.deadline : a.sequence < b.sequence
    }

    private mutating func siftUp(_ start: Int) {
        var index = start
        while index > 0 {
            let parent = (index - 1) / 2
            guard precedes(heap[index], heap[parent]) else { return }
            heap.swapAt(index, parent)
            index = parent
        }
    }

    private mutating func siftDown(_ start: Int) {
        var index = start
        while true {
            var smallest = index
            for child in [2 * index + 1, 2 * index + 2] where child < heap.count && precedes(heap[child], heap[smallest]) {
                smallest = child
            }
            guard smallest != index else { return }
            heap.swapAt(index, smallest)
            index = smallest
        }
    }
}
