"""Upstreams that break: a broken one is never taken for a whole one, and the next request is not hurt."""

import uuid

import pytest

import kit
from wire import Answer, Cut, Wire, ask, request


def refused(gateway, log, answer, status, code, attempts=None):
    assert answer.status == status, answer
    assert answer["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == code and problem["status"] == status and problem["request_id"] == answer.id
    row = log.row(answer.id)
    assert row["status_code"] == status and row["execution_status"] == "upstream_error" and row["units"] == 0
    if attempts is not None:
        assert row["attempts"] == attempts
    return row


def test_refused_connection_is_502(gateway, key, log):
    refused(gateway, log, ask(gateway.port, "GET", "/", host="refused.test", key=key), 502, "UPSTREAM_REFUSED")


@pytest.mark.parametrize("name, code", [
    ("nothing", "UPSTREAM_CLOSED"), ("reset", "UPSTREAM_CLOSED"), ("half-head", None), ("garbage", "UPSTREAM_PROTOCOL"),
    ("bad-status", "UPSTREAM_PROTOCOL"), ("status-99", "UPSTREAM_PROTOCOL"), ("two-lengths", "UPSTREAM_PROTOCOL"),
    ("length-and-chunked", "UPSTREAM_PROTOCOL"), ("bad-length", "UPSTREAM_PROTOCOL"), ("no-colon", "UPSTREAM_PROTOCOL"),
    ("nul-in-field", "UPSTREAM_PROTOCOL"), ("unasked-101", "UPSTREAM_PROTOCOL"),
])
def test_broken_head_is_502_and_not_charged(gateway, key, log, name, code):
    with Wire(gateway.port) as wire:
        answer = wire.send(request("GET", f"/raw/{name}", key=key)).read()
        assert answer.status == 502, answer
        refused(gateway, log, answer, 502, code or answer.json()["code"])
        if answer["connection"] != "close":
            assert wire.send(request("GET", "/echo", key=key)).read().status == 200


def test_folded_field_is_unfolded_or_refused(gateway, key):
    answer = ask(gateway.port, "GET", "/raw/folded", key=key)
    assert answer.status == 502 or answer["x-folded"] == "a b"


def test_head_without_end_is_502_and_given_up(gateway, key, raw, log):
    token = uuid.uuid4().hex
    refused(gateway, log, ask(gateway.port, "GET", f"/endless-head?{token}", key=key), 502, "UPSTREAM_PROTOCOL")
    assert raw.seen(token)[0].gone.wait(kit.PATIENCE)


def test_too_slow_is_504(gateway, key, raw, log):
    token = uuid.uuid4().hex
    answer = ask(gateway.port, "GET", f"/raw/hang?{token}", host="impatient.test", key=key)
    refused(gateway, log, answer, 504, "UPSTREAM_TIMEOUT", attempts=1)
    [seen] = kit.eventually(lambda: raw.seen(token))
    assert seen.gone.wait(kit.PATIENCE), "the upstream is let go"


@pytest.mark.parametrize("name, host", [
    ("short", "raw.test"), ("short-reset", "raw.test"), ("chunk-cut", "raw.test"), ("chunks-without-end", "raw.test"),
    ("chunk-size-junk", "raw.test"), ("head-then-hang", "stalling.test"),
])
def test_answer_cut_in_the_middle_never_looks_complete(gateway, key, log, name, host):
    with Wire(gateway.port) as wire:
        wire.send(request("GET", f"/raw/{name}", host=host, key=key))
        with pytest.raises(Cut) as cut:
            wire.read()
    row = log.row(cut.value.answer.id)
    assert row["execution_status"] == "upstream_error" and row["status_code"] == 200 and row["units"] == 0


def test_bytes_after_the_answer_are_nobodys(gateway, key):
    with Wire(gateway.port) as wire:
        for _ in range(3):
            assert wire.send(request("GET", "/raw/too-much", key=key)).read().body == b"hello"
            assert b"smuggled" not in wire.send(request("GET", "/echo", key=key)).read().body


def test_answer_before_the_body_was_read_is_passed_on(gateway, key, log):
    with Wire(gateway.port) as wire:
        wire.send(request("POST", "/raw/early", "Content-Length: 1000000", key=key), b"a" * 1000)
        answer = wire.read()
        assert (answer.status, answer.body) == (403, b"early")
        assert answer["connection"] == "close", "the rest of the body is not the next request"
    assert log.row(answer.id)["execution_status"] == "client_error"


def begun(wire):
    """The head of an answer whose end is not to come yet."""
    answer = Answer(wire._until(b"\r\n\r\n"))
    assert answer.status == 200, answer
    return answer


def completed(wire, answer, log):
    """The row of an answer that came whole after all, and is charged."""
    wire._read_body(answer, "POST")
    assert answer.body == b"early"
    row = log.row(answer.id)
    assert (row["execution_status"], row["status_code"], row["units"]) == ("success", 200, 1), row


def test_answer_that_comes_before_the_body_is_whole_only_with_its_hop(gateway, tenants, log):
    """Until the request has ended there is no hop: a gateway that is killed now must not owe the log a whole answer."""
    environment = tenants.environment(orders=10)
    with Wire(gateway.port) as wire:
        wire.send(request("POST", "/early", "Content-Length: 5000", key=environment.key), b"a" * 1000)
        answer = begun(wire)
        wire.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            wire.data += wire.socket.recv(5)
        assert wire.data == b""
        wire.socket.settimeout(kit.PATIENCE)
        wire.send(b"a" * 4000)
        completed(wire, answer, log)
        assert wire.send(request("GET", "/echo", key=environment.key)).read().status == 200
    kit.eventually(lambda: log.quota(environment, "orders") == [2, 8, 0, 2])


def test_upstream_that_leaves_after_its_whole_answer_is_charged(gateway, tenants, raw, log):
    environment, token = tenants.environment(orders=10), uuid.uuid4().hex
    with Wire(gateway.port) as wire:
        wire.send(request("POST", f"/early?gate={token}", "Content-Length: 5000", key=environment.key), b"a" * 1000)
        answer = begun(wire)
        raw.release(token)
        wire.send(b"a" * 4000)
        completed(wire, answer, log)
    kit.eventually(lambda: log.quota(environment, "orders") == [1, 9, 0, 1])


def test_request_that_breaks_off_after_the_whole_answer_is_charged(gateway, tenants, log):
    environment = tenants.environment(orders=10)
    with Wire(gateway.port) as wire:
        wire.send(request("POST", "/early", "Transfer-Encoding: chunked", key=environment.key), b"5\r\nhello\r\n")
        answer = begun(wire)
        wire.send(b"no chunk\r\n")
        completed(wire, answer, log)
        assert wire.socket.recv(1) == b"", "what follows is not to be trusted"
    kit.eventually(lambda: log.quota(environment, "orders") == [1, 9, 0, 1])


def test_request_that_breaks_off_amid_the_answer_is_charged(gateway, tenants, log):
    """All that the client lacks is the end of the answer, which the gateway passes on once the request has ended."""
    environment = tenants.environment(orders=10)
    with Wire(gateway.port) as wire:
        wire.send(request("POST", "/early?chunked", "Transfer-Encoding: chunked", key=environment.key), b"5\r\nhello\r\n")
        answer = begun(wire)
        assert wire._until(b"early\r\n") == b"5\r\n"
        wire.send(b"no chunk\r\n")
        while wire._more():
            pass
        assert wire.data == b"", "it never looks complete"
    row = log.row(answer.id)
    assert (row["execution_status"], row["status_code"], row["units"]) == ("client_error", 200, 1), row
    kit.eventually(lambda: log.quota(environment, "orders") == [1, 9, 0, 1])


def test_upstream_that_drops_a_body_is_502(gateway, key, log):
    with Wire(gateway.port) as wire:
        wire.send(request("POST", "/drop-body", "Content-Length: 500000", key=key))
        try:
            for _ in range(500):
                wire.send(b"b" * 1000)
        except ConnectionError:
            pass  # The gateway may stop reading once it has answered.
        answer = wire.read()
    refused(gateway, log, answer, 502, "UPSTREAM_CLOSED")


def test_client_that_goes_away_ends_the_transfer_and_is_charged_after_the_head(gateway, tenants, raw, log):
    environment, token = tenants.environment(orders=10), uuid.uuid4().hex
    with Wire(gateway.port) as wire:
        wire.send(request("GET", f"/endless?{token}", key=environment.key))
        head = wire._until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
    assert raw.seen(token)[0].gone.wait(kit.PATIENCE), "the upstream sees the end"
    [row] = kit.eventually(lambda: log.rows(f"environment_id = {environment.id}"))
    assert row["execution_status"] == "client_aborted" and row["status_code"] == 200 and row["units"] == 1
    kit.eventually(lambda: log.quota(environment, "orders") == [1, 9, 0, 1])


def test_client_that_goes_away_before_the_head_is_not_charged(gateway, tenants, raw, log):
    environment, token = tenants.environment(orders=10), uuid.uuid4().hex
    with Wire(gateway.port) as wire:
        wire.send(request("GET", f"/raw/hang?{token}", key=environment.key))
        kit.eventually(lambda: raw.seen(token))
        wire.socket.close()
    assert raw.seen(token)[0].gone.wait(kit.PATIENCE)
    [row] = kit.eventually(lambda: log.rows(f"environment_id = {environment.id}"))
    assert row["execution_status"] == "client_aborted" and row["status_code"] is None and row["units"] == 0
    kit.eventually(lambda: log.quota(environment, "orders") == [0, 10, 0, 0])


def test_client_that_goes_away_in_its_body_ends_the_transfer(gateway, key, raw):
    token = uuid.uuid4().hex
    with Wire(gateway.port) as wire:
        wire.send(request("POST", f"/echo?{token}", "Content-Length: 100000", key=key), b"c" * 1000)
        kit.eventually(lambda: raw.seen(token))
    assert raw.seen(token)[0].gone.wait(kit.PATIENCE) and not raw.seen(token)[0].is_complete


def test_request_is_sent_upstream_once(gateway, key, raw):
    """libcurl sends a bodyless POST again when a reused connection closes; that is not its decision."""
    token = uuid.uuid4().hex
    with Wire(gateway.port) as wire:
        for _ in range(3):
            assert wire.send(request("GET", "/echo", key=key)).read().status == 200
        answer = wire.send(request("POST", f"/raw/nothing?{token}", "Content-Length: 0", key=key)).read()
    assert answer.status == 502 and len(raw.seen(token)) == 1
