import NIOCore
import Postgres
import Reactor
import TestKit
import Testing

@testable import GatewayStore

/// What becomes of leases whose holder is gone, or seems to be.
@Suite struct LeaseTests {
    /// Two environments with 100 units each, and the spool of one holder.
    private func withHolder(_ body: (Store) async throws -> Void) async throws {
        try await withStore { store in
            try await store.seed(limit: 200, environments: 2)
            try await store.run(
                """
                INSERT INTO environment_service (environment_id, service_id, max_request) VALUES (1, 1, 100), (2, 1, 100);
                INSERT INTO log_spool (id, node) VALUES ('\(Store.spool)', 'n');
                """)
            try await body(store)
        }
    }

    private func acquire(_ units: Int, environment: Int = 1) -> String {
        "SELECT lease_acquire('\(Store.spool)', 1, '{\(environment)}', '{1}', '{\(units)}', '{\(units)}')"
    }

    /// Its process died while its question waited for the row; the next one has returned what there was, and looks no more.
    @Test func aQuestionThatOutlivesItsProcessIsGrantedNothing() async throws {
        try await withHolder { store in
            async let restart: Void = store.holdRows(then: "UPDATE log_spool SET epoch = epoch + 1")
            try await store.rowsAreHeld(2)
            #expect(try await store.refusal(of: acquire(10)) == "PN004")
            try await restart
            #expect(try await store.run("SELECT count(*) FROM quota_lease") == ["0"])
            #expect(try await store.run("SELECT DISTINCT held_request FROM environment_service") == ["0"])
        }
    }

    /// What it would read is the other process's.
    @Test func aProcessWhoseSpoolAnotherOneOpenedReadsNothing() async throws {
        try await withHolder { store in
            let client = try await PostgresClient.connect(to: store.database.url, role: .pipeline, on: store.reactor)
            let session = LeaseSession(client, spool: Store.spool, epoch: 1)
            func read() async throws -> Result<Int, PostgresError> {
                let promise = store.reactor.makePromise(of: Result<Int, PostgresError>.self)
                store.reactor.execute { session.read(deadline: patience) { promise.succeed($0.map(\.count)) } }
                return try await promise.futureResult.get()
            }
            try await store.run(acquire(10))
            #expect(try await read().get() == 1)
            try await store.run("UPDATE log_spool SET epoch = epoch + 1")
            // The server plans anew for each of the first executions of a statement, then no more; a spool may have no leases.
            for leases in ["", "DELETE FROM quota_lease"] {
                try await store.run(leases)
                for _ in 0..<8 {
                    guard case .failure(let error) = try await read() else {
                        Issue.record("it was answered")
                        break
                    }
                    #expect(error.sqlState?.code == "PN004")
                }
            }
            await client.shutdown()
        }
    }

    /// A request may hold units of a row without other traffic for hours.
    @Test func onlyASilentHolderIsWrittenOff() async throws {
        try await withHolder { store in
            let writeOff = "SELECT write_off_silent('10 min', '0', 10)"
            try await store.run("\(acquire(3)); \(acquire(4, environment: 2))")
            try await store.run("UPDATE quota_lease SET heard_at = now() - interval '1 h' WHERE environment_id = 1")
            #expect(try await store.run(writeOff) == ["0"], "it was heard of for another row")
            try await store.run("UPDATE quota_lease SET heard_at = now() - interval '1 h'; UPDATE log_spool SET shipped_at = now()")
            #expect(try await store.run(writeOff) == ["0"], "it shipped its log")
            try await store.run("UPDATE log_spool SET shipped_at = now() - interval '1 h'")
            #expect(try await store.run(writeOff) == ["7"])
            #expect(
                try await store.run("SELECT used_request, held_request FROM environment_service ORDER BY environment_id") == ["3|0", "4|0"])
        }
    }

    /// A host may come back with its spool after days and periods: what it charged was charged as lost already.
    @Test func hopsSettleAgainstAWriteOffHoweverLateTheyCome() async throws {
        try await withHolder { store in
            try await store.run(
                """
                \(acquire(10)); \(acquire(5, environment: 2));
                SELECT lease_give_back('\(Store.spool)', 1, '{2}', '{1}', '{1}', '{5}');
                UPDATE quota_lease SET heard_at = now() - interval '3 days';
                SELECT write_off_silent('10 min', '0', 10);
                UPDATE project_service SET next_reset = now();
                SELECT reset_if_due(1, 1);
                """)
            // What was given back needs no memory.
            #expect(try await store.run("SELECT drop_settled_leases('1 h')") == ["1"])
            #expect(try await store.run("SELECT settle_hops('\(Store.spool)', '{1}', '{1}', '{1}', '{4}', '{4}', '{1}')") == ["(0,1)"])
            #expect(
                try await store.run("SELECT kind, used_delta FROM quota_ledger WHERE used_delta <> 0 ORDER BY id")
                    == ["lost|10", "hops|4", "refund|-4"])
            #expect(try await store.run("SELECT DISTINCT used_request, held_request FROM environment_service") == ["0|0"])
        }
    }
}
