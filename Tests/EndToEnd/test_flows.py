"""Flows on the wire: reserved when they start, charged once when they finish, given back when they do not."""

import concurrent.futures
import signal
import uuid

import pytest

import flows
import kit
from flows import Flow, endings, refused, started
from sites import Site
from wire import Cut, Wire, ask, request

FLOWS = {
    "keep": {"steps": 2},
    "roll": {"on_failure": "rollback"},
    "ordered": {"steps": 2, "ordered": True},
    "short-lived": {"ttl": "1s"},
    "few": {"max_open": 2, "max_hops": 3},
    "dear": {"units": 5},
    "unreachable": {"upstream": "refused"},
    "picky": {"success": ["200-201", 404]},
}


@pytest.fixture(scope="module")
def gateways(binary, postgres, services, tmp_path_factory):
    """Two nodes of one cluster."""
    running = []
    try:
        for name in ("flows-a", "flows-b"):
            directory = tmp_path_factory.mktemp(name)
            running.append(kit.Gateway(name, binary, flows.configuration(services, FLOWS), directory, postgres.url()))
        yield running
    finally:
        codes = [gateway.stop() for gateway in running]
    assert codes == [0] * len(running)


@pytest.fixture(scope="module")
def port(gateways):
    return gateways[0].port


@pytest.fixture
def environment(tenants):
    return tenants.environment(orders=10)


@pytest.fixture
def key(environment):
    return environment.key


@pytest.fixture
def books(log, environment):
    """The counters become these, and the ledger agrees; what of the limit of 10 is left follows."""
    def become(used, held):
        kit.eventually(lambda: log.quota(environment, "orders") == [used, 10 - used, held, used],
                       what=f"used {used} and held {held}: {log.quota(environment, 'orders')}")
    return become


def state(answer):
    return answer["pandora-flow-state"]


# ---- The way through --------------------------------------------------------------------------------------------------


def test_a_flow_is_held_when_it_starts_and_charged_once_when_it_finishes(port, key, environment, postgres, log, books):
    flow = Flow(port, key)
    start = flow.start()
    assert start.status == 200 and state(start) == "open" and flow.id.startswith("rsv_")
    assert start["ratelimit"].startswith('"quota";r=9')
    books(used=0, held=1)
    step = flow.step()
    assert step.status == 200 and state(step) == "open" and step["pandora-flow"] == flow.id
    shown = flow.show()
    assert (shown["state"], shown["hops"], shown["units"], shown["flow"]) == ("open", 2, 1, "keep")
    assert 0 < shown["expires_in"] <= 300 and shown["start_point"] == start.id
    books(used=0, held=1)
    finish = flow.finish()
    assert finish.status == 200 and state(finish) == "committed" and finish.body == b"said"
    books(used=1, held=0)
    assert endings(postgres, flow) == [("committed", 1)]
    assert {"state": "committed", "units": 1}.items() <= flow.show().items()
    for answer, root in ((start, None), (step, start.id), (finish, start.id)):
        row = log.row(answer.id)
        assert (row["reservation_id"], row["start_point"], row["units"]) == (flow.id, root, 0), row
        assert answer["pandora-start-point"] == flow.chain


def test_a_flow_of_several_units_is_held_and_charged_whole(port, key, environment, books):
    flow = started(port, key, "dear")
    books(used=0, held=5)
    assert state(flow.finish()) == "committed"
    books(used=5, held=0)


def test_an_unlimited_row_counts_what_its_flows_used(port, tenants, log):
    environment = tenants.environment(orders=None)
    flow = Flow(port, environment.key)
    assert flow.start()["ratelimit"] is None
    kit.eventually(lambda: log.quota(environment, "orders") == [0, None, 1, 0])
    assert state(flow.finish()) == "committed"
    kit.eventually(lambda: log.quota(environment, "orders") == [1, None, 0, 1])


def test_another_key_of_the_environment_goes_on_with_a_flow(port, key, environment, tenants, books):
    flow = started(port, key)
    other = tenants.add_key(environment)
    tenants.sql(f"UPDATE pandora.api_key SET status = 'disabled' WHERE id = '{environment.key_id}'")
    kit.eventually(lambda: flow.endpoint().status == 401, what="the first key is disabled")  # This costs nothing before that.
    refused(flow.finish(), 401, "KEY_DISABLED")
    assert flow.step(key=other).status == 200
    assert state(flow.finish(key=other)) == "committed"
    books(used=1, held=0)


def test_a_flow_whose_service_was_taken_away_can_be_given_back(port, key, environment, tenants, postgres):
    flow = started(port, key)
    tenants.sql(f"DELETE FROM pandora.environment_service WHERE environment_id = {environment.id}")
    kit.eventually(lambda: ask(port, "GET", "/say", key=key).status == 403, what="the service is gone")
    refused(flow.finish(), 403, "SERVICE_NOT_ASSIGNED")
    assert flow.show()["state"] == "open"
    assert flow.rollback().status == 200
    assert endings(postgres, flow) == [("rolled_back", 0)]


@pytest.mark.parametrize("target, method, body", [
    ("/say?empty", "GET", b""), ("/say?empty&status=204", "GET", b""), ("/raw/no-content", "GET", b""), ("/raw/http10", "GET", b""),
    ("/raw/trailers", "GET", b""), ("/raw/slow-pieces", "GET", b""), ("/raw/interim", "GET", b""), ("/raw/until-close", "GET", b""),
    ("/echo", "POST", b"x" * 300_000),
])
def test_the_answer_of_a_finish_arrives_whole_after_it_was_settled(port, key, postgres, target, method, body):
    flow = started(port, key)
    plain = ask(port, method, target, key=key, body=body)
    finish = flow.finish(target, method=method, body=body)
    assert finish.status == plain.status and state(finish) == "committed"
    if target == "/echo":
        assert finish.json()["body"].encode() == body
    else:
        assert (finish.body, finish.trailers) == (plain.body, plain.trailers)
    assert endings(postgres, flow) == [("committed", 1)]


