import Foundation
import GatewayCore
import Testing

@Suite struct ProblemTests {
    private struct Parsed: Decodable {
        var type: String
        var title: String
        var status: UInt16
        var detail: String
        var code: String
        var request_id: String?
        var retry_after: Int64?
        var reason: String?
    }

    private func render(
        _ refusal: Refusal, _ id: RequestID? = nil, retryAfter: Int64? = nil, reason: String? = nil
    ) throws -> Parsed {
        var bytes: [UInt8] = []
        Problem.append(refusal, requestID: id, retryAfter: retryAfter, reason: reason, to: &bytes)
        return try JSONDecoder().decode(Parsed.self, from: Data(bytes))
    }

    @Test(arguments: Refusal.allCases)
    func everyRefusalIsAProblem(_ refusal: Refusal) throws {
        let id = RequestID(UUIDBits(high: 1, low: 2))
        let problem = try render(refusal, id)
        #expect(problem.status == refusal.status && (400..<600).contains(problem.status))
        #expect(problem.code == "\(refusal.code)")
        #expect(problem.type == "urn:pandora:problem:" + problem.code.lowercased().replacing("_", with: "-"))
        #expect(problem.title == "\(refusal.title)" && problem.detail == "\(refusal.detail)")
        #expect(problem.request_id == "\(id)" && problem.retry_after == nil && problem.reason == nil)
        #expect(Refusal(code: problem.code) == refusal)
    }

    @Test func codesAreDistinct() {
        #expect(Set(Refusal.allCases.map { "\($0.code)" }).count == Refusal.allCases.count)
    }

    @Test func theCodesThatClientsRelyOn() {
        let expected: [(Refusal, String, UInt16)] = [
            (.keyMissing, "KEY_MISSING", 401), (.keyInvalid, "KEY_INVALID", 401), (.keyDisabled, "KEY_DISABLED", 401),
            (.keyExpired, "KEY_EXPIRED", 401), (.keyConflict, "KEY_CONFLICT", 400),
            (.environmentDisabled, "ENVIRONMENT_DISABLED", 403), (.projectDisabled, "PROJECT_DISABLED", 403),
            (.serviceDisabled, "SERVICE_DISABLED", 403), (.serviceDeprecated, "SERVICE_DEPRECATED", 410),
            (.serviceNotAssigned, "SERVICE_NOT_ASSIGNED", 403), (.quotaExceeded, "QUOTA_EXCEEDED", 429),
            (.quotaHeld, "QUOTA_HELD", 429), (.routeNotFound, "ROUTE_NOT_FOUND", 404),
            (.storeUnavailable, "STORE_UNAVAILABLE", 503), (.quotaUnavailable, "QUOTA_UNAVAILABLE", 503),
        ]
        for (refusal, code, status) in expected {
            #expect("\(refusal.code)" == code && refusal.status == status)
        }
        #expect(ExecutionStatus(.keyInvalid) == .unauthorized && ExecutionStatus(.quotaHeld) == .unauthorized)
        #expect(ExecutionStatus(.upstreamClosed) == .upstreamError && ExecutionStatus(.routeNotFound) == .clientError)
        #expect(ExecutionStatus(.storeUnavailable) == .serverError)
    }

    @Test func anyReasonIsEscaped() throws {
        let hostile = "\"\\/\u{8}\u{c}\n\r\t\u{1}\u{1f}\u{7f}é\u{2028}😀</script>"
        #expect(try render(.requestMalformed, reason: hostile).reason == hostile)
        #expect(try render(.requestMalformed, reason: "a\0b").reason == "a\u{fffd}b")
        #expect(try render(.requestMalformed, reason: String(repeating: "é", count: 500)).reason?.utf8.count == 200)
    }

    @Test func numbersAreWrittenOut() throws {
        for seconds in [0, 7, 10, 3_600, Int64.max] {
            #expect(try render(.quotaExceeded, retryAfter: seconds).retry_after == seconds)
        }
    }
}
