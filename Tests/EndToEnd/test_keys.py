"""Every reason for which a key is refused: its status, its problem, its row in the log."""

import re
import shutil
import struct
import subprocess
import threading
import time
import uuid

import pytest

import conftest
import kit
from tenants import new_secret
from wire import Wire, ask, request


def refused(log, answer, status, code, unauthorized=True):
    """The problem and the row say the same; gives the row."""
    assert answer.status == status, answer
    assert answer["content-type"] == "application/problem+json"
    assert re.fullmatch(r"req_[0-7][0-9a-hjkmnp-tv-z]{25}", answer.id)
    problem = answer.json()
    assert (problem["code"], problem["status"], problem["request_id"]) == (code, status, answer.id)
    assert problem["type"] == "urn:pandora:problem:" + code.lower().replace("_", "-") and problem["title"] and problem["detail"]
    row = log.row(answer.id)
    assert row["status_code"] == status and row["units"] == 0 and row["attempts"] == 0
    if unauthorized:
        assert row["execution_status"] == "unauthorized" and row["unauthorized_reason"] == code
    return row


def test_no_key(gateway, log):
    answer = ask(gateway.port, "GET", "/echo")
    row = refused(log, answer, 401, "KEY_MISSING")
    assert answer["www-authenticate"].startswith("Bearer")
    assert row["api_key"] is None and row["environment_id"] is None and row["path"] == "/echo" and row["method"] == "GET"
    assert row["remote_address"] == "127.0.0.1" and row["host"] == "raw.test"


@pytest.mark.parametrize("junk", ["x", "pk_", "pk_" + "a" * 32 + "_000000", "Ω", "a" * 5000])
def test_junk(gateway, log, junk):
    refused(log, ask(gateway.port, "GET", "/echo", f"X-API-Key: {junk}"), 401, "KEY_INVALID")


def test_unknown_key(gateway, log, raw):
    token, secret = uuid.uuid4().hex, new_secret()
    for _ in range(2):
        refused(log, ask(gateway.port, "GET", f"/echo?{token}", key=secret), 401, "KEY_INVALID")
    assert raw.seen(token) == []


def test_key_made_after_it_was_refused(gateway, tenants, environment):
    """A negative entry does not outlive the key's creation."""
    secret = new_secret()
    assert ask(gateway.port, "GET", "/echo", key=secret).status == 401
    tenants.sql(tenants.insert_key(secret, environment.id))
    kit.eventually(lambda: ask(gateway.port, "GET", "/echo", key=secret).status == 200, what="the new key serves")


@pytest.mark.parametrize("fields", [
    ["X-API-Key: KEY"], ["Authorization: Bearer KEY"], ["authorization: bearer   KEY"], ["X-API-Key:KEY  "],
    ["X-API-Key: KEY", "Authorization: Bearer KEY"], ["X-API-Key: KEY", "X-API-Key: KEY"],
])
def test_places_of_a_key(gateway, key, log, environment, fields):
    answer = ask(gateway.port, "GET", "/echo", *(field.replace("KEY", key) for field in fields))
    assert answer.status == 200 and key not in answer.json()["head"]
    row = log.row(answer.id)
    assert row["api_key"] == environment.key_id and row["environment_id"] == environment.id
    assert key not in str(row)


@pytest.mark.parametrize("fields", [
    ["X-API-Key: KEY", "X-API-Key: OTHER"], ["X-API-Key: KEY", "Authorization: Bearer OTHER"],
    ["Authorization: Bearer KEY", "X-API-Key: OTHER"],
])
def test_two_different_keys(gateway, key, tenants, environment, log, raw, fields):
    token, other = uuid.uuid4().hex, tenants.add_key(environment)
    answer = ask(gateway.port, "GET", f"/echo?{token}", *(field.replace("KEY", key).replace("OTHER", other) for field in fields))
    refused(log, answer, 400, "KEY_CONFLICT", unauthorized=False)
    assert raw.seen(token) == []


def test_key_in_the_query_where_the_route_takes_it(gateway, key, log):
    answer = ask(gateway.port, "GET", f"/echo?a=1&api_key={key}&b=%zz", host="query.test")
    assert answer.status == 200 and answer.json()["head"].startswith("GET /echo?a=1&b=%zz HTTP/1.1")
    assert key not in answer.json()["head"] and key not in str(log.row(answer.id))
    assert ask(gateway.port, "GET", f"/echo?api_key={key}", host="query.test").json()["head"].startswith("GET /echo HTTP/1.1")
    refused(log, ask(gateway.port, "GET", f"/echo?api_key={key}"), 401, "KEY_MISSING")
    other = ask(gateway.port, "GET", f"/echo?api_key={new_secret()}", host="query.test", key=key)
    refused(log, other, 400, "KEY_CONFLICT", unauthorized=False)


