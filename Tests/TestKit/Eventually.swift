import Foundation

/// Waits for what another thread, process or the kernel brings about. The limit is there for what never comes: it says
/// nothing about how long a loaded machine may take.
public func eventually(_ what: String, within limit: Duration = .seconds(120), _ isSo: () async throws -> Bool) async throws {
    let end = ContinuousClock.now + limit
    while true {
        if try await isSo() { return }
        guard ContinuousClock.now < end else { throw NeverHappened(description: "never: \(what)") }
        try await Task.sleep(for: .milliseconds(5))
    }
}

public struct NeverHappened: Error, CustomStringConvertible {
    public let description: String
    public init(description: String) { self.description = description }
}
