"""A disk that refuses, and a log that is full: no whole answer without its hop, and the route's rule where there is no place."""

import concurrent.futures
import resource
import subprocess
import sys
import time
import uuid

import pytest

import conftest
import kit
from sites import Site
from wire import Cut, Wire, request


def ask(port, key, target="/echo", host="raw.test"):
    """The answer, or how it was cut."""
    with Wire(port) as wire:
        try:
            return wire.send(request("GET", target, host=host, key=key)).read()
        except Cut as cut:
            return cut


@pytest.mark.parametrize("limit", [None, 1000])
def test_answer_whose_hop_is_lost_is_never_whole(binary, postgres, services, tenants, log, tmp_path, limit):
    """More requests end than their hops can be kept in memory while the disk takes none. What a lost one held is free again."""
    # To a process that may write no byte every disk refuses. Python ignores SIGXFSZ, and so does what it becomes.
    before = [sys.executable, "-c", "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"]
    gateway = kit.Gateway("refused", binary, conftest.configuration(services, workers=1), tmp_path, postgres.url(), before)
    environment, token, upstream = tenants.environment(orders=limit), uuid.uuid4().hex, services.raw
    limits = resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE)
    # The route logs the query, which makes the hops long.
    target = f"/say?hold={token}&long={'x' * 1900}"
    try:
        with concurrent.futures.ThreadPoolExecutor(200) as threads:
            asked = [threads.submit(ask, gateway.port, environment.key, target, "query.test") for _ in range(200)]
            kit.eventually(lambda: len(upstream.seen(token)) == 200, what="all of them are upstream")
            resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
            upstream.release(token)
            time.sleep(2)  # They end meanwhile; those that end later are not tested.
            assert not any(one.done() for one in asked), "no answer leaves"
            resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, limits)
            answers = [one.result() for one in asked]
        whole = {answer.id for answer in answers if not isinstance(answer, Cut)}
        assert 50 < len(whole) < 200, "what can be kept is kept"
        # While the process lives: no end of it gives anything back.
        kit.eventually(lambda: log.quota(environment, "orders") == [len(whole), limit and limit - len(whole), 0, len(whole)],
                       what="what is in the log is charged, and nothing else is held")
    finally:
        gateway.stop()
    assert whole == log.ids(f"environment_id = {environment.id}")


def test_full_log_is_a_matter_of_the_routes_rule(binary, services, tmp_path):
    spool = {"directory": str(tmp_path / "spool"), "size": "32MiB"}
    site = Site(binary, services, tmp_path, conftest.configuration(services, workers=1, spool=spool))
    try:
        environment, port = site.tenants.environment(orders=None, files=None), site.gateway.port
        assert ask(port, environment.key).status == 200
        site.heard()
        assert (first := ask(port, environment.key)).status == 200
        site.postgres.stop()
        url = f"http://127.0.0.1:{port}/{'x' * 1900}"
        fill = ["wrk", "-t", "1", "-c", "16", "-d", "2s", "-H", "Host: nginx.test", "-H", f"X-API-Key: {environment.key}", url]
        told = {first.id}

        def full():
            subprocess.run(fill, check=True, stdout=subprocess.DEVNULL)
            answer = ask(port, environment.key)
            if answer.status == 200:
                told.add(answer.id)
            return answer.status == 503

        kit.eventually(full, 600, "the log is full")
        token = uuid.uuid4().hex
        refused = ask(port, environment.key, f"/echo?{token}")
        assert (refused.status, refused.json()["code"]) == (503, "LOG_UNAVAILABLE"), refused
        assert int(refused["retry-after"]) > 0 and not services.raw.seen(token)
        # Their rows are what nobody will find: the node says so itself.
        said = "the spool is full or its disk refuses: hops are lost or requests wait"
        kit.eventually(lambda: any(int(one["lost"]) > 0 for one in site.gateway.said(said)), what="it is told")
        assert ask(port, environment.key, f"/echo?{token}", "reported-allowed.test").status == 200
        assert len(services.raw.seen(token)) == 1

        site.postgres.start()
        kit.eventually(lambda: ask(port, environment.key).status == 200, what="there is place again")
        # Whoever stops gives the rest of the log ten seconds.
        kit.eventually(lambda: told <= site.log.ids(f"environment_id = {environment.id}"), what="what was answered is in the log")
        assert site.gateway.stop() == 0
    finally:
        site.remove()