def test_pipelined_hops_of_one_connection_are_answered_in_order(port, key, books):
    flow = started(port, key)
    field = f"Pandora-Flow: {flow.id}"
    with Wire(port) as wire:
        wire.send(b"".join(request("GET", target, field, host="keep.test", key=key) for target in (
            "/step-1/echo", "/step-2/say", "/finish/say", "/finish/say")))
        answers = [wire.read() for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 409]
    assert state(answers[2]) == "committed"
    books(used=1, held=0)


# ---- Failure, and the upstream's own word ----------------------------------------------------------------------------


@pytest.mark.parametrize("name, target", [
    ("keep", "/say?status=500"), ("roll", "/say?status=404"), ("keep", "/raw/reset"), ("keep", "/raw/garbage"),
    ("unreachable", "/say"),
])
def test_a_start_that_fails_begins_nothing(port, key, postgres, books, name, target):
    flow = Flow(port, key, name)
    answer = flow.start(target)
    assert answer.status >= 400 and state(answer) == "rolled_back"
    assert endings(postgres, flow) == [("rolled_back", 0)]
    books(used=0, held=0)
    refused(flow.step(), 409, "FLOW_CLOSED", "rolled_back")


def test_a_redirect_is_no_failure(port, key, books):
    flow = Flow(port, key)
    assert state(flow.start("/say?status=302")) == "open"
    assert state(flow.finish("/say?status=303")) == "committed"
    books(used=1, held=0)


def test_a_finish_that_fails_leaves_the_flow_open(port, key, postgres, books):
    flow = started(port, key)
    for target in ("/say?status=500", "/raw/reset", "/raw/nothing", "/say?status=429"):
        answer = flow.finish(target)
        assert answer.status >= 400 and state(answer) == "open", answer
        books(used=0, held=1)
    assert endings(postgres, flow) == []
    assert state(flow.finish()) == "committed"
    books(used=1, held=0)


def test_a_finish_that_fails_rolls_back_where_the_file_says_so(port, key, postgres, books):
    flow = started(port, key, "roll")
    answer = flow.finish("/say?status=500")
    assert answer.status == 500 and state(answer) == "rolled_back"
    books(used=0, held=0)
    refused(flow.finish(), 409, "FLOW_CLOSED", "rolled_back")
    assert endings(postgres, flow) == [("rolled_back", 0)]


def test_the_file_says_what_success_is(port, key, books):
    assert state(Flow(port, key, "picky").start("/say?status=302")) == "rolled_back"
    flow = Flow(port, key, "picky")
    assert state(flow.start("/say?status=201")) == "open"
    assert state(flow.finish("/say?status=202")) == state(flow.finish("/say?status=302")) == "open"
    books(used=0, held=1)
    finish = flow.finish("/say?status=404")
    assert finish.status == 404 and state(finish) == "committed"
    books(used=1, held=0)


def test_a_step_that_fails_decides_nothing(port, key, books):
    flow = started(port, key, "roll")
    answer = flow.step("/say?status=500")
    assert answer.status == 500 and state(answer) == "open"
    assert flow.step("/raw/reset").status == 502
    books(used=0, held=1)
    assert state(flow.finish()) == "committed"


@pytest.mark.parametrize("role", ["start", "step-1", "finish"])
@pytest.mark.parametrize("status, outcome, becomes", [
    (200, "commit", "committed"), (500, "commit", "committed"), (200, "rollback", "rolled_back"), (500, "Rollback", "rolled_back"),
])
def test_the_upstream_decides_itself(port, key, postgres, books, role, status, outcome, becomes):
    flow = Flow(port, key) if role == "start" else started(port, key)
    target = f"/say?status={status}&outcome={outcome}"
    answer = flow.start(target) if role == "start" else flow.hop(role, target)
    assert answer.status == status and state(answer) == becomes
    assert answer["pandora-flow-outcome"] is None
    units = 1 if becomes == "committed" else 0
    books(used=units, held=0)
    assert endings(postgres, flow) == [(becomes, units)]


def test_a_word_that_is_none_is_not_heard(port, key, books):
    flow = started(port, key, "keep", "/say?outcome=rolback")
    assert state(flow.step("/say?outcome=")) == "open"
    assert state(flow.finish("/say?status=500&outcome=committed")) == "open"
    assert state(flow.step("/say?outcome=commit|rollback")) == "open"
    assert state(flow.finish("/say?status=500&outcome=commit|commit")) == "open"
    books(used=0, held=1)


def test_the_outcome_of_a_request_that_is_no_hop_stays_inside(port, key, books):
    answer = ask(port, "GET", "/say?outcome=rollback", key=key)
    assert answer.status == 200 and answer["pandora-flow-outcome"] is None and answer["pandora-flow"] is None
    books(used=1, held=0)


# ---- Twice, and at once -----------------------------------------------------------------------------------------------


def test_a_repeated_finish_is_told_the_truth_and_not_charged(port, key, postgres, raw, log, books):
    flow, token = started(port, key), uuid.uuid4().hex
    assert state(flow.finish()) == "committed"
    for _ in range(2):
        answer = refused(flow.finish(f"/say?{token}"), 409, "FLOW_CLOSED", "committed")
        row = log.row(answer.id)
        assert (row["status_code"], row["units"], row["attempts"]) == (409, 0, 0), row
    refused(flow.step(), 409, "FLOW_CLOSED", "committed")
    assert raw.seen(token) == []
    books(used=1, held=0)
    assert endings(postgres, flow) == [("committed", 1)]


