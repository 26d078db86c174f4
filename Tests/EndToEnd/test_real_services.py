"""In front of services that nobody here wrote: nginx and httpbin, asked through the gateway and directly, by curl, httpx and wrk."""

import gzip
import hashlib
import pathlib
import re
import socket
import subprocess
import threading
import time
import zlib

import httpx
import pytest

import kit
from wire import Answer, Wire, request

# What a proxy says of its own connection, and the clock.
OF_THE_HOP = ("connection", "keep-alive", "transfer-encoding", "date", "via", "pandora-", "ratelimit")


class Client:
    """Asks one service twice: through the gateway and directly."""

    def __init__(self, gateway, service, host, key):
        self.through, self.direct, self.host, self.key = gateway.port, service.port, host, key

    def curl(self, target, *options):
        return (self._curl(self.through, target, "-H", f"Host: {self.host}", "-H", f"X-API-Key: {self.key}", *options),
                self._curl(self.direct, target, *options))

    @staticmethod
    def _curl(port, target, *options):
        done = subprocess.run(["curl", "-sS", "-i", "--path-as-is", "--max-time", "300", *options, f"http://127.0.0.1:{port}{target}"],
                              capture_output=True)
        assert done.returncode == 0, done.stderr
        rest = done.stdout
        while True:
            head, _, rest = rest.partition(b"\r\n\r\n")
            answer = Answer(head)
            if answer.status >= 200:
                answer.body = rest
                return answer

    def same(self, target, *options):
        through, direct = self.curl(target, *options)
        assert (through.status, through.reason) == (direct.status, direct.reason)
        assert kept(through) == kept(direct)
        assert through.body == direct.body
        return through

    def httpx(self, **options):
        return httpx.Client(base_url=f"http://127.0.0.1:{self.through}", timeout=kit.PATIENCE,
                            headers={"Host": self.host, "X-API-Key": self.key}, **options)


def kept(answer):
    return [field for field in answer.fields if not field[0].startswith(OF_THE_HOP)]


@pytest.fixture(scope="module")
def nginx(gateway, services, key):
    return Client(gateway, services.nginx, "nginx.test", key)


@pytest.fixture(scope="module")
def httpbin(gateway, services, key):
    return Client(gateway, services.httpbin, "httpbin.test", key)


@pytest.mark.parametrize("target, options", [
    ("/small.txt", []), ("/page.html", []), ("/missing", []), ("/upload", []), ("/upload/", []), ("/small.txt?x=%zz", []),
    ("/small.txt", ["-I"]), ("/missing", ["-I"]), ("/page.html", ["-r", "100-199"]), ("/page.html", ["-r", "-10"]),
    ("/page.html", ["-r", "99999999-"]), ("/page.html", ["-H", "If-Modified-Since: Tue, 19 Jan 2038 03:14:07 GMT"]),
    ("/page.html", ["-H", "If-None-Match: \"other\""]), ("/small.txt", ["-X", "DELETE"]), ("/small.txt", ["-d", "a=1"]),
    ("/page.html", ["-H", "Accept-Encoding: gzip"]), ("/small.txt", ["--http1.0"]),
])
def test_nginx_answers_the_same(nginx, target, options):
    nginx.same(target, *options)


def test_nginx_revalidates(nginx):
    tag = nginx.same("/page.html")["etag"]
    assert nginx.same("/page.html", "-H", f"If-None-Match: {tag}").status == 304
    assert nginx.same("/page.html", "-r", "0-9", "-H", f"If-Range: {tag}").status == 206


def sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resident(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) << 10


def test_200_megabytes_come_down_whole_in_little_memory(nginx, services, gateway, tmp_path):
    before, target = resident(gateway.pid), tmp_path / "large.bin"
    subprocess.run(["curl", "-sSf", "--max-time", "300", "-o", target, "-H", "Host: nginx.test", "-H", f"X-API-Key: {nginx.key}",
                    f"http://127.0.0.1:{gateway.port}/large.bin"], check=True)
    assert sha256(target) == sha256(services.files / "large.bin")
    assert resident(gateway.pid) - before < 32 << 20


def test_200_megabytes_go_up_whole_in_little_memory(nginx, services, gateway):
    before = resident(gateway.pid)
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "300", "-o", "/dev/null", "-w", "%{http_code}", "-T", services.files / "large.bin", "-H",
         "Host: nginx.test", "-H", f"X-API-Key: {nginx.key}", f"http://127.0.0.1:{gateway.port}/upload/up.bin"],
        check=True, capture_output=True, text=True)
    assert done.stdout == "201"
    assert sha256(services.files / "upload" / "up.bin") == sha256(services.files / "large.bin")
    assert resident(gateway.pid) - before < 32 << 20


def test_answers_to_a_client_that_reads_none_of_them_wait_outside(nginx, services, gateway):
    """Pipelined requests: where one answer has filled the connection, the upstream of the next one is held back at once."""
    count, page = 1500, (services.files / "page.html").read_bytes()
    before = resident(gateway.pid)
    with Wire(gateway.port) as wire:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        sender = threading.Thread(target=wire.send, args=(request("GET", "/page.html", host="nginx.test", key=nginx.key) * count,))
        sender.start()
        time.sleep(2)
        assert resident(gateway.pid) - before < 32 << 20, f"{count} answers are {count * len(page) >> 20} MiB"
        for _ in range(count):
            assert wire.read().body == page
        sender.join()


def test_slow_reader_gets_it_all(nginx):
    through, direct = nginx.curl("/page.html", "--limit-rate", "200k")
    assert through.body == direct.body


