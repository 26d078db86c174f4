/// Something that is not as it should be, or that an operator may want to know.
public struct Finding: Sendable, Equatable {
    /// What was looked at: stable words, for programs.
    public enum Check: String, Sendable, CaseIterable {
        // Equations.
        case used, limit, available, held, opening, log
        // Whom something belongs to.
        case flowTenant = "flow_tenant"
        case holder
        case chain
        case rejected
        case ledger
        // What somebody should have seen to.
        case reset, flow, silence
        case caught, partition
        // What the promises rest on.
        case durability, connections
    }

    public var check: Check
    /// True: nothing is wrong, but it may be worth knowing.
    public var isNote: Bool
    /// What it is about, `acme/shop/prod orders/1, period 3`; nil: the whole database.
    public var place: String?
    public var message: String
    /// What to do about it.
    public var hint: String?
    /// The numbers of the message, by name.
    public var numbers: [Number]

    public struct Number: Sendable, Equatable {
        public var name: String
        public var value: Int64

        init(_ name: String, _ value: Int64) { (self.name, self.value) = (name, value) }
    }

    init(
        _ check: Check, isNote: Bool = false, at place: String? = nil, _ message: String, hint: String? = nil, _ numbers: Number...
    ) {
        (self.check, self.isNote, self.place, self.message) = (check, isNote, place, message)
        (self.hint, self.numbers) = (hint, numbers)
    }
}

/// Something that ``Doctor/repair()`` did.
public struct Repair: Sendable, Equatable {
    /// partition · moved · log_busy · flows · flows_early · hops · reset · schedule · held · used · available
    public var what: String
    /// A day, or a row of quota.
    public var object: String
    public var was: Int64?
    public var became: Int64?

    /// What was meant to be done and could not be done now.
    public var isLeft: Bool { what == "log_busy" || what == "flows_early" }

    public var message: String {
        switch what {
        case "partition": "the log has a partition for \(object)"
        case "moved": "\(became ?? 0) rows of the log moved to the partition of \(object)"
        case "log_busy": "partitions of the log were left alone: somebody uses it just now"
        case "flows": "\(became ?? 0) expired flows were given back"
        case "flows_early": "expired flows were left alone: the server came up a moment ago, and nodes may still settle them"
        case "hops": "\(became ?? 0) hops of flows that are no more were removed"
        case "reset": "\(object): the period that was over is reset"
        case "schedule": "\(object): the next reset is when the calendar has it"
        default: "\(object): \(what) was \(text(was)), is \(text(became))"
        }
    }

    private func text(_ number: Int64?) -> String { number.map { "\($0)" } ?? "nothing" }
}