def test_of_two_finishes_at_once_one_is_forwarded(port, gateways, key, raw, books):
    flow, first, second = started(port, key), uuid.uuid4().hex, uuid.uuid4().hex
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        finishing = threads.submit(flow.finish, f"/say?hold={first}")
        kit.eventually(lambda: raw.seen(first), what="the first is upstream")
        try:
            assert flow.show()["state"] == "finishing"
            for gateway in gateways:
                refused(flow.finish(f"/say?{second}", port=gateway.port), 409, "FLOW_FINISHING")
                refused(flow.step(port=gateway.port), 409, "FLOW_FINISHING")
                refused(flow.commit(port=gateway.port), 409, "FLOW_FINISHING")
                refused(flow.rollback(port=gateway.port), 409, "FLOW_FINISHING")
            books(used=0, held=1)
        finally:
            raw.release(first)
        assert state(finishing.result()) == "committed"
    assert raw.seen(second) == []
    books(used=1, held=0)


def test_many_finishes_at_once_on_two_nodes_charge_once(gateways, key, postgres, raw, books):
    flow, token = started(gateways[0].port, key), uuid.uuid4().hex
    with concurrent.futures.ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(
            lambda number: flow.finish(f"/say?{token}", port=gateways[number % 2].port), range(20)))
    assert sorted(answer.status for answer in answers) == [200] + [409] * 19
    assert {answer.json()["code"] for answer in answers if answer.status == 409} <= {"FLOW_FINISHING", "FLOW_CLOSED"}
    assert len(raw.seen(token)) == 1
    books(used=1, held=0)
    assert endings(postgres, flow) == [("committed", 1)]


def test_a_step_has_no_word_while_the_finish_is_on_its_way(port, key, raw, books):
    flow, late, last = started(port, key), uuid.uuid4().hex, uuid.uuid4().hex
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        stepping = threads.submit(flow.step, f"/say?hold={late}&outcome=rollback")
        kit.eventually(lambda: raw.seen(late), what="the step is upstream")
        finishing = threads.submit(flow.finish, f"/say?hold={last}")
        kit.eventually(lambda: raw.seen(last), what="the finish is upstream")
        raw.release(late)
        step = stepping.result()
        assert step.status == 200 and state(step) == "finishing", "nothing is pending: the finish decides"
        raw.release(last)
        assert state(finishing.result()) == "committed"
    books(used=1, held=0)


def test_a_step_that_is_sent_again_is_forwarded_and_not_counted_twice(gateways, port, key, raw, postgres, binary, log):
    flow, token, field = started(port, key, "few"), uuid.uuid4().hex, "Idempotency-Key: pay-1"
    first = flow.step(f"/say?status=500&{token}", field)
    assert first.status == 500
    kit.eventually(lambda: noted(postgres, flow, 500), what="the answer is remembered")
    again = [flow.step(f"/say?{token}", field, port=gateway.port) for gateway in gateways * 2]
    assert [answer.status for answer in again] == [200] * 4, "max_hops 3 leaves room for one step: repetitions are none"
    seen = raw.seen(token)
    assert len(seen) == 5 and all(one.all("Idempotency-Key") == ["pay-1"] for one in seen)
    assert flow.show()["hops"] == 2
    refused(flow.step("/say", "Idempotency-Key: pay-2"), 403, "FLOW_HOPS_EXCEEDED")
    finish = flow.finish()
    assert state(finish) == "committed"
    for answer in again:
        row = log.row(answer.id)
        assert row["start_point"] is None and row["reservation_id"] == flow.id, row
    log.row(finish.id)
    hops = [hop["id"] for hop in kit.Pandora(binary, postgres.url()).json("trace", flow.chain)["hops"] if hop["status_code"] != 403]
    assert hops == [flow.chain.partition(".")[0], first.id, finish.id]


def noted(postgres, flow, status):
    return postgres.psql(f"SELECT 1 FROM pandora.flow_hop WHERE reservation_id = '{flow.id}' AND status_code = {status}")


@pytest.mark.parametrize("value", ["", "x" * 256, "\u00fc", "a\tb"])
def test_an_idempotency_key_that_is_none_is_refused(port, key, value):
    flow = started(port, key)
    refused(flow.step("/say", f"Idempotency-Key: {value}"), 400, "REQUEST_MALFORMED")
    assert flow.show()["hops"] == 1


# ---- What is no hop ---------------------------------------------------------------------------------------------------


def test_unknown_flows_are_not_found(port, key, log):
    flow = Flow(port, key, id="rsv_" + "0" * 26)
    for answer in (flow.step(), flow.finish(), flow.endpoint(), flow.commit(), flow.rollback()):
        refused(answer, 404, "FLOW_NOT_FOUND")
        row = log.row(answer.id)
        assert (row["status_code"], row["units"], row["attempts"]) == (404, 0, 0), row
        assert (row["execution_status"], row["unauthorized_reason"]) == ("client_error", "FLOW_NOT_FOUND"), row


def test_flows_of_another_environment_are_not_found(port, key, tenants, books):
    flow, stranger = started(port, key), tenants.environment(orders=10).key
    for answer in (flow.step(key=stranger), flow.finish(key=stranger), flow.endpoint(key=stranger), flow.commit(key=stranger),
                   flow.rollback(key=stranger)):
        refused(answer, 404, "FLOW_NOT_FOUND")
    assert flow.show()["hops"] == 1
    books(used=0, held=1)
    flow.finish()
    for answer in (flow.finish(key=stranger), flow.endpoint(key=stranger), flow.commit(key=stranger)):
        refused(answer, 404, "FLOW_NOT_FOUND")


@pytest.mark.parametrize("text", [
    "x", "rsv_", "rsv_" + "z" * 26, "rsv_" + "0" * 25, "rsv_" + "0" * 27, "RSV_" + "0" * 26, "rsv_" + "U" * 26, "req_" + "0" * 26,
    "rsv_" + "0" * 26 + ",x", "'; DROP TABLE pandora.reservations; --",
])
def test_malformed_flow_ids_are_said_to_be_so(port, key, text):
    for answer in (Flow(port, key, id=text).step(), Flow(port, key, id=text).finish()):
        refused(answer, 400, "FLOW_INVALID")
    if " " not in text:
        refused(Flow(port, key, id=text).endpoint(), 400, "FLOW_INVALID")


