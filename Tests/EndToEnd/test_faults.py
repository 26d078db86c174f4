"""PostgreSQL away, the gateway killed, the gateway asked to stop: nothing that was answered is lost."""

import collections
import concurrent.futures
import contextlib
import json
import pathlib
import signal
import subprocess
import threading
import time
import uuid

import pytest

import conftest
import flows
import kit
import tenants as tenancy
from flows import endings, started
from sites import Site, judge_at_once
from wire import Cut, Wire, request


@pytest.fixture(scope="module")
def site(binary, services, tmp_path_factory):
    # A lease serves for as long as PostgreSQL takes to stop here.
    settings = conftest.configuration(services, workers=2, quota={"lease_use": "2m"})
    one = Site(binary, services, tmp_path_factory.mktemp("site"), settings)
    yield one
    one.remove()


class Load(threading.Thread):
    """A client that asks again and again, and notes what it got."""

    def __init__(self, site, key, token, target="/echo"):
        super().__init__(daemon=True)
        self.site, self.key, self.token, self.target = site, key, token, target
        self.answered, self.unanswered, self.refused = [], 0, collections.Counter()
        self.stopping = threading.Event()
        self.start()

    def run(self):
        while not self.stopping.is_set():
            try:
                with Wire(self.site.gateway.port) as wire:
                    while not self.stopping.is_set():
                        self.one(wire)
            except OSError:
                time.sleep(0.01)

    def one(self, wire):
        target = f"{self.target}?{self.token}-{len(self.answered)}"
        try:
            answer = wire.send(request("GET", target, key=self.key)).read()
        except (Cut, OSError):
            self.unanswered += 1
            raise ConnectionError from None
        if answer.status == 200:
            self.answered.append(answer.id)
        else:
            self.refused[answer.json()["code"]] += 1
        if answer["connection"] == "close":
            raise ConnectionError


@contextlib.contextmanager
def load(site, environment, clients=8, token=None, target="/echo"):
    running = [Load(site, environment.key, token or uuid.uuid4().hex, target) for _ in range(clients)]
    try:
        yield running
    finally:
        for one in running:
            one.stopping.set()
        for one in running:
            one.join(kit.PATIENCE)


