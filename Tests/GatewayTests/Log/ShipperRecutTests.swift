import GatewayCore
import NIOCore
import TestKit
import Testing

@testable import Gateway

/// Batches have no identity: how many frames one has depends on the moment.
@Suite struct ShipperRecutTests {
    /// The process dies before it learns that its batch was booked, and the next one cuts what lies on the disk otherwise.
    @Test(arguments: [7, 20, 500]) func aBatchThatIsCutAgainAtAnotherLengthIsNotTakenForTheOneThatIsThere(_ length: Int) async throws {
        let database = try await TestDatabase.withQuota(nil)
        let root = TemporaryFolder()
        let worker = try await SpoolWorker(root)
        let first = try await LogNode(database.url) {
            $0.batchFrames = 20
            $0.retry = .hours(1)
        }
        try await first.tamper { $0.lostAnswers = 1 }
        var hops = Hops()
        var records = hops.plain(50, units: 1)
        try await worker.append(records)
        try await first.attach(worker)
        try await eventually("a batch is booked") { try await database.loggedIDs().count == 20 }
        try await first.end()
        let more = hops.plain(9, units: 1)
        records += more
        try await worker.append(more)
        try await worker.close()

        let second = try await LogNode(database.url) { $0.batchFrames = length }
        let disk = try root.copy()
        try await second.adopt(disk)
        try await eventually("adopted") { second.events == [.adopted(worker.id)] }
        #expect(try await database.loggedIDs() == records.map(\.id).sorted())
        #expect(try await database.numbers() == "59||0|59")
        let counters = try await second.counters()
        #expect(counters.rejected == 0 && counters.frames == 39)
        try await second.end()
    }
}
