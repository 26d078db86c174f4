public import Foundation

/// A program that a test runs to its end.
public enum Command {
    public struct Outcome: Sendable {
        public var status: Int32
        public var output: Data
        public var errors: String

        public var text: String { String(decoding: output, as: UTF8.self) }
    }

    /// Pipes are not close-on-exec: a program that starts while another one's pipes are made would hold them open.
    private static let spawning = NSLock()

    /// Runs the program with `input` as its standard input. The input is written before any output is read: keep it small, or
    /// give a file to a program that answers while it reads.
    public static func run(_ path: String, _ arguments: [String], input: String = "") async throws -> Outcome {
        try await offTheCooperativePool { try runBlocking(path, arguments, input: input) }
    }

    /// The same for a thread that may wait.
    public static func runBlocking(_ path: String, _ arguments: [String], input: String = "") throws -> Outcome {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: path)
        process.arguments = arguments
        let (incoming, output, errors) = try spawning.withLock {
            let pipes = (Pipe(), Pipe(), Pipe())
            (process.standardInput, process.standardOutput, process.standardError) = pipes
            try process.run()
            return pipes
        }
        // Errors are few, yet more of them than the pipe holds would stop the program.
        let complaints = Locked(Data())
        let read = DispatchSemaphore(value: 0)
        let descriptor = errors.fileHandleForReading
        Thread.detachNewThread {
            let all = descriptor.readDataToEndOfFile()
            complaints.withLock { $0 = all }
            read.signal()
        }
        try incoming.fileHandleForWriting.write(contentsOf: Data(input.utf8))
        try incoming.fileHandleForWriting.close()
        let all = output.fileHandleForReading.readDataToEndOfFile()
        read.wait()
        process.waitUntilExit()
        let text = complaints.withLock { String(decoding: $0, as: UTF8.self) }
        return Outcome(status: process.terminationStatus, output: all, errors: text)
    }

    /// A program that runs beside the test: starts it as `run` does.
    public static func start(_ process: Process) throws {
        try spawning.withLock { try process.run() }
    }
}
