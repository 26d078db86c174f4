"""What operators have when something looks wrong, used on gateways that serve meanwhile."""

import concurrent.futures
import contextlib
import getpass
import json
import random
import threading
import time
import types
import uuid

import pytest

import flows
import kit
import tenants as tenancy
from flows import Flow, refused, started
from wire import Wire, ask, request

FLOWS = {"keep": {"max_open": 10_000}, "dear": {"units": 5}}


@pytest.fixture(scope="module")
def site(binary, postgres, services, tmp_path_factory):
    """A database of its own, of which everything is known, and what starts nodes on it; two are there."""
    postgres.psql("CREATE DATABASE operators", "postgres")
    url, nodes = postgres.url("operators"), []

    def node(name, **boot):
        nodes.append(kit.Gateway(name, binary, flows.configuration(services, FLOWS, quota={}, **boot), tmp_path_factory.mktemp(name), url))
        return nodes[-1]

    one = types.SimpleNamespace(
        pandora=kit.Pandora(binary, url), tenants=tenancy.Tenants(postgres, "operators"), log=tenancy.RequestLog(postgres, "operators"),
        sql=lambda text: postgres.psql(text, "operators"), node=node, raw=services.raw)
    one.pandora.run("migrate")
    try:
        one.nodes = [node("operators-a", workers=1), node("operators-b", workers=1)]
        yield one
    finally:
        codes = [gateway.stop() for gateway in nodes]
    assert codes == [0] * len(nodes)


@pytest.fixture
def port(site):
    return site.nodes[0].port


@pytest.fixture
def limited(site):
    return site.tenants.environment(orders=100)


def path(environment):
    return f"{environment.client}/shop/prod"


def place(environment):
    return f"{path(environment)} orders/1, period 1"


def exited(done, code, words, stream="stderr"):
    """The command ended with this code and said this; on the other stream it said nothing."""
    assert done.returncode == code and words in getattr(done, stream), done
    if stream == "stderr":
        assert done.stdout == "", done
    return done


def quota(site, environment):
    shown = site.pandora.json("quota", "show", "--environment", path(environment), "--service", "orders")
    return tuple(shown[name] for name in ("limit", "used", "leased", "reserved", "available", "free"))


def audited(site, kind):
    """Who did what to which, and the details, the last one last."""
    rows = site.sql(f"SELECT actor, action, object_id, detail FROM pandora.audit_log WHERE object_kind = '{kind}' ORDER BY id")
    return [(actor, action, name, json.loads(detail)) for actor, action, name, detail in rows]


class Customer(threading.Thread):
    """Sends requests and flows to any node until told to stop; counts what was charged and what was refused."""

    def __init__(self, site, environment):
        super().__init__(daemon=True)
        self.site, self.key, self.charged, self.refused, self.fault = site, environment.key, 0, 0, None
        self.stopping, self.random = threading.Event(), random.Random()
        self.start()

    def run(self):
        try:
            while not self.stopping.is_set():
                port = self.random.choice(self.site.nodes).port
                if self.random.random() < 0.5:
                    self.requests(port)
                else:
                    self.flow(port)
        except Exception as fault:  # Told to the test, which would not see it in a thread.
            self.fault = fault

    def requests(self, port):
        with Wire(port) as wire:
            for _ in range(5):
                self.note(wire.send(request("GET", "/say", key=self.key)).read())

    def note(self, answer):
        assert answer.status in (200, 429), answer
        self.charged += answer.status == 200
        self.refused += answer.status == 429

    def flow(self, port):
        flow = Flow(port, self.key)
        answer = flow.start()
        if answer.status == 429:
            self.refused += 1
        elif self.random.random() < 0.5:
            assert flow.rollback().status == 200
        else:
            assert flow.finish()["pandora-flow-state"] == "committed"
            self.charged += 1
            assert flow.finish().status == 409  # Its row names the flow, too, and counts nothing.


