"""What exactness costs: pairs of flow start and finish on one hot row, SQL statements per request, how far the log lags.

Here nothing is pinned: gateway, PostgreSQL (with fsync), upstream and load share every core.
"""

import json
import os
import pathlib
import subprocess

import contenders
import speed

SCRIPT = pathlib.Path(__file__).with_name("flows.lua")
STATEMENTS = "SELECT sum(calls) FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat_statements%'"
ROUTES = [
    {"name": "start", "match": {"path": "/start"}, "service": "bench", "upstream": "service"},
    {"name": "finish", "match": {"path": "/finish"}, "service": "bench", "upstream": "service"},
    {"name": "all", "service": "bench", "upstream": "service"},
]
FLOWS = {"order": {"start": "start", "finish": "finish", "max_open": 10_000}}


def run(place, upstream_port, binary, seconds, connections, say):
    """{"statements": {...}, "flows": {connections: {...}}}"""
    gateway = contenders.Pandora(
        place, upstream_port, binary, pins=False, postgres=["shared_preload_libraries=pg_stat_statements"],
        workers=len(os.sched_getaffinity(0)), routes=ROUTES, flows=FLOWS)
    try:
        gateway.postgres.psql("CREATE EXTENSION pg_stat_statements")
        results = {"statements": statements(gateway, seconds), "flows": {}}
        say("{statements_per_1000:.1f} statements per 1,000 requests, at {per_second:.0f} requests a second the log was "
            "{behind_ms:.0f} ms behind".format(**results["statements"]))
        for count in connections:
            results["flows"][count] = flows(gateway, count, seconds)
            say("flows at {}: {per_second:.0f} pairs a second, p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms a request".format(
                count, **results["flows"][count]))
        return results
    finally:
        gateway.stop()


def statements(gateway, seconds):
    """Away from exhaustion; what the gateway asks by the clock counts too."""
    speed.load(gateway, 32, 1, None)
    gateway.settled()
    before, rows = int(gateway.postgres.psql(STATEMENTS)[0][0]), gateway.rows()
    report = speed.load(gateway, 32, seconds, None)
    behind = report["requests"] - (gateway.rows() - rows)
    gateway.settled()
    asked = int(gateway.postgres.psql(STATEMENTS)[0][0]) - before
    per_second = report["requests"] * 1e6 / report["us"]
    return {"statements_per_1000": asked * 1000 / report["requests"], "per_second": per_second,
            "behind_ms": max(behind, 0) * 1000 / per_second}


def flows(gateway, connections, seconds):
    """One environment and service: one row. Every pair that a client saw committed has its line in the ledger."""
    committed = "SELECT count(*) FROM pandora.quota_ledger WHERE kind = 'flow' AND used_delta = 1"
    before = int(gateway.postgres.psql(committed)[0][0])
    done = subprocess.run(
        ["wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s", "--timeout", "10s", "-s", str(SCRIPT),
         "-H", f"X-API-Key: {gateway.key}", f"http://127.0.0.1:{gateway.port}/"], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"wrk: {done.stdout}{done.stderr}")
    report = json.loads(done.stdout.strip().splitlines()[-1])
    gateway.settled()
    booked = int(gateway.postgres.psql(committed)[0][0]) - before
    if report["refused"] or report["broken"] or booked < report["pairs"]:
        raise RuntimeError(f"{report}, {booked} pairs in the ledger")
    return {"per_second": report["pairs"] * 1e6 / report["us"], "p50_ms": report["p50"] / 1000, "p99_ms": report["p99"] / 1000}
