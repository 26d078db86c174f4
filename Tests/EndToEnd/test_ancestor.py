"""What pandora-core, this project's ancestor, got wrong: defects D1 to D14, each a test that carries its number.

Those that another test proves already:

    D1   test_unlimited_row_has_no_quota_fields_and_is_counted, test_an_unlimited_row_counts_what_its_flows_used
    D4   test_the_endpoints_commit_and_roll_back
    D7   test_requests_chain_by_the_start_point_they_were_given, test_chain_by_start_point
    D8   test_a_flow_is_held_when_it_starts_and_charged_once_when_it_finishes
    D9   test_an_abandoned_flow_expires_and_stays_visible, test_the_sweeper_expires_flows_by_itself
    D13  anErrorIsReportedAndNeverFatal
    D14  test_stop_answers_every_received_request_and_exits_0, test_the_endpoints_want_a_key_and_say_what_they_are_not
    D14  aListHasAnEndHoweverMuchThereIs

D12 is in test_complaints.py, whose last test looks after both tables.
"""

import calendar
import concurrent.futures
import datetime
import uuid
import zoneinfo

import pytest

import flows
import kit
from flows import Flow, endings, refused, started
from tenants import new_secret
from wire import Wire, ask, request


@pytest.fixture(scope="module")
def node(binary, postgres, services, tmp_path_factory):
    """One worker, so that what was said to one connection holds for the next one. Its service is its own."""
    one = kit.Gateway("ancestor", binary, flows.configuration(services, {"keep": {}}, service="ancestor", workers=1),
                      tmp_path_factory.mktemp("ancestor"), postgres.url())
    yield one
    assert one.stop() == 0


@pytest.fixture(scope="module")
def port(node):
    return node.port


def say(port, environment):
    return ask(port, "GET", "/say", key=environment.key)


def reset(tenants, environment):
    """The end of the period is now."""
    tenants.sql(f"UPDATE pandora.project_service SET next_reset = clock_timestamp() WHERE project_id = {environment.project_id}")


def test_d02_the_last_unit_comes_back_when_a_flow_is_rolled_back(port, tenants, log):
    """A rollback gave back only to counters above 0, after it had deleted the reservation: the last unit was lost."""
    environment = tenants.environment(ancestor=1)
    for _ in range(3):
        flow = started(port, environment.key)
        refused(Flow(port, environment.key).start(), 429, "QUOTA_HELD")
        assert flow.rollback().status == 200
    assert started(port, environment.key).finish()["pandora-flow-state"] == "committed"
    kit.eventually(lambda: log.quota(environment, "ancestor") == [1, 0, 0, 1], what="the last unit is used once")


def test_d03_a_rollback_happens_whole_or_not_at_all(port, tenants, log, postgres):
    """It was three statements without a transaction: what failed in between left units that nobody held and nobody could use."""
    environment = tenants.environment(ancestor=5)
    flow = started(port, environment.key)
    counters = f"SELECT FROM pandora.environment_service WHERE environment_id = {environment.id} FOR UPDATE"
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%flow_settle%'"
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        with flows.locked(postgres, counters):
            ending = threads.submit(flow.rollback)
            [[process]] = kit.eventually(lambda: postgres.psql(waiting), what="the rollback waits for the counters")
            postgres.psql(f"SELECT pg_terminate_backend({process})")
            kit.eventually(lambda: not postgres.psql(f"SELECT FROM pg_stat_activity WHERE pid = {process}"), what="its session ends")
            assert postgres.psql(f"SELECT state, units FROM pandora.reservations WHERE id = '{flow.id}'") == [["open", "1"]]
            assert log.quota(environment, "ancestor") == [0, 5, 1, 0] and endings(postgres, flow) == []
        assert ending.result().status in (200, 503)
    kit.eventually(lambda: flow.rollback().status == 200, what="it is rolled back")
    assert log.quota(environment, "ancestor") == [0, 5, 0, 0] and endings(postgres, flow) == [("rolled_back", 0)]


def test_d03_a_rollback_after_a_reset_is_accepted_and_mints_nothing(port, tenants, log, postgres):
    """The unit given back did not fit below the maximum of the new period: an error, with the reservation gone."""
    environment = tenants.environment(ancestor=2)
    flow = started(port, environment.key)
    assert say(port, environment).status == 200
    reset(tenants, environment)
    assert [say(port, environment).status for _ in range(3)] == [200, 200, 429]
    assert flow.rollback().status == 200 and endings(postgres, flow) == [("rolled_back", 0)]
    assert say(port, environment).status == 429
    kit.eventually(lambda: log.quota(environment, "ancestor") == [2, 0, 0, 2], what="the new period is as if there had been no flow")