@contextlib.contextmanager
def traffic(site, *environments):
    running = [Customer(site, environment) for environment in environments for _ in range(2)]
    try:
        yield running
    finally:
        for one in running:
            one.stopping.set()
        for one in running:
            one.join(60)
    assert [one.fault for one in running if one.fault] == []


def well(site):
    done = site.pandora.run("doctor", "--json", check=False)
    assert done.returncode == 0 and json.loads(done.stdout) == {"repairs": [], "findings": []}, done


# ---- The doctor -------------------------------------------------------------------------------------------------------


def test_the_doctor_finds_nothing_under_traffic_but_what_was_broken(site):
    busy, broken = site.tenants.environment(orders=100_000), site.tenants.environment(orders=100_000)
    with traffic(site, busy, broken) as customers:
        for round in range(5):
            well(site)
            site.sql(f"""UPDATE pandora.environment_service SET held_request = held_request + 7000, used_request = used_request + 50,
                                available_request = available_request - 50 WHERE environment_id = {broken.id}""")
            done = site.pandora.run("doctor", "--json", check=False)
            found = json.loads(done.stdout)["findings"]
            assert done.returncode == 1 and [(one["check"], one["severity"], one["place"]) for one in found] == [
                ("used", "wrong", place(broken)), ("held", "wrong", place(broken))], done
            assert found[0]["numbers"]["used"] - found[0]["numbers"]["ledger"] == 50
            text = exited(site.pandora.run("doctor", check=False), 1, "2 things are wrong", "stdout").stdout
            assert f"wrong     {place(broken)}: " in text and "pandora doctor --repair" in text
            repaired = site.pandora.json("doctor", "--repair")
            assert repaired["findings"] == []
            assert [(one["what"], one["object"]) for one in repaired["repairs"]] == [
                (what, place(broken)) for what in ("used", "available", "held")], repaired
            assert [one["was"] - one["became"] for one in repaired["repairs"]] == [50, -50, 7000]
            assert len(audited(site, "database")) == round + 1
        actor, action, name, detail = audited(site, "database")[-1]
        assert (actor, action, name) == (f"cli:{getpass.getuser()}", "repair", "operators")
        assert [one["what"] for one in detail["repairs"]] == ["used", "available", "held"]
    for environment, of_it in ((busy, customers[:2]), (broken, customers[2:])):
        used = sum(one.charged for one in of_it)
        kit.eventually(lambda: site.log.quota(environment, "orders") == [used, 100_000 - used, 0, used], what="all of it is booked")
    assert all(one.charged > 0 for one in customers)
    assert site.pandora.run("doctor").stdout == "nothing is wrong\n"
    assert site.pandora.run("doctor", "--repair", "--skip-log").stdout == "nothing is wrong\n"
    assert len(audited(site, "database")) == 5, "where nothing was done there is nothing to audit"


def test_what_is_not_certain_is_left_to_its_operator(site, limited):
    def edit(units):  # Past the triggers that book it.
        site.sql(f"""SET session_replication_role = replica; UPDATE pandora.environment_service SET max_request = max_request + {units},
                     available_request = available_request + {units} WHERE environment_id = {limited.id}""")

    edit(1)
    try:
        text = exited(site.pandora.run("doctor", "--repair", check=False), 1, "1 thing is wrong", "stdout").stdout
        assert f"wrong     {place(limited)}: the limit is 101, but the ledger explains 100" in text and "repaired" not in text
    finally:
        edit(-1)
    well(site)


def test_a_doctor_who_cannot_look_exits_with_2(site, postgres):
    exited(site.pandora.run("doctor", "--database", "postgres://nobody@127.0.0.1:1/x", check=False), 2, "error: ")
    exited(site.pandora.run("doctor", "--repair", "--database", postgres.url("postgres"), check=False), 2, "run pandora migrate")


# ---- Flows ------------------------------------------------------------------------------------------------------------


