import ArgumentParser
import GatewayStore
import Postgres

struct DoctorCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor", abstract: "Check that quota, ledger, log and holds agree, and that somebody sees to what is due.",
        discussion: """
            Everything is compared in one snapshot, so traffic may go on. Notes are worth knowing, but nothing is wrong. With --repair, \
            what is certain is put right in one transaction: held from leases and flows, used and available from the ledger unless the \
            log contradicts it, resets and expired flows that nobody has seen to, partitions of the log. Everything else is yours to \
            decide.

            Exits with 0 where nothing is wrong or all was repaired, with 1 where something is, with 2 where it could not look.
            """)

    @Flag(help: "Repair what is certain, and say what was done.") var repair = false
    @Flag(help: "Leave out what reads the whole log and the whole ledger, which takes a while where they are long.") var skipLog = false
    @OptionGroup var database: DatabaseOptions
    @Flag(help: "Print JSON.") var json = false

    func run() async throws {
        let report: Report
        do {
            report = try await database.withClient { client, _ in
                let doctor = Doctor(client, actor: DatabaseOptions.actor)
                let repairs = repair ? try await doctor.repair() : []
                return Report(repairs: repairs, left: try await doctor.examine(log: !skipLog))
            }
        } catch let code as ExitCode where code == ExitCode(1) {
            throw ExitCode(2)
        }
        if json { Output.line(report.json.text) } else { report.lines.forEach(Output.line) }
        if report.left.contains(where: { !$0.isNote }) { throw ExitCode(1) }
    }

    private struct Report {
        var repairs: [Repair]
        var left: [Finding]

        var lines: [String] {
            var lines = repairs.map { ($0.isLeft ? "left      " : "repaired  ") + Table.printable($0.message) }
            for finding in left {
                let place = finding.place.map { "\($0): " } ?? ""
                lines.append((finding.isNote ? "note      " : "wrong     ") + Table.printable(place + finding.message))
                if let hint = finding.hint { lines.append("          " + Table.printable(hint)) }
            }
            let wrong = left.count { !$0.isNote }
            lines.append(wrong == 0 ? "nothing is wrong" : "\(wrong) \(wrong == 1 ? "thing is" : "things are") wrong")
            return lines
        }

        var json: JSON {
            .object([
                (name: "repairs", value: .array(repairs.map(\.json))), (name: "findings", value: .array(left.map(\.json))),
            ])
        }
    }
}

extension Finding {
    fileprivate var json: JSON {
        .object([
            (name: "check", value: .string(check.rawValue)), (name: "severity", value: .string(isNote ? "note" : "wrong")),
            (name: "place", value: JSON(place)), (name: "message", value: .string(message)), (name: "hint", value: JSON(hint)),
            (name: "numbers", value: .object(numbers.map { (name: $0.name, value: .number($0.value)) })),
        ])
    }
}

extension Repair {
    fileprivate var json: JSON {
        .object([
            (name: "what", value: .string(what)), (name: "object", value: .string(object)), (name: "was", value: JSON(was)),
            (name: "became", value: JSON(became)), (name: "message", value: .string(message)),
        ])
    }
}
