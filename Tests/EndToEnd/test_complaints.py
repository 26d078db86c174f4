"""What users of other gateways complain about (the numbers are those of our survey): quota, log, keys, outages, resets.

Those that another test proves already:

    C1   test_twenty_units_and_sixty_requests_at_once, test_a_thousand_units_and_five_thousand_requests_at_once
    C3   test_cached_keys_serve_while_postgresql_is_away
    C4   test_failover_to_a_synchronous_standby_loses_nothing
    C11  placeIsRefusedAtTheBoundAndThereAgainAfterShipping, aFloodOfRefusalsIsCountedInFewRows
    C12  test_limits_are_edited_under_traffic, test_kill_loses_no_answered_request
    C16  test_cached_keys_serve_while_postgresql_is_away
    C19  test_two_gateways_share_what_there_is, test_a_thousand_units_and_five_thousand_flows_at_once
    C20  test_client_that_goes_away_before_the_head_is_not_charged, test_a_start_whose_client_left_before_the_head_is_given_back
    C20  test_a_declined_upgrade_costs_nothing, test_held_by_flows_is_not_used_up
    C21  test_upstream_says_what_an_answer_costs, test_what_an_answer_does_not_cost_is_free_before_it_ends
    C23  test_twenty_units_and_sixty_requests_at_once, test_a_key_has_so_many_flows_open_and_another_key_as_many
    C28  aDeadlockIsTriedAgain, manyRowsAreLockedInOrder, editsAndResetsDoNotDeadlock
    C30  theHopsOfAKeyAndOfAChainAreFoundByAnIndex, aTimeFilterLeavesWholePartitionsOut
    C31  theHopsOfAKeyAndOfAChainAreFoundByAnIndex
    C32  everyDayHasItsPartitionAndTheRestIsCaught
    C35  test_the_hops_of_a_flow_are_one_chain_over_two_gateways, test_forged_and_foreign_start_points_are_refused
    C37  test_limits_are_edited_under_traffic, whatIsUsedIsWhatTheLedgerExplains
    C38  test_units_reported_while_postgresql_is_away_are_charged_later, test_raised_limit_serves
    C39  test_raised_limit_serves, test_limits_are_edited_under_traffic
    C40  aFloodOfRefusalsIsCountedInFewRows, test_twenty_units_and_sixty_requests_at_once
    C41  theNextBoundary, noBoundaryIsSteppedOver
    C43  test_failures_give_their_unit_back, test_route_may_charge_failures_and_several_units

6, 8, 9, 10 and 25 are in test_ancestor.py.
"""

import collections
import concurrent.futures
import contextlib
import pathlib
import re
import secrets
import time
import uuid

import pytest

import conftest
import kit
import test_ancestor
from flows import refused
from sites import Site
from wire import Wire, ask, request


@pytest.fixture(scope="module")
def site(binary, services, tmp_path_factory):
    """Two nodes of one worker each, before a PostgreSQL that tells every statement, far from UTC."""
    postgres = kit.PostgreSQL(settings=("log_statement=all", "timezone=Pacific/Kiritimati"))
    one = Site(binary, services, tmp_path_factory.mktemp("complaints"), conftest.configuration(services, workers=1), 2, postgres)
    yield one
    one.remove()


@contextlib.contextmanager
def away(site):
    """PostgreSQL is away inside the block, and every node has it again after that."""
    site.postgres.stop()
    try:
        yield
    finally:
        site.postgres.start()
    key = site.tenants.environment(orders=None).key
    for node in site.gateways:
        kit.eventually(lambda: echo(node, key).status == 200, what=f"{node.name} has PostgreSQL again")


def echo(node, key, host="raw.test", target="/echo"):
    return ask(node.port, "GET", target, host=host, key=key)


def crowd(nodes, key, count, target="/echo"):
    """So many requests at once, on all of the nodes in turn: their answers."""
    wires = [Wire(nodes[number % len(nodes)].port) for number in range(count)]
    try:
        with concurrent.futures.ThreadPoolExecutor(count) as threads:
            return list(threads.map(lambda wire: wire.send(request("GET", target, key=key)).read(), wires))
    finally:
        for wire in wires:
            wire.socket.close()


def by_status(answers, *statuses):
    return [sum(answer.status == status for answer in answers) for status in statuses]


def test_c02_connections_to_postgresql_do_not_grow_with_requests(site):
    """Each write of a counter had a connection of its own, until the server had too many clients."""
    environment, token = site.tenants.environment(orders=1000), uuid.uuid4().hex
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'pandora' AND application_name = 'pandora'"
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        answers = threads.submit(crowd, site.gateways, environment.key, 80, f"/say?hold={token}")
        try:
            kit.eventually(lambda: len(site.services.raw.seen(token)) == 80, what="all of them are upstream")
            [[meanwhile]] = site.postgres.psql(sessions)
        finally:
            site.services.raw.release(token)
        assert by_status(answers.result(), 200) == [80]
    assert 2 <= int(meanwhile) <= 5 * len(site.gateways), "one a worker, and a few of the node"