def test_disabled_key_is_refused(gateway, tenants, environment, log):
    secret = tenants.add_key(environment)
    with Wire(gateway.port) as wire:
        assert wire.send(request("GET", "/echo", key=secret)).read().status == 200
        tenants.sql(f"UPDATE pandora.api_key SET status = 'disabled' WHERE prefix = '{secret[3:11]}'")
        answer = kit.eventually(
            lambda: next((one for one in [wire.send(request("GET", "/echo", key=secret)).read()] if one.status != 200), None),
            what="the key is refused")
    row = refused(log, answer, 401, "KEY_DISABLED")
    assert row["environment_id"] == environment.id
    tenants.sql(f"UPDATE pandora.api_key SET status = 'enabled' WHERE prefix = '{secret[3:11]}'")
    kit.eventually(lambda: ask(gateway.port, "GET", "/echo", key=secret).status == 200, what="the key serves again")


class Poller(threading.Thread):
    """Asks a node with a key every 20 ms, each time on a connection of its own, which any worker may get."""

    def __init__(self, gateway, secret):
        super().__init__(daemon=True)
        self.port, self.secret, self.asked, self.stopping = gateway.port, secret, [], threading.Event()
        self.start()

    def run(self):
        while not self.stopping.wait(0.02):
            sent = time.time()
            self.asked.append((sent, ask(self.port, "GET", "/echo", key=self.secret).status))

    def says(self, status, times=30):
        """So often in a row that no worker says anything else."""
        last = self.asked[-times:]
        return len(last) == times and all(one == status for _, one in last)


def seconds_until_refused(gateways, tenants, environment):
    """From the commit that disables a key to when the last request was sent that it still opened a node to."""
    secret = tenants.add_key(environment)
    pollers = [Poller(gateway, secret) for gateway in gateways]
    try:
        kit.eventually(lambda: all(one.says(200) for one in pollers), what="the key serves on every node")
        # The second statement is of the next transaction, on the clock of this machine.
        [[committed]] = tenants.sql(f"""UPDATE pandora.api_key SET status = 'disabled' WHERE prefix = '{secret[3:11]}';
                                        SELECT extract(epoch FROM clock_timestamp())""")
        kit.eventually(lambda: all(one.says(401) for one in pollers), what="the key is refused on every node")
    finally:
        for one in pollers:
            one.stopping.set()
            one.join(kit.PATIENCE)
    return max(sent for one in pollers for sent, status in one.asked if status == 200) - float(committed)


def test_disabled_key_is_refused_on_every_node_within_a_second(gateway, make_gateway, tenants, environment):
    """A machine that is so loaded that a process does not run for a second breaks no promise: one of three times will do."""
    gateways, measured = [gateway, make_gateway("other-keys")], []
    while not measured or min(measured) >= 1 and len(measured) < 3:
        measured.append(seconds_until_refused(gateways, tenants, environment))
    assert min(measured) < 1, measured


def test_expired_key(gateway, tenants, environment, log):
    secret = tenants.add_key(environment)
    tenants.sql(f"UPDATE pandora.api_key SET expires_at = now() - interval '1 s' WHERE prefix = '{secret[3:11]}'")
    refused(log, ask(gateway.port, "GET", "/echo", key=secret), 401, "KEY_EXPIRED")


def test_cached_key_expires_by_the_clock(gateway, tenants, environment):
    secret = tenants.add_key(environment)
    tenants.sql(f"UPDATE pandora.api_key SET expires_at = now() + interval '5 s' WHERE prefix = '{secret[3:11]}'")
    assert ask(gateway.port, "GET", "/echo", key=secret).status == 200
    kit.eventually(lambda: ask(gateway.port, "GET", "/echo", key=secret).status == 401, what="the key expires")


class Clock:
    """The time of day of a process, so many seconds ahead of everybody else's; other clocks are nobody's to set."""

    SOURCE = r"""
        #define _GNU_SOURCE
        #include <fcntl.h>
        #include <stdint.h>
        #include <stdlib.h>
        #include <sys/mman.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>

        static const volatile int64_t *ahead;

        __attribute__((constructor)) static void begin(void) {
            ahead = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, open(getenv("CLOCK_AHEAD"), O_RDONLY), 0);
            if (ahead == MAP_FAILED) abort();
        }

        int clock_gettime(clockid_t clock, struct timespec *now) {
            int code = syscall(SYS_clock_gettime, clock, now);
            if (code == 0 && clock == CLOCK_REALTIME && ahead) now->tv_sec += *ahead;
            return code;
        }
        """

    def __init__(self, directory):
        source, library, self.file = directory / "clock.c", directory / "clock.so", (directory / "ahead").open("w+b", buffering=0)
        source.write_text(self.SOURCE)
        subprocess.run([shutil.which("clang") or "cc", "-shared", "-fPIC", "-o", library, source], check=True)
        self.before = ["env", f"LD_PRELOAD={library}", f"CLOCK_AHEAD={self.file.name}"]
        self.jump(0)

    def jump(self, ahead):
        self.file.seek(0)
        self.file.write(struct.pack("q", ahead))


