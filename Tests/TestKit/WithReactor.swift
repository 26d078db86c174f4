public import Reactor

/// A reactor for one test, ended with it.
public func withReactor<Value>(_ name: String = "test", _ body: (Reactor) async throws -> Value) async throws -> Value {
    let reactor = try Reactor.start(name: name)
    do {
        let value = try await body(reactor)
        try await reactor.end()
        return value
    } catch {
        try await reactor.end()
        throw error
    }
}

extension Reactor {
    /// Stops the loop and waits for the end of its thread.
    public func end() async throws {
        stop()
        try await offTheCooperativePool { self.join() }
    }
}