@contextlib.contextmanager
def saturated(site, environment):
    """wrk beside the clients that count: it keeps the gateway busy and forgets."""
    wrk = subprocess.Popen(["wrk", "-t", "1", "-c", "32", "-d", "30s", "-H", "Host: nginx.test", "-H", f"X-API-Key: {environment.key}",
                            f"http://127.0.0.1:{site.gateway.port}/small.txt"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        wrk.kill()
        wrk.wait()


def answered(clients):
    return {one for client in clients for one in client.answered}


def ask(site, key, target="/echo"):
    with Wire(site.gateway.port) as wire:
        return wire.send(request("GET", target, key=key)).read()


@contextlib.contextmanager
def away(site, how=signal.SIGINT):
    """PostgreSQL is away inside the block, and every worker has it again after that."""
    site.postgres.stop(how)
    try:
        yield
    finally:
        site.postgres.start()

    def looks_up():  # A key that nobody has asked for yet, on so many connections that no worker is left out.
        return all(ask(site, tenancy.new_secret()).status == 401 for _ in range(16))

    kit.eventually(looks_up, what="every worker looks unknown keys up again")


def test_cached_keys_serve_while_postgresql_is_away(site):
    limited, unlimited = site.tenants.environment(orders=100_000), site.tenants.environment(orders=None)
    unknown, ids = tenancy.new_secret(), []
    site.heard()
    with contextlib.ExitStack() as stack:
        # A connection belongs to one worker, and each worker has its own cache and its own lease.
        wires = [stack.enter_context(Wire(site.gateway.port)) for _ in range(8)]

        def serve():
            for wire in wires:
                for environment in (limited, unlimited):
                    answer = wire.send(request("GET", "/echo", key=environment.key)).read()
                    assert answer.status == 200, answer
                    ids.append(answer.id)

        for _ in range(10):  # Traffic earns a lease that lasts for more than one request.
            serve()
        with away(site):
            serve()
            refused = ask(site, unknown)
            assert refused.status == 503 and int(refused["retry-after"]) > 0
            assert refused.json()["code"] == "STORE_UNAVAILABLE"
            ids.append(refused.id)
            # A second asking must not be answered from what the first could not find out.
            assert ask(site, unknown).status == 503
            serve()
    kit.eventually(lambda: set(ids) <= site.log.ids(), what="what was answered meanwhile is in the log")
    row = site.log.row(refused.id)
    assert row["status_code"] == 503 and row["execution_status"] == "server_error"
    assert ask(site, unknown).status == 401, "it is looked up again"
    assert ask(site, site.tenants.environment(orders=5).key).status == 200


def test_units_reported_while_postgresql_is_away_are_charged_later(site):
    environment, host, total = site.tenants.environment(orders=60), "reported-allowed.test", 1
    site.heard()
    with Wire(site.gateway.port) as wire:
        assert wire.send(request("GET", "/say?units=1", host=host, key=environment.key)).read().status == 200
        kit.eventually(lambda: site.log.quota(environment, "orders")[0] == 1)
        with away(site):
            for _ in range(80):  # The lease ends among them, then the route's rule lets them through.
                answer = wire.send(request("GET", "/say?units=2", host=host, key=environment.key)).read()
                assert answer.status == 200, answer
                total += 2
    kit.eventually(lambda: site.log.quota(environment, "orders") == [total, 60 - total, 0, total], what="all of it is charged")
    rows = site.log.rows(f"environment_id = {environment.id}")
    assert sum(row["units"] for row in rows) == total and {row["units"] for row in rows if row["outage"]} == {2}


def test_kill_loses_no_answered_request(site):
    environment, token = site.tenants.environment(orders=10_000_000), uuid.uuid4().hex
    with saturated(site, site.tenants.environment(files=10_000_000)), load(site, environment, token=token) as clients:
        kit.eventually(lambda: len(answered(clients)) > 500, what="there is load")
        site.gateway.kill()
    told = answered(clients)
    site.gateway.start()
    kit.eventually(lambda: told <= site.log.ids(f"environment_id = {environment.id}"), what="every answered request is in the log")

    def books_agree():
        used, available, held, ledger = site.log.quota(environment, "orders")
        served = sum(one.is_complete for one in site.services.raw.seen(token))
        assert len(told) <= used <= served and used == ledger and held == 0 and available == 10_000_000 - used
        [[units]] = site.postgres.psql(f"SELECT sum(units) FROM pandora.request_logs WHERE environment_id = {environment.id}")
        return int(units) == used

    kit.eventually(books_agree, what="answered <= charged <= served, and the lease of the dead is given back")


def test_kill_of_postgresql_loses_no_answered_request(site):
    environment = site.tenants.environment(orders=10_000_000)
    with load(site, environment) as clients:
        kit.eventually(lambda: len(answered(clients)) > 300, what="there is load")
        with away(site, signal.SIGQUIT):
            time.sleep(0.3)
        before = len(answered(clients))
        kit.eventually(lambda: len(answered(clients)) > before + 100, what="it goes on")
    told = answered(clients)
    kit.eventually(lambda: told <= site.log.ids(f"environment_id = {environment.id}"), what="every answered request is in the log")

    def books_agree():
        used, available, held, ledger = site.log.quota(environment, "orders")
        assert used == ledger and available == 10_000_000 - used and held == 0
        return used == len(told)

    kit.eventually(books_agree, what="each answer is charged once")


def test_stop_answers_every_received_request_and_exits_0(site):
    environment, token = site.tenants.environment(orders=10_000_000), uuid.uuid4().hex
    waiting = [Wire(site.gateway.port) for _ in range(32)]
    with load(site, environment, token=token) as clients:
        kit.eventually(lambda: len(answered(clients)) > 200, what="there is load")
        for wire in waiting:
            wire.send(request("GET", f"/raw/late?late-{token}", key=environment.key))
        kit.eventually(lambda: len(site.services.raw.seen(f"late-{token}")) == 32, what="all of them are upstream")
        assert site.gateway.stop() == 0
    late = [wire.read() for wire in waiting]
    assert [answer.body for answer in late] == [b"late"] * 32
    told = answered(clients) | {answer.id for answer in late}
    served = {one.all("Pandora-Request-Id")[0] for one in site.services.raw.seen(token)}
    assert served <= told, "an upstream was asked for an answer that no client got"
    # What a stopped gateway answered is in the log before it is gone, its lease given back.
    assert told <= site.log.ids(f"environment_id = {environment.id}")
    used, available, held, ledger = site.log.quota(environment, "orders")
    assert used == ledger == len(told) and held == 0
    site.gateway.start()
    assert ask(site, environment.key).status == 200


@pytest.mark.parametrize("is_dead", [True, False], ids=["killed", "paused"])
def test_what_a_silent_node_holds_is_charged_until_it_is_heard_again(binary, services, raw, tmp_path, is_dead):
    """Whatever it may have served is paid for; in the end it is what it did serve."""
    settings = conftest.configuration(services, workers=1, quota={"lost_after": "1m"})
    site = Site(binary, services, tmp_path, {**settings, "log": {"batch_time": "1m"}})
    try:
        silent, doctor, environment = site.gateway, kit.Pandora(binary, site.postgres.url()), site.tenants.environment(orders=1000)
        judge_at_once(site.postgres)

        def serve(gateway, times):
            with Wire(gateway.port) as wire:
                answers = [wire.send(request("GET", "/echo", key=environment.key)).read() for _ in range(times)]
            assert [answer.status for answer in answers] == [200] * times
            return {answer.id for answer in answers}

        def become(**booked):
            """The ledger says so by kind, the counters agree, and nothing is held."""
            used = sum(booked.values())
            kit.eventually(lambda: site.log.quota(environment, "orders") == [used, 1000 - used, 0, used], what=f"{used} are used")
            rows = site.postgres.psql("SELECT kind, sum(used_delta) FROM pandora.quota_ledger WHERE used_delta <> 0 GROUP BY 1")
            assert {kind: int(units) for kind, units in rows} == booked
            assert doctor.run("doctor").stdout == "nothing is wrong\n"

        told, token = serve(silent, 10), uuid.uuid4().hex
        with Wire(silent.port) as wire:
            wire.send(request("GET", f"/say?hold={token}", key=environment.key))
            kit.eventually(lambda: raw.seen(token), what="one more is upstream")
            kit.eventually(lambda: site.log.quota(environment, "orders") == [0, 1000, 11, 0], what="the log waits, idle units are back")
            if is_dead:
                silent.kill()
            else:
                silent.process.send_signal(signal.SIGSTOP)
            for table, column in (("log_spool", "shipped_at"), ("quota_lease", "heard_at")):
                site.postgres.psql(f"UPDATE pandora.{table} SET {column} = {column} - interval '2 min'")
            # Whoever comes looks for the silent at once, and every ten seconds from then on.
            other = kit.Gateway("other", binary, settings, tmp_path, site.postgres.url())
            site.gateways.append(other)
            become(lost=11)
            told |= serve(other, 1)
            become(lost=11, hops=1)
            raw.release(token)
            if is_dead:
                silent.start()
            else:
                silent.process.send_signal(signal.SIGCONT)
                told.add(wire.read().id)
        told |= serve(silent, 1)
        assert [gateway.stop() for gateway in site.gateways] == [0, 0]
        become(lost=11, hops=len(told), refund=-11)
        assert site.log.ids("units > 0") == told
    finally:
        site.remove()


@pytest.mark.long
def test_the_sweeper_writes_a_dead_node_off_by_itself(binary, services, raw, tmp_path):
    site = Site(binary, services, tmp_path, conftest.configuration(services, workers=1, quota={"lost_after": "10s"}), nodes=2)
    try:
        dead, environment, token = site.gateways[1], site.tenants.environment(orders=10), uuid.uuid4().hex
        with Wire(dead.port) as wire:
            wire.send(request("GET", f"/say?hold={token}", key=environment.key))
            kit.eventually(lambda: raw.seen(token), what="it is upstream")
            kit.eventually(lambda: site.log.quota(environment, "orders") == [0, 10, 1, 0], what="idle units are back")
            dead.kill()
        raw.release(token)
        # A minute after the other one came up, and within ten seconds more.
        kit.eventually(lambda: site.log.quota(environment, "orders") == [1, 9, 0, 1], what="what it held is charged")
        dead.start()
        kit.eventually(lambda: site.log.quota(environment, "orders") == [0, 10, 0, 0], what="it served nothing")
    finally:
        site.remove()


def resize(gateway, workers):
    """So many workers are in its file from now on."""
    file = pathlib.Path(gateway.command[-1])
    file.write_text(json.dumps({**json.loads(file.read_text()), "workers": workers}))


@pytest.mark.parametrize("before, after", [(4, 1), (1, 4)])
def test_restart_with_another_number_of_workers_loses_nothing(binary, services, raw, tmp_path, before, after):
    """What a worker left in its spool, and what it held, is nobody's of the workers that come, or of several."""
    settings = flows.configuration(services, {"keep": {}}, workers=before, log={"batch_time": "1m"})
    site = Site(binary, services, tmp_path, settings)
    try:
        gateway, environment, token = site.gateway, site.tenants.environment(orders=1000), uuid.uuid4().hex

        def serve():
            """A connection belongs to one worker."""
            for _ in range(32):
                answer = ask(site, environment.key, "/say")
                assert answer.status == 200, answer
                served.append(answer.id)

        def begin(count):
            return [started(gateway.port, environment.key) for _ in range(count)]

        served = []
        serve()
        settled, left = begin(8), begin(8)
        with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(8) as threads:
            for wire in [stack.enter_context(Wire(gateway.port)) for _ in range(8)]:
                wire.send(request("GET", f"/say?dying&hold={token}", key=environment.key))
            finishing = [threads.submit(flow.finish, f"/say?finishing&hold={token}-finish") for flow in settled]
            kit.eventually(lambda: len(raw.seen(token)) == 16, what="all of them are upstream")
            site.postgres.stop()
            raw.release(f"{token}-finish")
            finished = [one.result() for one in finishing]
            assert [answer["pandora-flow-state"] for answer in finished] == ["pending"] * 8
            gateway.kill()
            raw.release(token)
        site.postgres.start()
        resize(gateway, after)
        gateway.start()
        kit.eventually(lambda: site.log.quota(environment, "orders") == [40, 960, 8, 40], what="all is charged, and the open flows held")
        [[spools]] = site.postgres.psql("SELECT count(DISTINCT spool_id) FROM pandora.quota_ledger WHERE kind = 'hops'")
        assert (int(spools) > 1) == (before > 1)
        for flow in left:
            flow.port = gateway.port
            finished.append(flow.finish())
            assert finished[-1]["pandora-flow-state"] == "committed"
        serve()
        assert gateway.stop() == 0
        assert site.log.quota(environment, "orders") == [80, 920, 0, 80]
        assert [endings(site.postgres, flow) for flow in settled + left] == [[("committed", 1)]] * 16
        hops = [flow.chain.partition(".")[0] for flow in settled + left] + [answer.id for answer in finished]
        for condition, told in (("units > 0", served), ("units = 0", hops)):
            assert [row["id"] for row in site.log.rows(condition)] == sorted(told)
        assert site.postgres.psql("SELECT * FROM pandora.quota_lease WHERE granted <> settled") == []
        assert kit.Pandora(binary, site.postgres.url()).run("doctor").stdout == "nothing is wrong\n"
    finally:
        site.remove()
