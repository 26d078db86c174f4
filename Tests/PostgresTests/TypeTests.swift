import NIOCore
import Testing
import TestKit

@testable import Postgres

/// Values survive the way to the server and back, in binary.
@Suite struct TypeTests {
    @Test func scalars() async throws {
        let statement = Statement(
            name: "scalars", sql: "SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9",
            parameterTypes: [.int8, .int4, .int2, .bool, .float8, .text, .bytea, .timestamptz, .uuid])
        let uuid = (0..<16).map { UInt8($0 * 16 + 1) }
        try await withClient(role: .pipeline) { client, _ in
            for (long, text) in [(Int64.min, ""), (.max, "naïve – 日本語 🐘"), (0, String(repeating: "x", count: 100_000))] {
                let row = try await client.query(
                    statement,
                    parameters {
                        $0.append(long)
                        $0.append(Int32.min)
                        $0.append(Int16.max)
                        $0.append(true)
                        $0.append(-0.1)
                        $0.append(text)
                        $0.append(bytes: [UInt8](text.utf8) + [0, 255])
                        $0.append(timestampMicroseconds: 1_700_000_000_123_456)
                        $0.append(bytes: uuid)
                    })[0]
                #expect(row.columns == 9)
                #expect(row.int64(0) == long)
                #expect(row.int32(1) == Int32.min)
                #expect(row.int16(2) == Int16.max)
                #expect(row.bool(3) == true)
                #expect(row.double(4) == -0.1)
                #expect(row.string(5) == text)
                #expect(row.bytes(6) == [UInt8](text.utf8) + [0, 255])
                #expect(row.timestampMicroseconds(7) == 1_700_000_000_123_456)
                #expect(row.bytes(8) == uuid)
                #expect(row.withBytes(8) { $0.count } == 16)
            }
        }
    }

    @Test func nullsAreNotEmptyValues() async throws {
        let statement = Statement(
            name: "nulls", sql: "SELECT $1, $2, $3, $4, $5, $6, $7, $8 = ''",
            parameterTypes: [.int8, .int4, .bool, .float8, .text, .bytea, .timestamptz, .text])
        try await withClient(role: .pipeline) { client, _ in
            let row = try await client.query(
                statement,
                parameters {
                    $0.append(Int64?.none)
                    $0.append(Int32?.none)
                    $0.append(Bool?.none)
                    $0.append(Double?.none)
                    $0.append(text: nil)
                    $0.append(bytes: [UInt8]?.none)
                    $0.append(timestampMicroseconds: nil)
                    $0.append("")
                })[0]
            #expect((0..<7).allSatisfy { row.isNull($0) })
            #expect(row.int64(0) as Int64? == nil && row.string(4) as String? == nil && row.bytes(5) as [UInt8]? == nil)
            #expect(row.bool(7) == true)
            // A parameter list of nothing but an empty value has no bytes at all.
            let empty = try await client.value("SELECT $1", parameters { $0.append("") }, types: [.text])
            #expect(empty.string(0) == "")
            let none = try await client.value("SELECT $1", parameters { $0.append(bytes: [UInt8]()) }, types: [.bytea])
            #expect(none.bytes(0) == [UInt8]())
        }
    }

    @Test func arrays() async throws {
        let statement = Statement(
            name: "arrays", sql: "SELECT $1, $2, $3, $4, $5, $6, $7, cardinality($8), $9, $10",
            parameterTypes: [
                .int8Array, .int4Array, .int2Array, .boolArray, .textArray, .byteaArray, .timestamptzArray, .int8Array,
                .textArray, .int8Array,
            ])
        try await withClient(role: .pipeline) { client, _ in
            let row = try await client.query(
                statement,
                parameters {
                    $0.append([Int64.min, 0, .max])
                    $0.append([Int32.min, 7])
                    $0.append([Int16(-1)])
                    $0.append([true, false])
                    $0.append(["", "ü", "{\"a,b\"}", "NULL"])
                    $0.append([[UInt8](), [0, 1, 255]])
                    $0.append(timestampsMicroseconds: [0, 1])
                    $0.append([Int64]())
                    $0.append(optionals: ["a", nil])
                    $0.append(optionals: [nil, 5])
                })[0]
            #expect(row.int64Array(0) == [Int64.min, 0, .max])
            #expect(row.int32Array(1) == [Int32.min, 7])
            #expect(row.int16Array(2) == [Int16(-1)])
            #expect(row.boolArray(3) == [true, false])
            #expect(row.stringArray(4) == ["", "ü", "{\"a,b\"}", "NULL"])
            #expect(row.bytesArray(5) == [[], [0, 1, 255]] as [[UInt8]])
            #expect(row.timestampMicrosecondsArray(6) == [0, 1])
            #expect(row.int32(7) == Int32(0))
            #expect(row.stringArray(8) == ["a", nil] as [String?])
            #expect(row.int64Array(9) == [nil, 5] as [Int64?])
        }
    }

    @Test func timestampsHaveMicrosecondsAndInfinity() async throws {
        try await withClient { client, _ in
            let row = try await client.value(
                "SELECT '1969-12-31 23:59:59.999999+00'::timestamptz, '2000-01-01 00:00+00'::timestamptz, 'infinity'::timestamptz")
            #expect(row.timestampMicroseconds(0) == Int64(-1))
            #expect(row.timestampMicroseconds(1) == Int64(946_684_800_000_000))
            #expect(row.timestampMicroseconds(2) == Int64.max)
            let back = try await client.value(
                "SELECT $1 = '-infinity'", parameters { $0.append(timestampMicroseconds: .min) }, types: [.timestamptz])
            #expect(back.bool(0) == true)
        }
    }

    @Test func textIsCutAtNUL() async throws {
        try await withClient { client, _ in
            let row = try await client.value("SELECT $1", parameters { $0.append("ab\u{0}cd") }, types: [.text])
            #expect(row.string(0) == "ab")
        }
    }

    @Test func bigValues() async throws {
        let big = [UInt8](repeating: 0xa5, count: 20_000_000)
        try await withClient(role: .pipeline) { client, _ in
            let row = try await client.value("SELECT $1", parameters { $0.append(bytes: big) }, types: [.bytea])
            #expect(row.bytes(0) == big)
        }
    }

    @Test func rowsSayWhatChanged() async throws {
        try await withClient { client, _ in
            try await client.script("CREATE TABLE t (n int)")
            let insert = Statement(name: "insert", sql: "INSERT INTO t SELECT generate_series(1, 42)")
            #expect(try await client.query(insert).affected == 42)
            let rows = try await client.query(Statement(name: "names", sql: "SELECT n AS first, 1 AS second FROM t ORDER BY n"))
            #expect(rows.columnNames == ["first", "second"])
            #expect(rows.map { $0.int32(0) as Int32 } == (1...42).map { Int32($0) })
        }
    }
}
