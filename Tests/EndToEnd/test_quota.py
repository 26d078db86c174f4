"""Units: never one too many, never one refused while it is free, and the books agree."""

import concurrent.futures
import re
import signal
import time

import pytest

import kit
from wire import Cut, Wire, ask, request


def at_once(gateway, environment, count, target="/echo", host="raw.test"):
    """So many requests in flight together; their answers."""
    wires = [Wire(gateway.port) for _ in range(count)]
    try:
        with concurrent.futures.ThreadPoolExecutor(count) as threads:
            return list(threads.map(lambda wire: wire.send(request("GET", target, host=host, key=environment.key)).read(), wires))
    finally:
        for wire in wires:
            wire.socket.close()


@pytest.mark.parametrize("target", ["/echo", "/raw/late"])
def test_twenty_units_and_sixty_requests_at_once(gateway, tenants, log, target):
    environment = tenants.environment(orders=20)
    answers = at_once(gateway, environment, 60, target)
    assert [sum(answer.status == status for answer in answers) for status in (200, 429)] == [20, 40]
    for answer in answers:
        if answer.status == 429:
            assert answer.json()["code"] in ("QUOTA_EXCEEDED", "QUOTA_HELD")
            assert int(answer["retry-after"]) > 0
    kit.eventually(lambda: log.quota(environment, "orders") == [20, 0, 0, 20], what="counters and ledger agree")
    rows = log.rows(f"environment_id = {environment.id}")
    charged = {row["id"] for row in rows if row["units"]}
    assert charged == {answer.id for answer in answers if answer.status == 200}
    assert sum(row["repeats"] for row in rows if row["execution_status"] == "unauthorized") == 40
    last = ask(gateway.port, "GET", "/echo", key=environment.key)
    assert last.status == 429 and last.json()["code"] == "QUOTA_EXCEEDED"
    assert int(last["retry-after"]) > 5, "a monthly quota comes back at the end of the month"
    assert "reason" not in last.json()


def test_a_quota_that_is_never_reset_says_so_when_it_is_used_up(gateway, tenants, postgres):
    environment = tenants.environment(orders=1)
    postgres.psql(f"UPDATE pandora.project_service SET reset_frequency = NULL WHERE project_id = {environment.project_id}")
    first = ask(gateway.port, "GET", "/echo", key=environment.key)
    assert first.status == 200 and ";t=" not in first["ratelimit"]
    for host in ("raw.test", "dear.test"):
        answer = ask(gateway.port, "GET", "/echo", host=host, key=environment.key)
        assert answer.status == 429 and int(answer["retry-after"]) > 0
        assert (answer.json()["code"], answer.json()["reason"]) == (
            "QUOTA_EXCEEDED", "no reset of the quota is scheduled: an operator has to raise it")


def test_every_answer_says_what_is_left(gateway, tenants, log):
    environment = tenants.environment(orders=10)
    left = []
    with Wire(gateway.port) as wire:  # One connection is one worker: another may not have heard of the last unit yet.
        for _ in range(10):
            answer = wire.send(request("GET", "/echo", key=environment.key)).read()
            assert answer.status == 200 and re.search(r"q=10\b", answer["ratelimit-policy"])
            left.append(int(re.search(r"\br=(\d+)", answer["ratelimit"])[1]))
    assert left[-1] == 0 and left == sorted(left, reverse=True), left
    refused = ask(gateway.port, "GET", "/echo", key=environment.key)
    assert refused.status == 429 and re.search(r"\br=0\b", refused["ratelimit"])


def test_unlimited_row_has_no_quota_fields_and_is_counted(gateway, tenants, log):
    environment = tenants.environment(orders=None)
    answer = ask(gateway.port, "GET", "/echo", key=environment.key)
    assert answer.status == 200 and answer["ratelimit"] is None
    kit.eventually(lambda: log.quota(environment, "orders") == [1, None, 0, 1])


@pytest.mark.parametrize("target, host", [("/raw/error", "raw.test"), ("/raw/nothing", "raw.test"), ("/raw/short", "raw.test"),
                                          ("/", "refused.test"), ("/raw/hang", "impatient.test"), ("/echo", "never.test")])
def test_failures_give_their_unit_back(gateway, tenants, log, target, host):
    environment = tenants.environment(orders=1)
    for _ in range(3):
        with Wire(gateway.port) as wire:
            try:
                answer = wire.send(request("GET", target, host=host, key=environment.key)).read()
            except Cut as cut:
                answer = cut.answer
            assert answer.status != 429, answer
    assert ask(gateway.port, "GET", "/echo", key=environment.key).status == 200
    kit.eventually(lambda: log.quota(environment, "orders") == [1, 0, 0, 1])


def test_route_may_charge_failures_and_several_units(gateway, tenants, log):
    environment = tenants.environment(orders=11)
    assert ask(gateway.port, "GET", "/raw/error", host="always.test", key=environment.key).status == 500
    for _ in range(2):
        assert ask(gateway.port, "GET", "/echo", host="dear.test", key=environment.key).status == 200
    assert ask(gateway.port, "GET", "/echo", key=environment.key).status == 429
    kit.eventually(lambda: log.quota(environment, "orders") == [11, 0, 0, 11])


