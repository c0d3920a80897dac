"""Compare locks with redis-py's Lock and with session advisory locks, side by side in one run.

    python3 -m venv .venv-bench
    .venv-bench/bin/pip install -e . -r tests/benchmarks/requirements.txt
    .venv-bench/bin/python tests/benchmarks/locks.py

Without `--url` it starts a PostgreSQL of its own (temporary directory, Unix socket, default configuration), without
`--redis` a Redis without persistence on loopback, if there is a `redis-server`; it stops both at the end. With
`--url` it makes databases named `pgeverything_bench_...` there and drops them; the role must be a superuser.

How it measures:

* Every lock takes its turn in every round, each time in a fresh database; figures are medians over the rounds. Compare
  ratios within one run: absolute figures move by half between runs of a shared machine.
* `uncontended` is one process that acquires and releases one lock in a loop.
* `contenders` are processes that each acquire, stay inside for `--section` milliseconds, release, and begin again:
  with 5 ms, 200 sections a second would be ideal. A wait is from the call to having the lock. A hand-over is from the
  call that releases to the moment at which the next one has it, in whatever process.
* The first quarter of each measurement is thrown away. Sections that overlap end the run.

What is compared is not the same: the lease of pgeverything is durable and has a fencing token that a commit can be made
to depend on, redis-py's lock has neither, and an advisory lock is held by its connection and has no lease.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import signal
import sys
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

from lockers import LOCKERS, REDIS, Locker, redis_server
from report import Results, table
from scenarios import Metric
from server import Databases, private_server

_SPAWN = multiprocessing.get_context("spawn")


def _metrics(contenders: list[int]) -> dict[str, Metric]:
    found = {"pairs": Metric("acquire + release, uncontended", "1/s")}
    for count in contenders:
        found |= {
            f"sections {count}": Metric(f"sections, {count} contenders", "1/s"),
            f"p50 {count}": Metric(f"wait p50, {count} contenders", "ms", lower_is_better=True),
            f"p99 {count}": Metric(f"wait p99, {count} contenders", "ms", lower_is_better=True),
            f"over {count}": Metric(f"hand-over p50, {count} contenders", "ms", lower_is_better=True),
        }
    return found


def _contend(name: str, url: str, inside: float, seconds: float, ready: Any, start: Any, results: Any) -> None:
    """One contender, in a process of its own: the times of its sections go into `results`."""
    locker = LOCKERS[name]()
    locker.open(url)
    locker.acquire()()
    ready.put(None)
    start.wait()
    times = []
    end = time.monotonic() + seconds
    while (asked := time.monotonic()) < end:
        release = locker.acquire()
        had = time.monotonic()
        if inside:
            time.sleep(inside)
        times.append((had, time.monotonic(), asked))
        release()
    results.put(times)
    locker.close()


def _run(name: str, url: str, contenders: int, inside: float, seconds: float) -> list[tuple[float, float, float]]:
    """Let processes contend; return (had, released, asked) of each section, in order."""
    ready, results, start = _SPAWN.Queue(), _SPAWN.Queue(), _SPAWN.Event()
    arguments = (name, url, inside, seconds, ready, start, results)
    processes = [_SPAWN.Process(target=_contend, args=arguments, daemon=True) for _ in range(contenders)]
    for process in processes:
        process.start()
    for _ in processes:
        ready.get(timeout=60)
    start.set()
    times = sorted(each for _ in processes for each in results.get(timeout=seconds + 120))
    for process in processes:
        process.join()
    if any(later[0] < earlier[1] for earlier, later in pairwise(times)):
        raise SystemExit(f"{name}: two processes were inside at once")
    return times[len(times) // 4 :]


def _measure(name: str, url: str, options: argparse.Namespace) -> dict[str, float]:
    times = _run(name, url, 1, 0.0, options.seconds)
    found = {"pairs": len(times) / (times[-1][0] - times[0][0])}
    for count in options.contenders:
        times = _run(name, url, count, options.section / 1000, options.seconds)
        waits = sorted(had - asked for had, _, asked in times)
        overs = sorted(later[0] - earlier[1] for earlier, later in pairwise(times))
        found[f"sections {count}"] = (len(times) - 1) / (times[-1][0] - times[0][0])
        found[f"p50 {count}"] = waits[len(waits) // 2] * 1000
        found[f"p99 {count}"] = waits[int(len(waits) * 0.99)] * 1000
        found[f"over {count}"] = overs[len(overs) // 2] * 1000
    return found


def main() -> None:
    """Measure what is asked for and print what came out."""
    options = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # unwinds: databases, servers
    lockers: list[Locker] = [LOCKERS[name]() for name in options.lockers]
    with ExitStack() as stack:
        url = options.url or stack.enter_context(private_server())
        if any(name.startswith("redis") for name in options.lockers):
            os.environ[REDIS] = options.redis or stack.enter_context(redis_server())
        databases = stack.enter_context(Databases(url))
        machine = {
            "machine": f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}",
            "server": ", ".join(f"{name} {value}" for name, value in databases.settings().items()),
            "versions": ", ".join(f"{locker.name} {locker.version}" for locker in lockers),
        }
        for key, text in (machine | {locker.name: locker.choices for locker in lockers}).items():
            print(f"{key}: {text}", flush=True)
        results: Results = {locker.name: {} for locker in lockers}
        for _ in range(options.rounds):
            for locker in lockers:
                with databases.fresh(locker) as place:  # type: ignore[arg-type]  # it has a name and installs itself
                    for name, number in _measure(locker.name, place, options).items():
                        results[locker.name].setdefault(name, []).append(number)
                print(".", end="", file=sys.stderr, flush=True)
        print(f"\nmedians of {options.rounds}; a ratio above 1 is in favour of {lockers[0].name}")
        print(table(results, _metrics(options.contenders)))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=_positive, default=5, help="turns of every lock")
    add("--seconds", type=float, default=5.0, help="length of each measurement")
    add("--contenders", type=_positive, nargs="+", default=[2, 8])
    add("--section", type=float, default=5.0, help="milliseconds inside the lock")
    add("--lockers", nargs="+", choices=list(LOCKERS), default=list(LOCKERS), metavar="LOCKER")
    add("--url", help="a PostgreSQL to use instead of a private one")
    add("--redis", help="the URL of a Redis to use instead of a private one")
    add("--json", type=Path, metavar="FILE", help="write every single value there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
