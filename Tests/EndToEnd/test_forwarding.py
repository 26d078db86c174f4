"""What arrives upstream and what comes back, byte by byte."""

import re
import uuid

import pytest

from wire import Wire, ask, request

OURS = ("x-forwarded-", "forwarded", "via", "pandora-", "traceparent")


def echo(gateway, key, method="GET", target="/echo", *fields, **options):
    answer = ask(gateway.port, method, target, *fields, key=key, **options)
    assert answer.status == 200, answer
    return Seen(answer)


class Seen:
    """The request as the echo upstream got it, beside the answer."""

    def __init__(self, answer):
        self.answer, told = answer, answer.json()
        line, *fields = told["head"].split("\r\n")
        self.method, self.target, self.version = line.split(" ")
        self.fields = [tuple(part.strip() for part in field.split(":", 1)) for field in fields]
        self.body, self.chunked, self.connection = told["body"].encode("latin-1"), told["chunked"], told["connection"]

    def all(self, name):
        return [value for field, value in self.fields if field.lower() == name.lower()]

    def clients(self):
        """Without what the gateway says itself and without framing."""
        return [field for field in self.fields
                if not field[0].lower().startswith(OURS) and field[0].lower() not in ("host", "content-length", "transfer-encoding")]


@pytest.mark.parametrize("target", [
    "/echo", "/echo?", "/echo?x=%zz&&", "/a%2e/b?x=%zz&&", "/echo;v=1/b", "/%7Euser/%E2%82%AC", "/echo?a=/../&b=//", "/echo?q=a+b%20c",
    "/ECHO/%41?%41=%61", "/echo/", "/echo?" + "q" * 4000, "/echo?a[]=1&a[]=2|3", "/echo?'\"<>{}^`\\",
])
def test_target_arrives_untouched(gateway, key, target):
    assert echo(gateway, key, "GET", target).target == target


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "M-SEARCH"])
def test_method_arrives(gateway, key, method):
    assert echo(gateway, key, method).method == method


def test_head_is_forwarded_as_head(gateway, key, raw):
    token = uuid.uuid4().hex
    answer = ask(gateway.port, "HEAD", f"/echo?{token}", key=key)
    assert answer.status == 200 and int(answer["content-length"]) > 0 and answer.body == b""
    assert [one.method for one in raw.seen(token)] == [b"HEAD"]


def test_fields_keep_order_duplicates_case_and_empty_values(gateway, key):
    sent = ["X-One: 1", "x-two: a", "Cookie: a=1", "X-TWO: b", "X-Empty:", "Accept: */*", "X-One: 2", "Cookie: b=2",
            "X-Spaces:   inner  kept \t ", "User-Agent: t/1", "Accept-Encoding: gzip, br"]
    expected = [tuple(part.strip() for part in field.split(":", 1)) for field in sent]
    assert echo(gateway, key, "GET", "/echo", *sent).clients() == expected


def test_field_that_the_client_does_not_send_is_not_invented(gateway, key):
    assert echo(gateway, key).clients() == []
    assert echo(gateway, key, "POST", body=b"x").clients() == []


def test_key_never_arrives(gateway, key):
    for seen in (echo(gateway, key), echo(gateway, None, "GET", "/echo", f"Authorization: Bearer {key}"),
                 echo(gateway, key, "GET", "/echo", f"authorization: bearer {key}", f"x-api-key: {key}")):
        assert key not in seen.answer.json()["head"]


def test_authorization_of_another_kind_is_the_upstreams(gateway, key):
    seen = echo(gateway, key, "GET", "/echo", "Authorization: Basic dTpw")
    assert seen.all("Authorization") == ["Basic dTpw"]
    assert echo(gateway, key, "GET", "/echo", "Authorization: Bearer of-another-kind").all("Authorization") == [
        "Bearer of-another-kind"]


def test_hop_by_hop_fields_stop_here(gateway, key):
    seen = echo(gateway, key, "GET", "/echo", "Connection: close, X-Hop", "X-Hop: 1", "Keep-Alive: timeout=5", "TE: trailers",
                "Proxy-Connection: keep-alive", "Trailer: X-Sum", "Proxy-Authorization: Basic eDp5", "X-Kept: 1")
    assert seen.clients() == [("X-Kept", "1")]


def test_upstream_is_told_where_it_came_from(gateway, key):
    seen = echo(gateway, key, "GET", "/echo")
    assert seen.all("X-Forwarded-For") == ["127.0.0.1"]
    assert seen.all("X-Forwarded-Proto") == ["http"]
    assert seen.all("X-Forwarded-Host") == ["raw.test"]
    assert seen.all("Via") == ["1.1 pandora"]
    [forwarded] = seen.all("Forwarded")
    assert forwarded.startswith("for=127.0.0.1") and "proto=http" in forwarded