def test_fields_that_come_twice_are_refused(port, key):
    one, other = started(port, key), started(port, key)
    refused(one.step("/say", f"Pandora-Flow: {other.id}"), 400, "FLOW_INVALID")
    chains = (f"Pandora-Start-Point: {flow.chain}" for flow in (one, other))
    refused(one.step("/say", *chains), 400, "START_POINT_INVALID")
    assert one.show()["hops"] == other.show()["hops"] == 1


def test_a_step_without_its_flow_is_told_what_is_missing(port, key):
    for place in ("step-1", "finish"):
        refused(Flow(port, key).hop(place), 400, "FLOW_INVALID", "needs Pandora-Flow")


def test_routes_outside_the_flow_refuse_it(port, key, raw, books):
    flow, token = started(port, key), uuid.uuid4().hex
    field = f"Pandora-Flow: {flow.id}"
    refused(ask(port, "GET", f"/say?{token}", field, key=key), 403, "FLOW_ROUTE_REFUSED", "no step of a flow")
    refused(flow.hop("start", f"/say?{token}"), 403, "FLOW_ROUTE_REFUSED", "no step of a flow")
    for place in ("step-1", "finish"):
        refused(Flow(port, key, "roll", flow.id).hop(place, f"/say?{token}"), 403, "FLOW_ROUTE_REFUSED", "not of this flow")
    assert raw.seen(token) == [] and flow.show()["hops"] == 1
    books(used=0, held=1)


def test_declared_order_is_kept(port, key):
    flow = started(port, key, "ordered")
    refused(flow.step(number=2), 403, "FLOW_STEP_REFUSED")
    refused(flow.finish(), 403, "FLOW_STEP_REFUSED")
    assert flow.step(number=1).status == 200
    assert flow.step(number=1).status == 200, "the last step may be taken again"
    refused(flow.finish(), 403, "FLOW_STEP_REFUSED")
    assert flow.step(number=2).status == 200
    refused(flow.step(number=1), 403, "FLOW_STEP_REFUSED")
    assert state(flow.finish()) == "committed"
    free = started(port, key, "keep")
    assert [free.step(number=2).status, free.step(number=1).status, state(free.finish())] == [200, 200, "committed"]


def test_hops_are_limited_and_the_finish_is_always_let_in(port, key, books):
    flow = started(port, key, "few")
    assert flow.step().status == 200
    refused(flow.step(), 403, "FLOW_HOPS_EXCEEDED")
    assert state(flow.finish("/say?status=500")) == "open"
    assert state(flow.finish()) == "committed"
    books(used=1, held=0)


def test_a_key_has_so_many_flows_open_and_another_key_as_many(port, key, environment, tenants, books):
    one, two = started(port, key, "few"), started(port, key, "few")
    answer = refused(Flow(port, key, "few").start(), 429, "FLOW_LIMIT")
    assert 1 <= int(answer["retry-after"]) <= 300
    other = started(port, tenants.add_key(environment), "few")
    books(used=0, held=3)
    one.finish()
    three = started(port, key, "few")
    for flow in (two, other, three):
        flow.rollback()
    books(used=1, held=0)


def test_the_log_names_the_flow_that_a_request_was_about(gateways, port, key, tenants, raw, log, binary, postgres):
    """Once the store has said that the flow is, or was, the environment's; what a client names beyond that is not believed."""
    few, committed, rolled_back, ordered, finishing = (started(port, key, name) for name in ("few", "keep", "keep", "ordered", "keep"))
    chained, other, token = f"Pandora-Start-Point: {committed.chain}", gateways[1].port, uuid.uuid4().hex
    said = [(committed, committed.commit(port=other)), (committed, committed.commit()), (committed, committed.rollback()),
            (rolled_back, rolled_back.rollback())]
    assert [answer.status for _, answer in said] == [200, 200, 409, 200]
    few.step()
    closed = [committed.finish("/say", chained), committed.step(port=other)]
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        last = threads.submit(finishing.finish, f"/say?hold={token}")
        kit.eventually(lambda: raw.seen(token), what="the finish is upstream")
        busy = [finishing.finish(), finishing.step(port=other), finishing.commit()]
        raw.release(token)
        assert state(last.result()) == "committed"
    named = [*said, *((committed, answer) for answer in closed), *((finishing, answer) for answer in busy),
             (ordered, ordered.finish()), (ordered, ordered.step(number=2, port=other)), (few, few.step()),
             (ordered, Flow(port, key, "roll", ordered.id).finish())]
    assert [answer.status for _, answer in named[4:]] == [409] * 5 + [403] * 4
    for flow, answer in named:
        row = log.row(answer.id)
        assert (row["reservation_id"], row["units"], row["attempts"]) == (flow.id, 0, 0), row
    root = committed.chain.partition(".")[0]
    assert [log.row(answer.id)["start_point"] for answer in closed] == [root, None], "as far as its client says it"

    stranger, unknown = tenants.environment(orders=10).key, Flow(port, key, id="rsv_" + "0" * 26)
    unnamed = [hop(key=stranger) for flow in (committed, ordered) for hop in (flow.step, flow.finish, flow.commit, flow.rollback)]
    unnamed += [unknown.step(), unknown.finish(), unknown.commit(), unknown.rollback()]
    assert {answer.status for answer in unnamed} == {404}
    unnamed += [Flow(port, key, id="x").finish(), ordered.step("/say", "Idempotency-Key: " + "x" * 256)]
    for answer in unnamed:
        row = log.row(answer.id)
        assert (row["reservation_id"], row["start_point"]) == (None, None), row

    log.row(root)
    pandora = kit.Pandora(binary, postgres.url())
    for shown in (pandora.json("flow", "show", committed.id)["hops_logged"], pandora.json("trace", committed.chain)["hops"]):
        assert [hop["id"] for hop in shown] == [root, closed[0].id]
    about = {row["id"] for row in log.rows(f"reservation_id = '{committed.id}'")}
    assert about == {root, *(answer.id for flow, answer in named if flow is committed)}


