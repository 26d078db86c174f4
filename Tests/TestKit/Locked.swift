import Foundation

/// A value behind a lock, for what tests share between threads.
public final class Locked<Value>: @unchecked Sendable {
    // Sendable because the value is only ever reached with the lock held.
    private let lock = NSLock()
    private var value: Value

    public init(_ value: Value) { self.value = value }

    public func withLock<Result>(_ body: (inout Value) throws -> Result) rethrows -> Result {
        lock.lock()
        defer { lock.unlock() }
        return try body(&value)
    }
}