@pytest.mark.parametrize("limit, frequency, statuses", [
    (None, "'monthly'", [200] * 4), (None, "NULL", [200] * 4), (0, "'monthly'", [429] * 4), (0, "NULL", [429] * 4),
    (2, "'daily'", [200, 200, 429, 429]), (2, "NULL", [200, 200, 429, 429]),
])
def test_c13_unlimited_zero_and_never_reset_are_what_they_say(site, limit, frequency, statuses):
    """A quota that never renews was not counted, and neither zero nor unlimited was what it said."""
    environment = site.tenants.environment(orders=limit)
    site.tenants.sql(f"UPDATE pandora.project_service SET reset_frequency = {frequency} WHERE project_id = {environment.project_id}")
    answers = [echo(site.gateway, environment.key) for _ in range(4)]
    assert [answer.status for answer in answers] == statuses
    for answer in answers:
        assert (answer["ratelimit"] is None) == (limit is None)
        if answer.status == 429:
            assert answer.json()["code"] == "QUOTA_EXCEEDED" and int(answer["retry-after"]) > 0
            assert (";t=" in answer["ratelimit"]) == (frequency != "NULL"), "an end is told where there is one"
    used = statuses.count(200)
    left = None if limit is None else limit - used
    kit.eventually(lambda: site.log.quota(environment, "orders") == [used, left, 0, used], what="the books agree")


def test_c13_each_service_has_its_own_quota(site):
    """A quota of each API was counted once for all of them."""
    environment = site.tenants.environment(orders=1, limited=2)
    for host, statuses in (("raw.test", [200, 429]), ("limited.test", [200, 200, 429]), ("raw.test", [429])):
        assert [echo(site.gateway, environment.key, host).status for _ in statuses] == statuses
    kit.eventually(lambda: site.log.quota(environment, "orders") == [1, 0, 0, 1])
    kit.eventually(lambda: site.log.quota(environment, "limited") == [2, 0, 0, 2])


def test_c14_c24_c26_c27_a_due_reset_happens_once_for_all_nodes_and_before_any_refusal(site):
    """Budgets were reset twice by races, by twenty nodes at once, by a second counter in the process never, or not at all."""
    environment = site.tenants.environment(orders=20)
    for period in (1, 2, 3):
        assert echo(site.gateways[period % 2], environment.key).status == 200
        assert by_status(crowd(site.gateways, environment.key, 60), 200, 429) == [19, 41]
        kit.eventually(lambda: site.log.quota(environment, "orders") == [20, 0, 0, 20], what="the books agree")
        opened = site.postgres.psql("SELECT period, count(*) FROM pandora.quota_ledger WHERE kind = 'opened'"
                                    f" AND environment_id = {environment.id} GROUP BY 1 ORDER BY 1")
        assert opened == [[str(number), "1"] for number in range(1, period + 1)]
        for node in site.gateways:
            assert echo(node, environment.key).json()["code"] == "QUOTA_EXCEEDED"
        site.tenants.sql("UPDATE pandora.project_service SET next_reset = clock_timestamp()"
                         f" WHERE project_id = {environment.project_id}")


def test_c15_d12_requests_cost_no_round_trip_of_their_own(site):
    """The ancestor asked its database seven times for each request, others a counter in Redis once."""
    environment, log = site.tenants.environment(orders=1_000_000), site.postgres.directory / "log"
    site.heard()
    since = log.stat().st_size
    with Wire(site.gateway.port) as wire:
        for _ in range(1000):
            assert wire.send(request("GET", "/say", key=environment.key)).read().status == 200
    with log.open("rb") as lines:
        lines.seek(since)
        told = lines.read()
    # What ships the log and what sweeps go by the time, not by requests, and nobody waits for them.
    asked = collections.Counter(name for name in re.findall(r"execute (\w+)_\d+: ", told.decode())
                                if not name.startswith(("ship_", "sweep_", "listen_")))
    assert {"key_entry", "lease_ask"} <= set(asked), "the log of PostgreSQL tells what was asked"
    assert asked.total() <= 100, asked