def test_flows_are_listed_shown_and_ended(site, port, limited):
    one, two, dear = started(port, limited.key), started(port, limited.key), started(port, limited.key, "dear")
    assert one.step().status == 200
    assert quota(site, limited)[3:] == (7, 100, 93)

    def listed(*options):
        return [flow["id"] for flow in site.pandora.json("flow", "list", "--environment", path(limited), *options)]

    assert listed() == [one.id, two.id, dear.id] == listed("--state", "open", "--older", "0s")
    assert listed("--flow", "dear") == [dear.id] and listed("--state", "finishing") == [] == listed("--older", "1h")
    table = site.pandora.run("flow", "list").stdout.splitlines()
    assert table[0].split()[:3] == ["ID", "FLOW", "ENVIRONMENT"] and any(one.id in line and path(limited) in line for line in table[1:])

    kit.eventually(lambda: len(site.pandora.json("flow", "show", one.id)["hops_logged"]) == 2, what="its hops are in the log")
    shown = site.pandora.json("flow", "show", one.id)
    assert [shown[name] for name in ("state", "flow", "units", "hops", "environment", "service", "ended_at")] == [
        "open", "keep", 1, 2, path(limited), "orders/1", None]
    text = site.pandora.run("flow", "show", dear.id).stdout
    assert "5 held" in text and "TIME" in text

    committed = site.pandora.json("flow", "commit", dear.id)
    assert (committed["state"], committed["units"]) == ("committed", 5)
    assert "rolled_back" in site.pandora.run("flow", "rollback", two.id).stdout
    for action, flow in (("commit", dear), ("rollback", two)):  # Said twice it is so already.
        assert site.pandora.json("flow", action, flow.id)["ended_at"]
    exited(site.pandora.run("flow", "rollback", dear.id, check=False), 1, "the flow has ended already: committed")
    exited(site.pandora.run("flow", "commit", two.id, "--force", check=False), 1, "the flow has ended already: rolled_back")
    assert listed() == [one.id]
    # Clients hear of it on any node.
    for gateway in site.nodes:
        refused(dear.finish(port=gateway.port), 409, "FLOW_CLOSED", "committed")
        refused(two.step(port=gateway.port), 409, "FLOW_CLOSED", "rolled_back")
    assert one.finish()["pandora-flow-state"] == "committed"
    assert quota(site, limited) == (100, 6, 0, 0, 94, 94)
    changes = [(action, name, detail["charged"]) for _, action, name, detail in audited(site, "flow") if name in (dear.id, two.id)]
    assert changes == [("commit", dear.id, 5), ("rollback", two.id, 0)]
    well(site)


def test_a_flow_whose_finish_is_under_way_is_left_to_it(site, port, limited):
    flow, token = started(port, limited.key), uuid.uuid4().hex
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        finishing = threads.submit(flow.finish, f"/say?hold={token}")
        kit.eventually(lambda: site.raw.seen(token), what="the finish is upstream")
        try:
            assert [one["id"] for one in site.pandora.json("flow", "list", "--state", "finishing")] == [flow.id]
            for action in ("commit", "rollback"):
                assert "--force" in exited(site.pandora.run("flow", action, flow.id, check=False), 1, "is finishing the flow").stderr
                forced = exited(site.pandora.run("flow", action, flow.id, "--force", check=False), 1, "is finishing the flow")
                assert "wait until its claim is void" in forced.stderr
        finally:
            site.raw.release(token)
        assert finishing.result()["pandora-flow-state"] == "committed"
    assert quota(site, limited) == (100, 1, 0, 0, 99, 99)


@pytest.mark.parametrize("action", ["show", "commit", "rollback"])
def test_flows_that_are_none_are_said_to_be_so(site, action):
    unknown = "rsv_00000000000000000000000001"
    done = exited(site.pandora.run("flow", action, unknown, check=False), 1, f"error: there is no flow {unknown}")
    assert "hint: pandora flow list" in done.stderr
    exited(site.pandora.run("flow", action, "req_00000000000000000000000001", check=False), 64, "expected rsv_ and 26 characters")
    exited(site.pandora.run("flow", action, check=False), 64, "Usage:")