@pytest.mark.parametrize("target, options", [
    ("/html", []), ("/robots.txt", []), ("/image/png", []), ("/encoding/utf8", []), ("/xml", []), ("/html", ["-I"]),
    ("/bytes/10000?seed=1", []), ("/stream-bytes/20000?seed=2&chunk_size=777", []), ("/range/1000", ["-r", "10-20"]),
    ("/range/1000", []), ("/redirect-to?url=http://example.com/&status_code=307", []), ("/relative-redirect/2", []),
    ("/redirect/1", []), ("/absolute-redirect/2", []), ("/redirect-to?url=/get&status_code=303", ["-X", "POST"]),
    ("/cookies/set?a=1&b=2&c=3", []), ("/cookies", ["-H", "Cookie: a=1; b=2", "-H", "Cookie: c=3"]),
    ("/response-headers?X-A=1&X-A=2&X-Empty=", []), ("/status/204", []), ("/status/304", []), ("/status/418", []),
    ("/status/451", []), ("/status/500", []), ("/status/503", []), ("/status/599", []), ("/etag/tag", ["-H", "If-None-Match: tag"]),
    ("/etag/tag", ["-H", "If-Match: other"]), ("/cache", ["-H", "If-Modified-Since: x"]), ("/basic-auth/u/p", []),
    ("/basic-auth/u/p", ["-u", "u:p"]), ("/hidden-basic-auth/u/p", []), ("/drip?numbytes=20&duration=1", []),
    ("/base64/aGVsbG8=", []), ("/links/3/1", []), ("/user-agent", ["-A", "an agent/1"]), ("/missing", []), ("/deny", []),
    ("/get", ["-X", "POST", "-d", ""]),
])
def test_httpbin_answers_the_same(httpbin, target, options):
    httpbin.same(target, *options)


@pytest.mark.parametrize("path, coding, decode", [
    ("/gzip", "gzip", gzip.decompress), ("/deflate", "deflate", zlib.decompress),
])
def test_compressed_answers_pass_unopened(httpbin, path, coding, decode):
    through, direct = httpbin.curl(path)
    assert through["content-encoding"] == direct["content-encoding"] == coding
    assert int(through["content-length"]) == len(through.body)
    assert b'"method": "GET"' in decode(through.body)


def test_redirects_are_the_clients_to_follow(httpbin):
    with httpbin.httpx(follow_redirects=True) as client:
        answer = client.get("/redirect/3")
        assert answer.status_code == 200 and [one.status_code for one in answer.history] == [302, 302, 302]
        client.get("/cookies/set", params={"a": "1", "b": "2"})
        assert client.get("/cookies").json() == {"cookies": {"a": "1", "b": "2"}}


def test_uploads_of_every_kind(httpbin):
    data = bytes(range(256)) * 2000
    with httpbin.httpx() as client:
        multipart = client.post("/post", files={"one": ("one.bin", data), "two": ("two.txt", b"second")}, data={"field": "value"})
        assert multipart.json()["form"] == {"field": "value"} and set(multipart.json()["files"]) == {"one", "two"}
        text = ("pieces %d\n" * 3000) % tuple(range(3000))
        streamed = client.put("/put", content=(text[at:at + 1000].encode() for at in range(0, len(text), 1000)))
        assert streamed.json()["data"] == text and streamed.json()["headers"].get("Transfer-Encoding") == "chunked"
        assert client.patch("/patch", json={"a": [1, 2]}).json()["json"] == {"a": [1, 2]}
        assert client.request("DELETE", "/delete", content=b"with a body").json()["data"] == "with a body"


def test_streams_arrive_while_they_are_made(httpbin):
    with httpbin.httpx() as client:
        with client.stream("GET", "/stream/20") as answer:
            assert len(list(answer.iter_lines())) == 20
        with client.stream("GET", "/drip?numbytes=3&duration=3&delay=0") as answer:
            pieces = answer.iter_raw()
            # The first byte is there while httpbin still waits to send the last: only then is anything left to cut.
            assert next(pieces) == b"*"
            assert b"".join(pieces) == b"**"


def test_httpx_sees_the_same(httpbin, services):
    with httpbin.httpx() as client:
        for path in ("/bytes/3000?seed=7", "/encoding/utf8", "/response-headers?Set-Cookie=a%3D1&Set-Cookie=b%3D2", "/status/402"):
            through, direct = client.get(path), httpx.get(f"http://127.0.0.1:{services.httpbin.port}{path}")
            assert (through.status_code, through.content) == (direct.status_code, direct.content)
            assert through.headers.get_list("set-cookie") == direct.headers.get_list("set-cookie")


def test_wrk_finds_no_error_and_every_request_is_in_the_log(gateway, tenants, log):
    environment = tenants.environment(files=10_000_000)
    done = subprocess.run(["wrk", "-t", "1", "-c", "32", "-d", "2s", "--timeout", "120s", "-H", "Host: nginx.test", "-H",
                           f"X-API-Key: {environment.key}", f"http://127.0.0.1:{gateway.port}/small.txt"],
                          check=True, capture_output=True, text=True)
    assert "Non-2xx" not in done.stdout and "Socket errors" not in done.stdout, done.stdout
    answered = int(re.search(r"(\d+) requests in", done.stdout)[1])

    def logged():
        [row] = log.postgres.psql(
            f"""SELECT count(*), coalesce(sum(units), 0), count(*) FILTER (WHERE execution_status = 'success')
                  FROM pandora.request_logs WHERE environment_id = {environment.id}""")
        rows, units, successes = map(int, row)
        # wrk stops in the middle of a request on each of its connections.
        assert answered <= successes <= rows <= answered + 32
        used, available, held, ledger = log.quota(environment, "files")
        assert used == ledger == units and available == 10_000_000 - used and held == 0
        return True

    kit.eventually(logged, what="log, ledger and counters agree")