def test_c17_a_valid_key_is_never_unauthorized_while_postgresql_is_away(site):
    """Valid keys had 401 for hours, because what could not be looked up was remembered as unknown."""
    environment, seen = site.tenants.environment(orders=5), []
    with away(site):
        for _ in range(3):
            for node in site.gateways:
                answer = refused(echo(node, environment.key), 503, "STORE_UNAVAILABLE")
                assert int(answer["retry-after"]) > 0

    def serves(node):
        seen.append(echo(node, environment.key).status)
        return seen[-1] == 200

    for node in site.gateways:
        kit.eventually(lambda: serves(node), what="the key serves")
    assert set(seen) <= {200, 503}, seen


def test_c18_a_gateway_that_starts_without_postgresql_waits_for_it(site, tmp_path):
    """A database that was away at the start was never asked again."""
    environment, log = site.tenants.environment(orders=5), tmp_path / "early.log"
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        with away(site):
            starting = threads.submit(kit.Gateway, "early", site.binary, conftest.configuration(site.services, workers=1), tmp_path,
                                      site.postgres.url())
            kit.eventually(lambda: '"waiting for the database"' in log.read_text(), what="it says that it waits")
            assert not starting.done() and '"ready"' not in log.read_text()
        early = starting.result()
    try:
        assert echo(early, environment.key).status == 200
    finally:
        assert early.stop() == 0


def test_c22_no_way_leads_past_deny_while_postgresql_is_away(site):
    """The setting to fail closed was forgotten in one branch. Flows have the same rule, and their own test."""
    environment, token = site.tenants.environment(orders=20), uuid.uuid4().hex
    hosts = ("raw.test", "dear.test", "reported.test", "always.test", "reported-always.test", "refused.test")
    site.heard()
    for _ in range(3):
        assert echo(site.gateway, environment.key, target=f"/say?{token}").status == 200
    served, denied = 3, None
    with away(site):
        while not denied:  # What was leased before may be used.
            answer = echo(site.gateway, environment.key, target=f"/say?{token}")
            served, denied = served + (answer.status == 200), answer.status != 200 and answer
        assert served <= 20
        for answer in (denied, *(echo(site.gateway, environment.key, host, f"/say?units=1&{token}") for host in hosts * 3)):
            refused(answer, 503, "QUOTA_UNAVAILABLE")
            assert int(answer["retry-after"]) > 0
        assert len(site.services.raw.seen(token)) == served
        allowed = echo(site.gateway, environment.key, "reported-allowed.test", "/say?units=1")
        assert allowed.status == 200, "a route that says so lets requests through"
    kit.eventually(lambda: site.log.quota(environment, "orders") == [served + 1, 19 - served, 0, served + 1], what="all of it is charged")
    row = site.log.row(denied.id)
    assert (row["status_code"], row["units"], row["attempts"]) == (503, 0, 0) and site.log.row(allowed.id)["outage"]


def test_c29_counters_are_moved_by_the_time_and_in_their_place(site, tmp_path):
    """Writes of counters were most of what a database did: one a request, each a new row version in every index."""
    environment = site.tenants.environment(orders=1_000_000)
    node = kit.Gateway("counting", site.binary, conftest.configuration(site.services, workers=1, log={"batch_time": "2s"}), tmp_path,
                       site.postgres.url())

    def updates():
        [row] = site.postgres.psql("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'environment_service'")
        return [int(number) for number in row]

    before, began = updates(), time.monotonic()
    try:
        with Wire(node.port) as wire:
            for _ in range(10):
                wire.send(request("GET", "/say", key=environment.key) * 100)
                assert by_status([wire.read() for _ in range(100)], 200) == [100]
    finally:
        assert node.stop() == 0
    # Sessions tell their numbers a moment late, or when they end, as those of the node have.
    kit.eventually(lambda: site.log.quota(environment, "orders") == [1000, 999_000, 0, 1000], what="the books agree")
    moved, in_place = kit.eventually(lambda: (now := updates()) != before and [a - b for a, b in zip(now, before)], what="it is told")
    assert 2 <= moved <= 30 + 20 * (time.monotonic() - began), "a batch every two seconds, and leases ten times a second at most"
    assert in_place >= 0.9 * moved


def test_c33_days_of_the_log_are_those_of_utc_wherever_postgresql_is(site):
    """Bounds of partitions were local days: outside UTC, rows had no partition, or another day's."""
    assert site.postgres.psql("SHOW timezone") == [["Pacific/Kiritimati"]]
    answer = echo(site.gateway, site.tenants.environment(orders=None).key)
    site.log.row(answer.id)
    day = "'pandora.request_logs_' || to_char(request_time AT TIME ZONE 'UTC', 'YYYYMMDD')"
    [[place, expected]] = site.postgres.psql(f"SELECT tableoid::regclass, {day} FROM pandora.request_logs WHERE id = '{answer.id}'")
    assert place == expected
    for moment in ("00:00:00.001", "00:30", "09:59", "10:00", "14:00", "23:59:59.999"):
        at = f"((clock_timestamp() AT TIME ZONE 'UTC')::date + interval '1 day' + interval '{moment}') AT TIME ZONE 'UTC'"
        [[place, expected]] = site.postgres.psql(f"""
            INSERT INTO pandora.request_logs (id, request_time, execution_status)
            VALUES (pandora.typeid_floor('req', {at}), {at}, 'success') RETURNING tableoid::regclass, {day}""")
        assert place == expected, moment


