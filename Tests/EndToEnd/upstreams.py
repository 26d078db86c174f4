"""An upstream that does what it is told, byte by byte, and remembers what it was asked."""

import collections
import contextlib
import json
import socket
import struct
import threading
import time
import urllib.parse

import kit

HANG = object()
"""In a script: nothing more is sent until the other side closes."""
RESET = object()
"""In a script: the connection is reset rather than closed."""

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"

# What GET /raw/NAME answers: bytes, pauses in seconds, and at the end the connection closes.
SCRIPTS = {
    "nothing": [],
    "reset": [RESET],
    "half-head": [b"HTTP/1.1 200 OK\r\nContent-Le"],
    "hang": [HANG],
    "head-then-hang": [OK + b"Content-Length: 10\r\n\r\n12345", HANG],
    "short": [OK + b"Content-Length: 1000\r\n\r\n" + b"s" * 500],
    "short-reset": [OK + b"Content-Length: 100000\r\n\r\n" + b"s" * 500, 0.05, RESET],
    "chunk-cut": [OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n100\r\nhalf of it"],
    "chunks-without-end": [OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"],
    "chunk-size-junk": [OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\nhello\r\n0\r\n\r\n"],
    "until-close": [OK + b"\r\n" + b"all of it"],
    "http10": [b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nold but whole"],
    "garbage": [b"SSH-2.0-OpenSSH_9.2\r\n\r\n"],
    "bad-status": [b"HTTP/1.1 2OO OK\r\nContent-Length: 0\r\n\r\n"],
    "status-99": [b"HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n"],
    "two-lengths": [OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"],
    "length-and-chunked": [OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
    "bad-length": [OK + b"Content-Length: five\r\n\r\nhello"],
    "no-colon": [OK + b"This is no field\r\nContent-Length: 0\r\n\r\n"],
    "nul-in-field": [OK + b"X-Nul: a\x00b\r\nContent-Length: 0\r\n\r\n"],
    "folded": [OK + b"X-Folded: a\r\n b\r\nContent-Length: 0\r\n\r\n"],
    "unasked-101": [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\nConnection: Upgrade\r\n\r\nhello"],
    "too-much": [OK + b"Content-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled"],
    "interim": [b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
                + OK + b"Content-Length: 5\r\n\r\nafter"],
    "trailers": [OK + b"Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n"],
    "fields": [OK + b"Set-Cookie: a=1\r\nX-Empty:\r\nSet-Cookie: b=2; Path=/\r\nX-Twice: one\r\nConnection: X-Hop, keep-alive\r\n"
               b"X-Hop: gone\r\nKeep-Alive: timeout=5\r\nX-Twice: two\r\nPandora-Request-Id: forged\r\nx-Case: KePt\r\n"
               b"Content-Length: 2\r\n\r\nok"],
    "no-content": [b"HTTP/1.1 204 No Content\r\nX-Reason: none\r\n\r\n"],
    "large-head": [b"HTTP/1.1 204 No Content\r\nX-Large: " + b"l" * 12_000 + b"\r\n\r\n"],
    "not-modified": [b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n"],
    "teapot": [b"HTTP/1.1 418 I'm a teapot\r\nContent-Length: 5\r\n\r\nshort"],
    "strange": [b"HTTP/1.1 599 Nobody Knows\r\nContent-Length: 7\r\n\r\nstrange"],
    "error": [b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\noops"],
    "reasonless": [b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok"],
    "late": [0.5, OK + b"Content-Length: 4\r\n\r\nlate"],
    "slow-pieces": [OK + b"Content-Length: 6\r\n\r\n", *[item for byte in b"pieces" for item in (bytes([byte]), 0.1)]],
    "early": [b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\nConnection: close\r\n\r\nearly", HANG],
}


class Received:
    """A request as it arrived."""

    def __init__(self, head, connection):
        self.head, self.connection = head, connection
        line, *fields = head.split(b"\r\n")
        self.method, self.target, self.version = line.split(b" ")
        self.fields = [tuple(part.strip().decode("latin-1") for part in field.split(b":", 1)) for field in fields]
        self.body, self.is_chunked, self.is_complete = b"", False, False
        self.gone = threading.Event()
        """Set when the other side closed before the answer was whole."""

    def all(self, name):
        return [value for field, value in self.fields if field.lower() == name.lower()]

    @property
    def query(self):
        return dict(urllib.parse.parse_qsl(self.target.partition(b"?")[2].decode("latin-1"), keep_blank_values=True))


class ScriptedUpstream:
    """Listens on a port of its own; a thread per connection. /echo answers with what arrived, as JSON; /echo/late takes its time.

    /say answers what its query says: `status`, `outcome` (Pandora-Flow-Outcome), `units` (X-Units; several of both with |), `empty` (no
    body), `wait`: seconds that it takes, `hold`: a name that it waits for until `release(name)`, and `gate`: the same in the middle
    of its body.

    /early has answered before it reads the request's body; with a `gate` it never does, and resets the connection then;
    `chunked` is how its answer is framed.
    """

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self.listener.getsockname()[1]
        self.received, self.lock, self.connections = [], threading.Lock(), 0
        self.gates, self.open = collections.defaultdict(threading.Event), set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self.listener.close()

    def seen(self, token):
        """Requests whose target has the token."""
        with self.lock:
            return [one for one in self.received if token.encode() in one.target]

    def cut(self):
        """Ends every connection, whatever is under way there."""
        with self.lock:
            connections = list(self.open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def release(self, name):
        """Lets requests to /say that hold on this name have their answers."""
        self.gates[name].set()

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection, self.connections), daemon=True).start()

    def _serve(self, connection, number):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = connection.makefile("rb")
        with self.lock:
            self.open.add(connection)
        try:
            while head := self._head(stream):
                request = Received(head, number)
                with self.lock:
                    self.received.append(request)
                if not self._answer(connection, stream, request):
                    return
        except (OSError, ValueError):
            pass
        finally:
            with self.lock:
                self.open.discard(connection)
            stream.close()
            connection.close()

    @staticmethod
    def _head(stream):
        lines = []
        while line := stream.readline(1 << 20):
            if line == b"\r\n":
                return b"\r\n".join(lines)
            lines.append(line.removesuffix(b"\r\n"))
        return None

    def _answer(self, connection, stream, request):
        """Whether the connection goes on."""
        path = request.target.split(b"?")[0].decode("latin-1")
        if path == "/raw/early":
            self._play(connection, stream, request, SCRIPTS["early"])
            return False
        if path == "/early":
            return self._early(connection, stream, request)
        if path == "/drop-body":
            stream.read(1000)
            return False
        try:
            self._body(stream, request)
        except (OSError, ValueError):
            request.gone.set()
            return False
        request.is_complete = True
        if path == "/endless":
            return self._endless(connection, request)
        if path == "/endless-head":
            return self._endless_head(connection, request)
        if path.startswith("/raw/"):
            self._play(connection, stream, request, SCRIPTS[path[5:]])
            return False
        if path == "/say":
            return self._say(connection, request)
        if path == "/echo/late":
            time.sleep(0.3)
        answer = json.dumps({
            "head": request.head.decode("latin-1"), "body": request.body.decode("latin-1"), "chunked": request.is_chunked,
            "connection": request.connection}).encode()
        connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(answer) + (b"" if request.method == b"HEAD" else answer))
        return True

    def _early(self, connection, stream, request):
        chunks = b"Transfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n0\r\n\r\n"
        connection.sendall(OK + (chunks if "chunked" in request.query else b"Content-Length: 5\r\n\r\nearly"))
        if gate := request.query.get("gate"):
            self.gates[gate].wait(kit.PATIENCE)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        self._body(stream, request)
        request.is_complete = True
        return True

    def _say(self, connection, request):
        said = request.query
        time.sleep(float(said.get("wait", 0)))
        if "hold" in said:
            self.gates[said["hold"]].wait(kit.PATIENCE)
        body = b"" if "empty" in said else b"said"
        head = b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n" % (int(said.get("status", 200)), len(body))
        for outcome in said["outcome"].split("|") if "outcome" in said else ():
            head += b"Pandora-Flow-Outcome: %s\r\n" % outcome.encode("latin-1")
        for units in said.get("units", "").split("|") if "units" in said else ():
            head += b"X-Units: %s\r\n" % units.encode("latin-1")
        if "gate" in said:
            connection.sendall(head + b"\r\n" + body[:2])
            self.gates[said["gate"]].wait(kit.PATIENCE)
            connection.sendall(body[2:])
            return True
        connection.sendall(head + b"\r\n" + body)
        return True

    @staticmethod
    def _body(stream, request):
        if request.all("Transfer-Encoding"):
            request.is_chunked = True
            while True:
                size = int(stream.readline(), 16)
                if size:
                    request.body += exactly(stream, size)
                elif not stream.readline().strip():
                    return
                if size and stream.readline() != b"\r\n":
                    raise ValueError("a chunk longer than it said")
        for length in request.all("Content-Length"):
            left = int(length)
            while left:
                piece = exactly(stream, min(left, 1 << 20))
                left -= len(piece)
                if len(request.body) < 1 << 20:
                    request.body += piece

    def _play(self, connection, stream, request, script):
        for item in script:
            if item is HANG:
                while stream.read1(1 << 16):
                    pass
                request.gone.set()
            elif item is RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif isinstance(item, float):
                time.sleep(item)
            else:
                connection.sendall(item)

    @staticmethod
    def _endless(connection, request):
        try:
            connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n")
            while True:
                connection.sendall(b"4000\r\n" + b"e" * 0x4000 + b"\r\n")
                time.sleep(0.001)
        except OSError:
            request.gone.set()
        return False

    @staticmethod
    def _endless_head(connection, request):
        try:
            connection.sendall(OK)
            for number in range(1_000_000):
                connection.sendall(b"X-Field-%d: %s\r\n" % (number, b"v" * 100))
        except OSError:
            request.gone.set()
        return False


def exactly(stream, size):
    data = stream.read(size)
    if len(data) < size:
        raise ValueError("the body ended early")
    return data


class RefusingPort:
    """A port that is taken and refuses every connection."""

    def __init__(self):
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
