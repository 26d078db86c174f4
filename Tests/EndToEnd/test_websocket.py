"""WebSocket through the gateway: a server and a client that nobody here wrote, and raw sockets for what those would never do."""

import contextlib
import os
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
import uuid

import pytest
import websockets.exceptions
import websockets.sync.client
import websockets.sync.server

import kit
import sites
from wire import Cut, Wire, ask, request

UPGRADE = ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
           "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")


class WebSocketServer:
    """What `websockets` from PyPI serves: /echo echoes, /close/CODE closes, /ping pings first, /refused is not for everybody."""

    def __init__(self, tls=None):
        self.paths, self.closed = [], {}
        self.server = websockets.sync.server.serve(
            self.handle, "127.0.0.1", 0, process_request=self.admit, max_size=None, ssl=tls, ping_interval=None,
            open_timeout=kit.PATIENCE, close_timeout=kit.PATIENCE)
        self.port = self.server.socket.getsockname()[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def admit(self, connection, request):
        self.paths.append(request.path)
        return connection.respond(403, "not for you\n") if request.path.startswith("/refused") else None

    def handle(self, connection):
        path = connection.request.path
        if path.startswith("/close/"):
            return connection.close(int(path[7:]), "as asked")
        if path.startswith("/ping"):
            connection.send("ponged" if connection.ping().wait(kit.PATIENCE) else "silent")
        if path.startswith("/flood"):
            for _ in range(10):
                connection.send(b"f" * (1 << 20))
            return None
        try:
            while True:
                connection.send(connection.recv())
        except websockets.exceptions.ConnectionClosed:
            self.closed[path] = connection.close_code
        return None

    def seen(self, token):
        return [path for path in self.paths if token in path]


class RawServer:
    """Switches the protocol when it is told to, says a word at once, and echoes; after the client's end it says goodbye.

    To "break" it resets.
    """

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.may_switch, self.asked, self.ended = threading.Event(), threading.Event(), threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self.listener.accept()[0],), daemon=True).start()

    def _serve(self, connection):
        with contextlib.suppress(OSError), connection:
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(1 << 16)
            self.asked.set()
            self.may_switch.wait(kit.PATIENCE)
            connection.sendall(b"HTTP/1.1 101 Switching\r\nupgrade: WebSocket\r\nConnection: upgrade\r\nX-Kept: 1\r\n\r\nhello,"
                               + data.partition(b"\r\n\r\n")[2])
            while piece := connection.recv(1 << 16):
                if piece == b"break":
                    return connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(piece)
            connection.sendall(b"goodbye")
        self.ended.set()