@pytest.mark.parametrize("table, row, broken, mended, code", [
    ("api_key", "key_id", "status = 'disabled'", "status = 'enabled'", "KEY_DISABLED"),
    ("api_key", "key_id", "expires_at = now() - interval '1 s'", "expires_at = NULL", "KEY_EXPIRED"),
    ("environment", "id", "status = 'disabled'", "status = 'enabled'", "ENVIRONMENT_DISABLED"),
    ("project", "project_id", "status = 'disabled'", "status = 'enabled'", "PROJECT_DISABLED"),
])
def test_d05_who_is_refused_pays_nothing_and_is_in_the_log(port, tenants, log, table, row, broken, mended, code):
    """Units were taken before the key was looked at, and taken from keys that were expired or disabled."""
    environment = tenants.environment(ancestor=1)
    change = f"UPDATE pandora.{table} SET %s WHERE id = '{getattr(environment, row)}'"
    tenants.sql(change % broken)
    for answer in (say(port, environment), say(port, environment), Flow(port, environment.key).start()):
        assert answer.status in (401, 403) and answer.json()["code"] == code, answer
        logged = log.row(answer.id)
        assert (logged["execution_status"], logged["unauthorized_reason"], logged["units"]) == ("unauthorized", code, 0)
        assert (logged["environment_id"], logged["api_key"]) == (environment.id, environment.key_id)
    assert log.quota(environment, "ancestor") == [0, 1, 0, 0]
    tenants.sql(change % mended)
    kit.eventually(lambda: say(port, environment).status == 200, what="the only unit is still there")


def test_d05_an_unknown_key_is_in_the_log(port, log):
    """A key that did not exist led to an error before the log was written."""
    answer = refused(ask(port, "GET", "/say", key=new_secret()), 401, "KEY_INVALID")
    row = log.row(answer.id)
    assert (row["execution_status"], row["unauthorized_reason"], row["status_code"]) == ("unauthorized", "KEY_INVALID", 401)


def test_d06_who_is_over_quota_is_told_so_and_is_in_the_log(port, tenants, log):
    """Over quota was answered as not found, and never logged."""
    environment = tenants.environment(ancestor=1)
    flow = started(port, environment.key)
    answers = [(code, refused(one, 429, code)) for code, one in (
        ("QUOTA_HELD", say(port, environment)), ("QUOTA_HELD", Flow(port, environment.key).start()))]
    assert flow.finish().status == 200
    answers += [("QUOTA_EXCEEDED", refused(one, 429, "QUOTA_EXCEEDED")) for one in (
        say(port, environment), Flow(port, environment.key).start())]
    for code, answer in answers:
        row = log.row(answer.id)
        assert (row["execution_status"], row["unauthorized_reason"], row["status_code"]) == ("unauthorized", code, 429), row
        assert (row["environment_id"], row["service_id"], row["api_key"], row["units"], row["attempts"]) == (
            environment.id, environment.services["ancestor"], environment.key_id, 0, 0), row


def test_d10_c06_c08_c09_c10_no_secret_is_kept_anywhere(gateway, tenants, log, postgres):
    """Keys were stored as they are and copied into every row, with headers, cookies and bodies; other gateways' logs have them, too."""
    environment, (shown, cookie, basic, body, query) = tenants.environment(orders=None), (uuid.uuid4().hex for _ in range(5))
    key, stranger = environment.key, new_secret()
    fields, target = (f"Cookie: session={cookie}", f"Authorization: Basic {basic}"), f"/{shown}?q={query}"
    answers = [
        ask(gateway.port, "POST", target, *fields, key=key, body=body.encode()),
        ask(gateway.port, "POST", target, f"Authorization: Bearer {key}", fields[0], body=body.encode()),
        ask(gateway.port, "GET", "/echo?api_key=" + key, *fields, host="query.test"),
        ask(gateway.port, "GET", target, *fields, f"Authorization: Bearer {stranger}", key=key),
        ask(gateway.port, "GET", target, *fields, key=stranger),
        ask(gateway.port, "GET", target, *fields, key=key, host="refused.test"),
        ask(gateway.port, "GET", "/raw/garbage?" + query, *fields, key=key),
        ask(gateway.port, "GET", target, *fields, key=key, host="nowhere.test"),
        ask(gateway.port, "GET", target, *fields, "No field", key=key),
        ask(gateway.port, "GET", target, *fields, "X-Long: " + "x" * 20_000, key=key),
    ]
    assert [answer.status for answer in answers] == [200, 200, 200, 400, 401, 502, 502, 404, 400, 431]
    for answer in answers:
        log.row(answer.id)
    # Eight characters of a key are its prefix, for people to tell keys apart: in the table of keys, and nowhere else.
    secrets, prefix = [cookie, basic, body, query, key[11:35], stranger[11:35]], key[3:11]

    def found(table, *words):
        forms = " OR ".join(f"t::text LIKE '%{form}%'" for word in words for form in (word, word.encode().hex()))
        return postgres.psql(f"SELECT t::text FROM {table} t WHERE {forms}")

    for [table] in postgres.psql("SELECT oid::regclass FROM pg_class WHERE relkind = 'r' AND relnamespace = 'pandora'::regnamespace"):
        assert found(table, *secrets, *[prefix] * (table != "pandora.api_key")) == []
    spool = b"".join(one.read_bytes() for one in (gateway.log_path.parent / "gateway.spool").rglob("*") if one.is_file())
    assert found("pandora.request_logs", shown) and shown.encode() in spool, "what is no secret is found in this way"
    for word in (*secrets, prefix):
        assert word.encode() not in spool and word not in gateway.log(), word
        assert not any(word.encode() in answer.body for answer in answers[3:]), word