def test_c34_a_row_of_the_log_is_small_whatever_the_request(site):
    """Two thirds of each row of six kilobytes were a copy of what other tables say."""
    environment = site.tenants.environment(orders=5)
    plain = echo(site.gateway, environment.key)
    large = ask(site.gateway.port, "POST", "/" + secrets.token_hex(3500), "User-Agent: " + "u" * 8000, "Cookie: " + "c" * 8000,
                key=environment.key, body=b"b" * 100_000)
    assert (plain.status, large.status) == (200, 200)
    for answer, most in ((plain, 400), (large, 400 + 2048)):  # Of a path so many bytes are kept.
        assert environment.client not in str(site.log.row(answer.id))
        [[size]] = site.postgres.psql(f"SELECT pg_column_size(r.*) FROM pandora.request_logs r WHERE id = '{answer.id}'")
        assert int(size) <= most


def test_c36_a_rotated_key_serves_through_its_grace_on_every_node(site):
    """The grace was written down, and caches refused the old key all the same."""
    environment, pandora = site.tenants.environment(orders=1000), kit.Pandora(site.binary, site.postgres.url())
    old = environment.key
    for node in site.gateways:
        assert echo(node, old).status == 200
    new = pandora.json("key", "rotate", environment.key_id, "--grace", "1h")
    assert new["replaces"] == environment.key_id != new["id"]
    served = [(environment.key_id, echo(node, old)) for node in site.gateways]
    site.heard()
    served += [pair for node in site.gateways for _ in range(2) for pair in (
        (environment.key_id, echo(node, old)), (new["id"], echo(node, new["secret"])))]
    for key_id, answer in served:
        assert answer.status == 200, answer
        row = site.log.row(answer.id)
        assert (row["api_key"], row["environment_id"]) == (key_id, environment.id)
    third = pandora.json("key", "rotate", new["id"], "--grace", "0s")
    for node in site.gateways:
        kit.eventually(lambda: echo(node, new["secret"]).status == 401, what="without grace it ends at once")
        assert echo(node, new["secret"]).json()["code"] == "KEY_EXPIRED"
        assert [echo(node, one).status for one in (old, third["secret"])] == [200, 200], "the grace of the first key goes on"


def test_c38_c43_answers_say_in_the_standards_words_what_is_left_and_when_it_ends(site):
    """Clients could not plan: fields of each gateway's own, and a reset of 0 where there was none yet."""
    environment = site.tenants.environment(orders=2)
    site.tenants.sql("UPDATE pandora.project_service SET next_reset = clock_timestamp() + interval '10 days'"
                     f" WHERE project_id = {environment.project_id}")
    answers = [echo(site.gateway, environment.key) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    for answer, left in zip(answers, (1, 0, 0)):
        assert answer["ratelimit-policy"] == '"quota";q=2'
        remaining, seconds = re.fullmatch(r'"quota";r=(\d+);t=(\d+)', answer["ratelimit"]).groups()
        assert int(remaining) == left and 9 * 86_400 < int(seconds) <= 10 * 86_400
    assert answers[2]["retry-after"] == seconds


# ---- The numbers ------------------------------------------------------------------------------------------------------

OURS = {f"D{number}" for number in range(1, 15)} | {f"C{number}" for number in (
    1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38,
    39, 40, 41, 43)}


def test_every_number_has_its_test():
    """A table of names rots where nobody looks: each name is that of a test in the tree, and no number is missing."""
    sources = [file.read_text() for kind in ("*.py", "*.swift") for file in pathlib.Path(__file__).resolve().parents[1].rglob(kind)]
    known = {name for source in sources for name in re.findall(r"^def (test_\w+)\(", source, re.M)}
    known |= {name for source in sources for name in re.findall(r"@Test[^{]*?func (\w+)\(", source)}
    rows = re.findall(r"^    ([DC]\d+) +(.+)$", __doc__ + test_ancestor.__doc__, re.M)
    assert {name for _, names in rows for name in names.split(", ")} <= known
    numbered = [re.findall(r"_([dc])(\d\d)(?=_)", name) for name in known]
    numbers = {f"{letter.upper()}{int(number)}" for found in numbered for letter, number in found}
    assert numbers | {number for number, _ in rows} == OURS
