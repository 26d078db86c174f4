import Testing

@testable import GatewayCore

@Suite struct TraceContextTests {
    private let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    @Test func aTraceIsReadAndWrittenAsItCame() throws {
        let trace = try #require(TraceContext(text))
        #expect(trace.traceID == UUIDBits(high: 0x4bf9_2f35_77b3_4da6, low: 0xa3ce_929d_0e0e_4736))
        #expect(trace.parentID == 0x00f0_67aa_0ba9_02b7 && trace.flags == 1)
        var bytes: [UInt8] = []
        trace.append(to: &bytes)
        #expect(String(decoding: bytes, as: UTF8.self) == text)
    }

    @Test func aChildKeepsTheTraceAndItsFlags() throws {
        var random = SystemRandomNumberGenerator()
        let trace = try #require(TraceContext(text))
        let child = trace.child(random: &random)
        #expect(child.traceID == trace.traceID && child.flags == trace.flags && child.parentID != trace.parentID && child.parentID != 0)
    }

    @Test func aNewTraceHasIdsThatAreNotZero() {
        var random = SystemRandomNumberGenerator()
        let trace = TraceContext(random: &random)
        #expect(trace.traceID != .zero && trace.parentID != 0)
    }

    @Test(arguments: [
        "", "00", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01", "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ])
    func whatIsNotATraceIsNone(_ text: String) { #expect(TraceContext(text) == nil) }

    @Test func aLaterVersionMaySayMore() {
        #expect(TraceContext("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more") != nil)
    }
}
