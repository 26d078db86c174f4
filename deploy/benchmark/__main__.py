"""Measures Pandora beside its peers in one run. See deploy/bench."""

import argparse
import json
import os
import pathlib
import platform
import resource
import signal
import sys
import time

import contenders
import exact
import memory
import speed

IN_FLIGHT_OF = ("envoy", "pandora")


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    cores = sorted(os.sched_getaffinity(0))
    place = contenders.Place(cores[0], cores[1 % len(cores)])
    figures = {"machine": machine(cores), "options": vars(options)}
    try:
        print(figures["machine"], flush=True)
        figures["speed"] = measure_speed(options, place)
        show_speed(figures["speed"], options)
        if options.exact and "pandora" in options.only:
            figures["exact"] = measure_exact(options, place)
            show_exact(figures["exact"])
        if options.memory:
            figures["memory"] = measure_memory(options, place)
            show_memory(figures["memory"])
    finally:
        place.remove()
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")


def arguments():
    def names(text):
        chosen = text.split(",")
        if unknown := set(chosen) - set(contenders.NAMES):
            raise argparse.ArgumentTypeError(f"no such name: {', '.join(sorted(unknown))}")
        return [name for name in contenders.NAMES if name in chosen]

    parser = argparse.ArgumentParser(prog="deploy/bench", description="CPU per request, requests per second, memory.")
    parser.add_argument("--seconds", type=int, default=3, metavar="S", help="of each measurement (default 3)")
    parser.add_argument("--rounds", type=int, default=3, metavar="R", help="medians are taken over them (default 3)")
    parser.add_argument("--only", type=names, default=contenders.NAMES, metavar="NAMES",
                        help=f"of {','.join(contenders.NAMES)}")
    parser.add_argument("--connections", type=lambda text: [int(one) for one in text.split(",")],
                        default=[1, 32, 128, 1000], metavar="LIST", help="default 1,32,128,1000")
    parser.add_argument("--json", metavar="FILE", help="also writes every figure of every round there")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leaves the memory part out")
    parser.add_argument("--no-exact", dest="exact", action="store_false", help="leaves flows and SQL statements out")
    parser.add_argument("--binary", default=os.environ.get("PANDORA_BINARY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "pandora" in options.only and not options.binary:
        parser.error("the pandora binary is missing: run deploy/bench")
    return options


def machine(cores):
    model = next((line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    return (f"{model}, {len(cores)} cores, Linux {platform.release()}, load {os.getloadavg()[0]:.1f} at the start, "
            f"{time.strftime('%F %R')}")


def say(text):
    print(f"  {text}", file=sys.stderr, flush=True)


def measure_speed(options, place):
    upstream = contenders.Upstream(place)
    running = [upstream]
    try:
        for name in options.only:
            if name != "direct":
                running.append(contenders.start(name, place, upstream.port, options.binary))
        measured = [one for one in running if one.name in options.only]
        results = speed.run(measured, options.connections, options.seconds, options.rounds, place.other_core, say)
        for one in measured:
            if one.name == "pandora":
                sent = sum(r["requests"] for rounds in results["pandora"].values() for r in rounds)
                say(f"pandora: {one.rows()} rows in request_logs, {sent} requests answered in the measurements")
        return results
    finally:
        for one in reversed(running):
            one.stop()


def measure_exact(options, place):
    upstream = contenders.Upstream(place)
    try:
        return exact.run(place, upstream.port, options.binary, max(options.seconds, 5), [16, 64, 256], say)
    finally:
        upstream.stop()


def measure_memory(options, place):
    results = {}
    slow_port, slow = memory.start_slow_upstream(place)
    try:
        for name in options.only:
            kinds = {"idle": lambda one: memory.idle(one, place.other_core)}
            if name in IN_FLIGHT_OF:
                kinds["download"] = lambda one: memory.in_flight(one, place.other_core, slow_port, upload=False)
                kinds["upload"] = lambda one: memory.in_flight(one, place.other_core, slow_port, upload=True)
            for kind, measure in kinds.items() if name != "direct" else ():
                # A process of its own for each: what one freed, the next would take without growing.
                contender = contenders.start(name, place, slow_port, options.binary)
                try:
                    results.setdefault(name, {})[kind] = measure(contender)
                    say(f"{name}: {kind} {results[name][kind] / 1024:.1f} KiB")
                finally:
                    contender.stop()
    finally:
        slow.stop()
    return results


def show_speed(results, options):
    counts, names = options.connections, options.only

    def table(title, figure, form, divisor=1):
        lines = {name: [speed.median(results, name, count, figure) for count in counts] for name in names}
        show_table(title, counts, {name: values for name, values in lines.items() if None not in values}, form, divisor)

    print(f"\nMedians of {options.rounds} rounds of {options.seconds} s, everybody on one core.")
    table("CPU µs per request", "cpu_us", ".1f")
    table("Requests per second", "per_second", ".0f")
    table("Latency, 99th percentile, ms", "p99", ".2f", 1000)
    table("CPU µs of PostgreSQL per row", "database_us", ".1f")
    bad = {name: sum(r["refused"] + r["broken"] for rounds in results[name].values() for r in rounds) for name in names}
    if any(bad.values()):
        print("\nNot answered with success: " + ", ".join(f"{name} {count}" for name, count in bad.items() if count))
    show_ratios(results, counts, names)


def show_ratios(results, counts, names):
    def ratios(a, b, *pairs):
        return [speed.median(results, a, one, "cpu_us") / speed.median(results, b, other, "cpu_us") for one, other in pairs]

    peers = [peer for peer in ("envoy", "lua", "nginx") if peer in names and "pandora" in names]
    show_table("Ratios of CPU per request", counts,
               {f"pandora/{peer}": ratios("pandora", peer, *zip(counts, counts)) for peer in peers}, ".2f")
    if 32 in counts and 1000 in counts:
        show_table("Growth of CPU per request, 1000 over 32 connections", [],
                   {name: ratios(name, name, (1000, 32)) for name in names}, ".2f")


def show_table(title, columns, lines, form, divisor=1):
    if not lines:
        return
    print(f"\n{title}")
    if columns:
        print(f"{'connections':<16}" + "".join(f"{column:>10}" for column in columns))
    for name, values in lines.items():
        print(f"{name:<16}" + "".join(f"{value / divisor:>10{form}}" for value in values))


def show_exact(results):
    print("\nNothing pinned: gateway, PostgreSQL with fsync, upstream and load on every core.")
    print("{statements_per_1000:.1f} SQL statements per 1,000 requests of one hop; the log was {behind_ms:.0f} ms behind "
          "{per_second:.0f} requests a second.".format(**results["statements"]))
    print(f"\nFlows started and finished on one hot row\n{'open at once':<16}{'pairs/s':>10}{'p50, ms':>10}{'p99, ms':>10}"
          "   (of a request)")
    for count, one in results["flows"].items():
        print(f"{count:<16}{one['per_second']:>10.0f}{one['p50_ms']:>10.1f}{one['p99_ms']:>10.1f}")


def show_memory(results):
    print(f"\nGrowth of resident memory, KiB: per connection of {memory.IDLE} idle, "
          f"per exchange of {memory.IN_FLIGHT} in flight with slow bodies")
    kinds = ("idle", "download", "upload")
    print(f"{'':<16}" + "".join(f"{kind:>10}" for kind in kinds))
    for name, values in results.items():
        cells = (f"{values[kind] / 1024:>10.1f}" if kind in values else f"{'':>10}" for kind in kinds)
        print(f"{name:<16}" + "".join(cells))


if __name__ == "__main__":
    main()
