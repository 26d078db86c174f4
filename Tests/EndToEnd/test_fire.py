"""Three gateways, one PostgreSQL, everything killed at random under load: afterwards the books agree to the unit.

What must hold is `answered successes <= charged <= upstream successes`, for requests and for flows: between an upstream's success
and the write to the spool a SIGKILL leaves a request unanswered and uncharged, and that is the only gap.
"""

import asyncio
import collections
import contextlib
import os
import random
import signal
import socket
import threading
import time

import pytest

import chaos
import flows
import kit
from flows import Flow
from sites import Site, judge_at_once
from tenants import RequestLog
from upstreams import ScriptedUpstream
from wire import Answer, Cut, Wire, request

FLOWS = {
    "keep": {"ttl": "5s", "max_open": 10_000, "steps": 1, "timeouts": {"total": "5s"}},
    "roll": {"ttl": "5s", "max_open": 10_000, "steps": 1, "on_failure": "rollback", "units": 3, "timeouts": {"total": "5s"}},
}


# No flow expires and no hop is given up, however slowly it goes.
PATIENT = {name: {**settings, "ttl": "10m", "timeouts": {"first_byte": "5m"}} for name, settings in FLOWS.items()}


def configuration(services, declared=FLOWS, **options):
    return flows.configuration(services, declared, workers=1, drain="10s", **options)


class Told:
    """What the clients were told: only answers that arrived whole."""

    def __init__(self):
        self.lock = threading.Lock()
        self.served, self.charged, self.started = set(), set(), set()
        self.ended, self.asked = collections.defaultdict(set), collections.defaultdict(set)
        self.codes = collections.Counter()

    def note(self, answer):
        with self.lock:
            if answer["content-type"] == "application/problem+json":
                self.codes[answer.json()["code"]] += 1
            else:
                self.codes[answer.status] += 1
                self.served.add(answer.id)

    def charge(self, answer):
        with self.lock:
            self.charged.add(answer.id)

    def start(self, flow):
        with self.lock:
            self.started.add(flow.id)

    def ask(self, flow, what):
        """It is about to be sent: what is answered, and whether it arrives, is another matter."""
        with self.lock:
            self.asked[what].add(flow.id)

    def end(self, flow, state):
        with self.lock:
            self.ended[state].add(flow.id)


class Client(threading.Thread):
    """Does single requests and flows on any node, again and again; answers that do not come are nothing to it.

    `slow`: the upstream takes up to so many seconds for a single request, and a quarter of that for a hop of a flow.
    """

    def __init__(self, site, keys, told, failures=0.1, slow=0):
        super().__init__(daemon=True)
        self.site, self.keys, self.told, self.failures, self.slow = site, keys, told, failures, slow
        self.random, self.stopping, self.fault = random.Random(), threading.Event(), None
        self.start()

    def run(self):
        while not self.stopping.is_set():
            try:
                key = self.random.choice(self.keys)
                if self.random.random() < 0.5:
                    self.requests(key)
                else:
                    self.flow(key)
            except (Cut, OSError):
                time.sleep(0.02)
            except Exception as fault:  # Told to the test, which would not see it in a thread.
                self.fault = fault
                return

    @property
    def port(self):
        return self.random.choice(self.site.gateways).port

    def say(self, what, slow=0.25, fails=True):
        """A target of the upstream's, which takes its time, or fails."""
        target = f"/say?{what}" + "&status=500" * (fails and self.random.random() < self.failures)
        return target + (f"&wait={self.random.uniform(0, self.slow * slow):.3f}" if self.slow else "")

    def requests(self, key):
        with Wire(self.port) as wire:
            for _ in range(self.random.randrange(1, 8)):
                answer = wire.send(request("GET", self.say("single", slow=1), key=key)).read()
                self.told.note(answer)
                if answer.status == 200:
                    self.told.charge(answer)
                if answer["connection"] == "close":
                    return
                if answer.status in (429, 503):
                    time.sleep(0.01)

    def flow(self, key):
        flow = Flow(self.port, key, self.random.choice(list(FLOWS)))
        answer = flow.start(self.say("start"), port=self.port)
        self.told.note(answer)
        if answer.status != 200:
            return time.sleep(0.01 * (answer.status in (429, 503)))
        self.told.start(flow)
        for _ in range(self.random.randrange(3)):
            self.told.note(flow.step(self.say("step", fails=False), port=self.port))
        way = self.random.random()
        if way < 0.1:
            return  # Abandoned.
        if way < 0.2:
            return self.resolve(flow, "commit" if way < 0.15 else "rollback")
        self.finish(flow)

    def resolve(self, flow, action):
        self.told.ask(flow, action)
        answer = flow.endpoint("POST", f"/{action}", port=self.port)
        self.told.note(answer)
        if answer.status == 200:
            self.told.end(flow, answer.json()["state"])

    def finish(self, flow):
        self.told.ask(flow, "finish")
        for _ in range(3):
            answer = flow.finish(self.say(f"finish={flow.id}"), port=self.port)
            self.told.note(answer)
            state = answer["pandora-flow-state"]
            if answer.status == 200:
                assert state in ("committed", "pending", "expired"), answer
                if state != "expired":
                    self.told.end(flow, "committed")
            elif state == "rolled_back":
                self.told.end(flow, state)
            if answer.status not in (500, 503):
                return


