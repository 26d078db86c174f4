"""Processes under measurement: starting them pinned to a core, their CPU time and memory as the kernel accounts them."""

import os
import pathlib
import signal
import socket
import subprocess
import time

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port} after {seconds} s")


def descendants(pid):
    """The process and everything below it."""
    found, queue = [], [pid]
    while queue:
        current = queue.pop()
        found.append(current)
        for task in pathlib.Path(f"/proc/{current}/task").glob("*/children"):
            try:
                queue.extend(int(child) for child in task.read_text().split())
            except OSError:
                pass
    return found


def cpu_seconds(pid):
    """User and system time of a process tree, dead children included once they were waited for."""
    total = 0
    for process in descendants(pid):
        try:
            fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(field) for field in fields[11:15])
    return total / TICKS_PER_SECOND


def resident_bytes(pid):
    total = 0
    for process in descendants(pid):
        for line in pathlib.Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total


def pinned(core):
    """What to put before a command to keep it on a core."""
    return ["taskset", "-c", str(core)]


class Server:
    """A server started for the run: pinned to a core, logged to a file, stopped at the end."""

    def __init__(self, name, command, core, directory, port=None, environment=None):
        self.name = name
        self.log = pathlib.Path(directory, f"{name}.log")
        self.process = subprocess.Popen(
            pinned(core) + [str(part) for part in command],
            stdout=self.log.open("wb"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})})
        if port is not None:
            try:
                wait_for_port(port)
            except RuntimeError as error:
                self.stop()
                raise RuntimeError(f"{name} did not start: {error}\n{self.log.read_text()[-2000:]}") from None

    @property
    def pid(self):
        return self.process.pid

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
