internal import GatewayCore

/// What a follower of the log has shown: each hop once, also when the connection was away.
struct FollowMemory {
    private let capacity: Int
    private var shown: Set<RequestID> = []
    /// In the order in which they were shown, the oldest at `oldest`.
    private var order: [RequestID] = []
    private var oldest = 0
    /// Nothing up to here is read again.
    private var floor = RequestID(.zero)
    /// Milliseconds since 1970 of the newest hop that was heard of.
    private var newest: UInt64

    /// - Parameters:
    ///   - capacity: hops that are remembered, > 0.
    ///   - now: milliseconds since 1970.
    init(capacity: Int, now: UInt64) { (self.capacity, newest) = (capacity, now) }

    /// Whether it was not shown yet; it counts as shown from now on.
    mutating func show(_ id: RequestID) -> Bool {
        guard shown.insert(id).inserted else { return false }
        heard(of: id)
        if order.count < capacity {
            order.append(id)
        } else {
            floor = max(floor, order[oldest])
            shown.remove(order[oldest])
            order[oldest] = id
            oldest = (oldest + 1) % capacity
        }
        return true
    }

    mutating func heard(of id: RequestID) { newest = max(newest, id.uuid.milliseconds) }

    /// Nothing up to this hop is wanted.
    mutating func begin(after id: RequestID) { floor = max(floor, id) }

    /// After which id to read again when announcements were missed: batches commit out of order, so from a while before the
    /// newest hop, but nothing whose showing is forgotten.
    ///
    /// - Parameter overlap: milliseconds.
    func resumption(overlap: UInt64) -> RequestID {
        let moment = newest > overlap ? newest - overlap : 0
        return max(floor, RequestID(UUIDBits(high: moment << 16, low: 0)))
    }
}
