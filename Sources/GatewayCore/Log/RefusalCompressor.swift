/// Keeps a flood of refused requests out of the log without losing count: up to so many rows a second of each reason go
/// through (``RefusalRows``), the rest become one row per second, reason and network (/24 or /64) that says how many it stands
/// for.
///
/// A value without a clock: `now` is microseconds of any clock that does not go back.
public struct RefusalCompressor: Sendable {
    public enum Verdict: Equatable, Sendable {
        /// Log the record as it is.
        case log
        /// The record opened a group: it is kept, and what it stands for comes out of `takeDue`.
        case opened
        /// The record was counted in a group.
        case counted
    }

    private struct GroupKey: Hashable {
        var reason: Refusal
        /// Nil: the networks beyond what a second may tell apart.
        var network: RemoteAddress?
    }

    private let rows: RefusalRows
    private let groupsMax: Int
    private var second: Int64 = .min
    private var groups: [GroupKey: HopRecord] = [:]

    /// - Parameters:
    ///   - rows: that are logged one by one.
    ///   - groupsMax: networks told apart in one second; those beyond share a group for each reason.
    public init(_ rows: RefusalRows, groupsMax: Int = 1_000) {
        self.rows = rows
        self.groupsMax = groupsMax
    }

    /// Judges the record of a refused request. Call `takeDue` first: groups of an older second must be out.
    public mutating func judge(_ record: HopRecord, reason: Refusal, now: Int64) -> Verdict {
        enter(now)
        if rows.take(reason, second: second) { return .log }
        var key = GroupKey(reason: reason, network: record.remoteAddress?.network)
        if groups[key] == nil, groups.count >= groupsMax { key.network = nil }
        guard let index = groups.index(forKey: key) else {
            var first = record
            first.remoteAddress = key.network
            groups[key] = first
            return .opened
        }
        let (repeats, overflow) = groups.values[index].repeats.addingReportingOverflow(max(record.repeats, 1))
        groups.values[index].repeats = overflow ? .max : repeats
        return .counted
    }

    /// When the open groups are due; nil where there are none.
    public var due: Int64? { groups.isEmpty ? nil : (second + 1) * 1_000_000 }

    /// The groups of seconds that are over, each as one record.
    ///
    /// - Parameter all: also those of the present second, because the log is about to close.
    public mutating func takeDue(now: Int64, all: Bool = false) -> [HopRecord] {
        guard let due, all || now >= due else { return [] }
        let records = Array(groups.values)
        groups.removeAll(keepingCapacity: true)
        return records
    }

    private mutating func enter(_ now: Int64) {
        let current = now / 1_000_000
        guard current != second else { return }
        precondition(groups.isEmpty, "takeDue comes before judge")
        second = current
    }
}
