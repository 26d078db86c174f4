internal import Glibc
internal import Synchronization

/// A thread that has the kernel write a spool's segment to the disk once a second, because the worker must not wait for it.
final class SpoolSyncer: Sendable {
    private struct State {
        /// Segments with bytes that may not be on the disk; the last one is being written.
        var paths: [String] = []
        /// One of them has got its name since the directory was last synced.
        var isNamed = false
        var isStopped = false
    }

    private let state = Mutex(State())
    private let directory: String
    private let progress: SpoolProgress

    init(_ directory: String, _ progress: SpoolProgress) {
        (self.directory, self.progress) = (directory, progress)
        let argument = Unmanaged.passRetained(self).toOpaque()
        var thread = pthread_t()
        let status = pthread_create(
            &thread, nil,
            { argument in
                Unmanaged<SpoolSyncer>.fromOpaque(argument!).takeRetainedValue().run()
                return nil
            }, argument)
        if status == 0 { pthread_detach(thread) } else { Unmanaged<SpoolSyncer>.fromOpaque(argument).release() }
    }

    /// This segment is written from now on.
    func watch(_ path: String) {
        state.withLock { state in
            state.paths.append(path)
            state.isNamed = true
        }
    }

    func stop() { state.withLock { $0.isStopped = true } }

    private func run() {
        while !state.withLock({ $0.isStopped }) {
            sleep(1)
            let (paths, isNamed) = state.withLock { state in
                let taken = (state.paths, state.isNamed)
                state.paths.removeFirst(max(state.paths.count - 1, 0))
                state.isNamed = false
                return taken
            }
            do throws(FileError) {
                for path in paths {
                    // A segment that is gone was shipped.
                    if let file = try? FileDescriptor(path, flags: O_RDWR) { try file.syncData() }
                }
                if isNamed { try Directory.sync(directory) }
            } catch {
                progress.failedToWrite()
            }
        }
    }
}