def test_what_earlier_proxies_said_stays_in_front(gateway, key):
    seen = echo(gateway, key, "GET", "/echo", "X-Forwarded-For: 192.0.2.1", "Via: 1.0 first", "X-Forwarded-For: 192.0.2.2",
                "Forwarded: for=192.0.2.1")
    assert ", ".join(seen.all("X-Forwarded-For")) == "192.0.2.1, 192.0.2.2, 127.0.0.1"
    assert ", ".join(seen.all("Via")) == "1.0 first, 1.1 pandora"
    assert ", ".join(seen.all("Forwarded")).startswith("for=192.0.2.1, for=127.0.0.1")


def test_upstream_is_told_whose_it_is_and_only_by_the_gateway(gateway, environment, tenants):
    seen = echo(gateway, environment.key, "GET", "/echo", "Pandora-Client: forged", "pandora-environment: forged", "Pandora-New: x",
                "Pandora-Request-Id: req_forged")
    assert seen.all("Pandora-Environment") == ["prod"] and seen.all("Pandora-Project") == ["shop"]
    assert len(seen.all("Pandora-Client")) == 1 and seen.all("Pandora-Client") != ["forged"]
    assert seen.all("Pandora-Service")[0].startswith("orders")
    assert seen.all("Pandora-Request-Id") == [seen.answer.id] and seen.answer.id.startswith("req_")
    assert seen.all("Pandora-Start-Point") == [seen.answer["pandora-start-point"]]
    assert seen.all("Pandora-New") == []


def test_trace_is_started_or_continued(gateway, key, log):
    [started] = echo(gateway, key).all("traceparent")
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-9a-f]", started)
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    seen = echo(gateway, key, "GET", "/echo", f"traceparent: 00-{trace}-{parent}-01", "tracestate: a=1")
    [continued] = seen.all("traceparent")
    assert continued.split("-")[1] == trace and continued.split("-")[2] != parent and continued.endswith("-01")
    assert seen.all("tracestate") == ["a=1"]
    assert log.row(seen.answer.id)["trace_id"] == trace


@pytest.mark.parametrize("host, expected", [("raw.test", None), ("preserved.test", "preserved.test")])
def test_host_is_the_targets_or_the_clients(gateway, key, services, host, expected):
    seen = echo(gateway, key, host=host)
    assert seen.fields[0] == ("Host", expected or f"127.0.0.1:{services.raw.port}")


@pytest.mark.parametrize("size", [0, 1, 1000, 65536, 300_000])
def test_body_with_length_arrives_with_length(gateway, key, size):
    body = bytes(number % 251 for number in range(size))
    fields = ["Content-Length: 0"] if size == 0 else []
    seen = echo(gateway, key, "POST", "/echo", *fields, body=body)
    assert seen.body == body and not seen.chunked and seen.all("Content-Length") == [str(size)]


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_chunked_body_arrives_chunked(gateway, key, method):
    with Wire(gateway.port) as wire:
        wire.send(request(method, "/echo", "Transfer-Encoding: chunked", key=key))
        for piece in (b"5\r\nhello\r\n", b"1;ext=1\r\n,\r\n", b"6\r\n world\r\n", b"0\r\n", b"X-Trailer: t\r\n\r\n"):
            wire.send(piece)
        seen = Seen(wire.read())
    assert seen.body == b"hello, world" and seen.chunked and seen.all("Content-Length") == []


def test_bodyless_request_arrives_without_framing(gateway, key):
    for method in ("GET", "DELETE", "OPTIONS"):
        seen = echo(gateway, key, method)
        assert not seen.chunked and seen.all("Content-Length") in ([], ["0"]) and seen.body == b""


def test_answer_fields_keep_order_and_duplicates_without_hop_by_hop(gateway, key):
    answer = ask(gateway.port, "GET", "/raw/fields", key=key)
    own = ("pandora-", "via", "connection", "content-length", "date")
    assert [field for field in answer.fields if not field[0].startswith(own)] == [
        ("content-type", "text/plain"), ("set-cookie", "a=1"), ("x-empty", ""), ("set-cookie", "b=2; Path=/"), ("x-twice", "one"),
        ("x-twice", "two"), ("x-case", "KePt")]
    assert b"x-Case: KePt" in answer.head
    assert answer.id.startswith("req_") and answer.id != "forged"


@pytest.mark.parametrize("name, status, reason, body", [
    ("teapot", 418, b"I'm a teapot", b"short"), ("strange", 599, b"Nobody Knows", b"strange"), ("no-content", 204, b"No Content", b""),
    ("not-modified", 304, b"Not Modified", b""), ("until-close", 200, b"OK", b"all of it"), ("http10", 200, b"OK", b"old but whole"),
    ("slow-pieces", 200, b"OK", b"pieces"), ("error", 500, b"Internal Server Error", b"oops"), ("late", 200, b"OK", b"late"),
])
def test_answer_comes_back_as_it_is(gateway, key, name, status, reason, body):
    with Wire(gateway.port) as wire:
        answer = wire.send(request("GET", f"/raw/{name}", key=key)).read()
        assert (answer.status, answer.reason, answer.body) == (status, reason, body)
        assert wire.send(request("GET", "/echo", key=key)).read().status == 200, "the connection goes on"


