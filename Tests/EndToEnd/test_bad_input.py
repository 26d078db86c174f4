"""Requests that break HTTP or are too large: refused with the right status, the connection closed, nothing forwarded."""

import contextlib
import socket
import time
import uuid

import pytest

import kit
from wire import Cut, Wire, ask, request

TOKEN = "TOKEN"


def head(*lines):
    return "\r\n".join((*lines, "", "")).encode("latin-1")


HOST = "Host: raw.test"
KEY = "X-API-Key: KEY"
POST = "POST /echo?TOKEN HTTP/1.1"
GET = "GET /echo?TOKEN HTTP/1.1"

MALFORMED = {
    "no version": head("GET /echo?TOKEN", HOST, KEY),
    "no target": head("GET", HOST, KEY),
    "a fourth word": head("GET /echo?TOKEN HTTP/1.1 more", HOST, KEY),
    "blank in front": head(" GET /echo?TOKEN HTTP/1.1", HOST, KEY),
    "method that is no token": head("G(T /echo?TOKEN HTTP/1.1", HOST, KEY),
    "lower-case protocol": head("GET /echo?TOKEN http/1.1", HOST, KEY),
    "other protocol": head("GET /echo?TOKEN SSH/1.1", HOST, KEY),
    "other version": head("GET /echo?TOKEN HTTP/2.0", HOST, KEY),
    "TLS hello": bytes.fromhex("16030100c5010000c10303") + bytes(200),
    "bare LF": head(GET, HOST, KEY).replace(b"\r\n", b"\n"),
    "bare LF in one line": head(GET, HOST, "X-A: 1\nX-B: 2", KEY),
    "bare CR": head(GET, HOST, "X-A: 1\rX-B: 2", KEY),
    "blank before the colon": head(GET, HOST, "X-A : 1", KEY),
    "field without a colon": head(GET, HOST, "X-A", KEY),
    "field without a name": head(GET, HOST, ": 1", KEY),
    "blank in a name": head(GET, HOST, "X A: 1", KEY),
    "folded line": head(GET, HOST, "X-A: 1", " 2", KEY),
    "blank before the first field": head(GET, " X-A: 1", HOST, KEY),
    "NUL in a value": head(GET, HOST, "X-A: 1\x002", KEY),
    "NUL in a name": head(GET, HOST, "X\x00A: 1", KEY),
    "control byte in a value": head(GET, HOST, "X-A: 1\x012", KEY),
    "control byte in the target": head("GET /echo?TOKEN\x01 HTTP/1.1", HOST, KEY),
    "Latin-1 in a value": head(GET, HOST, "X-A: caf\xe9", KEY),
    "Latin-1 in the target": head("GET /echo?TOKEN=\xe9 HTTP/1.1", HOST, KEY),
    "no Host": head(GET, KEY),
    "two Hosts": head(GET, HOST, "Host: other.test", KEY),
    "two lengths": head(POST, HOST, KEY, "Content-Length: 5", "Content-Length: 6") + b"hello!",
    "list of lengths": head(POST, HOST, KEY, "Content-Length: 5, 6") + b"hello!",
    "length with a sign": head(POST, HOST, KEY, "Content-Length: +5") + b"hello",
    "negative length": head(POST, HOST, KEY, "Content-Length: -5") + b"hello",
    "hexadecimal length": head(POST, HOST, KEY, "Content-Length: 0x5") + b"hello",
    "empty length": head(POST, HOST, KEY, "Content-Length:"),
    "length beyond 64 bits": head(POST, HOST, KEY, "Content-Length: 18446744073709551621") + b"hello",
    "length and chunked": head(POST, HOST, KEY, "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "chunked and length": head(POST, HOST, KEY, "Transfer-Encoding: chunked", "Content-Length: 5") + b"0\r\n\r\n",
    "chunked in HTTP/1.0": head("POST /echo?TOKEN HTTP/1.0", HOST, KEY, "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "tab in Connection": head(GET, HOST, KEY, "Connection: x,\tclose"),
    "mark in Connection": head(GET, HOST, KEY).replace(b"\r\n\r\n", "\r\nConnection: x, \u0301upgrade\r\nUpgrade: x\r\n\r\n".encode()),
    "mark in Upgrade": head(GET, HOST, KEY, "Connection: upgrade").replace(b"\r\n\r\n", "\r\nUpgrade: \u0600 \r\n\r\n".encode()),
    "Expect of something else": head(POST, HOST, KEY, "Expect: a miracle", "Content-Length: 5") + b"hello",
    "target without a slash": head("GET echo?TOKEN HTTP/1.1", HOST, KEY),
}

AMBIGUOUS_PATHS = ["/a/../echo", "/a/./echo", "/..", "/a/%2E./echo", "/a/..;x/echo", "//echo", "/a//echo", "/a%2Fecho", "/a%5cecho",
                   "/a\\echo", "/echo%4", "/echo%zz", "/echo%00", "/a/%2e%2e/echo"]

CODINGS = ["gzip, chunked", "identity", "chunked, chunked", "chunked, gzip", "xchunked", "chunked;q=1", "\x0bchunked", "gzip"]

BROKEN_CHUNKS = {
    "size that is no number": b"zz\r\nhello\r\n0\r\n\r\n",
    "size with a prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "negative size": b"-5\r\nhello\r\n0\r\n\r\n",
    "size beyond 64 bits": b"ffffffffffffffff5\r\nhello\r\n0\r\n\r\n",
    "chunk longer than its size": b"5\r\nhello!\r\n0\r\n\r\n",
    "chunk with bare LF": b"5\nhello\n0\n\n",
    "empty size": b"\r\nhello\r\n0\r\n\r\n",
}


@pytest.fixture
def token():
    return uuid.uuid4().hex


def deliver(gateway, key, token, data):
    """Sends and reads whatever answer there is, and whatever comes until the connection closes."""
    data = data.replace(b"TOKEN", token.encode()).replace(b"KEY", key.encode())
    with Wire(gateway.port) as wire:
        try:
            wire.send(data)
        except ConnectionError:
            pass
        answer = wire.read()
        return answer, wire.ended()


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_request_is_400_and_closes(gateway, key, raw, token, name):
    answer, rest = deliver(gateway, key, token, MALFORMED[name])
    assert answer.status == 400, answer
    assert answer["connection"] == "close" and rest == b""
    assert answer["content-type"] == "application/problem+json" and answer.json()["code"] == "REQUEST_MALFORMED"
    assert raw.seen(token) == []


@pytest.mark.parametrize("path", AMBIGUOUS_PATHS)
def test_path_that_upstreams_may_read_otherwise_is_400(gateway, key, raw, log, token, path):
    answer = ask(gateway.port, "GET", f"{path}?{token}", key=key)
    assert answer.status == 400 and answer.json()["code"] == "REQUEST_MALFORMED", answer
    assert raw.seen(token) == [] and log.row(answer.id)["execution_status"] == "client_error"


def test_superfluous_blanks_in_the_request_line_go_no_further(gateway, key, raw, token):
    """RFC 9112, section 3: a recipient may be lenient there, as the decoder is; the upstream gets a clean line."""
    with Wire(gateway.port) as wire:
        status = wire.send(head(f"GET  /echo?{token} HTTP/1.1", HOST, f"X-API-Key: {key}")).read().status
    assert status == 400 and raw.seen(token) == [] or [one.target for one in raw.seen(token)] == [f"/echo?{token}".encode()]


@pytest.mark.parametrize("coding", CODINGS)
def test_other_transfer_codings_are_refused(gateway, key, raw, token, coding):
    answer, rest = deliver(gateway, key, token, head(POST, HOST, KEY, f"Transfer-Encoding: {coding}") + b"5\r\nhello\r\n0\r\n\r\n")
    assert answer.status in (400, 501) and answer["connection"] == "close" and rest == b"", answer
    assert raw.seen(token) == []


@pytest.mark.parametrize("body", [b"", b"0\r\n\r\n", b"1\r\na\r\n0\r\n\r\n"])
@pytest.mark.parametrize("coding", ["chunked\t", "chunked \t", "\tchunked\t", "chunked,", "identity"])
def test_no_body_behind_an_upgrade_is_a_request_of_its_own(gateway, key, raw, token, body, coding):
    """The decoder does not know such a coding, and where an upgrade is asked for it says so to nobody."""
    fields = (HOST, KEY, f"Transfer-Encoding: {coding}", "Connection: Upgrade", "Upgrade: h2c")
    answer, rest = deliver(gateway, key, token, head(POST, *fields) + body + head("GET /echo?TOKEN-smuggled HTTP/1.1", HOST, KEY))
    assert answer.status in (400, 501) and answer["connection"] == "close" and rest == b"", answer
    assert raw.seen(token) == []


@pytest.mark.parametrize("fields", [("Proxy-Connection: upgrade", "Upgrade: x"), ("Connection: upgrade", "Upgrade: x")])
def test_what_comes_behind_a_request_is_bounded(gateway, fields):
    with Wire(gateway.port) as wire:
        wire.send(head(GET, HOST, *fields), b"GET /")
        assert wire.read().status == 401
        flood(wire, b"x")
        assert wire.read().status == 414


@pytest.mark.parametrize("start, status", [
    (b"GET ", 414), (b"GET / HTTP/1.1\r\nX:", 431), (b"GET / HTTP/1.1\r\nX: 1\r\nTransfer-Encoding:", 431)])
def test_a_head_of_blanks_is_bounded(gateway, start, status):
    with Wire(gateway.port) as wire:
        wire.send(start)
        flood(wire, b" ")
        assert wire.read().status == status


def flood(wire, byte):
    """Sends until there is an answer."""
    wire.socket.setblocking(False)
    deadline = time.monotonic() + kit.PATIENCE
    while not wire.data:
        assert time.monotonic() < deadline, "nobody minds"
        with contextlib.suppress(BlockingIOError):
            wire.socket.send(byte * (1 << 16))
        with contextlib.suppress(BlockingIOError):
            wire.data += wire.socket.recv(1 << 16)
    wire.socket.settimeout(kit.PATIENCE)


@pytest.mark.parametrize("name", BROKEN_CHUNKS)
def test_broken_chunks_are_400_and_never_complete_upstream(gateway, key, raw, token, name):
    answer, rest = deliver(gateway, key, token, head(POST, HOST, KEY, "Transfer-Encoding: chunked") + BROKEN_CHUNKS[name])
    assert answer.status == 400 and rest == b"", answer
    assert not any(one.is_complete for one in raw.seen(token))


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
def test_methods_for_proxies_are_not_implemented(gateway, key, raw, token, method):
    target = "raw.test:80" if method == "CONNECT" else f"/echo?{token}"
    answer, _ = deliver(gateway, key, token, head(f"{method} {target} HTTP/1.1", HOST, KEY, "Connection: close"))
    assert answer.status in (400, 405, 501) and raw.seen(token) == [], answer


@pytest.mark.parametrize("data, status, code", [
    (head("GET /echo?TOKEN=" + "a" * 9000 + " HTTP/1.1", HOST, KEY), 414, "TARGET_TOO_LONG"),
    (head("GET /echo?TOKEN=" + "a" * 200_000 + " HTTP/1.1", HOST, KEY), 414, "TARGET_TOO_LONG"),
    (head(GET, HOST, KEY, "X-A: " + "a" * 17_000), 431, "HEADERS_TOO_LARGE"),
    (head(GET, HOST, KEY, "X-A: " + "a" * 300_000), 431, "HEADERS_TOO_LARGE"),
    (head(GET, HOST, KEY, *(f"X-{number}: " + "a" * 10_000 for number in range(10))), 431, "HEADERS_TOO_LARGE"),
    (head(GET, HOST, KEY, *(f"X-{number}: 1" for number in range(200))), 431, "HEADERS_TOO_LARGE"),
    (head(GET, HOST, KEY, "a" * 20_000 + ": 1"), 431, "HEADERS_TOO_LARGE"),
], ids=["target", "huge target", "field", "huge field", "all fields", "number of fields", "name"])
def test_oversize_head_is_refused(gateway, key, raw, token, data, status, code):
    answer, rest = deliver(gateway, key, token, data)
    assert answer.status == status and answer.json()["code"] == code, answer
    assert answer["connection"] == "close" and rest == b"" and raw.seen(token) == []


def test_head_within_the_limits_passes(gateway, key):
    answer = ask(gateway.port, "GET", "/echo?" + "a" * 8000, "X-A: " + "a" * 15_000, *(f"X-{n}: " + "b" * 300 for n in range(110)),
                 key=key)
    assert answer.status == 200, answer


def test_oversize_body_is_413_before_it_is_sent(gateway, key, raw, token, log):
    with Wire(gateway.port) as wire:
        answer = wire.send(request("POST", f"/echo?{token}", "Content-Length: 1001", host="small.test", key=key)).read()
    assert answer.status == 413 and answer.json()["code"] == "BODY_TOO_LARGE" and raw.seen(token) == []
    assert log.row(answer.id)["status_code"] == 413
    assert ask(gateway.port, "POST", "/echo", host="small.test", key=key, body=b"x" * 1000).status == 200


def test_chunked_body_that_grows_too_large_is_413(gateway, key, raw, token, log):
    with Wire(gateway.port) as wire:
        wire.send(request("POST", f"/echo?{token}", "Transfer-Encoding: chunked", host="small.test", key=key))
        try:
            for _ in range(100):
                wire.send(b"64\r\n" + b"x" * 100 + b"\r\n")
        except ConnectionError:
            pass
        answer = wire.read()
        assert answer.status == 413 and wire.ended() == b""
    assert not any(one.is_complete for one in raw.seen(token))
    row = log.row(answer.id)
    assert row["execution_status"] == "client_error" and row["units"] == 0


def test_absolute_target_names_the_host(gateway, key, log):
    with Wire(gateway.port) as wire:
        answer = wire.send(head("GET http://raw.test/echo?absolute HTTP/1.1", "Host: nowhere.test", f"X-API-Key: {key}")).read()
    assert answer.status == 200 and "absolute" in answer.json()["head"].split("\r\n")[0]
    assert log.row(answer.id)["host"] == "raw.test"


def test_options_for_the_whole_server_is_answered(gateway, key):
    with Wire(gateway.port) as wire:
        answer = wire.send(head("OPTIONS * HTTP/1.1", HOST, f"X-API-Key: {key}", "Connection: close")).read()
    assert answer.status in (200, 204, 400, 404)


def test_empty_lines_before_a_request_are_skipped(gateway, key):
    with Wire(gateway.port) as wire:
        assert wire.send(b"\r\n\r\n" + request("GET", "/echo", key=key)).read().status == 200


@pytest.mark.parametrize("framing", [
    ["Content-Length: 6", "Transfer-Encoding: chunked"], ["Transfer-Encoding: chunked", "Content-Length: 6"],
    ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"], ["Transfer-Encoding : chunked", "Content-Length: 4"],
    ["Transfer-Encoding:\x0bchunked", "Content-Length: 4"], ["Content-Length: 0", "Content-Length: 60"], ["Content-Length: 0\x00"],
    ["X-A: 1\nTransfer-Encoding: chunked", "Content-Length: 4"], ["Transfer_Encoding: chunked", "Content-Length : 4"],
    ["Transfer-Encoding: \"chunked\"", "Content-Length: 4"], ["Content-Length: 4", " 0"],
])
def test_smuggled_request_never_arrives(gateway, key, raw, token, framing):
    smuggled = request("GET", f"/echo?smuggled-{token}", key=key)
    data = head(POST, HOST, KEY, *framing) + b"0\r\n\r\n" + smuggled
    answer, _ = deliver(gateway, key, token, data)
    assert answer.status in (400, 501), answer
    assert raw.seen(token) == []


def test_request_in_a_body_is_a_body(gateway, key, raw, token):
    smuggled = request("GET", f"/echo?smuggled-{token}", key=key)
    answer = ask(gateway.port, "POST", "/echo", key=key, body=smuggled)
    assert answer.json()["body"].encode() == smuggled
    answer = ask(gateway.port, "GET", "/echo", key=key, body=smuggled)
    assert answer.json()["body"].encode() == smuggled and raw.seen(f"smuggled-{token}") == []


def test_refused_upload_does_not_turn_its_body_into_requests(gateway, key, raw, token):
    smuggled = request("GET", f"/echo?smuggled-{token}", key=key)
    with Wire(gateway.port) as wire:
        # No key: refused before the body is read; the body is skipped or the connection closes.
        answer = wire.send(request("POST", "/echo", body=smuggled)).read()
        assert answer.status == 401
        if answer["connection"] != "close":
            assert wire.send(request("GET", "/echo", key=key)).read().json()["head"].startswith("GET /echo HTTP/1.1")
    assert raw.seen(f"smuggled-{token}") == []


@pytest.fixture(scope="module")
def impatient(make_gateway):
    return make_gateway("impatient", workers=1, limits={"request_head": "700ms", "body_idle": "700ms", "keep_alive": "700ms"})


def closes(wire):
    """The gateway may say 408 before it closes."""
    try:
        answer = wire.read()
        assert answer.status == 408 and answer.json()["code"] == "REQUEST_TIMEOUT", answer
    except Cut as cut:
        assert cut.answer is None
    assert wire.ended() == b""


def test_slow_head_is_cut_off_however_it_drips(impatient, key):
    with Wire(impatient.port) as wire:
        def drip():
            try:
                wire.send(b"X: 1\r\n")
            except ConnectionError:
                return True
            wire.socket.settimeout(0.1)
            try:
                return wire.socket.recv(1, socket.MSG_PEEK) is not None
            except TimeoutError:
                return False

        wire.send(b"GET /echo HTTP/1.1\r\nHost: raw.test\r\n")
        kit.eventually(drip, what="the gateway has had enough")
        wire.socket.settimeout(kit.PATIENCE)
        closes(wire)


@pytest.fixture(scope="module")
def hasty(make_gateway):
    """A head has little time here, an idle connection much."""
    return make_gateway("hasty", workers=1, limits={"request_head": "1500ms"})


BEHIND = pytest.mark.parametrize("fields", [(), ("Connection: Upgrade", "Upgrade: h2c")], ids=["plain", "upgrade"])


@BEHIND
@pytest.mark.parametrize("apart", [False, True])
def test_a_head_behind_another_request_has_no_more_time_than_any(hasty, key, fields, apart):
    with Wire(hasty.port) as wire:
        parts = request("GET", "/echo/late", *fields, key=key), b"GET /echo HTTP/1.1\r\nHost: raw.te"
        wire.send(*parts if apart else [b"".join(parts)])
        assert wire.read().status == 200
        answer = wire.read()
        assert answer.status == 408 and answer.json()["code"] == "REQUEST_TIMEOUT", answer
        assert wire.ended() == b""


@BEHIND
def test_a_head_in_pieces_behind_another_request_is_read(gateway, key, fields):
    first, second = request("GET", "/echo/late", *fields, key=key), request("GET", "/echo?second", key=key)
    for cut in (1, len(second) // 2, len(second) - 1):
        with Wire(gateway.port) as wire:
            assert wire.send(first + second[:cut]).read().status == 200
            assert "second" in wire.send(second[cut:]).read().json()["head"]


def test_an_idle_connection_is_no_slow_head(hasty, key):
    with contextlib.ExitStack() as stack:
        wires = {host: stack.enter_context(Wire(hasty.port)) for host in ("raw.test", "nowhere.test")}
        for host, wire in wires.items():
            for _ in range(2):
                text = request("GET", "/echo", host=host, key=key)
                wire.send(text[:30])
                time.sleep(0.05)  # In two pieces, of which the first is looked at by itself.
                assert wire.send(text[30:]).read().status == (200 if host == "raw.test" else 404)
        time.sleep(2.5)
        for wire in wires.values():
            assert wire.send(request("GET", "/echo", key=key)).read().status == 200


def test_slow_body_is_cut_off(impatient, key, raw, token):
    with Wire(impatient.port) as wire:
        wire.send(request("POST", f"/echo?{token}", "Content-Length: 100", key=key), b"half")
        closes(wire)
    assert kit.eventually(lambda: raw.seen(token))[0].gone.wait(kit.PATIENCE) and not raw.seen(token)[0].is_complete


def test_idle_connection_is_closed(impatient, key):
    with Wire(impatient.port) as wire:
        assert wire.send(request("GET", "/echo", key=key)).read().status == 200
        assert wire.ended() == b""
    with Wire(impatient.port) as wire:
        closes(wire)
