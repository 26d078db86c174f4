/// What a worker asks of the store about its flows at once: one transaction, its parts carried out in this order.  Of one
/// flow a part has at most one request.
public struct FlowTurn: Sendable, Equatable {
    public var hops: [FlowHop] = []
    public var orders: [FlowOrder] = []
    public var starts: [FlowStart] = []
    public var notes: [FlowNote] = []

    public init() {}

    /// How many parts there are.
    static let kinds = 4

    public var isEmpty: Bool { hops.isEmpty && orders.isEmpty && starts.isEmpty && notes.isEmpty }
}

/// The store's answers to a turn, one a request and in its order; notes have none.
public struct FlowTurnAnswers: Sendable, Equatable {
    public var hops: [FlowHopAnswer] = []
    public var orders: [FlowSettled] = []
    public var starts: [FlowStartReply] = []

    public init() {}
}
