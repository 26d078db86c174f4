import GatewayCore
import NIOCore
import Postgres
import TestKit
import Testing

@testable import GatewayStore

@Suite struct LogTests {
    private static let spools = ["11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"]

    /// An id of a moment, milliseconds before now, with a number to tell it apart.
    private func id(_ age: UInt64, _ number: UInt64) -> RequestID {
        let now = UInt64(WallClock.milliseconds)
        return RequestID(UUIDBits(high: (now - age) << 16 | 0x7000, low: 0x8000_0000_0000_0000 | number))
    }

    /// What a shipper does: rows and their announcement, in one transaction.
    private func ship(
        _ ids: [RequestID], spool: Int = 0, columns: [String: String] = [:], _ client: PostgresClient
    ) async throws {
        let columns = ["execution_status": "'success'"].merging(columns) { $1 }.sorted { $0.key < $1.key }
        let rows = ids.map { id in
            "(\((["'\(id)'", "'\(Self.spools[spool])'"] + columns.map(\.value)).joined(separator: ", ")))"
        }
        let names = ["id", "spool_id"] + columns.map(\.key)
        try await client.script(
            """
            INSERT INTO pandora.request_logs (\(names.joined(separator: ", "))) VALUES \(rows.joined(separator: ", "));
            SELECT pg_notify('pandora_log', '\(Self.spools[spool]) \(ids.min()!) \(ids.max()!)');
            """)
    }

    // MARK: Reading

    @Test func theNewestComeLastAndWithNames() async throws {
        try await withStore { store in
            try await store.seed(limit: nil)
            let ids = (0..<5).map { id(5000 - $0 * 1000, $0) }
            let columns = ["environment_id": "1", "service_id": "1", "status_code": "200", "remote_address": "'10.1.2.3'"]
            try await ship(ids, columns: columns, store.client)
            let entries = try await LogReader(store.client).newest(3)
            #expect(entries.map(\.id) == ids.suffix(3).map { "\($0)" })
            #expect(entries[0].environmentPath == "c/p/e1" && entries[0].servicePath == "s/1" && entries[0].statusCode == 200)
            #expect(entries[0].remoteAddress == "10.1.2.3")
        }
    }

    @Test func filtersNarrow() async throws {
        try await withStore { store in
            try await store.seed(limit: nil, environments: 2)
            let key = try await store.admin.createKey(environment: 1, name: nil).key.id
            let root = id(4000, 1)
            let first = ["environment_id": "1", "service_id": "1", "status_code": "200", "api_key": "'\(key)'"]
            try await ship([root], columns: first, store.client)
            let second = [
                "environment_id": "1", "service_id": "1", "status_code": "404", "execution_status": "'client_error'",
                "start_point": "'\(root)'",
            ]
            try await ship([id(3000, 2)], columns: second, store.client)
            let third = [
                "environment_id": "2", "status_code": "429", "execution_status": "'unauthorized'",
                "unauthorized_reason": "'QUOTA_EXCEEDED'",
            ]
            try await ship([id(2000, 3)], columns: third, store.client)
            try await ship([id(7_200_000, 4)], columns: ["environment_id": "2", "status_code": "200"], store.client)

            func numbers(_ fill: (inout LogFilter) -> Void) async throws -> [UInt64] {
                var filter = LogFilter()
                fill(&filter)
                return try await LogReader(store.client).newest(50, filter).map { RequestID($0.id)!.uuid.low & 0xff }
            }
            #expect(try await numbers { _ in } == [4, 1, 2, 3])
            #expect(try await numbers { $0.age = 3_600_000_000 } == [1, 2, 3])
            #expect(try await numbers { $0.environmentID = 2 } == [4, 3])
            #expect(try await numbers { $0.keyID = KeyID(key) } == [1])
            #expect(try await numbers { $0.serviceIDs = [1, 9] } == [1, 2])
            #expect(try await numbers { $0.status = .codes(4) } == [2, 3])
            #expect(try await numbers { $0.status = .code(429) } == [3])
            #expect(try await numbers { $0.status = .execution(.clientError) } == [2])
            #expect(try await numbers { $0.chain = root } == [1, 2])
            #expect(try await numbers { ($0.environmentID, $0.status) = (1, .execution(.success)) } == [1])
        }
    }

