internal import Glibc
internal import Synchronization

/// Threads for the calls that block whatever one does: getaddrinfo(3) and PQcancel.
enum HelperThread {
    /// Threads that may be blocked at one time in the process.
    static let runningMax = 16
    private static let running = Atomic<Int>(0)

    private final class Body: Sendable {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }

    /// Runs the body on a thread of its own; false if too many are blocked already.
    static func run(_ body: @escaping @Sendable () -> Void) -> Bool {
        guard running.add(1, ordering: .relaxed).newValue <= runningMax else {
            running.subtract(1, ordering: .relaxed)
            return false
        }
        var thread = pthread_t()
        let argument = Unmanaged.passRetained(Body(body))
        let status = pthread_create(
            &thread, nil,
            { argument in
                Unmanaged<Body>.fromOpaque(argument!).takeRetainedValue().run()
                HelperThread.running.subtract(1, ordering: .relaxed)
                return nil
            }, argument.toOpaque())
        guard status == 0 else {
            argument.release()
            running.subtract(1, ordering: .relaxed)
            return false
        }
        pthread_detach(thread)
        return true
    }
}
