internal import Postgres

extension Doctor {
    /// The numbers of each row of quota beside what explains them.
    static let quotaQuestions = [
        Question(
            "balance",
            """
            SELECT pandora.pair_name(b.environment_id, b.service_id) || ', period ' || b.period, b.max_request, b.used_request,
                   b.available_request, b.held_request, \(whole("b.ledger_used")), \(whole("b.ledger_limit")), b.openings,
                   \(whole("b.leased")), \(whole("b.reserved")), \(whole("b.leased + b.reserved"))
              FROM pandora.quota_balance b
             WHERE b.is_wrong OR b.openings <> 1 OR b.ledger_limit <> coalesce(b.max_request, 0)
             ORDER BY b.environment_id, b.service_id LIMIT \(namesMax)
            """
        ) { rows in rows.flatMap { Balance($0).findings } }
    ]

    private struct Balance {
        var place: String
        var limit: Int64?
        var used: Int64
        var available: Int64?
        var held: Int64
        var ledgerUsed: Int64
        var ledgerLimit: Int64
        var openings: Int64
        var leased: Int64
        var reserved: Int64
        /// Of both.
        var holds: Int64

        init(_ row: Row) {
            (place, limit, used) = (row.string(0), row.int64(1), row.int64(2))
            (available, held, ledgerUsed) = (row.int64(3), row.int64(4), row.int64(5))
            (ledgerLimit, openings, leased, reserved) = (row.int64(6), row.int64(7), row.int64(8), row.int64(9))
            holds = row.int64(10)
        }

        private static let repair = "pandora doctor --repair"

        var findings: [Finding] {
            var findings: [Finding] = []
            if openings != 1 {
                findings.append(
                    Finding(
                        .opening, at: place, "the ledger has \(openings) rows that open the period instead of one",
                        hint: "the ledger does not explain this period: it is not repaired from it", .init("openings", openings)))
            }
            if used != ledgerUsed {
                findings.append(
                    Finding(
                        .used, at: place, "\(used) units are used, but the ledger explains \(ledgerUsed)",
                        hint: openings == 1 && ledgerUsed >= 0 ? Self.repair + ", unless the log contradicts the ledger" : nil,
                        .init("used", used), .init("ledger", ledgerUsed)))
            }
            if ledgerLimit != limit ?? 0 {
                findings.append(
                    Finding(
                        .limit, at: place, "the limit is \(limit.map(String.init) ?? "unlimited"), but the ledger explains \(ledgerLimit)",
                        hint: "somebody changed the limit past the schema's triggers: which of both is right is not known",
                        .init("limit", limit ?? 0), .init("ledger", ledgerLimit)))
            }
            if available != limit.map({ $0 - used }) {
                findings.append(
                    Finding(
                        .available, at: place,
                        "\(Self.text(available)) units are available, but the limit less what is used is "
                            + Self.text(limit.map { $0 - used }),
                        hint: Self.repair, .init("available", available ?? 0), .init("limit", limit ?? 0), .init("used", used)))
            }
            if held != holds {
                findings.append(
                    Finding(
                        .held, at: place, "\(held) units are held, but leases have \(leased) open and flows \(reserved)",
                        hint: Self.repair, .init("held", held), .init("leased", leased), .init("reserved", reserved)))
            }
            return findings
        }

        private static func text(_ units: Int64?) -> String { units.map { "\($0)" } ?? "unlimited" }
    }
}