# ---- Nodes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refund", [False, True])
def test_a_node_that_is_gone_is_forgotten_and_may_come_back(site, limited, refund):
    node = site.node(f"lost-{refund}", workers=1)
    assert ask(node.port, "GET", "/say", key=limited.key).status == 200
    token = uuid.uuid4().hex
    with Wire(node.port) as wire:  # What is under way keeps its unit.
        wire.send(request("GET", f"/say?hold={token}", key=limited.key))
        kit.eventually(lambda: site.raw.seen(token), what="the request is upstream")
        kit.eventually(lambda: quota(site, limited) == (100, 1, 1, 0, 99, 98), what="idle units are back, and the first is booked")
        node.kill()
    site.raw.release(token)

    [spool] = [one for one in site.pandora.json("node", "list") if one["node"] == node.name]
    assert spool["open"] == 1 and spool["epoch"] == 1 and spool["lost"] == 0
    assert any(node.name in line and spool["id"] in line for line in site.pandora.run("node", "list").stdout.splitlines())
    forget = ["node", "forget", spool["id"], *["--refund"] * refund]
    unsure = exited(site.pandora.run(*forget, check=False), 1, "nothing was done")
    assert f"of node {node.name}" in unsure.stderr
    assert f"the 1 units it holds are {'given back' if refund else 'charged'}" in unsure.stderr
    assert quota(site, limited)[2] == 1

    assert site.pandora.run(*forget, "--yes").stdout == f"1 units were {'given back' if refund else 'charged'}\n"
    assert quota(site, limited) == ((100, 1, 0, 0, 99, 99) if refund else (100, 2, 0, 0, 98, 98))
    assert site.pandora.run(*forget, "-y").stdout.startswith("0 units")
    [first, again] = [(action, detail) for _, action, name, detail in audited(site, "spool") if name == spool["id"]]
    assert first == ("forget", {"units": 1, "refund": refund}) and again[1]["units"] == 0
    well(site)

    # It was not gone for good: what was charged and not used comes back.
    node.start()
    kit.eventually(lambda: quota(site, limited) == (100, 1, 0, 0, 99, 99), 30, "what the request under way held is given back")
    assert ask(node.port, "GET", "/say", key=limited.key).status == 200
    kit.eventually(lambda: site.log.quota(limited, "orders") == [2, 98, 0, 2])
    well(site)


def test_a_living_node_that_is_forgotten_ends_and_may_be_started_again(site, limited):
    node = site.node("given-up", workers=1)
    with Wire(node.port) as wire:  # What it has answered, and what is under way when it hears of it, is not lost.
        assert wire.send(request("GET", "/say", key=limited.key)).read().status == 200
        token = uuid.uuid4().hex
        wire.send(request("GET", f"/say?hold={token}", key=limited.key))
        kit.eventually(lambda: site.raw.seen(token), what="the request is upstream")
        [spool] = [one for one in site.pandora.json("node", "list") if one["node"] == node.name]
        site.pandora.run("node", "forget", spool["id"], "--yes")

        def drains():
            with contextlib.suppress(OSError):  # It hears of it when it ships, and listens no more.
                ask(node.port, "GET", "/nowhere", host="nowhere.test")
            return node.said("draining")

        kit.eventually(drains, what="it drains")
        site.raw.release(token)
        assert wire.read().status == 200
    assert node.process.wait(kit.PATIENCE) == 1
    assert [one["level"] for one in node.said("this node is given up by another: it drains and ends, and may be started again")] == [
        "critical"]
    node.start()
    assert ask(node.port, "GET", "/say", key=limited.key).status == 200
    kit.eventually(lambda: site.log.quota(limited, "orders") == [3, 97, 0, 3], what="all three are booked, and nothing is held")
    well(site)


