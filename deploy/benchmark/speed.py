"""CPU time per request and requests per second, the contenders taking turns so that noise hits them alike."""

import json
import pathlib
import statistics
import subprocess

import processes

SCRIPT = pathlib.Path(__file__).with_name("report.lua")


def load(contender, connections, seconds, core):
    """One run of wrk: plain keep-alive, one thread. No core: wherever there is room."""
    done = subprocess.run(
        [*(processes.pinned(core) if core is not None else ()),
         "wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s", "--timeout", "10s", "-s", str(SCRIPT),
         "-H", f"X-API-Key: {contender.key}", f"http://127.0.0.1:{contender.port}/bench"],
        capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"wrk against {contender.name}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(contender, connections, seconds, core):
    before, database = processes.cpu_seconds(contender.pid), contender.database_seconds()
    report = load(contender, connections, seconds, core)
    contender.settled()
    used = processes.cpu_seconds(contender.pid) - before
    requests = max(report["requests"], 1)
    result = {**report, "cpu_us": used * 1e6 / requests, "per_second": requests * 1e6 / report["us"]}
    if database is not None:
        result["database_us"] = (contender.database_seconds() - database) * 1e6 / requests
    return result


def run(contenders, connections, seconds, rounds, core, say):
    """{name: {connections: [result of each round]}}"""
    results = {contender.name: {count: [] for count in connections} for contender in contenders}
    for contender in contenders:
        load(contender, 32, 1, core)
    for number in range(rounds):
        for count in connections:
            for contender in contenders:
                result = measure(contender, count, seconds, core)
                results[contender.name][count].append(result)
                say(f"round {number + 1}: {contender.name} at {count}: {result['cpu_us']:.1f} µs, "
                    f"{result['per_second']:.0f}/s" + trouble(result))
    return results


def trouble(result):
    parts = [f"{result[name]} {name}" for name in ("refused", "broken") if result[name]]
    return f" ({', '.join(parts)})" if parts else ""


def median(results, name, count, figure):
    values = [result[figure] for result in results.get(name, {}).get(count, []) if figure in result]
    return statistics.median(values) if values else None