def test_a_key_expires_by_a_clock_that_jumps(binary, services, postgres, tenants, log, tmp_path):
    clock, environment = Clock(tmp_path), tenants.environment(orders=100)
    gateway = kit.Gateway("jumping", binary, conftest.configuration(services, workers=1), tmp_path, postgres.url(), clock.before)
    try:
        secret, hour, served = tenants.add_key(environment), 3600, 0
        tenants.sql(f"UPDATE pandora.api_key SET expires_at = now() + interval '1 h' WHERE prefix = '{secret[3:11]}'")
        with Wire(gateway.port) as wire:
            for ahead, is_good in ((0, True), (hour + 1, False), (0, True), (25 * hour, False), (hour + 1, False), (hour - 600, True)):
                clock.jump(ahead)
                answer = wire.send(request("GET", "/echo", key=secret)).read()
                if is_good:
                    assert answer.status == 200, (ahead, answer)
                else:
                    refused(log, answer, 401, "KEY_EXPIRED")
                # Nothing else is a matter of that clock.
                assert wire.send(request("GET", "/echo", key=environment.key)).read().status == 200
                served += 1 + is_good
        assert gateway.stop() == 0
        assert log.quota(environment, "orders") == [served, 100 - served, 0, served]
    finally:
        gateway.stop()
        clock.file.close()


@pytest.mark.parametrize("table, code", [("environment", "ENVIRONMENT_DISABLED"), ("project", "PROJECT_DISABLED")])
def test_disabled_owner(gateway, tenants, log, table, code):
    environment = tenants.environment(orders=None)
    assert ask(gateway.port, "GET", "/echo", key=environment.key).status == 200
    number = environment.id if table == "environment" else environment.project_id
    tenants.sql(f"UPDATE pandora.{table} SET status = 'disabled' WHERE id = {number}")
    answer = kit.eventually(
        lambda: next((one for one in [ask(gateway.port, "GET", "/echo", key=environment.key)] if one.status != 200), None))
    row = refused(log, answer, 403, code)
    assert row["environment_id"] == environment.id and row["api_key"] == environment.key_id


def test_service_disabled_and_deprecated(gateway, tenants, log):
    environment = tenants.environment(old=None)

    def after(status, wanted):
        tenants.sql(f"UPDATE pandora.service SET status = '{status}' WHERE name = 'old'")
        return kit.eventually(lambda: next((one for one in [ask(gateway.port, "GET", "/echo", host="old.test", key=environment.key)]
                                            if one.status == wanted), None), what=f"the service is {status}")

    after("enabled", 200)
    row = refused(log, after("deprecated", 410), 410, "SERVICE_DEPRECATED")
    assert row["service_id"] == environment.services["old"]
    refused(log, after("disabled", 403), 403, "SERVICE_DISABLED")
    after("enabled", 200)


def test_service_not_assigned(gateway, tenants, log):
    environment = tenants.environment(files=None)
    row = refused(log, ask(gateway.port, "GET", "/echo", key=environment.key), 403, "SERVICE_NOT_ASSIGNED")
    assert row["environment_id"] == environment.id
    tenants.sql(f"""
        INSERT INTO pandora.project_service (project_id, service_id)
            SELECT {environment.project_id}, id FROM pandora.service WHERE name = 'orders';
        INSERT INTO pandora.environment_service (environment_id, service_id)
            SELECT {environment.id}, id FROM pandora.service WHERE name = 'orders'""")
    kit.eventually(lambda: ask(gateway.port, "GET", "/echo", key=environment.key).status == 200, what="the service is assigned")


def test_no_route(gateway, key, log):
    row = refused(log, ask(gateway.port, "GET", "/x", host="nowhere.test", key=key), 404, "ROUTE_NOT_FOUND", unauthorized=False)
    assert row["execution_status"] == "client_error" and row["route"] is None


def test_refusals_of_one_connection_have_rows_of_their_own(make_gateway, log):
    """A hundred a second of a reason have, over all workers of a node: one of them is not short of rows that the others leave."""
    gateway = make_gateway("crowded", workers=8)
    with Wire(gateway.port) as wire:
        ids = {wire.send(request("GET", "/echo")).read().id for _ in range(80)}
    kit.eventually(lambda: len(ids) == 80 and ids <= log.ids("unauthorized_reason = 'KEY_MISSING'"), what="all of them have rows")


def test_row_of_a_success(gateway, environment, log):
    answer = ask(gateway.port, "POST", "/echo?secret=1", key=environment.key, body=b"12345")
    row = log.row(answer.id)
    assert row["execution_status"] == "success" and row["status_code"] == 200 and row["unauthorized_reason"] is None
    assert row["service_id"] == environment.services["orders"] and row["route"] == "raw" and row["units"] == 1
    assert (row["method"], row["host"], row["path"]) == ("POST", "raw.test", "/echo"), "no query unless the route opts in"
    assert row["attempts"] == 1 and row["repeats"] == 1 and row["target"].startswith("127.0.0.1:")
    assert 0 < row["first_byte_us"] <= row["duration_us"] < 60_000_000
    assert row["bytes_in"] == 5 and row["bytes_out"] == len(answer.body) and row["node"] == "gateway"
    assert re.fullmatch("[0-9a-f]{32}", row["trace_id"])


def test_query_is_logged_where_the_route_says_so(gateway, key, log):
    answer = ask(gateway.port, "GET", "/echo?a=1", host="query.test", key=key)
    assert log.row(answer.id)["path"] == "/echo?a=1"
