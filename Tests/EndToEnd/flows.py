"""Flows: how a gateway's file declares them, and how a client walks through one."""

import contextlib
import subprocess

from wire import ask


def configuration(services, flows, service="orders", upstream=None, **boot):
    """Each flow is a host, NAME.test, and each of its hops a prefix: /start, /step-1 and so on, /finish. What follows goes upstream.

    `flows`: settings by name; `steps` is their number there, `upstream` one of those below, `timeouts` those of all of its routes.
    """
    # Tests hold answers back, for longer where this machine is slow.
    patient = {"first_byte": "2m"}
    routes, declared = [{"name": "plain", "match": {"host": "raw.test"}, "service": service, "upstream": "raw", "timeouts": patient}], {}
    for name, settings in flows.items():
        own = {"steps": 1, "upstream": "raw", "timeouts": patient, **settings}
        places = ["start", *(f"step-{number + 1}" for number in range(own.pop("steps"))), "finish"]
        target, timeouts = own.pop("upstream"), own.pop("timeouts")
        routes += [{"name": f"{name}-{place}", "match": {"host": f"{name}.test", "prefix": f"/{place}"}, "strip_prefix": f"/{place}",
                    "service": service, "upstream": target, "timeouts": timeouts} for place in places]
        start, *steps, finish = (f"{name}-{place}" for place in places)
        declared[name] = {"start": start, "steps": steps, "finish": finish, **own}
    return {
        "workers": 2, "log": {"batch_time": "20ms"},
        # Whoever holds a unit and stands still may give it back when it runs again.
        "quota": {"recall_wait": "1s"}, **boot,
        "upstreams": {
            "raw": {"targets": [upstream or f"127.0.0.1:{services.raw.port}"]},
            "refused": {"targets": [f"127.0.0.1:{services.refusing.port}"]},
        },
        "routes": routes, "flows": declared,
    }


class Flow:
    """One flow as its client sees it; each hop goes on a connection of its own."""

    def __init__(self, port, key, name="keep", id=None):
        self.port, self.key, self.name, self.id, self.chain = port, key, name, id, None

    def hop(self, place, target="/say", *fields, method="GET", body=b"", port=None, key=None):
        if self.id:
            fields = (f"Pandora-Flow: {self.id}", *fields)
        return ask(port or self.port, method, f"/{place}{target}", *fields, host=f"{self.name}.test", key=key or self.key, body=body)

    def start(self, target="/say", *fields, **options):
        answer = self.hop("start", target, *fields, **options)
        self.id, self.chain = answer["pandora-flow"], answer["pandora-start-point"]
        return answer

    def step(self, target="/say", *fields, number=1, **options):
        return self.hop(f"step-{number}", target, *fields, **options)

    def finish(self, target="/say", *fields, **options):
        return self.hop("finish", target, *fields, **options)

    def endpoint(self, method="GET", action="", key=None, port=None):
        return ask(port or self.port, method, f"/.pandora/flows/{self.id}{action}", key=key or self.key)

    def show(self, **options):
        answer = self.endpoint(**options)
        assert answer.status == 200, answer
        return answer.json()

    def commit(self, **options):
        return self.endpoint("POST", "/commit", **options)

    def rollback(self, **options):
        return self.endpoint("POST", "/rollback", **options)


def started(port, key, name="keep", target="/say", *fields):
    """A flow that is open."""
    flow = Flow(port, key, name)
    answer = flow.start(target, *fields)
    assert answer.status == 200 and answer["pandora-flow-state"] == "open", answer
    return flow


def refused(answer, status, code, reason=None):
    """A problem of this code, with this in its reason."""
    assert answer.status == status, answer
    problem = answer.json()
    assert problem["code"] == code and problem["status"] == status, problem
    if reason:
        assert reason in problem["reason"], problem
    return answer


def endings(postgres, flow):
    """What the ledger says of a flow: outcome and units, one pair a row."""
    rows = postgres.psql(f"SELECT coalesce(outcome, kind), used_delta FROM pandora.quota_ledger WHERE reservation_id = '{flow.id}'")
    return [(outcome, int(units)) for outcome, units in rows]


@contextlib.contextmanager
def locked(postgres, statement, database="pandora"):
    """Another session has taken the locks of the statement, and keeps them inside the block."""
    session = subprocess.Popen(["psql", "-XqAt", "-h", postgres.directory, "-U", "postgres", "-d", database], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        session.stdin.write(f"BEGIN; {statement};\n\\echo locked\n")
        session.stdin.flush()
        while (line := session.stdout.readline()).strip() != "locked":
            assert line, "psql ended"
        yield
    finally:
        session.communicate("COMMIT;\n")
