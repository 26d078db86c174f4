"""Growth of resident memory: per idle connection, and per exchange in flight with a body that crawls."""

import pathlib
import selectors
import socket
import sys
import time

import processes
import speed

IDLE = 2_000
IN_FLIGHT = 200
BODY = 64 << 20
SLOW = pathlib.Path(__file__).with_name("slow.py")


def start_slow_upstream(place):
    port = processes.free_port()
    return port, processes.Server("slow", [sys.executable, SLOW, port], place.other_core, place.directory, port)


def idle(contender, core):
    """Bytes per connection that had its answer and waits for the next request."""
    speed.load(contender, 32, 1, core)
    contender.settled()
    before = processes.resident_bytes(contender.pid)
    sockets = []
    try:
        for _ in range(IDLE):
            sockets.append(opened(contender, b"GET", b""))
            head = receive_head(sockets[-1])
            if b" 200 " not in head.partition(b"\r\n")[0]:
                raise RuntimeError(f"{contender.name} answered {head[:200]!r}")
        time.sleep(1)
        return (processes.resident_bytes(contender.pid) - before) / IDLE
    finally:
        for one in sockets:
            one.close()


def in_flight(contender, core, slow_port, upload):
    """Bytes per exchange while each body of 64 MiB moves at 64 KiB a second and one side offers more."""
    speed.load(contender, 32, 1, core)
    contender.settled()
    before = processes.resident_bytes(contender.pid)
    method, field = (b"PUT", b"Content-Length: %d\r\n" % BODY) if upload else (b"GET", b"")
    sockets = [opened(contender, method, field, b"/slow") for _ in range(IN_FLIGHT)]
    try:
        crawl(sockets, upload, 4)
        after, open_upstream = processes.resident_bytes(contender.pid), exchanges(slow_port)
        if open_upstream < IN_FLIGHT:
            raise RuntimeError(f"{contender.name}: only {open_upstream} of {IN_FLIGHT} exchanges are in flight")
        return (after - before) / IN_FLIGHT
    finally:
        for one in sockets:
            one.close()


def opened(contender, method, field, path=b"/bench"):
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
    one.settimeout(10)
    one.connect(("127.0.0.1", contender.port))
    one.sendall(b"%s %s HTTP/1.1\r\nHost: bench\r\nX-API-Key: %s\r\n%s\r\n" % (method, path, contender.key.encode(), field))
    return one


def receive_head(one):
    data = b""
    while b"\r\n\r\n" not in data:
        piece = one.recv(4096)
        if not piece:
            raise RuntimeError(f"closed after {data!r}")
        data += piece
    return data


def crawl(sockets, upload, seconds):
    """Sends what each socket takes, or reads a little of each, ten times a second: an upload outruns its upstream."""
    piece, end = bytes(64 << 10), time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for one in sockets:
            one.setblocking(False)
            selector.register(one, selectors.EVENT_WRITE if upload else selectors.EVENT_READ)
        while time.monotonic() < end:
            for key, _ in selector.select(0):
                try:
                    if upload:
                        key.fileobj.send(piece)
                    elif not key.fileobj.recv(6 << 10):
                        raise RuntimeError("an answer ended early")
                except BlockingIOError:
                    pass
            time.sleep(0.1)


def exchanges(slow_port):
    with socket.create_connection(("127.0.0.1", slow_port), 10) as one:
        one.sendall(b"GET /count HTTP/1.1\r\nHost: slow\r\n\r\n")
        one.shutdown(socket.SHUT_WR)
        data = b""
        while piece := one.recv(4096):
            data += piece
    return int(data.rpartition(b"\r\n\r\n")[2])
