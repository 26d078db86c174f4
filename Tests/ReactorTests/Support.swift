import NIOCore
import Reactor
import TestKit

/// State of a test that only its reactor's thread touches; a test reads it by `submit`, or when the reactor has ended.
final class Confined<Value>: @unchecked Sendable {
    // Sendable: see above.
    var value: Value
    init(_ value: Value) { self.value = value }
}

/// Counts turns, and does something at the end of each.
final class Hook: TurnHook {
    private(set) var turns = 0
    var nextDeadline: NIODeadline?
    private let work: (Hook) -> Void

    init(_ work: @escaping (Hook) -> Void = { _ in }) { self.work = work }

    func endOfTurn() {
        turns += 1
        work(self)
    }
}

/// How a future ended, for a test that must not wait for it.
final class Ending: Sendable {
    private let state = Locked<String?>(nil)
    /// `done`, or the error; nil while it is open.
    var text: String? { state.withLock { $0 } }

    init<Value>(_ future: EventLoopFuture<Value>) {
        future.whenComplete { [state] result in
            let text = switch result {
            case .success: "done"
            case .failure(let error): "\(error)"
            }
            state.withLock { $0 = text }
        }
    }
}

extension Reactor {
    /// Runs on the loop and waits for the value.
    func run<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) async throws -> Value {
        try await submit(body).get()
    }
}