@contextlib.contextmanager
def clients(site, environments, count, told, **options):
    running = [Client(site, [environment.key for environment in environments], told, **options) for _ in range(count)]
    try:
        yield
    finally:
        for one in running:
            one.stopping.set()
        for one in running:
            one.join(kit.PATIENCE)
    assert [one.fault for one in running if one.fault] == []


# ---- Afterwards -------------------------------------------------------------------------------------------------------


def booked(told, log):
    """What was answered is in the log: whoever stops gives the rest of it ten seconds, and this machine may be slower."""
    kit.eventually(lambda: told.served <= log.ids(), what="what was answered is in the log")


def abandoned_expire(site, postgres):
    """Their time has come, and a gateway's sweeper finds them. All gateways had stopped in order: no settlement is on its way."""
    postgres.psql("UPDATE pandora.reservations SET expires_at = clock_timestamp() - interval '1 s'")
    judge_at_once(postgres)
    site.gateway.start()
    kit.eventually(lambda: not postgres.psql("SELECT id FROM pandora.reservations LIMIT 1"), what="abandoned flows expire")
    assert site.gateway.stop() == 0


def expect_balanced(binary, postgres, told, upstream, killed, edited=0):
    """The equalities, by SQL and by `pandora doctor`, once every gateway has stopped in order and what was abandoned is given back.

    `edited`: an environment whose limits an operator changed meanwhile.
    """
    def column(sql):
        return {row[0] for row in postgres.psql(sql)}

    def empty(what, sql):
        rows = postgres.psql(sql)
        assert not rows, f"{what}: {rows[:5]}"

    sums = """SELECT environment_id, service_id, period, sum(used_delta) AS used, sum(limit_delta) AS granted
                FROM pandora.quota_ledger GROUP BY 1, 2, 3"""
    empty("used = sum of used_delta, available = limit - used, held = 0", f"""
        SELECT e.*, l.used FROM pandora.environment_service e LEFT JOIN ({sums}) l USING (environment_id, service_id, period)
         WHERE e.used_request <> l.used OR e.held_request <> 0 OR coalesce(e.max_request, 0) <> l.granted
            OR e.available_request <> e.max_request - e.used_request""")
    empty("no period used more than its limit", f"""
        SELECT l.* FROM ({sums}) l JOIN pandora.environment_service e USING (environment_id, service_id)
         WHERE e.max_request IS NOT NULL AND e.environment_id <> {edited} AND l.used > l.granted""")
    empty("open leases", "SELECT * FROM pandora.quota_lease WHERE granted <> settled")
    # Requests of an unlimited row hold nothing, so that no period is theirs before they are booked.
    period = f"""CASE WHEN environment_id = {edited} OR (environment_id, service_id) IN (
                 SELECT environment_id, service_id FROM pandora.environment_service WHERE max_request IS NULL)
                 THEN 0 ELSE period END AS period"""
    empty("every unit of the log is in the ledger, in its period", f"""
        SELECT * FROM (SELECT environment_id, service_id, {period}, sum(units) AS units FROM pandora.request_logs
                        WHERE units > 0 GROUP BY 1, 2, 3) r
          FULL JOIN (SELECT environment_id, service_id, {period}, sum(used_delta) AS units FROM pandora.quota_ledger
                      WHERE kind = 'hops' GROUP BY 1, 2, 3 HAVING sum(used_delta) > 0) l USING (environment_id, service_id, period)
         WHERE r.units IS DISTINCT FROM l.units""")
    kinds = column(f"SELECT DISTINCT kind FROM pandora.quota_ledger WHERE environment_id <> {edited}")
    assert kinds <= {"opened", "hops", "flow"}, f"nothing was lost, nothing was used that was not held: {kinds}"
    empty("flows that ended twice", """
        SELECT reservation_id FROM pandora.quota_ledger WHERE kind = 'flow' GROUP BY 1 HAVING count(*) > 1""")
    empty("flows left", "SELECT * FROM pandora.reservations")
    empty("hops of nobody", "SELECT * FROM pandora.flow_hop")

    assert "nothing is wrong" in kit.Pandora(binary, postgres.url()).run("doctor").stdout

    lost = told.served - column("SELECT id FROM pandora.request_logs")
    assert not lost, f"{len(lost)} of {len(told.served)} answered requests are not in the log: {sorted(lost)[:5]}"
    charged = column("SELECT id FROM pandora.request_logs WHERE units > 0")
    with upstream.lock:
        good = [one for one in upstream.received if one.is_complete and b"status=500" not in one.target]
    served = {one.all("Pandora-Request-Id")[0] for one in good if b"?single" in one.target}
    assert told.charged <= charged, f"answered, not charged: {sorted(told.charged - charged)[:5]}"
    assert charged <= served, f"charged, not served: {sorted(charged - served)[:5]}"
    ended = "SELECT reservation_id FROM pandora.quota_ledger WHERE outcome ="
    committed, rolled_back = column(f"{ended} 'committed'"), column(f"{ended} 'rolled_back'")
    finished = {one.target.partition(b"finish=")[2].partition(b"&")[0].decode() for one in good if b"finish=" in one.target}
    # A client asks for one end of a flow only, and what it asked for may have come about though it was not told.
    for what, wrong in {
        "told, not committed": told.ended["committed"] - committed,
        "told, not rolled back": told.ended["rolled_back"] - rolled_back,
        "committed, neither finished nor asked for": committed - finished - told.asked["commit"],
        "rolled back, asked for neither that nor a finish":
            (rolled_back & told.started) - told.asked["rollback"] - told.asked["finish"],
    }.items():
        assert not wrong, f"{what}: {sorted(wrong)[:5]}"
    if not killed:
        assert told.charged == charged == served
        assert told.ended["committed"] | told.asked["commit"] >= committed and finished <= committed
    return len(charged), len(committed)