@pytest.mark.parametrize("host, query, units", [
    ("reported.test", "units=2", 2), ("reported.test", "units=0", 0), ("reported.test", "units=5", 5),
    ("reported.test", "status=500&units=2", 0), ("reported-always.test", "status=500&units=2", 2),
    # What is no number up to the bound is no report: the bound is charged.
    ("reported.test", "", 5), ("reported.test", "units=6", 5), ("reported.test", "units=2|2", 5), ("reported.test", "units=-1", 5),
    ("reported.test", "units=two", 5), ("reported-always.test", "status=500", 5),
])
@pytest.mark.parametrize("limit", [100, None])
def test_upstream_says_what_an_answer_costs(gateway, tenants, log, host, query, units, limit):
    environment = tenants.environment(orders=limit)
    answer = ask(gateway.port, "GET", f"/say?{query}", host=host, key=environment.key)
    assert answer.status == (500 if "500" in query else 200) and not answer.all("x-units")
    assert log.row(answer.id)["units"] == units
    kit.eventually(lambda: log.quota(environment, "orders") == [units, limit and limit - units, 0, units], what="the books agree")


def test_missing_reports_are_told_to_the_operator(gateway, tenants):
    since = gateway.log_path.stat().st_size
    environment = tenants.environment(orders=None)
    message = "an upstream did not say what an answer costs: the route's max is charged"

    def told():  # Once a second: the tests before this one may have used up theirs.
        assert ask(gateway.port, "GET", "/say?units=many", host="reported.test", key=environment.key).status == 200
        return gateway.said(message, since)

    said = kit.eventually(told, what="it is reported")[0]
    assert (said["level"], said["route"], said["upstream"]) == ("warning", "reported", "raw")


@pytest.fixture(scope="module")
def hurried(make_gateway):
    """Waits for the units of others no longer than by default."""
    return make_gateway("hurried", quota={})


def test_what_an_answer_does_not_cost_is_free_before_it_ends(hurried, tenants, raw, log):
    gateway, environment = hurried, tenants.environment(orders=5)
    with Wire(gateway.port) as wire:  # One connection is one worker; the other one has to recall what this one holds.
        wire.send(request("GET", "/say?units=1&gate=streaming", host="reported.test", key=environment.key))
        kit.eventually(lambda: raw.seen("gate=streaming"), what="it is upstream")
        for _ in range(4):
            kit.eventually(lambda: ask(gateway.port, "GET", "/echo", key=environment.key).status == 200, what="a unit is free")
        assert ask(gateway.port, "GET", "/echo", key=environment.key).status == 429
        raw.release("streaming")
        assert wire.read().status == 200
    kit.eventually(lambda: log.quota(environment, "orders") == [5, 0, 0, 5], what="the books agree")


def test_raised_limit_serves(gateway, tenants, log):
    environment = tenants.environment(orders=1)
    tenants.sql(f"UPDATE pandora.project_service SET max_request = 5 WHERE project_id = {environment.project_id}")
    assert [ask(gateway.port, "GET", "/echo", key=environment.key).status for _ in range(2)] == [200, 429]
    tenants.sql(f"UPDATE pandora.environment_service SET max_request = 3 WHERE environment_id = {environment.id}")
    kit.eventually(lambda: ask(gateway.port, "GET", "/echo", key=environment.key).status == 200)
    assert [ask(gateway.port, "GET", "/echo", key=environment.key).status for _ in range(2)] == [200, 429]
    kit.eventually(lambda: log.quota(environment, "orders") == [3, 0, 0, 3])


def test_two_gateways_share_what_there_is(gateway, make_gateway, tenants, log):
    other = make_gateway("neighbour", workers=1)
    environment = tenants.environment(orders=50)
    with concurrent.futures.ThreadPoolExecutor(2) as both:
        answers = sum(both.map(lambda node: at_once(node, environment, 50), (gateway, other)), [])
    assert [sum(answer.status == status for answer in answers) for status in (200, 429)] == [50, 50]
    kit.eventually(lambda: log.quota(environment, "orders") == [50, 0, 0, 50])


@pytest.fixture(scope="module")
def holder(make_gateway):
    """Takes units that others want."""
    return make_gateway("holder", workers=1)


def test_an_idle_unit_of_another_node_is_fetched(hurried, holder, tenants, log):
    def fetched():
        environment = tenants.environment(orders=1)
        assert ask(holder.port, "GET", "/raw/error", key=environment.key).status == 500
        answer = ask(hurried.port, "GET", "/echo", key=environment.key)
        return answer.status == 200 and log.row(answer.id)["duration_us"] < 500_000

    # Once is enough: this machine may stand still for longer than a request waits.
    kit.eventually(fetched, what="a unit comes before its holder would give it back by itself")


def test_the_unit_of_a_node_that_stands_still_is_waited_for(gateway, hurried, holder, tenants, raw, log):
    """A unit is free, and who holds it cannot say so: HELD says that nothing came back within recall_wait, not that nothing is left."""
    environment = tenants.environment(orders=1)
    with Wire(holder.port) as failing, Wire(gateway.port) as waiting:
        failing.send(request("GET", "/say?status=500&hold=stopped", key=environment.key))
        kit.eventually(lambda: raw.seen("hold=stopped"), what="it is upstream")
        holder.process.send_signal(signal.SIGSTOP)
        try:
            raw.release("stopped")
            refused = ask(hurried.port, "GET", "/echo", key=environment.key)
            waiting.send(request("GET", "/echo", key=environment.key))
            time.sleep(0.2)  # Twice as long as the one that was refused has waited.
        finally:
            holder.process.send_signal(signal.SIGCONT)
        assert failing.read().status == 500
        assert waiting.read().status == 200
    assert (refused.status, refused.json()["code"], refused["retry-after"]) == (429, "QUOTA_HELD", "1")
    assert log.row(refused.id)["duration_us"] >= 100_000, "the log says how long it waited"
    kit.eventually(lambda: log.quota(environment, "orders") == [1, 0, 0, 1], what="the books agree")