def test_spools_that_are_none_are_said_to_be_so(site):
    unknown = str(uuid.uuid4())
    for more in ([], ["--refund"], ["--yes"]):
        exited(site.pandora.run("node", "forget", unknown, *more, check=False), 1, f"error: there is no spool {unknown}")
    done = exited(site.pandora.run("node", "forget", "operators-a", "--yes", check=False), 1, "a spool is named by its id")
    assert "pandora node list" in done.stderr
    exited(site.pandora.run("node", "forget", check=False), 64, "Usage:")
    exited(site.pandora.run("quota", "show", "--environment", "nobody/shop/prod", check=False), 1, "there is no client 'nobody'")


# ---- Edits under traffic ----------------------------------------------------------------------------------------------


def limit(site, environment, units):
    site.pandora.run("quota", "set", "--environment", path(environment), "--service", "orders", "--max", units)


def test_limits_are_edited_under_traffic(site, port):
    environment = site.tenants.environment(orders=None)
    held = started(port, environment.key, "dear")

    def moves(customers, what):
        before = [sum(getattr(one, what) for one in customers)]
        kit.eventually(lambda: sum(getattr(one, what) for one in customers) > before[0] + 20, what=f"requests are {what}")

    with traffic(site, environment) as customers:
        moves(customers, "charged")
        for _ in range(3):
            limit(site, environment, 1_000_000)
            moves(customers, "charged")
            well(site)
            limit(site, environment, 0)  # Below what is used: nobody is admitted any more.
            moves(customers, "refused")
            well(site)
            limit(site, environment, "unlimited")
            moves(customers, "charged")
            well(site)
        # A limit with a little room: it is used up, and not exceeded.
        limit(site, environment, 0)
        moves(customers, "refused")
        kit.eventually(lambda: quota(site, environment)[1:4] == (sum(one.charged for one in customers), 0, 5),
                       what="what was under way has ended")
        used = quota(site, environment)[1]
        limit(site, environment, used + 5 + 30)
        kit.eventually(lambda: quota(site, environment)[1:3] == (used + 30, 0), what="all that flows do not hold is used")
    assert quota(site, environment) == (used + 35, used + 30, 0, 5, 5, 0)
    limit(site, environment, used + 30)
    shown = site.pandora.json("quota", "show", "--environment", path(environment), "--service", "orders")
    assert (shown["available"], shown["free"], shown["overcommitted"]) == (0, 0, False)
    limit(site, environment, used)
    assert "overcommitted" in site.pandora.run("quota", "show", "--environment", path(environment)).stdout
    # What was promised before the edits is kept.
    assert held.finish()["pandora-flow-state"] == "committed"
    charged = sum(one.charged for one in customers) + 5
    kit.eventually(lambda: site.log.quota(environment, "orders") == [charged, used - charged, 0, charged], what="all of it is booked")
    assert charged == used + 35
    well(site)


@pytest.mark.parametrize("noun, code", [("service", "SERVICE_DISABLED"), ("environment", "ENVIRONMENT_DISABLED"),
                                        ("project", "PROJECT_DISABLED")])
def test_what_is_disabled_in_mid_flow_stops_the_flow_and_not_its_end(site, port, limited, noun, code):
    reference = {"service": "orders/1", "environment": path(limited), "project": f"{limited.client}/shop"}[noun]
    flow, other, served = started(port, limited.key), started(port, limited.key), []

    def answers(status):
        answer = ask(port, "GET", "/say", key=limited.key)
        served.extend([answer.id] * (answer.status == 200))
        return answer.status == status

    site.pandora.run(noun, "update", reference, "--status", "disabled")
    try:
        kit.eventually(lambda: answers(403), what="it is disabled")
        refused(flow.step(), 403, code)
        refused(flow.finish(), 403, code)
        assert quota(site, limited)[3] == 2, "refused hops leave it as it is"
        assert site.pandora.json("flow", "rollback", other.id)["state"] == "rolled_back"
    finally:
        site.pandora.run(noun, "update", reference, "--status", "enabled")
    kit.eventually(lambda: answers(200), what="it is enabled again")
    assert flow.finish()["pandora-flow-state"] == "committed"
    used = len(served) + 1
    kit.eventually(lambda: site.log.quota(limited, "orders") == [used, 100 - used, 0, used], what="all of it is booked")
    well(site)