def test_bad_input_is_logged_with_its_reason_and_costs_nothing(port, key, tenants, raw, log, postgres, books):
    few, flow, ordered, ended, expired = (started(port, key, name) for name in ("few", "keep", "ordered", "keep", "keep"))
    assert few.step().status == 200 and ended.rollback().status == 200
    expire(postgres, expired)
    stranger, token, unknown = tenants.environment(orders=10).key, uuid.uuid4().hex, "rsv_" + "0" * 26
    target, field = f"/say?{token}", f"Pandora-Flow: {flow.id}"
    foreign = "Pandora-Start-Point: " + ask(port, "GET", "/say", key=stranger)["pandora-start-point"]
    answers = {
        "FLOW_INVALID": [Flow(port, key, id="x").step(target), Flow(port, key).hop("finish", target), Flow(port, key, id="x").commit()],
        "FLOW_NOT_FOUND": [Flow(port, key, id=unknown).finish(target), flow.finish(target, key=stranger), flow.rollback(key=stranger)],
        "FLOW_CLOSED": [ended.hop(place, target) for place in ("step-1", "finish")] + [ended.commit()],
        "FLOW_EXPIRED": [expired.hop(place, target) for place in ("step-1", "finish")] + [expired.commit()],
        "FLOW_ROUTE_REFUSED": [
            ask(port, "GET", target, field, key=key), flow.hop("start", target), Flow(port, key, "roll", flow.id).finish(target)],
        "FLOW_STEP_REFUSED": [ordered.finish(target)],
        "FLOW_HOPS_EXCEEDED": [few.step(target)],
        "FLOW_LIMIT": [Flow(port, key, "few").hop("start", target)],
        "START_POINT_INVALID": [flow.step(target, "Pandora-Start-Point: x"), flow.finish(target, foreign)],
        "REQUEST_MALFORMED": [flow.step(target, "Idempotency-Key: " + "x" * 256)],
    }
    for code, given in answers.items():
        for answer in given:
            assert answer.json()["code"] == code, answer
            row = log.row(answer.id)
            assert (row["unauthorized_reason"], row["execution_status"], row["status_code"]) == (code, "client_error", answer.status), row
            assert (row["units"], row["attempts"]) == (0, 0), row
    assert raw.seen(token) == []
    assert [one.show()["hops"] for one in (few, flow, ordered)] == [2, 1, 1]
    books(used=0, held=3)


# ---- Quota ------------------------------------------------------------------------------------------------------------


def test_held_by_flows_is_not_used_up(port, tenants, log):
    environment = tenants.environment(orders=2)
    one, two = started(port, environment.key), started(port, environment.key)
    for answer in (Flow(port, environment.key).start(), ask(port, "GET", "/say", key=environment.key)):
        refused(answer, 429, "QUOTA_HELD")
        assert 1 <= int(answer["retry-after"]) <= 300, "the earliest deadline of a flow"
        assert answer["ratelimit"].startswith('"quota";r=0')
    assert one.rollback().status == 200
    three = started(port, environment.key)
    assert [state(flow.finish()) for flow in (two, three)] == ["committed"] * 2
    for answer in (Flow(port, environment.key).start(), ask(port, "GET", "/say", key=environment.key)):
        refused(answer, 429, "QUOTA_EXCEEDED")
        assert int(answer["retry-after"]) > 5, "the end of the month"
    kit.eventually(lambda: log.quota(environment, "orders") == [2, 0, 0, 2])


def test_a_start_waits_for_the_units_of_requests_in_progress(gateways, tenants, raw, log):
    environment = tenants.environment(orders=1)
    with Wire(gateways[1].port) as wire:
        wire.send(request("GET", "/say?status=500&hold=in-progress", key=environment.key))
        kit.eventually(lambda: raw.seen("hold=in-progress"), what="it is upstream")
        answer = refused(Flow(gateways[0].port, environment.key).start(), 429, "QUOTA_HELD")
        assert answer["retry-after"] == "1" and log.row(answer.id)["duration_us"] >= 1_000_000, "recall_wait of these nodes"
        raw.release("in-progress")
        assert wire.read().status == 500
    assert state(started(gateways[0].port, environment.key).finish()) == "committed"
    kit.eventually(lambda: log.quota(environment, "orders") == [1, 0, 0, 1])


def test_a_flow_gets_the_units_that_idle_leases_have(port, tenants, log):
    environment = tenants.environment(orders=40)
    for _ in range(20):
        assert ask(port, "GET", "/say", key=environment.key).status == 200
    running = [started(port, environment.key) for _ in range(20)]
    refused(Flow(port, environment.key).start(), 429, "QUOTA_HELD")
    assert {state(flow.finish()) for flow in running} == {"committed"}
    kit.eventually(lambda: log.quota(environment, "orders") == [40, 0, 0, 40])


def test_a_flow_that_straddles_a_reset_stays_in_its_period(port, key, environment, tenants, log, postgres):
    kept, dropped = started(port, key), started(port, key)
    tenants.sql(f"UPDATE pandora.project_service SET next_reset = clock_timestamp() WHERE project_id = {environment.project_id}")
    fresh = started(port, key)
    kit.eventually(lambda: log.quota(environment, "orders") == [0, 10, 1, 0], what="the new period holds one flow alone")
    assert state(kept.finish()) == "committed" and state(dropped.finish("/say?outcome=rollback")) == "rolled_back"
    assert log.quota(environment, "orders") == [0, 10, 1, 0]
    assert state(fresh.finish()) == "committed"
    kit.eventually(lambda: log.quota(environment, "orders") == [1, 9, 0, 1])
    rows = postgres.psql(f"SELECT period, sum(used_delta) FROM pandora.quota_ledger WHERE environment_id = {environment.id}"
                         " GROUP BY 1 ORDER BY 1")
    assert [int(units) for _, units in rows] == [1, 1]