    @Test func aTimeFilterLeavesWholePartitionsOut() async throws {
        try await withStore { store in
            try await store.run("SELECT ensure_log_partition((now() AT TIME ZONE 'UTC')::date - 2)")
            let old = try await store.run("SELECT 'request_logs_' || to_char(now() AT TIME ZONE 'UTC' - interval '2 days', 'YYYYMMDD')")[0]
            let everything = try await store.run("EXPLAIN SELECT * FROM request_logs l").joined(separator: "\n")
            #expect(everything.contains(old))
            var condition = LogCondition(LogFilter())
            condition.add(age: 60_000_000)
            let sql = condition.sql.replacing("$1", with: "60000000")
            let plan = try await store.run("EXPLAIN SELECT * FROM request_logs l WHERE \(sql)").joined(separator: "\n")
            #expect(plan.contains("Subplans Removed") && !plan.contains(old), "\(plan)")
        }
    }

    /// Also on a day whose partition was made just now.
    @Test func theHopsOfAKeyAndOfAChainAreFoundByAnIndex() async throws {
        try await withStore { store in
            try await store.run(
                """
                SELECT ensure_log_partition((now() AT TIME ZONE 'UTC')::date - 2);
                INSERT INTO request_logs (id, execution_status, api_key, start_point)
                    SELECT typeid('req', uuid_v7(now() - interval '2 days')), 'success', 'key_' || n % 1000, 'req_' || n % 1000
                      FROM generate_series(1, 5000) AS n;
                """)
            let day = try await store.run("SELECT 'request_logs_' || to_char(now() AT TIME ZONE 'UTC' - interval '2 days', 'YYYYMMDD')")[0]
            try await store.run("ANALYZE \(day)")
            let root = RequestID(UUIDBits(high: 1, low: 1))
            func plan(_ fill: (inout LogFilter) -> Void) async throws -> String {
                var filter = LogFilter()
                fill(&filter)
                let condition = LogCondition(filter).sql.replacing("$1", with: filter.keyID == nil ? "'req_7'" : "'key_7'")
                return try await store.run(
                    "EXPLAIN SELECT * FROM request_logs l WHERE \(condition) ORDER BY l.id DESC LIMIT 100"
                ).joined(separator: "\n")
            }
            let plans = [
                try await plan { _ in }, try await plan { $0.keyID = KeyID("key_00000000000000000000000001")! },
                try await plan { $0.chain = root },
            ]
            for plan in plans { #expect(plan.contains(day) && !plan.contains("Seq Scan on \(day)"), "\(plan)") }
        }
    }

    @Test func aChainIsFoundFromEachOfItsHops() async throws {
        try await withStore { store in
            let reader = LogReader(store.client)
            let (root, second, third, stranger) = (id(4000, 1), id(3000, 2), id(2000, 3), id(1000, 4))
            try await ship([root], columns: ["environment_id": "1"], store.client)
            try await ship([second, third], columns: ["environment_id": "1", "start_point": "'\(root)'"], store.client)
            // Somebody else's row that claims the same chain.
            try await ship([stranger], columns: ["environment_id": "2", "start_point": "'\(root)'"], store.client)
            for hop in [root, second, third] {
                let chain = try await reader.chain(of: hop)
                #expect(chain?.root == root && chain?.hops.map(\.id) == [root, second, third].map { "\($0)" })
            }
            #expect(try await reader.chain(of: id(1, 99)) == nil)
            // A chain whose first hop is in the log no more.
            try await store.run("DELETE FROM request_logs WHERE id IN ('\(root)', '\(stranger)')")
            #expect(try await reader.chain(of: root)?.hops.count == 2)
        }
    }

    @Test func aBatchIsReadAsItWasShipped() async throws {
        try await withStore { store in
            let ids = (0..<10).map { id(1000 - $0 * 10, $0) }
            try await ship(Array(ids[0...3] + ids[6...9]), store.client)
            // A slow hop's batch spans what was shipped before it.
            let late = Array(ids[4...5])
            try await ship(late, store.client)
            try await ship([id(955, 77)], spool: 1, store.client)
            let reader = LogReader(store.client)
            for expected in [Array(ids[0...3] + ids[6...9]), late] {
                let batch = try #require(LogBatch(payload: "\(Self.spools[0]) \(expected.min()!) \(expected.max()!)"))
                #expect(try await reader.batch(batch, LogFilter()).map(\.id) == expected.map { "\($0)" })
            }
        }
    }

    @Test(arguments: ["", "a b c", "11111111-1111-4111-8111-111111111111 req_1 req_2"])
    func aStrangeAnnouncementIsNone(_ payload: String) {
        #expect(LogBatch(payload: payload) == nil)
    }

    // MARK: Following

    @Test func followingShowsEachHopOnceAcrossLossesOfTheConnection() async throws {
        try await withStore { store in
            var number: UInt64 = 0
            func fresh(_ count: Int, age: UInt64) -> [RequestID] {
                (0..<count).map { _ in
                    number += 1
                    return id(age, number)
                }
            }
            let before = fresh(5, age: 3000)
            try await ship(before, store.client)
            let shown = Locked<[String]>([])
            let listener = PostgresClient(try .patient(store.database.url), role: .session, on: store.reactor)
            let follower = LogFollower(listener, on: store.reactor, LogFilter())
            let following = Task {
                try await follower.run(newest: 2, now: UInt64(WallClock.milliseconds)) { entries in
                    shown.withLock { $0 += entries.map(\.id) }
                }
            }
            var expected = Set(before.suffix(2))
            func settled(_ what: String) async throws {
                try await eventually(what) { shown.withLock { $0.count } >= expected.count }
                #expect(Set(shown.withLock { $0 }) == Set(expected.map { "\($0)" }), "\(what)")
                #expect(shown.withLock { $0.count } == expected.count, "\(what)")
            }
            try await settled("the newest are shown")

            // Out of order: the younger batch commits first.
            let (older, younger) = (fresh(10, age: 2000), fresh(10, age: 1000))
            try await ship(younger, spool: 1, store.client)
            try await ship(older, store.client)
            expected.formUnion(older + younger)
            try await settled("a batch that commits late is shown")

            // While nobody listens: younger and older hops than the newest.
            let process = try await store.reactor.submit { listener.backendPID }.get()
            let meanwhile = fresh(3, age: 1500) + fresh(3, age: 500)
            try await store.run("SELECT pg_terminate_backend(\(try #require(process)))")
            try await ship(meanwhile, store.client)
            expected.formUnion(meanwhile)
            try await settled("what was missed is read again")

            let after = fresh(2, age: 100)
            try await ship(after, store.client)
            expected.formUnion(after)
            try await settled("and following goes on")
            following.cancel()
            try await following.value
            await listener.shutdown()
        }
    }

    @Test func followingFilters() async throws {
        try await withStore { store in
            let shown = Locked<[String]>([])
            let listener = PostgresClient(try .patient(store.database.url), role: .session, on: store.reactor)
            var filter = LogFilter()
            filter.status = .codes(5)
            let follower = LogFollower(listener, on: store.reactor, filter)
            let following = Task {
                try await follower.run(newest: 0, now: UInt64(WallClock.milliseconds)) { entries in
                    shown.withLock { $0 += entries.map(\.id) }
                }
            }
            try await eventually("it has begun") {
                try await store.run(
                    """
                    SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND pid <> pg_backend_pid() AND query ~ 'ORDER BY l.id DESC'
                    """) == ["1"]
            }
            let (good, bad) = (id(200, 1), id(100, 2))
            try await ship([good], columns: ["status_code": "200"], store.client)
            try await ship([bad], columns: ["status_code": "502"], store.client)
            try await eventually("the failure is shown") { shown.withLock { !$0.isEmpty } }
            #expect(shown.withLock { $0 } == ["\(bad)"])
            following.cancel()
            try await following.value
            await listener.shutdown()
        }
    }

    // MARK: What was shown

    private func at(_ milliseconds: UInt64, _ number: UInt64) -> RequestID {
        RequestID(UUIDBits(high: milliseconds << 16 | 0x7000, low: number))
    }

    @Test func aHopIsShownOnce() {
        var memory = FollowMemory(capacity: 10, now: 0)
        let verdicts = [at(5, 1), at(5, 2), at(5, 1)].map { memory.show($0) }
        #expect(verdicts == [true, true, false])
    }

    @Test func readingResumesAWhileBeforeTheNewestHop() {
        var memory = FollowMemory(capacity: 10, now: 1000)
        #expect(memory.resumption(overlap: 600).uuid.milliseconds == 400)
        _ = memory.show(at(2000, 1))
        _ = memory.show(at(1500, 1))
        #expect(memory.resumption(overlap: 600).uuid.milliseconds == 1400)
        memory.heard(of: at(3000, 1))
        #expect(memory.resumption(overlap: 600).uuid.milliseconds == 2400)
        memory.begin(after: at(2900, 7))
        #expect(memory.resumption(overlap: 600) == at(2900, 7))
        #expect(memory.resumption(overlap: 100_000) == at(2900, 7))
    }

    @Test func whatIsForgottenIsNotReadAgain() {
        var memory = FollowMemory(capacity: 3, now: 0)
        for number in 1...5 as ClosedRange<UInt64> { _ = memory.show(at(number, number)) }
        // 1 and 2 are forgotten: reading resumes after them.
        #expect(memory.resumption(overlap: 1000) == at(2, 2))
        let verdicts = [at(3, 3), at(5, 5)].map { memory.show($0) }
        #expect(verdicts == [false, false])
    }
}
