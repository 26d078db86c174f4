internal import GatewayCore

/// One gateway node of a simulation: a lease book, a spool that survives it, and a connection to the store.
struct SimulatedNode {
    /// Goes up when the process dies: what was meant for an earlier life is dropped.
    var life = 0
    var isAlive = false
    var book = LeaseBook()
    /// The node's clock runs so far ahead of the simulation's.
    var clockOffset: Int64 = 0
    var pausedUntil: Int64 = 0
    var holder: SpoolHolder

    /// The current connection, nil while there is none; one number each.
    var connection: Int?
    /// Whether it has read its leases over it.
    var hasReadLeases = false
    /// Messages of one connection arrive in order.
    var lastDelivery: Int64 = 0
    var lastReply: Int64 = 0
    var timerAt: Int64 = .max

    var spool: [ModelFrame] = []
    /// Frames that earlier lives wrote: shipped before this one began.
    var inherited = 0
    /// Units of those frames that a failover forgot after this life had shipped them: it may have given them back.
    var reopened: [ModelStore.RowPeriod: Int64] = [:]

    struct Waiting {
        var want: QuotaWant
        var arrived: UInt64
        /// By the node's clock.
        var since: Int64
    }
    var waiting: [QuotaTicket: Waiting] = [:]
    var inFlight: [Int: QuotaHold] = [:]

    /// What the last answer for a row said, and when its question was sent.
    struct Evidence {
        var sent: UInt64
        var free: Int64
        var isAssigned: Bool
        var heldByOthers: Bool
    }
    var evidence: [QuotaRow: Evidence] = [:]
    var askSent: [UInt64: (sequence: UInt64, rows: [QuotaRow])] = [:]

    var flows = FlowBook()
    var flowTickets: [FlowTicket: FlowWork] = [:]
    /// The store's last words about starts that wait.
    var flowEvidence: [ReservationID: FlowStartReply] = [:]
    var flowStarts: [UInt64: [FlowStart]] = [:]

    init(spool: Int) { holder = SpoolHolder(spool: spool, epoch: 0) }
}

/// Who speaks to the store of a spool and its leases.
struct SpoolHolder {
    var spool: Int
    var epoch: Int64
}

/// What a node does for a flow, from a client's request to its answer.
enum FlowWork {
    case start(FlowStart)
    case hop(FlowHop)
    case settle(FlowSettlement)
    case resolve(FlowResolution)

    var id: ReservationID {
        switch self {
        case .start(let start): start.id
        case .hop(let hop): hop.id
        case .settle(let settlement): settlement.id
        case .resolve(let resolution): resolution.id
        }
    }
}

enum StoreRequest {
    case ask(UInt64, [LeaseQuestion])
    case giveBack(UInt64, [LeaseReturn])
    case read(UInt64)
    case takeFlows(UInt64, FlowTurn)
}

enum StoreReply {
    case answers(UInt64, [LeaseAnswer])
    case gaveBack(UInt64)
    case leases(UInt64, [LeaseRecord])
    case flowsTaken(UInt64, FlowTurnAnswers)
    case refused(StoreRequest)
    case fenced
}

enum SimulationEvent {
    case arrive(Int)
    /// The upstream's head says what the request costs, before it ends.
    case report(Int, life: Int, request: Int)
    case finish(Int, life: Int, request: Int)
    case timer(Int, life: Int)
    case request(Int, life: Int, SpoolHolder, connection: Int, StoreRequest)
    case reply(Int, life: Int, connection: Int, StoreReply)
    case connect(Int, life: Int)
    case noticeLoss(Int, life: Int)
    case recall(Int, life: Int, QuotaRow)
    case flowArrive
    /// A client's request about a flow reaches the node, or the upstream's answer does.
    case flowWork(Int, FlowWork)
    case flowAnswer(Int, life: Int, FlowWork)
    case ship(Int, life: Int)
    case shipped(Int, life: Int, SpoolHolder, from: Int, [ModelFrame])
    case restart(Int)
    /// A process starts on a copy of a spool's disk, or on one that was set back.
    case adopt(spool: Int, [ModelFrame])
    case sweep
    case chaos
}
