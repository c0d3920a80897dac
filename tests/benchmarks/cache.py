"""Compare the cache with Redis through redis-py, Django's database cache and diskcache, side by side in one run.

    python3 -m venv .venv-bench
    .venv-bench/bin/pip install -e . -r tests/benchmarks/requirements.txt
    .venv-bench/bin/python tests/benchmarks/cache.py

Without `--url` it starts a PostgreSQL of its own (temporary directory, Unix socket, default configuration), without
`--redis` a Redis without persistence, also on a Unix socket, if there is a `redis-server`; it stops both at the end.
With `--url` it makes databases named `pgeverything_bench_...` there and drops them; the role must be a superuser.

How it measures:

* All caches are open and full at the same time, each in a database of its own. They take turns of a quarter of a
  second; figures are medians over the turns. Compare ratios within one run: what a round trip takes changes by half
  with where the machine places the processes, and that changes by the second.
* One client process, whose threads call the cache's own public interface: `x1` is one thread, `x8` eight that share one
  client object. Keys are chosen by chance from `--keys`, all of which are there; values are text of `--size` bytes.
* `get 100` asks for 100 keys in one call and counts calls.
* `near` asks for one of 1,000 keys that the process keeps in its own memory.
* HOT is the share of updates that changed no index, while eight threads overwrite what is there.
* `bare psycopg` is what the driver and an UNLOGGED table can do with nothing around them.

Nothing here is a test: there is no time limit to meet, and pytest does not collect it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psycopg
from caches import CACHES, Cache, redis_server
from report import Results, table
from scenarios import Metric
from server import Databases, private_server

METRICS = {
    "get x1": Metric("get, 1 thread", "1/s"),
    "get x8": Metric("get, 8 threads", "1/s"),
    "set x1": Metric("set, 1 thread", "1/s"),
    "set x8": Metric("set, 8 threads", "1/s"),
    "get 100": Metric("get of 100 keys, 1 thread", "calls/s"),
    "near": Metric("get, kept in the process", "1/s"),
    "hot": Metric("HOT updates under overwrite", "%"),
}


def _rate(call: Callable[[random.Random], Any], threads: int, seconds: float) -> float:
    """Let threads call for so long; return the calls a second of all of them."""
    done = [0] * threads
    start, stop = threading.Barrier(threads + 1), threading.Event()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        start.wait()
        try:
            while not stop.is_set():
                for _ in range(20):
                    call(chance)
                done[number] += 20
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    start.wait()
    began = time.monotonic()
    time.sleep(seconds)
    stop.set()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return sum(done) / (time.monotonic() - began)


Call = Callable[[random.Random], Any]


def _filled(cache: Cache, options: argparse.Namespace) -> dict[str, tuple[Call, int]]:
    """Fill a cache; return what is called for each metric, and in how many threads."""
    keys = [f"user:{number}:profile" for number in range(options.keys)]
    value = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=options.size))
    for key in keys:
        cache.set(key, value)
    for number in range(200):  # what is prepared after a few uses is prepared now
        cache.get(keys[number])

    def get(chance: random.Random) -> None:
        if cache.get(chance.choice(keys)) is None:
            raise SystemExit(f"{cache.name} has lost an entry")

    def set_(chance: random.Random) -> None:
        cache.set(chance.choice(keys), value)

    calls: dict[str, tuple[Call, int]] = {
        "get x1": (get, 1), "get x8": (get, 8), "set x1": (set_, 1), "set x8": (set_, 8),
    }  # fmt: skip
    with suppress(LookupError):
        cache.get_many(keys[:100])
        calls["get 100"] = lambda chance: cache.get_many(chance.sample(keys, 100)), 1
    with suppress(LookupError):
        near = cache.near()
        few = keys[:1000]
        for key in few:
            near(key)
        calls["near"] = lambda chance: near(chance.choice(few)), 1
    return calls


def _updates(url: str) -> tuple[int, int]:
    """Return how many updates the cache's table has had, and how many of them were HOT."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(
            "select coalesce(sum(n_tup_upd), 0)::bigint, coalesce(sum(n_tup_hot_upd), 0)::bigint"
            " from pg_stat_user_tables where relname = 'cache'"
        ).fetchone()
    assert row is not None
    return row


def main() -> None:
    """Measure what is asked for and print what came out."""
    options = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # unwinds: databases, servers
    caches = [CACHES[name]() for name in options.caches]
    with ExitStack() as stack:
        url = options.url or stack.enter_context(private_server())
        if "redis-py" in options.caches:
            os.environ["BENCHMARK_REDIS_URL"] = options.redis or stack.enter_context(redis_server())
        databases = stack.enter_context(Databases(url))
        machine = {
            "machine": f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}",
            "server": ", ".join(f"{name} {value}" for name, value in databases.settings().items()),
            "versions": ", ".join(f"{cache.name} {cache.version}" for cache in caches),
        }
        for key, text in (machine | {cache.name: cache.choices for cache in caches}).items():
            print(f"{key}: {text}", flush=True)
        results: Results = {cache.name: {} for cache in caches}
        calls, places = dict[str, dict[str, tuple[Call, int]]](), dict[str, str]()
        for cache in caches:
            places[cache.name] = stack.enter_context(databases.fresh(cache))  # type: ignore[arg-type]  # it is like a Peer
            cache.open(places[cache.name])
            stack.callback(cache.close)
            calls[cache.name] = _filled(cache, options)
        for metric in METRICS:
            for _ in range(options.rounds):
                for cache in caches:
                    if metric in calls[cache.name]:
                        call, threads = calls[cache.name][metric]
                        results[cache.name].setdefault(metric, []).append(_rate(call, threads, options.seconds))
            print(".", end="", file=sys.stderr, flush=True)
        if "pgeverything" in places:
            time.sleep(1.5)  # until the sessions have said what they did
            updates, hot = _updates(places["pgeverything"])
            results["pgeverything"]["hot"] = [100 * hot / updates]
        print(f"\nmedians of {options.rounds}; a ratio above 1 is in favour of {caches[0].name}")
        print(table(results, METRICS))
        _near(results)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


def _near(results: Results) -> None:
    """Say what a hit in the process's own memory is worth."""
    near, redis = results.get("pgeverything", {}).get("near"), results.get("redis-py", {}).get("get x1")
    if near and redis:
        print(
            f"a near hit is x {sorted(near)[len(near) // 2] / sorted(redis)[len(redis) // 2]:.0f} of a get by redis-py"
        )


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=_positive, default=20, help="turns of every cache")
    parser.add_argument("--seconds", type=float, default=0.25, help="length of a turn")
    parser.add_argument("--keys", type=_positive, default=10_000)
    parser.add_argument("--size", type=_positive, default=200, help="bytes of each value")
    parser.add_argument("--caches", nargs="+", choices=list(CACHES), default=list(CACHES), metavar="CACHE")
    parser.add_argument("--url", help="a PostgreSQL to use instead of a private one")
    parser.add_argument("--redis", help="the URL of a Redis to use instead of a private one; its database is emptied")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single value there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
