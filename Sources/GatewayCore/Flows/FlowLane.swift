/// Requests of one kind on their way to the store, in order of arrival: what waits goes with the next turn.
struct FlowLane<Request: FlowRequest> {
    struct Waiter {
        /// nil: nobody waits for the answer.
        let ticket: FlowTicket?
        let request: Request
        /// It is given up then.
        let until: Int64
        /// Not asked before.
        var askAt: Int64 = .min
        /// When it last went to the store; nil: the store cannot have heard it.
        var sentAt: Int64?
        /// Units were said to be short; a recall that may bring some is on its way.
        var isDenied = false
        /// When they were said to be so again: others had been asked for theirs by then.
        var recallHeardAt: Int64?
    }

    private(set) var waiting: [Waiter] = []
    /// What the turn in flight asks; those given up meanwhile are nil.
    private var inFlight: [Waiter?] = []
    private var notBefore: Int64 = .min
    /// No waiter is given up before.
    private var firstEnd: Int64 = .max
    private(set) var count = 0

    var isEmpty: Bool { count == 0 && inFlight.isEmpty }

    mutating func add(_ waiter: Waiter) {
        waiting.append(waiter)
        count += 1
        firstEnd = min(firstEnd, waiter.until)
    }

    /// What the next turn asks; empty: nothing now.  Of one flow only the first request goes, the next one may depend on
    /// its answer.
    mutating func send(at most: Int, now: Int64) -> [Request] {
        precondition(inFlight.isEmpty, "one turn at a time")
        guard now >= notBefore, !waiting.isEmpty else { return [] }
        var chosen: [Waiter] = []
        var flows: Set<ReservationID> = []
        var kept: [Waiter] = []
        for index in waiting.indices {
            guard chosen.count < most else {
                kept += waiting[index...]
                break
            }
            if waiting[index].askAt <= now, flows.insert(waiting[index].request.id).inserted {
                waiting[index].sentAt = now
                chosen.append(waiting[index])
            } else {
                kept.append(waiting[index])
            }
        }
        waiting = kept
        inFlight = chosen
        return chosen.map(\.request)
    }

    /// The turn was answered: those who asked, in the order of their answers.
    mutating func answered() -> [Waiter?] {
        defer { inFlight = [] }
        count -= inFlight.lazy.filter { $0 != nil }.count
        return inFlight
    }

    /// These have to be asked again, before those that came later.
    mutating func putBack(_ waiters: [Waiter]) {
        waiting.insert(contentsOf: waiters, at: 0)
        count += waiters.count
        for waiter in waiters { firstEnd = min(firstEnd, waiter.until) }
    }

    /// These are asked again in their turn, after all that wait: they do not keep others from being asked at all.
    mutating func askAgain(_ waiters: [Waiter]) {
        for waiter in waiters { add(waiter) }
    }

    /// The turn failed, or its connection: whether it had an effect shows when it is said again.
    mutating func failed(retryAt: Int64) {
        guard !inFlight.isEmpty else { return }
        putBack(answered().compactMap { $0 })
        notBefore = retryAt
    }

    /// Removes and returns those whose time is over.
    mutating func giveUp(_ now: Int64) -> [Waiter] {
        guard now >= firstEnd else { return [] }
        var gone: [Waiter] = []
        firstEnd = .max
        for index in inFlight.indices {
            guard let waiter = inFlight[index] else { continue }
            if waiter.until <= now {
                gone.append(waiter)
                inFlight[index] = nil
            } else {
                firstEnd = min(firstEnd, waiter.until)
            }
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
    ///
    /// - Parameter maySend: the store is there and no turn is in flight.
    func deadline(maySend: Bool) -> Int64 {
        guard maySend, !waiting.isEmpty else { return firstEnd }
        return min(firstEnd, max(notBefore, waiting.lazy.map(\.askAt).min() ?? .min))
    }
}