def test_head_larger_than_the_window_ends_an_answer_without_body(gateway, key):
    with Wire(gateway.port) as wire:
        for _ in range(3):
            answer = wire.send(request("GET", "/raw/large-head", key=key)).read()
            assert answer.status == 204 and answer["x-large"] == "l" * 12_000


def test_answer_without_reason(gateway, key):
    answer = ask(gateway.port, "GET", "/raw/reasonless", key=key)
    assert (answer.status, answer.body) == (200, b"ok")


def test_interim_answers_do_not_end_the_exchange(gateway, key):
    answer = ask(gateway.port, "GET", "/raw/interim", key=key)
    assert (answer.status, answer.body) == (200, b"after")
    assert set(answer.interim) <= {102, 103}


def test_trailers_do_not_break_the_answer(gateway, key):
    answer = ask(gateway.port, "GET", "/raw/trailers", "TE: trailers", key=key)
    assert answer.body == b"hello" and answer.trailers in ([], [("x-sum", "42")])


def test_http10_client_gets_an_answer_it_understands(gateway, key):
    with Wire(gateway.port) as wire:
        wire.send(f"GET /raw/until-close HTTP/1.0\r\nHost: raw.test\r\nX-API-Key: {key}\r\n\r\n".encode())
        answer = wire.read()
        assert answer.body == b"all of it" and answer.all("transfer-encoding") == []
        assert wire.ended() == b""


def test_upstream_connections_are_used_again(gateway, key):
    with Wire(gateway.port) as wire:
        seen = [Seen(wire.send(request("GET", "/echo", key=key)).read()).connection for _ in range(5)]
    assert len(set(seen)) == 1


def test_pipelined_requests_are_answered_in_order(gateway, key):
    with Wire(gateway.port) as wire:
        wire.send(request("GET", "/echo/late?first", key=key) + request("POST", "/echo?second", key=key, body=b"two")
                  + request("GET", "/echo?third", key=key, connection="close"))
        assert Seen(wire.read()).target == "/echo/late?first"
        second, third = Seen(wire.read()), Seen(wire.read())
        assert (second.target, second.body, third.target) == ("/echo?second", b"two", "/echo?third")
        assert wire.ended() == b""


def test_connection_close_is_honoured(gateway, key):
    with Wire(gateway.port) as wire:
        answer = wire.send(request("GET", "/echo", key=key, connection="close")).read()
        assert answer["connection"].lower() == "close" and wire.ended() == b""


def test_expect_continue_is_answered_before_the_body(gateway, key):
    with Wire(gateway.port) as wire:
        wire.send(request("POST", "/echo", "Expect: 100-continue", "Content-Length: 5", key=key))
        head = wire._until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 100"), head
        seen = Seen(wire.send(b"hello").read())
    assert seen.body == b"hello" and seen.all("Expect") == []


def test_expect_continue_of_a_refused_request_asks_for_no_body(gateway):
    answer = ask(gateway.port, "POST", "/echo", "Expect: 100-continue", "Content-Length: 5")
    assert answer.status == 401 and answer.interim == []


def test_prefix_is_stripped_and_fields_are_edited(gateway, key):
    seen = echo(gateway, key, "GET", "/strip/echo?a=%zz", "X-Removed: 1", "X-Set: by the client", "X-Kept: 1", host="edited.test")
    assert seen.target == "/echo?a=%zz"
    assert seen.all("X-Set") == ["by the route"] and seen.all("X-Removed") == [] and seen.all("X-Kept") == ["1"]


def test_path_is_rewritten(gateway, key):
    assert echo(gateway, key, "GET", "/orders/a%2eb/lines?x=1", host="edited.test").target == "/lines/a%2eb/echo?x=1"


def test_chain_by_start_point(gateway, key, log, tenants):
    first = echo(gateway, key)
    start = first.answer["pandora-start-point"]
    second = echo(gateway, key, "GET", "/echo", f"Pandora-Start-Point: {start}")
    assert second.answer["pandora-start-point"] == start and second.all("Pandora-Start-Point") == [start]
    assert log.row(first.answer.id)["start_point"] is None
    assert log.row(second.answer.id)["start_point"] == first.answer.id == start.split(".")[0]
    stranger = tenants.environment(orders=None)
    for wrong, whose in ((start, stranger.key), (start[:-1] + ("0" if start[-1] != "0" else "1"), key), ("junk", key),
                         (first.answer.id, key)):
        refused = ask(gateway.port, "GET", "/echo", f"Pandora-Start-Point: {wrong}", key=whose)
        assert refused.status == 400 and refused.json()["code"] == "START_POINT_INVALID"
        assert log.row(refused.id)["execution_status"] == "client_error"