class RestartedUpstream(ScriptedUpstream):
    def restart(self):
        """What is under way ends, and for a while connections are refused: the port is taken, and nobody listens."""
        self.listener.shutdown(socket.SHUT_RDWR)  # Or it would be open for as long as a thread waits for connections.
        self.listener.close()
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", self.port))
        self.cut()
        time.sleep(random.uniform(0, 1))
        self.listener.listen(512)
        threading.Thread(target=self._accept, daemon=True).start()


def burn(binary, services, directory, seconds, count, **options):
    """Load and chaos for so long, then the books."""
    upstream = RestartedUpstream()
    site = Site(binary, services, directory, configuration(services, upstream=f"127.0.0.1:{upstream.port}", quota={}), nodes=3)
    try:
        command = kit.Pandora(binary, site.postgres.url())
        environments = [site.tenants.environment(orders=limit) for limit in (200, 2_000, 20_000, None)]
        turning, edited = site.tenants.environment(orders=100), site.tenants.environment(orders=None)
        told = Told()
        with clients(site, [*environments, turning, edited], count, told, **options):
            kit.eventually(lambda: len(told.served) > 100, what="there is load")
            troubles = [
                chaos.Chaos((0.5, 2.5), chaos.kill_a_gateway, site), chaos.Chaos((0.5, 2.5), chaos.stop_a_gateway, site),
                chaos.Chaos((1, 5), chaos.pause_a_gateway, site), chaos.Chaos((2, 6), chaos.stop_postgresql, site),
                chaos.Chaos((2, 6), chaos.stall_postgresql, site), chaos.Chaos((1, 4), upstream.cut),
                chaos.Chaos((2, 6), upstream.restart), chaos.Chaos((2, 4), chaos.turn_the_period, site, turning),
                chaos.Chaos((0.5, 2), chaos.edit_the_limit, command, edited)]
            time.sleep(seconds)
            for one in troubles:
                one.stop()
        booked(told, site.log)
        for gateway in site.gateways:
            assert gateway.running(), gateway.log()[-4000:]
            assert gateway.stop() == 0
        abandoned_expire(site, site.postgres)
        charged, committed = expect_balanced(binary, site.postgres, told, upstream, killed=True, edited=edited.id)
        assert charged > 100 and committed > 20, (charged, committed, told.codes)
        counts = {one.action.__name__: one.count for one in troubles}
        assert all(counts.values()), counts
        print(f"{charged} charged, {committed} committed, {counts}; {told.codes}")
    finally:
        site.remove()
        upstream.close()


