import ArgumentParser
import GatewayStore
import Glibc

struct NodeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "node", abstract: "Nodes, as the database knows them: a spool for each of their workers.",
        subcommands: [List.self, Forget.self])

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "List spools, those heard of last first.",
            discussion: """
                A spool that is idle is silent, too: it holds nothing. Those that hold nothing and have been silent for a day are \
                left out.
                """)

        @Flag(help: "Leave none out.") var all = false
        @OptionGroup var database: DatabaseOptions
        @OptionGroup var result: ResultOptions

        func run() async throws {
            try await database.administer { admin in
                result.list(
                    try await admin.spools(all: all).map(\.fields),
                    columns: ["node", "id", "epoch", "shipped_to", "heard_at", "silent", "open", "lost"])
            }
        }
    }

    struct Forget: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Say that a node is gone for good, and what becomes of the units that it holds.",
            discussion: """
                They are charged, because the node may have answered requests with them; --refund gives them back at once. A node that is \
                not gone after all admits nothing more until it is restarted: then its log is shipped, and what was charged too much is \
                refunded as long as the period lasts.
                """)

        @Argument(help: "A spool's id.") var spool: String
        @Flag(help: "Give its units back instead of charging them.") var refund = false
        @Flag(name: .shortAndLong, help: "Do not ask.") var yes = false
        @OptionGroup var database: DatabaseOptions

        func run() async throws {
            try await database.administer { admin in
                let found = try await admin.spool(spool)
                Output.error(question(found))
                guard yes || Self.isConfirmed() else {
                    Output.error("error: nothing was done")
                    Output.error("hint: --yes does it without asking")
                    throw ExitCode(1)
                }
                let units = try await admin.forgetSpool(found.id, refund: refund)
                Output.line("\(units) units were \(refund ? "given back" : "charged")")
            }
        }

        private func question(_ spool: SpoolRecord) -> String {
            let who = spool.node.map { "node \($0)" } ?? "a node that the database does not know"
            let fate = refund ? "given back: those that it used are sold twice" : "charged"
            return Table.printable(
                "The spool \(spool.id) of \(who), silent for \(SpoolRecord.text(spool.silence)), is forgotten; the \(spool.open) units "
                    + "it holds are \(fate).")
        }

        /// False also where there is nobody to ask.
        private static func isConfirmed() -> Bool {
            guard isatty(STDIN_FILENO) == 1 else { return false }
            _ = Output.write("Type yes to go on: ", to: STDERR_FILENO)
            return readLine() == "yes"
        }
    }
}

extension SpoolRecord {
    var fields: [Field] {
        [
            Field("node", node), Field("id", id), Field("epoch", JSON(epoch), text: epoch.map { "\($0)" } ?? "-"),
            Field("shipped_to", JSON(shippedTo), text: shippedTo.map { "\($0)" } ?? "-"), Field("opened_at", moment: openedAt),
            Field("heard_at", moment: heardAt), Field("silent", .number(silence / 1_000_000), text: Self.text(silence)),
            Field("open", open), Field("lost", lost),
        ]
    }

    /// `12 s`, `7 min`, `3 h`, `2 d`, from microseconds.
    static func text(_ microseconds: Int64) -> String {
        let seconds = max(microseconds / 1_000_000, 0)
        switch seconds {
        case ..<120: return "\(seconds) s"
        case ..<7_200: return "\(seconds / 60) min"
        case ..<172_800: return "\(seconds / 3_600) h"
        default: return "\(seconds / 86_400) d"
        }
    }
}