def test_d11_the_history_of_who_was_deleted_stays(port, tenants, log, postgres, binary):
    """Deleting a service deleted every row of its log; the chain's foreign key wanted hops in order and no partitions."""
    environment = tenants.environment(ancestor=5)
    root = say(port, environment)
    hop = ask(port, "GET", "/say", f"Pandora-Start-Point: {root['pandora-start-point']}", key=environment.key)
    assert [log.row(answer.id)["units"] for answer in (root, hop)] == [1, 1]
    kit.eventually(lambda: log.quota(environment, "ancestor") == [2, 3, 0, 2], what="it is booked, idle units are back")
    service = environment.services["ancestor"]
    tenants.sql(f"""
        DELETE FROM pandora.environment_service WHERE service_id = {service};
        DELETE FROM pandora.project_service WHERE service_id = {service};
        DELETE FROM pandora.service WHERE id = {service};
        DELETE FROM pandora.api_key WHERE environment_id = {environment.id};
        DELETE FROM pandora.environment WHERE id = {environment.id};
        DELETE FROM pandora.project WHERE id = {environment.project_id};
        DELETE FROM pandora.client WHERE name = '{environment.client}'""")
    refused(kit.eventually(lambda: (answer := say(port, environment)).status != 200 and answer), 401, "KEY_INVALID")
    trace = kit.Pandora(binary, postgres.url()).json("trace", hop.id)
    assert [one["id"] for one in trace["hops"]] == [root.id, hop.id] and trace["units"] == 2
    row = log.row(hop.id)
    assert (row["start_point"], row["service_id"], row["environment_id"], row["api_key"]) == (
        root.id, service, environment.id, environment.key_id)
    assert postgres.psql(f"SELECT sum(used_delta) FROM pandora.quota_ledger WHERE environment_id = {environment.id}") == [["2"]]
    # A hop may also arrive before the one that it follows, or without it: nothing in the log waits for anything.
    first = row["id"][:-4] + "0000"
    postgres.psql(f"INSERT INTO pandora.request_logs (execution_status, start_point) VALUES ('success', '{first}')")


def boundary_after(moment, anchor, zone):
    """The first moment after this one that is a whole number of months after the anchor, on the wall clock of the zone."""
    months = 0
    while True:
        months += 1
        year, month = anchor.year + (anchor.month - 1 + months) // 12, (anchor.month - 1 + months) % 12 + 1
        day = min(anchor.day, calendar.monthrange(year, month)[1])
        boundary = anchor.replace(year=year, month=month, day=day, tzinfo=zoneinfo.ZoneInfo(zone))
        if boundary.timestamp() > moment:
            return boundary.timestamp()


@pytest.mark.parametrize("late", ["1 hour", "75 days", "400 days"])
def test_d13_c25_a_late_reset_keeps_to_the_calendar(port, tenants, late):
    """The next reset was a period after the day of the last one: whoever was late moved it; months ended on the 3rd of March."""
    environment, zone = tenants.environment(ancestor=1), "America/New_York"
    change = f"UPDATE pandora.project_service SET %s WHERE project_id = {environment.project_id}"
    tenants.sql(change % f"anchor = '2024-01-31 06:00', time_zone = '{zone}'")
    tenants.sql(change % f"next_reset = clock_timestamp() - interval '{late}'")

    def next_reset():
        [[at, now]] = tenants.sql(f"""SELECT extract(epoch FROM next_reset), extract(epoch FROM clock_timestamp())
                                        FROM pandora.project_service WHERE project_id = {environment.project_id}""")
        return float(at), float(now)

    before = next_reset()[1]
    with Wire(port) as wire:
        answers = [wire.send(request("GET", "/say", key=environment.key)).read() for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 429], "a period has its limit, however many were missed"
    at, after = next_reset()
    anchor = datetime.datetime(2024, 1, 31, 6)
    assert at in (boundary_after(before, anchor, zone), boundary_after(after, anchor, zone))
    assert before - 1 <= at - int(answers[1]["retry-after"]) <= after, "clients are told when it ends, in whole seconds, rounded up"