def test_fire(binary, services, tmp_path):
    burn(binary, services, tmp_path, 25, 100)


@pytest.mark.long
@pytest.mark.timeout(7 * 86_400)
def test_long_fire(binary, services, tmp_path):
    burn(binary, services, tmp_path, int(os.environ.get("PANDORA_LONG_SECONDS", "600")), 2_000, slow=4)


# ---- Exhaustion -------------------------------------------------------------------------------------------------------


class Crowd:
    """Requests that are all under way at once, over all nodes; each on a connection of its own."""

    def __init__(self, ports):
        self.ports, self.again = ports, collections.Counter()

    async def connect(self, number):
        return await asyncio.open_connection("127.0.0.1", self.ports[number % len(self.ports)])

    async def ask(self, connection, data, times=5):
        """Sent again where the answer is 503, which says nothing of the quota; but nobody is to hear that for ever."""
        reader, writer = connection
        for _ in range(times):
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            answer = Answer(head[:-4])
            answer.body = await reader.readexactly(int(answer["content-length"]))
            if answer.status != 503:
                return answer
            self.again[answer.json()["code"]] += 1
            await asyncio.sleep(0.5)
        raise AssertionError(f"503 for {times} times, of all together {dict(self.again)}: {answer}")

    def run(self, count, walk):
        """`walk(connection)` for so many connections, once all of them stand."""
        async def everything():
            connections = []
            for first in range(0, count, 500):
                connections += await asyncio.gather(*(self.connect(number) for number in range(first, min(first + 500, count))))
            answers = await asyncio.gather(*(walk(connection) for connection in connections))
            for _, writer in connections:
                writer.close()
            return answers

        return asyncio.run(everything())


@pytest.fixture(scope="module")
def three(binary, services, tmp_path_factory):
    """Three nodes before a quick upstream. A flow that expired would leave its units to another."""
    upstream = f"127.0.0.1:{services.nginx.port}"
    settings = configuration(services, PATIENT, upstream=upstream, quota={"recall_wait": "1s"})
    site = Site(binary, services, tmp_path_factory.mktemp("three"), settings, nodes=3)
    yield site
    site.remove()