# ---- Clients that leave -----------------------------------------------------------------------------------------------


def leave(port, key, raw, place, target, *fields, token):
    """A client that is gone once its request is upstream."""
    with Wire(port) as wire:
        wire.send(request("GET", f"/{place}{target}", *fields, host="keep.test", key=key))
        kit.eventually(lambda: raw.seen(token), what="the request is upstream")


def test_a_start_whose_client_left_before_the_head_is_given_back(port, key, raw, postgres, environment, books):
    token = uuid.uuid4().hex
    leave(port, key, raw, "start", f"/say?hold={token}", token=token)
    books(used=0, held=0)
    raw.release(token)
    rows = postgres.psql("SELECT outcome, used_delta FROM pandora.quota_ledger"
                         f" WHERE environment_id = {environment.id} AND kind = 'flow'")
    assert rows == [["rolled_back", "0"]]


def test_a_finish_whose_client_left_before_the_head_leaves_the_flow_open(port, key, raw, books):
    flow, token = started(port, key), uuid.uuid4().hex
    leave(port, key, raw, "finish", f"/say?hold={token}", f"Pandora-Flow: {flow.id}", token=token)
    kit.eventually(lambda: flow.show()["state"] == "open", what="the claim is given up")
    raw.release(token)
    assert state(flow.finish()) == "committed"
    books(used=1, held=0)


