"""An HTTP/1.1 client that hides nothing: sends bytes as they are and tells a complete answer from one that was cut."""

import json
import socket

import kit


class Cut(Exception):
    """The connection ended before the answer was complete; `answer` is what was there (None: not even a head)."""

    def __init__(self, answer, reason):
        super().__init__(reason)
        self.answer = answer


class Answer:
    def __init__(self, head):
        self.head = head
        line, *fields = head.split(b"\r\n")
        version, status, self.reason = (line.split(b" ", 2) + [b""])[:3]
        assert version == b"HTTP/1.1", head
        self.status = int(status)
        self.fields = []
        for field in fields:
            name, colon, value = field.partition(b":")
            assert colon and name == name.strip(), f"no header field: {field!r}"
            self.fields.append((name.decode("latin-1").lower(), value.strip().decode("latin-1")))
        self.body, self.trailers, self.interim = b"", [], []

    def all(self, name):
        return [value for field, value in self.fields if field == name]

    def __getitem__(self, name):
        values = self.all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None

    @property
    def id(self):
        return self["pandora-request-id"]

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.head!r} {self.body[:500]!r}"


class Wire:
    """One connection to a port of this machine."""

    def __init__(self, port, timeout=kit.PATIENCE):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.data = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *parts):
        for part in parts:
            self.socket.sendall(part)
        return self

    def _more(self):
        """False at the end of the stream; a reset is an end, too."""
        try:
            piece = self.socket.recv(1 << 16)
        except ConnectionError:
            piece = b""
        self.data += piece
        return bool(piece)

    def _until(self, mark):
        while mark not in self.data:
            if not self._more():
                return None
        found, _, self.data = self.data.partition(mark)
        return found

    def read(self, method="GET"):
        """The next final answer, whole; 1xx heads before it are in `interim`."""
        interim = []
        while True:
            head = self._until(b"\r\n\r\n")
            if head is None:
                raise Cut(None, f"closed before an answer: {self.data[:500]!r}")
            answer = Answer(head)
            if answer.status >= 200:
                break
            interim.append(answer.status)
        answer.interim = interim
        self._read_body(answer, method)
        return answer

    def _read_body(self, answer, method):
        if method == "HEAD" or answer.status in (204, 304):
            return
        lengths, codings = answer.all("content-length"), answer.all("transfer-encoding")
        assert len(lengths) + len(codings) <= 1, f"framed twice: {answer.head!r}"
        if codings:
            assert codings == ["chunked"], codings
            self._read_chunks(answer)
        elif lengths:
            size = int(lengths[0])
            while len(self.data) < size:
                if not self._more():
                    answer.body = self.data
                    raise Cut(answer, f"{len(self.data)} of {size} bytes")
            answer.body, self.data = self.data[:size], self.data[size:]
        else:
            while self._more():
                pass
            answer.body, self.data = self.data, b""

    def _read_chunks(self, answer):
        body = []
        while True:
            line = self._until(b"\r\n")
            if line is None:
                answer.body = b"".join(body)
                raise Cut(answer, "no end of chunks")
            size = int(line.partition(b";")[0], 16)
            if size == 0:
                break
            while len(self.data) < size + 2:
                if not self._more():
                    answer.body = b"".join(body) + self.data
                    raise Cut(answer, "a chunk without its end")
            assert self.data[size:size + 2] == b"\r\n", "a chunk longer than it said"
            body.append(self.data[:size])
            self.data = self.data[size + 2:]
        while True:
            line = self._until(b"\r\n")
            if line is None:
                raise Cut(answer, "no end of trailers")
            if not line:
                break
            name, _, value = line.partition(b":")
            answer.trailers.append((name.decode().lower(), value.strip().decode()))
        answer.body = b"".join(body)

    def ended(self):
        """Waits for the other side to close; what it still sent before that."""
        while self._more():
            pass
        rest, self.data = self.data, b""
        return rest


def request(method, target, *fields, host="raw.test", key=None, body=b"", connection=None):
    """The bytes of a request. Fields are "Name: value" texts or bytes."""
    lines = [f"{method} {target} HTTP/1.1".encode(), f"Host: {host}".encode()]
    lines += [field if isinstance(field, bytes) else field.encode() for field in fields]
    if key:
        lines.append(f"X-API-Key: {key}".encode())
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    if connection:
        lines.append(f"Connection: {connection}".encode())
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def ask(port, method, target, *fields, **options):
    """One request on a connection of its own."""
    with Wire(port) as wire:
        return wire.send(request(method, target, *fields, **options)).read(method)
