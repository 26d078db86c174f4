/// The defaults of every number that bounds the gateway, in one place.  What a configuration file can change
/// says so by being a default of ``Configuration``; the rest bounds the file itself.
public enum Limits {
    // The front end.
    /// Bytes of a request target; above it 414.
    public static let requestTarget = 8 << 10
    /// Bytes of one header field, of all fields of a head, and how many there may be; above it 431.
    public static let headerField = 16 << 10
    public static let headerList = 64 << 10
    public static let headerFields = 128
    /// Bytes of a head that nothing else counts: the method, line ends, and blanks around values.
    public static let headBlanks = 4 << 10
    /// From the first byte of a request head to its last.
    public static let requestHead = Duration.seconds(10)
    /// Between two pieces of a request body.
    public static let bodyIdle = Duration.seconds(60)
    /// Between an answer and the next request of the connection.
    public static let keepAlive = Duration.seconds(75)
    /// Open connections of one worker.
    public static let connectionsPerWorker = 10_000
    /// Bytes of a request body where the route says nothing; above it 413.
    public static let requestBody = 16 << 20

    // Upstreams.
    /// Until a connection stands, until the answer's head begins, between two pieces of the answer, altogether.
    public static let upstreamConnect = Duration.seconds(2)
    public static let upstreamFirstByte = Duration.seconds(30)
    public static let upstreamIdle = Duration.seconds(60)
    public static let upstreamTotal = Duration.seconds(3600)
    /// Requests that wait for a connection to one upstream; the next gets 503.
    public static let waitingPerUpstream = 1_024
    /// Connections of one worker to one target.
    public static let connectionsPerTarget = 256
    /// Weight of one target.
    public static let targetWeight = 1...1_000

    // Keys.
    /// Entries of the key cache, remembered unknown keys, and for how long those are believed.
    public static let keyEntries = 100_000
    public static let negativeKeys = 10_000
    public static let negativeKeyTime = Duration.seconds(30)
    /// How long an entry may be used while the database is away.
    public static let staleKeyTime = Duration.seconds(3600)

    // Quota.
    /// How long a node admits from a lease after the database last answered for it.
    public static let leaseUse = Duration.seconds(10)
    /// A silent node's lease is written off after it.
    public static let leaseLostAfter = Duration.seconds(600)
    /// How long a request waits for units that other holders may give back before it is refused as held.
    public static let recallWait = Duration.milliseconds(100)
    /// Units that one request or flow may cost.
    public static let units: ClosedRange<Int> = 0...1_000_000_000_000

    // The log.
    /// Bytes of one worker's spool; when it is full the route's outage rule applies.
    public static let spoolSize = 1 << 30
    /// Shipped segments are kept so long, for a database that lost commits in a failover.
    public static let spoolKeep = Duration.seconds(3600)
    /// With `sync: interval`: how often the spool is synced to disk.
    public static let spoolSyncInterval = Duration.seconds(1)
    /// A batch is shipped at the first of these.
    public static let batchRows = 5_000
    public static let batchBytes = 1 << 20
    public static let batchTime = Duration.milliseconds(250)
    /// Refusals logged one row each, per second, node and reason; above it they are compressed.
    public static let refusalRowsPerSecond = 100

    // Flows.
    public static let flowTime = Duration.seconds(300)
    public static let flowTimeMax = Duration.seconds(86_400)
    public static let flowHops = 100
    public static let openFlowsPerKey = 100
    /// Statuses of an answer that are success of a flow.
    public static let flowSuccess: [ClosedRange<UInt16>] = [200...399]
    /// The claim of a finish is void after so long, unless its node, while the hop is on its way, renews it: this often.
    public static let flowClaim = Duration.seconds(300)
    public static let flowClaimRenewal = Duration.seconds(15)

    // The sweeper.
    /// How often abandoned flows and due resets are looked for, and how many of them at a time.
    public static let sweep = Duration.seconds(1)
    public static let sweepRows = 1_000
    /// How long a session must have been connected before it may judge flows and holders: after a restart or a
    /// failover everybody has been silent.
    public static let sweepConnected = Duration.seconds(60)
    /// How often silent holders are looked for, settled leases dropped, and the days ahead given their partitions.
    public static let sweepHolders = Duration.seconds(10)
    public static let sweepLeases = Duration.seconds(60)
    public static let leaseKeep = Duration.seconds(3600)
    public static let sweepPartitions = Duration.seconds(600)
    public static let partitionDays = 7

    // The node.
    /// Workers of one node.
    public static let workers = 1...256
    /// After SIGTERM: how long requests in flight may take.
    public static let drain = Duration.seconds(30)

    // The configuration file.
    public static let configurationBytes = 4 << 20
    public static let configurationNesting = 32
    public static let routes = 10_000
    public static let upstreams = 1_000
    public static let targets = 256
    public static let headerConditions = 8
    public static let pathSegments = 64
}