def test_a_finish_whose_client_left_while_it_was_settled_is_committed(port, key, raw, postgres, log, books):
    flow, token = started(port, key), uuid.uuid4().hex
    with Wire(port) as wire:
        wire.send(request("GET", f"/finish/say?hold={token}", f"Pandora-Flow: {flow.id}", host="keep.test", key=key))
        kit.eventually(lambda: raw.seen(token), what="the finish is upstream")
        with flows.locked(postgres, f"SELECT FROM pandora.reservations WHERE id = '{flow.id}' FOR UPDATE"):
            raw.release(token)
            kit.eventually(lambda: postgres.psql(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%flow_settle%'"),
                what="the settlement waits for the row")
            wire.socket.close()
            [row] = kit.eventually(lambda: log.rows(f"reservation_id = '{flow.id}' AND route = 'keep-finish'"))
            assert row["execution_status"] == "client_aborted"
    kit.eventually(lambda: endings(postgres, flow) == [("committed", 1)])
    books(used=1, held=0)


def test_a_finish_whose_client_left_after_the_head_is_committed(port, key, raw, postgres, books):
    flow = started(port, key)
    with Wire(port) as wire:
        wire.send(request("GET", "/finish/raw/head-then-hang", f"Pandora-Flow: {flow.id}", host="keep.test", key=key))
        kit.eventually(lambda: b"\r\n\r\n" in wire.data or not wire._more())
        assert b"Pandora-Flow-State: committed" in wire.data
    assert endings(postgres, flow) == [("committed", 1)]
    books(used=1, held=0)


# ---- Time -------------------------------------------------------------------------------------------------------------


def test_an_abandoned_flow_expires_and_stays_visible(gateways, port, key, postgres, books):
    flow = started(port, key, "short-lived")
    # What the sweeper does, without the minute that it waits after PostgreSQL came up.
    kit.eventually(lambda: postgres.psql("SELECT pandora.flow_expire(1000, '0 s')") and endings(postgres, flow), what="it expires")
    assert endings(postgres, flow) == [("expired", 0)]
    books(used=0, held=0)
    for gateway in gateways:
        assert flow.show(port=gateway.port)["state"] == "expired"
        for answer in (flow.step(port=gateway.port), flow.finish(port=gateway.port), flow.commit(port=gateway.port),
                       flow.rollback(port=gateway.port)):
            refused(answer, 409, "FLOW_EXPIRED")


def test_steps_keep_a_flow_alive(port, key, postgres):
    flow = started(port, key)

    def left():
        [[seconds]] = postgres.psql("SELECT extract(epoch FROM expires_at - clock_timestamp()) FROM pandora.reservations"
                                    f" WHERE id = '{flow.id}'")
        return float(seconds)

    assert 240 < left() <= 300
    for _ in range(3):
        # Four of its five minutes pass for this flow.
        postgres.psql(f"UPDATE pandora.reservations SET expires_at = expires_at - interval '4 min' WHERE id = '{flow.id}'")
        assert left() <= 60
        assert flow.step().status == 200
        assert 240 < left() <= 300
    assert state(flow.finish()) == "committed"


def test_a_flow_whose_finish_is_in_flight_does_not_expire(port, key, raw, postgres, books):
    flow, token = started(port, key), uuid.uuid4().hex
    # All the life it has left, whatever hops come.
    postgres.psql("UPDATE pandora.reservations SET expires_at = clock_timestamp() + interval '1 min',"
                  f" deadline_max = clock_timestamp() + interval '1 min' WHERE id = '{flow.id}'")
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        finishing = threads.submit(flow.finish, f"/say?hold={token}")
        kit.eventually(lambda: raw.seen(token), what="the finish is upstream")
        # A gateway that is killed now holds it no longer than that, whatever the route's timeouts are.
        [[left]] = postgres.psql(
            f"SELECT extract(epoch FROM expires_at - clock_timestamp()) FROM pandora.reservations WHERE id = '{flow.id}'")
        assert 60 < float(left) <= 300
        # Two minutes pass for it.
        postgres.psql("UPDATE pandora.reservations SET expires_at = expires_at - interval '2 min', request_time = request_time"
                      f" - interval '2 min', deadline_max = deadline_max - interval '2 min' WHERE id = '{flow.id}'")
        postgres.psql("SELECT pandora.flow_expire(1000, '0 s')")
        assert flow.show()["state"] == "finishing"
        raw.release(token)
        assert state(finishing.result()) == "committed"
    books(used=1, held=0)


def expire(postgres, flow):
    """Its time passes, and the sweeper comes."""
    def gone():
        postgres.psql(f"UPDATE pandora.reservations SET expires_at = clock_timestamp() - interval '1 s' WHERE id = '{flow.id}';"
                      "SELECT pandora.flow_expire(1000, '0 s')")
        return endings(postgres, flow)

    kit.eventually(gone, what="it expires")


def test_a_success_that_comes_after_the_expiry_is_charged_and_told(port, key, raw, postgres, books):
    flow, token = started(port, key), uuid.uuid4().hex
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        finishing = threads.submit(flow.finish, f"/say?hold={token}")
        kit.eventually(lambda: raw.seen(token), what="the finish is upstream")
        expire(postgres, flow)
        books(used=0, held=0)
        raw.release(token)
        finish = finishing.result()
    assert (finish.status, state(finish), finish.body) == (200, "expired", b"said")
    assert sorted(endings(postgres, flow)) == [("expired", 0), ("overrun", 1)]
    books(used=1, held=0)
    assert {"state": "expired", "units": 1}.items() <= flow.show().items()
    refused(flow.finish(), 409, "FLOW_EXPIRED", "was charged")
    books(used=1, held=0)


@pytest.mark.long
def test_the_sweeper_expires_flows_by_itself(port, key, postgres, books):
    flow = started(port, key, "short-lived")
    kit.eventually(lambda: endings(postgres, flow) == [("expired", 0)], kit.PATIENCE, "a minute after the gateway came up it is swept")
    books(used=0, held=0)


# ---- Endpoints --------------------------------------------------------------------------------------------------------


def test_the_endpoints_commit_and_roll_back(gateways, port, key, postgres, log, books):
    flow = started(port, key)
    for gateway in gateways * 2:
        answer = flow.commit(port=gateway.port)
        assert answer.status == 200 and answer.json() == {"id": flow.id, "state": "committed"}, answer
    refused(flow.rollback(), 409, "FLOW_CLOSED", "committed")
    refused(flow.finish(), 409, "FLOW_CLOSED", "committed")
    books(used=1, held=0)
    row = log.row(answer.id)
    assert (row["route"], row["status_code"], row["units"], row["execution_status"]) == (".pandora/flows", 200, 0, "success"), row
    other = started(port, key)
    for gateway in gateways * 2:
        assert other.rollback(port=gateway.port).json() == {"id": other.id, "state": "rolled_back"}
    refused(other.commit(), 409, "FLOW_CLOSED", "rolled_back")
    refused(other.step(), 409, "FLOW_CLOSED", "rolled_back")
    books(used=1, held=0)
    assert endings(postgres, flow) == [("committed", 1)] and endings(postgres, other) == [("rolled_back", 0)]
    assert [flow.show()["state"], other.show()["state"]] == ["committed", "rolled_back"]


def test_the_endpoints_want_a_key_and_say_what_they_are_not(port, key):
    flow = started(port, key)
    refused(ask(port, "GET", f"/.pandora/flows/{flow.id}"), 401, "KEY_MISSING")
    refused(ask(port, "POST", f"/.pandora/flows/{flow.id}/commit"), 401, "KEY_MISSING")
    for method, path in (("DELETE", f"/{flow.id}"), ("POST", f"/{flow.id}"), ("GET", f"/{flow.id}/commit"), ("GET", ""), ("GET", "/"),
                         ("POST", f"/{flow.id}/commit/x"), ("POST", f"/{flow.id}/Commit")):
        answer = ask(port, method, "/.pandora/flows" + path, key=key)
        assert answer.status in (400, 404) and answer.json()["code"] in ("ROUTE_NOT_FOUND", "FLOW_INVALID"), (path, answer)
    refused(ask(port, "GET", "/.pandora/else", key=key), 404, "ROUTE_NOT_FOUND")
    head = ask(port, "HEAD", f"/.pandora/flows/{flow.id}", key=key)
    assert head.status == 200 and int(head["content-length"]) > 0
    assert flow.show()["hops"] == 1


# ---- Chains -----------------------------------------------------------------------------------------------------------


def test_the_hops_of_a_flow_are_one_chain_over_two_gateways(gateways, key, binary, postgres, log):
    one, two = (gateway.port for gateway in gateways)
    flow = started(one, key)
    other = ask(one, "GET", "/say", key=key)
    step = flow.step(port=two)
    # Whatever the client says of its chain, a hop of a flow belongs to its flow.
    also = flow.step("/say", f"Pandora-Start-Point: {other['pandora-start-point']}", number=2, port=one)
    finish = flow.finish(port=two)
    root = flow.chain.partition(".")[0]
    for answer in (step, also, finish):
        assert answer["pandora-start-point"] == flow.chain
        assert log.row(answer.id)["start_point"] == root
    pandora = kit.Pandora(binary, postgres.url())
    for name in (flow.chain, root, step.id, finish.id):
        trace = pandora.json("trace", name)
        assert trace["chain"] == root
        assert [hop["id"] for hop in trace["hops"]] == [root, step.id, also.id, finish.id]


def test_requests_chain_by_the_start_point_they_were_given(gateways, port, key, binary, postgres, log):
    first = ask(port, "GET", "/say", key=key)
    chain = first["pandora-start-point"]
    assert chain.startswith(first.id + ".")
    field = f"Pandora-Start-Point: {chain}"
    second = ask(gateways[1].port, "GET", "/say", field, key=key)
    flow = Flow(port, key)
    start = flow.start("/say", field)
    finish = flow.finish()
    answers = (second, start, finish)
    for answer in answers:
        assert answer["pandora-start-point"] == chain
        assert log.row(answer.id)["start_point"] == first.id
    trace = kit.Pandora(binary, postgres.url()).json("trace", second.id)
    assert [hop["id"] for hop in trace["hops"]] == [first.id, *(answer.id for answer in answers)]


def test_forged_and_foreign_start_points_are_refused(port, key, tenants, raw, log, books):
    chain, token = ask(port, "GET", "/say", key=key)["pandora-start-point"], uuid.uuid4().hex
    root, _, tag = chain.partition(".")
    stranger = tenants.environment(orders=10).key
    swapped = ("A" if tag[0] != "A" else "B") + tag[1:]
    forged = ["", "x", root, root + ".", f"{root}.{swapped}", f"{root}.{tag}x", "req_" + "0" * 26 + "." + tag, chain + " " + chain]
    attempts = [(text, key) for text in forged] + [(chain, stranger)]
    for text, with_key in attempts:
        field = f"Pandora-Start-Point: {text}"
        for answer in (ask(port, "GET", f"/say?{token}", field, key=with_key), Flow(port, with_key).start(f"/say?{token}", field)):
            refused(answer, 400, "START_POINT_INVALID")
            row = log.row(answer.id)
            assert (row["units"], row["attempts"], row["start_point"]) == (0, 0, None), row
    assert raw.seen(token) == []
    books(used=1, held=0)


# ---- PostgreSQL away --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(binary, services, tmp_path_factory):
    one = Site(binary, services, tmp_path_factory.mktemp("flow-site"), flows.configuration(services, FLOWS, workers=1))
    yield one
    one.remove()


@pytest.fixture
def away(site):
    """Stops PostgreSQL; it is there again after the test, whatever happens."""
    yield site.postgres.stop
    if site.postgres.process.poll() is not None:
        site.postgres.start()


def test_nothing_of_a_flow_is_forwarded_while_postgresql_is_away(site, away, raw):
    environment, token = site.tenants.environment(orders=10), uuid.uuid4().hex
    site.heard()  # Else the news of the key, late, takes it out of the cache again: 503 too, but STORE_UNAVAILABLE.
    flow = started(site.gateway.port, environment.key)
    assert flow.show()["hops"] == 1
    away()
    for answer in (Flow(flow.port, flow.key).start(f"/say?{token}"), flow.step(f"/say?{token}"), flow.finish(f"/say?{token}"),
                   flow.commit(), flow.rollback(), flow.endpoint()):
        refused(answer, 503, "QUOTA_UNAVAILABLE")
        assert int(answer["retry-after"]) > 0
    assert raw.seen(token) == []
    site.postgres.start()
    kit.eventually(lambda: flow.endpoint().status == 200, what="the gateway is back")
    shown = flow.show()
    assert (shown["state"], shown["hops"]) == ("open", 1)
    assert state(flow.finish()) == "committed"
    kit.eventually(lambda: site.log.quota(environment, "orders") == [1, 9, 0, 1])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_what_cannot_be_settled_is_pending_and_settled_once(site, away, raw, how):
    """PostgreSQL goes away between claim and settlement; the finish and the start both wait upstream."""
    environment, token = site.tenants.environment(orders=10), uuid.uuid4().hex
    flow, failing = started(site.gateway.port, environment.key), Flow(site.gateway.port, environment.key)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        finishing = threads.submit(flow.finish, f"/say?hold={token}")
        starting = threads.submit(failing.start, f"/say?hold={token}&status=500")
        kit.eventually(lambda: len(raw.seen(token)) == 2, what="both are upstream")
        away(how)
        raw.release(token)
        finish, start = finishing.result(), starting.result()
    assert (finish.status, state(finish), finish.body) == (200, "pending", b"said")
    assert (start.status, state(start)) == (500, "pending")
    site.postgres.start()
    kit.eventually(lambda: endings(site.postgres, flow) and endings(site.postgres, failing), what="both are settled from the spool")
    kit.eventually(lambda: site.log.quota(environment, "orders") == [1, 9, 0, 1])
    assert endings(site.postgres, flow) == [("committed", 1)] and endings(site.postgres, failing) == [("rolled_back", 0)]
    refused(kit.eventually(lambda: (answer := flow.finish()).status != 503 and answer), 409, "FLOW_CLOSED", "committed")
    assert flow.show()["state"] == "committed"
    assert endings(site.postgres, flow) == [("committed", 1)]


def test_what_was_pending_survives_the_death_of_the_gateway(site, away, raw):
    environment, token = site.tenants.environment(orders=10), uuid.uuid4().hex
    flow = started(site.gateway.port, environment.key)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        finishing = threads.submit(flow.finish, f"/say?hold={token}")
        kit.eventually(lambda: raw.seen(token), what="the finish is upstream")
        away()
        raw.release(token)
        assert state(finishing.result()) == "pending"
    site.gateway.kill()
    site.postgres.start()
    site.gateway.start()
    kit.eventually(lambda: endings(site.postgres, flow) == [("committed", 1)], what="the next process ships what the spool has")
    kit.eventually(lambda: site.log.quota(environment, "orders") == [1, 9, 0, 1])


def test_a_step_that_its_gateway_did_not_survive_is_in_the_chain_when_it_is_sent_again(site, raw):
    environment, token, field = site.tenants.environment(orders=10), uuid.uuid4().hex, "Idempotency-Key: pay-1"
    flow = started(site.gateway.port, environment.key)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        dying = threads.submit(flow.step, f"/say?hold={token}", field)
        kit.eventually(lambda: raw.seen(token), what="the step is upstream")
        site.gateway.kill()
        assert isinstance(dying.exception(), Cut)
    raw.release(token)
    site.gateway.start()
    flow.port = site.gateway.port
    again = kit.eventually(lambda: (answer := flow.step("/say", field)).status != 503 and answer)
    assert again.status == 200 and flow.show()["hops"] == 2
    assert site.log.row(again.id)["start_point"] == flow.chain.partition(".")[0]
    kit.eventually(lambda: noted(site.postgres, flow, 200), what="the answer is remembered")
    assert site.log.row(flow.step("/say", field).id)["start_point"] is None
    assert state(flow.finish()) == "committed"