def local_certificate(directory):
    """A PEM file with a certificate for localhost and its key."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", directory / "key.pem",
                    "-out", directory / "certificate.pem"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "certificate.pem", directory / "key.pem")
    return context, str(directory / "certificate.pem")


@pytest.fixture(scope="module")
def behind(tmp_path_factory):
    class Behind:
        directory = tmp_path_factory.mktemp("websocket")
        context, authorities = local_certificate(directory)
        plain, raw, tls = WebSocketServer(), RawServer(), WebSocketServer(context)
    Behind.raw.may_switch.set()
    return Behind


def configuration(behind, services, **boot):
    def upstream(port, **settings):
        return {"targets": [f"127.0.0.1:{port}"], **settings}

    def route(name, **settings):
        return {"name": name, "match": {"host": f"{name}.test"}, "service": "orders", "upstream": name, "upgrade": ["websocket"],
                **settings}
    return {
        "workers": 2, "log": {"batch_time": "20ms"}, **boot,
        "upstreams": {
            "ws": upstream(behind.plain.port), "raw": upstream(services.raw.port), "switch": upstream(behind.raw.port),
            "wss": upstream(behind.tls.port, scheme="https", tls={"ca_file": behind.authorities, "server_name": "localhost"}),
            "refused": upstream(services.refusing.port), "narrow": upstream(behind.plain.port, connections=1, waiting=0),
        },
        "routes": [route("ws"), route("wss"), route("raw"), route("switch"), route("refused"), route("narrow"),
                   route("limited", service="limited", upstream="ws"), route("brief", upstream="switch", timeouts={"idle": "300ms"}),
                   route("closed", upstream="raw", upgrade=[])],
    }


@pytest.fixture(scope="module")
def gateway(binary, postgres, services, behind):
    one = kit.Gateway("websocket", binary, configuration(behind, services), behind.directory, postgres.url())
    yield one
    one.stop()


def connect(port, key, path="/echo", host="ws.test", **options):
    connection = socket.create_connection(("127.0.0.1", port), kit.PATIENCE)
    return websockets.sync.client.connect(
        f"ws://{host}{path}", sock=connection, additional_headers={"X-API-Key": key}, max_size=None, proxy=None,
        ping_interval=None, open_timeout=kit.PATIENCE, close_timeout=kit.PATIENCE, **options)


def upgrade(key, target="/", host="switch.test"):
    return request("GET", target, *UPGRADE, host=host, key=key)


def switched(wire):
    """The head of a 101."""
    head = wire._until(b"\r\n\r\n")
    assert head and head.startswith(b"HTTP/1.1 101 "), head
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.decode().split("\r\n")[1:])}


def exactly(wire, size):
    while len(wire.data) < size:
        assert wire._more(), wire.data[:200]
    found, wire.data = wire.data[:size], wire.data[size:]
    return found


# The way through.

@pytest.mark.parametrize("host", ["ws.test", "wss.test"])
def test_echo_of_a_megabyte_both_ways(gateway, key, host):
    with connect(gateway.port, key, host=host) as client:
        for size in (0, 1, 125, 126, 65535, 65536, 1 << 20, 5 << 20):
            message = os.urandom(size)
            client.send(message)
            assert client.recv(kit.PATIENCE) == message


def test_pings_arrive_both_ways(gateway, key):
    with connect(gateway.port, key, "/ping") as client:
        assert client.recv(kit.PATIENCE) == "ponged"
        assert client.ping().wait(kit.PATIENCE)


def test_close_codes_arrive_both_ways(gateway, key, behind):
    with connect(gateway.port, key, "/close/4001") as client:
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            client.recv(kit.PATIENCE)
        assert (client.close_code, client.close_reason) == (4001, "as asked")
    path = f"/echo/{uuid.uuid4().hex}"
    connect(gateway.port, key, path).close(3000)
    kit.eventually(lambda: behind.plain.closed.get(path) == 3000, what="the server has the client's code")


def test_what_arrives_upstream(gateway, environment, key):
    answer = ask(gateway.port, "GET", "/echo?a=%zz", *UPGRADE, "X-One: 1", "X-Two:", "Pandora-Client: forged", host="raw.test", key=key)
    head = answer.json()["head"]
    line, *fields = head.split("\r\n")
    names = [field.split(":")[0].lower() for field in fields]
    assert line == "GET /echo?a=%zz HTTP/1.1" and names[0] == "host" and key not in head
    for field in (*UPGRADE[1:], "Connection: Upgrade", "X-One: 1", "X-Two:", "Pandora-Environment: prod", "X-Forwarded-For: 127.0.0.1"):
        assert fields.count(field) == 1, (field, fields)
    assert len(names) == len(set(names)) and "forged" not in head and "content-length" not in names


def test_bytes_around_the_switch_keep_their_order(gateway, key, behind):
    behind.raw.may_switch.clear()
    behind.raw.asked.clear()
    try:
        with Wire(gateway.port) as wire:
            wire.send(upgrade(key) + b"behind the request,")
            assert behind.raw.asked.wait(kit.PATIENCE)
            wire.send(b"before the switch,")
            time.sleep(0.2)
            behind.raw.may_switch.set()
            head = switched(wire)
            assert (head["upgrade"], head["connection"], head["x-kept"]) == ("websocket", "Upgrade", "1")
            assert head["pandora-request-id"].startswith("req_")
            wire.send(b"after it")
            text = b"hello,behind the request,before the switch,after it"
            assert exactly(wire, len(text)) == text
            # The client's end goes through, and what the upstream says to it comes back.
            wire.socket.shutdown(socket.SHUT_WR)
            assert wire.ended() == b"goodbye"
    finally:
        behind.raw.may_switch.set()


def test_a_slow_client_gets_everything_before_the_end(gateway, key):
    with connect(gateway.port, key, "/flood") as client:
        time.sleep(3)
        assert sum(len(client.recv(kit.PATIENCE)) for _ in range(10)) == 10 << 20
        with pytest.raises(websockets.exceptions.ConnectionClosedOK):
            client.recv(kit.PATIENCE)


def test_whoever_leaves_takes_the_other_along(gateway, key, behind):
    path = f"/echo/{uuid.uuid4().hex}"
    client = connect(gateway.port, key, path)
    client.socket.shutdown(socket.SHUT_RDWR)
    kit.eventually(lambda: path in behind.plain.closed, what="the upstream's connection is closed")
    with Wire(gateway.port) as wire:
        wire.send(upgrade(key, host="brief.test"))
        switched(wire)
        assert wire.ended() == b"hello,", "silence is the end where the route says so"


def test_what_breaks_upstream_looks_broken(gateway, key):
    with Wire(gateway.port) as wire:
        wire.send(upgrade(key))
        switched(wire)
        assert exactly(wire, 6) == b"hello,"
        wire.send(b"break")
        with pytest.raises(ConnectionResetError):
            wire.socket.recv(1)


# Admission.

def test_without_authority_the_upstream_sees_nothing(gateway, behind, log):
    token = uuid.uuid4().hex
    for key, code in ((None, "KEY_MISSING"), ("junk", "KEY_INVALID")):
        with Wire(gateway.port) as wire:
            answer = wire.send(upgrade(key, f"/echo/{token}", "ws.test")).read()
            assert answer.status == 401 and answer.json()["code"] == code
            # The connection is still HTTP's.
            assert wire.send(upgrade(key, f"/echo/{token}", "ws.test")).read().status == 401
        assert log.row(answer.id)["unauthorized_reason"] == code
    assert behind.plain.seen(token) == []


def test_a_tunnel_is_charged_once_and_logged_when_it_begins(gateway, tenants, log):
    environment = tenants.environment(limited=2)
    with connect(gateway.port, environment.key, host="limited.test") as client:
        row = log.row(client.response.headers["Pandora-Request-Id"])
        assert (row["status_code"], row["execution_status"], row["units"], row["attempts"]) == (101, "success", 1, 1)
        assert row["route"] == "limited" and 0 < row["first_byte_us"] <= row["duration_us"]
        for _ in range(3):
            client.send("still one unit")
            client.recv(kit.PATIENCE)
        kit.eventually(lambda: log.quota(environment, "limited")[0] == 1, what="one unit is used")
        with connect(gateway.port, environment.key, host="limited.test"):
            pass
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            connect(gateway.port, environment.key, host="limited.test")
        assert refused.value.response.status_code == 429
    kit.eventually(lambda: log.quota(environment, "limited") == [2, 0, 0, 2], what="two units are booked")


def test_a_declined_upgrade_costs_nothing(gateway, tenants, log):
    environment = tenants.environment(limited=5)
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        connect(gateway.port, environment.key, "/refused", "limited.test")
    response = refused.value.response
    assert response.status_code == 403 and response.body == b"not for you\n"
    row = log.row(response.headers["Pandora-Request-Id"])
    assert (row["status_code"], row["execution_status"], row["units"]) == (403, "client_error", 0)
    kit.eventually(lambda: log.quota(environment, "limited")[:3] == [0, 5, 0], what="the unit is given back")


def test_a_disabled_key_opens_no_tunnel_and_breaks_none(gateway, tenants, environment):
    secret = tenants.add_key(environment)

    def is_refused():
        with Wire(gateway.port) as wire:  # Until then there is a tunnel, of which no end is to be waited for.
            return wire.send(upgrade(secret, host="ws.test"))._until(b"\r\n").startswith(b"HTTP/1.1 401 ")

    with connect(gateway.port, secret) as client:
        tenants.sql(f"UPDATE pandora.api_key SET status = 'disabled' WHERE prefix = '{secret[3:11]}';")
        kit.eventually(is_refused, what="refused")
        client.send("still open")
        assert client.recv(kit.PATIENCE) == "still open"


def test_tunnels_count_as_connections_of_the_upstream(gateway, key):
    # Each of the two workers has a count of its own.
    with contextlib.ExitStack() as stack:
        opened = refused = 0
        for _ in range(20):
            wire = stack.enter_context(Wire(gateway.port))
            if wire.send(upgrade(key, "/echo", "narrow.test"))._until(b" ") == b"HTTP/1.1" and exactly(wire, 3) == b"101":
                opened += 1
            else:
                refused += 1
        assert 1 <= opened <= 2 and refused >= 18


# Upstreams that do something else.

@pytest.mark.parametrize("name, status, body", [
    ("teapot", 418, b"short"), ("until-close", 200, b"all of it"), ("trailers", 200, b"hello"), ("no-content", 204, b""),
    ("error", 500, b"oops"), ("interim", 200, b"after"), ("http10", 200, b"old but whole"), ("large-head", 204, b""),
])
def test_an_upstream_that_declines_is_passed_on_and_http_goes_on(gateway, key, name, status, body):
    with Wire(gateway.port) as wire:
        for _ in range(2):
            answer = wire.send(upgrade(key, f"/raw/{name}", "raw.test")).read()
            assert (answer.status, answer.body) == (status, body)
        assert wire.send(request("GET", "/echo", key=key)).read().status == 200


@pytest.mark.parametrize("target, host, code", [
    ("/raw/nothing", "raw.test", "UPSTREAM_CLOSED"), ("/raw/reset", "raw.test", "UPSTREAM_CLOSED"),
    ("/raw/half-head", "raw.test", "UPSTREAM_CLOSED"), ("/raw/garbage", "raw.test", "UPSTREAM_PROTOCOL"),
    ("/raw/bad-status", "raw.test", "UPSTREAM_PROTOCOL"), ("/raw/unasked-101", "raw.test", "UPSTREAM_PROTOCOL"),
    ("/raw/length-and-chunked", "raw.test", "UPSTREAM_PROTOCOL"), ("/raw/folded", "raw.test", "UPSTREAM_PROTOCOL"),
    ("/", "refused.test", "UPSTREAM_REFUSED"),
])
def test_an_upstream_that_fails_is_a_bad_gateway(gateway, key, log, target, host, code):
    with Wire(gateway.port) as wire:
        answer = wire.send(upgrade(key, target, host)).read()
        assert answer.status == 502 and answer.json()["code"] == code
        assert wire.send(request("GET", "/echo", key=key)).read().status == 200
    row = log.row(answer.id)
    assert (row["execution_status"], row["units"]) == ("upstream_error", 0)


@pytest.mark.parametrize("name", ["short", "chunk-cut", "chunks-without-end", "chunk-size-junk"])
def test_a_declined_upgrade_that_breaks_off_never_looks_complete(gateway, key, name):
    with Wire(gateway.port) as wire, pytest.raises(Cut):
        wire.send(upgrade(key, f"/raw/{name}", "raw.test")).read()


# A declined upgrade leaves HTTP on the connection working.

@pytest.mark.parametrize("fields", [
    UPGRADE, ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
    ("Proxy-Connection: Upgrade", "Upgrade: x")])
@pytest.mark.parametrize("apart", [True, False])
def test_a_declined_upgrade_leaves_http_working(gateway, key, fields, apart):
    """Whether the gateway refuses it, or forwards the request without it; whether the next request is on its way already."""
    websocket = fields is UPGRADE
    with Wire(gateway.port) as wire:
        for _ in range(3):
            first = request("GET", "/echo?first", *fields, host="closed.test", key=key)
            second = request("POST", "/echo?second", key=key, host="closed.test", body=b"x" * 100_000)
            parts = [first, second] if apart else [first + second]
            wire.send(parts[0])
            answer = wire.read() if apart else None
            wire.send(*parts[1:])
            answer = answer or wire.read()
            assert answer.status == (400 if websocket else 200)
            if websocket:
                assert answer.json()["code"] == "UPGRADE_REFUSED"
            assert wire.read().json()["body"] == "x" * 100_000


def test_a_body_behind_an_upgrade_is_a_body(gateway, key):
    with Wire(gateway.port) as wire:
        wire.send(request("POST", "/echo", "Connection: Upgrade", "Upgrade: h2c", "Content-Length: 200000", host="closed.test", key=key))
        time.sleep(0.1)
        wire.send(b"b" * 200_000 + request("GET", "/echo?next", host="closed.test", key=key))
        assert wire.read().json()["body"] == "b" * 200_000
        assert "next" in wire.read().json()["head"]


def test_what_is_no_websocket_handshake_is_refused(gateway, key, raw):
    token = uuid.uuid4().hex
    for text in (request("POST", f"/echo?{token}", *UPGRADE, host="raw.test", key=key, body=b"body"),
                 request("GET", f"/echo?{token}", *UPGRADE, host="raw.test", key=key, body=b"body"),
                 request("GET", f"/echo?{token}", *UPGRADE, host="raw.test", key=key).replace(b"HTTP/1.1", b"HTTP/1.0")):
        with Wire(gateway.port) as wire:
            answer = wire.send(text).read()
            assert answer.status == 400 and answer.json()["code"] == "UPGRADE_REFUSED"
    assert raw.seen(token) == []


def test_bytes_before_the_switch_are_bounded(gateway, key, behind):
    behind.raw.may_switch.clear()
    try:
        with Wire(gateway.port, timeout=1) as wire:
            wire.send(upgrade(key))
            sent = 0
            # What the kernels take on the way, and no more.
            with pytest.raises(TimeoutError):
                while sent < 100 << 20:
                    sent += wire.socket.send(b"x" * (1 << 16))
            assert sent < 50 << 20
    finally:
        behind.raw.may_switch.set()


# Ends of the gateway.

@pytest.fixture
def site(binary, services, behind, tmp_path):
    one = sites.Site(binary, services, tmp_path, configuration(behind, services, drain="5s"))
    yield one
    one.remove()


def test_an_answered_tunnel_is_charged_though_the_gateway_is_killed(site):
    environment = site.tenants.environment(limited=10)
    for number in range(1, 4):
        client = connect(site.gateway.port, environment.key, host="limited.test")
        request_id = client.response.headers["Pandora-Request-Id"]
        # At once: the row is in the spool, if at all.
        site.gateway.kill()
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            client.recv(kit.PATIENCE)
        site.gateway.start()
        row = site.log.row(request_id)
        assert (row["status_code"], row["units"]) == (101, 1)
        kit.eventually(lambda: site.log.quota(environment, "limited")[0] == number, what=f"{number} units are used")


def test_a_drain_ends_with_the_tunnels(site):
    environment = site.tenants.environment(orders=None)
    with connect(site.gateway.port, environment.key) as client:
        site.gateway.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        client.send("while it drains")
        assert client.recv(kit.PATIENCE) == "while it drains"
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            client.recv(kit.PATIENCE)
    assert site.gateway.process.wait(kit.PATIENCE) == 0