def test_a_thousand_units_and_five_thousand_requests_at_once(three):
    environment = three.tenants.environment(orders=1000)
    crowd = Crowd([gateway.port for gateway in three.gateways])
    data = request("GET", "/small.txt", key=environment.key)
    answers = crowd.run(5000, lambda connection: crowd.ask(connection, data))
    counts = collections.Counter(answer.status for answer in answers)
    assert counts == {200: 1000, 429: 4000}, (counts, crowd.again)
    assert {answer.json()["code"] for answer in answers if answer.status == 429} <= {"QUOTA_EXCEEDED", "QUOTA_HELD"}
    kit.eventually(lambda: three.log.quota(environment, "orders") == [1000, 0, 0, 1000], what="the books agree")
    charged = three.log.ids(f"environment_id = {environment.id} AND units = 1")
    assert charged == {answer.id for answer in answers if answer.status == 200}


def test_a_thousand_units_and_five_thousand_flows_at_once(three):
    environment = three.tenants.environment(orders=1000)
    crowd = Crowd([gateway.port for gateway in three.gateways])
    start = request("GET", "/start/small.txt", host="keep.test", key=environment.key)

    async def walk(connection):
        started = await crowd.ask(connection, start)
        if started.status != 200:
            return started, None
        field = f"Pandora-Flow: {started['pandora-flow']}"
        return started, await crowd.ask(connection, request(
            "GET", "/finish/small.txt", field, host="keep.test", key=environment.key))

    answers = crowd.run(5000, walk)
    counts = collections.Counter(started.status for started, _ in answers)
    assert counts == {200: 1000, 429: 4000}, (counts, crowd.again)
    assert {started.json()["code"] for started, _ in answers if started.status == 429} <= {"QUOTA_EXCEEDED", "QUOTA_HELD"}
    states = collections.Counter(finish["pandora-flow-state"] for _, finish in answers if finish)
    assert states == {"committed": 1000}, (states, crowd.again)
    kit.eventually(lambda: three.log.quota(environment, "orders") == [1000, 0, 0, 1000], what="the books agree")


# ---- Failover ---------------------------------------------------------------------------------------------------------


def test_failover_to_a_synchronous_standby_loses_nothing(binary, services, tmp_path):
    primary, standby, site, upstream = kit.PostgreSQL(), None, None, ScriptedUpstream()
    try:
        standby = kit.PostgreSQL(follows=primary)
        primary.psql("ALTER SYSTEM SET synchronous_standby_names = 'standby'", "postgres")
        primary.psql("SELECT pg_reload_conf()", "postgres")
        kit.eventually(lambda: primary.psql("SELECT sync_state FROM pg_stat_replication", "postgres") == [["sync"]],
                       what="the standby is synchronous")
        settings = configuration(services, PATIENT, upstream=f"127.0.0.1:{upstream.port}")
        url = f"postgres://postgres@/pandora?host={primary.directory},{standby.directory}"
        site = Site(binary, services, tmp_path, settings, nodes=2, postgres=primary, url=url)
        environments, told = [site.tenants.environment(orders=limit) for limit in (1_000_000, None)], Told()
        pids = [gateway.pid for gateway in site.gateways]
        with clients(site, environments, 24, told):
            kit.eventually(lambda: len(told.served) > 300 and len(told.ended["committed"]) > 20, what="there is load")
            primary.stop(signal.SIGQUIT)
            time.sleep(0.5)
            standby.psql("SELECT pg_promote()", "postgres")
            promoted, committed = len(told.served), len(told.ended["committed"])
            kit.eventually(lambda: len(told.served) > promoted + 200 and len(told.ended["committed"]) > committed + 20,
                           what="it goes on")
        assert [gateway.pid for gateway in site.gateways] == pids and all(gateway.running() for gateway in site.gateways)
        booked(told, RequestLog(standby))
        for gateway in site.gateways:
            assert gateway.stop() == 0
        abandoned_expire(site, standby)
        expect_balanced(binary, standby, told, upstream, killed=False)
    finally:
        for one in (site, standby, primary):
            if one:
                one.remove()
        upstream.close()
