/// Requests of one kind on their way to the store, in order of arrival: at most one statement is in flight, what waits
/// goes with the next one.
struct FlowLane<Request: FlowRequest> {
    struct Waiter {
        /// nil: nobody waits for the answer.
        let ticket: FlowTicket?
        let request: Request
        /// It is given up then.
        let until: Int64
        /// Not asked before.
        var askAt: Int64 = .min
        /// Whether the store may have heard it.
        var wasSent = false
        /// When units were first said to be short although a recall may bring some.
        var deniedAt: Int64?
    }

    private(set) var waiting: [Waiter] = []
    /// Those given up meanwhile are nil.
    private var inFlight: (number: UInt64, waiters: [Waiter?])?
    private var notBefore: Int64 = .min
    /// No waiter is given up before.
    private var firstEnd: Int64 = .max
    private(set) var count = 0

    var isEmpty: Bool { count == 0 && inFlight == nil }

    mutating func add(_ waiter: Waiter) {
        waiting.append(waiter)
        count += 1
        firstEnd = min(firstEnd, waiter.until)
    }

    /// What the next statement asks; nil: nothing now.  Of one flow only the first request goes, the next one may
    /// depend on its answer.
    mutating func send(_ number: UInt64, at most: Int, now: Int64) -> [Request]? {
        guard inFlight == nil, now >= notBefore, !waiting.isEmpty else { return nil }
        var chosen: [Waiter] = []
        var flows: Set<ReservationID> = []
        var kept: [Waiter] = []
        for index in waiting.indices {
            guard chosen.count < most else {
                kept += waiting[index...]
                break
            }
            if waiting[index].askAt <= now, flows.insert(waiting[index].request.id).inserted {
                waiting[index].wasSent = true
                chosen.append(waiting[index])
            } else {
                kept.append(waiting[index])
            }
        }
        guard !chosen.isEmpty else { return nil }
        waiting = kept
        inFlight = (number, chosen)
        return chosen.map(\.request)
    }

    /// The statement was answered; nil: it is not the one in flight.
    mutating func answered(_ number: UInt64) -> [Waiter?]? {
        guard let statement = inFlight, statement.number == number else { return nil }
        inFlight = nil
        count -= statement.waiters.lazy.filter { $0 != nil }.count
        return statement.waiters
    }

    /// These have to be asked again, before those that came later.
    mutating func putBack(_ waiters: [Waiter]) {
        waiting.insert(contentsOf: waiters, at: 0)
        count += waiters.count
        for waiter in waiters { firstEnd = min(firstEnd, waiter.until) }
    }

    /// The statement failed, or its connection: whether it had an effect shows when it is said again.
    mutating func failed(_ number: UInt64? = nil, retryAt: Int64) {
        guard let statement = inFlight, number == nil || statement.number == number else { return }
        _ = answered(statement.number)
        putBack(statement.waiters.compactMap { $0 })
        notBefore = retryAt
    }

    /// Removes and returns those whose time is over.
    mutating func giveUp(_ now: Int64) -> [Waiter] {
        guard now >= firstEnd else { return [] }
        var gone: [Waiter] = []
        firstEnd = .max
        if var statement = inFlight {
            for index in statement.waiters.indices {
                guard let waiter = statement.waiters[index] else { continue }
                if waiter.until <= now {
                    gone.append(waiter)
                    statement.waiters[index] = nil
                } else {
                    firstEnd = min(firstEnd, waiter.until)
                }
            }
            inFlight = statement
        }
        waiting.removeAll { waiter in
            if waiter.until <= now {
                gone.append(waiter)
                return true
            }
            firstEnd = min(firstEnd, waiter.until)
            return false
        }
        count -= gone.count
        return gone
    }

    /// When there is something to do next.
    func deadline(isReady: Bool) -> Int64 {
        guard isReady, inFlight == nil, !waiting.isEmpty else { return firstEnd }
        return min(firstEnd, max(notBefore, waiting.lazy.map(\.askAt).min() ?? .min))
    }
}
