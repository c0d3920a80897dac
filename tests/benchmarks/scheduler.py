"""What a tick costs with many schedules present, and how late jobs start, beside APScheduler.

    python3 -m venv .venv-bench
    .venv-bench/bin/pip install -e . -r tests/benchmarks/requirements.txt
    .venv-bench/bin/python tests/benchmarks/scheduler.py

Without `--url` it starts a server of its own and stops it at the end, as `job_queue.py` does. With `--url` it makes
databases named `pgeverything_bench_...` there and drops them; the role must be a superuser.

How it measures:

* Both have the same schedules in the database, 10,000 by default: most tick once a year, some once a second.
  APScheduler keeps them in its SQLAlchemyJobStore. Each takes its turn in every round, in a fresh database.
* Cost of a tick: one pass over what is due, from its first statement to its commit, divided by the number of ticks;
  with one due schedule and with a hundred. Only ours: APScheduler has no call for it.
* Start delay: from the nominal time, which is a full second, to the first line of the handler, in a process of its own
  for each. Ours goes through the job queue, which survives the process; APScheduler calls the function.
* APScheduler 3 must run once: two schedulers on one job store run every job twice. Ours runs once in any number of
  workers, so there is a third line with two of them.

Nothing here is a test: there is no time limit to meet, and pytest does not collect it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from report import Results, table
from scenarios import Metric
from server import private_server

from pgeverything import PgEverything
from pgeverything.engine.carriers import PsycopgCarrier
from pgeverything.engine.plan import drive
from pgeverything.scheduler.tick import tick

METRICS = {
    "commit": Metric("for comparison: one insert and its commit", "ms", lower_is_better=True),
    "one": Metric("a due tick, one at a time", "ms", lower_is_better=True),
    "hundred": Metric("a due tick, a hundred at once", "ms", lower_is_better=True),
    "p50": Metric("start delay p50", "ms", lower_is_better=True),
    "p99": Metric("start delay p99", "ms", lower_is_better=True),
}
PASSES = 200


def main() -> None:
    """Run what was asked for and print what came out."""
    options = _arguments()
    if options.role:
        ROLES[options.role](options)
        return
    with ExitStack() as stack:
        url = options.url or stack.enter_context(private_server())
        results: Results = {name: {} for name in ("pgeverything", "apscheduler", "pgeverything x 2")}
        for _ in range(options.rounds):
            with database(url) as fresh:
                prepare(fresh, options)
                costs = {
                    "commit": commit(fresh),
                    "one": cost(fresh, options.schedules, 1),
                    "hundred": cost(fresh, options.schedules, 100),
                }
            _note(results, "pgeverything", costs)
            for name, role, processes in (
                ("pgeverything", "worker", 1),
                ("apscheduler", "apscheduler", 1),
                ("pgeverything x 2", "worker", 2),
            ):
                with database(url) as fresh:
                    if role == "worker":
                        prepare(fresh, options)
                    _note(results, name, delays(fresh, role, processes, options))
        print(f"\nmedians of {options.rounds}; {options.schedules} schedules, {options.busy} of them every second")
        print(table(results, METRICS))


def _note(results: Results, name: str, numbers: dict[str, float]) -> None:
    print(
        f"{name}: " + ", ".join(f"{METRICS[metric].label} {value:.2f} ms" for metric, value in numbers.items()),
        flush=True,
    )
    for metric, value in numbers.items():
        results[name].setdefault(metric, []).append(value)


@contextmanager
def database(url: str) -> Iterator[str]:
    """Make a database, and drop it afterwards."""
    name = f"pgeverything_bench_{secrets.token_hex(6)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        yield make_conninfo(url, dbname=name)
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def prepare(url: str, options: argparse.Namespace) -> None:
    """Make the schedules: some every second, the others on the first of January."""
    with PgEverything(url) as pg:
        pg.migrate()
        with pg.transaction() as tx:
            for n in range(options.schedules):
                when: dict[str, Any] = (
                    {"cron": "* * * * * *", "seconds": True} if n < options.busy else {"cron": "0 0 1 1 *"}
                )
                tx.scheduler.add(f"s{n}", "work", timezone="Europe/Paris", misfire="all", **when)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("vacuum analyze")
        connection.execute("checkpoint")


# Cost of a tick -------------------------------------------------------------------------------------------------------


def cost(url: str, schedules: int, due: int) -> float:
    """Return the milliseconds that a tick takes, with so many schedules due at once: the median of the passes."""
    took = []
    with psycopg.connect(url, autocommit=True) as connection, psycopg.connect(url, autocommit=True) as other:
        carrier = PsycopgCarrier(connection, "pgeverything")
        while drive(carrier, tick()).acted:  # those of every second, and the session's plans
            pass
        passes = PASSES // due + 5
        for n in range(passes):
            first = schedules - 1 - n * due
            names = [f"s{first - k}" for k in range(due)]
            other.execute(
                "update pgeverything.schedules set next_tick = t.at, next_run_at = t.at"
                " from (select clock_timestamp() - interval '1 ms' as at) t where name = any (%s)",
                [names],
            )
            other.execute("update pgeverything.schedules set next_run_at = 'infinity' where name <> all (%s)"
                          " and next_run_at < clock_timestamp() + interval '1 hour'", [names])  # fmt: skip
            began = time.perf_counter()
            done = drive(carrier, tick())
            took.append(time.perf_counter() - began)
            assert done.acted == due, done
    return median(took) * 1000 / due


def commit(url: str) -> float:
    """Return the milliseconds that the smallest durable transaction takes: what a tick costs at least."""
    took = []
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table smallest (n integer)")
        for n in range(PASSES):
            began = time.perf_counter()
            with connection.transaction():
                connection.execute("insert into smallest values (%s)", [n])
            took.append(time.perf_counter() - began)
    return median(took) * 1000


# Start delay ----------------------------------------------------------------------------------------------------------


def delays(url: str, role: str, processes: int, options: argparse.Namespace) -> dict[str, float]:
    """Run processes of that role for a while, and return how late their handlers started."""
    command = [sys.executable, __file__, "--role", role, "--url", url, "--seconds", str(options.seconds)]
    command += ["--schedules", str(options.schedules), "--busy", str(options.busy)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    found = sorted(delay for process in running for delay in json.loads(process.communicate()[0]))
    expected = options.busy * (options.seconds - 5)
    if len(found) < expected:
        raise AssertionError(f"{role}: {len(found)} starts, at least {expected} were to come")
    return {"p50": found[len(found) // 2] * 1000, "p99": found[int(len(found) * 0.99)] * 1000}


_SEEN: list[float] = []
"""Seconds past the full second at which handlers started."""


async def work() -> None:
    """The handler: says how long after the full second it is."""
    _SEEN.append(time.time() % 1.0)


def _worker(options: argparse.Namespace) -> None:
    pg = PgEverything(options.url)
    pg.task(name="work")(work)

    async def run() -> None:
        worker = pg.worker(concurrency=50)
        serving = asyncio.create_task(worker.serve())
        await asyncio.sleep(2)
        _SEEN.clear()  # what was overdue, and the start of a process
        await asyncio.sleep(options.seconds - 2)
        seen = list(_SEEN)
        worker.stop()
        await serving
        print(json.dumps(seen))

    asyncio.run(run())


def _apscheduler(options: argparse.Namespace) -> None:
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
    from apscheduler.schedulers.asyncio import AsyncIOScheduler
    from sqlalchemy import URL

    params = conninfo_to_dict(options.url)
    url = URL.create(
        "postgresql+psycopg",
        username=params.get("user"),
        database=params.get("dbname"),
        query={"host": str(params["host"]), "port": str(params.get("port", 5432))},
    )

    async def run() -> None:
        scheduler = AsyncIOScheduler(jobstores={"default": SQLAlchemyJobStore(url=url)}, timezone=UTC)
        scheduler.start(paused=True)
        for n in range(options.schedules):
            when = {"second": "*"} if n < options.busy else {"month": 1, "day": 1, "hour": 0, "minute": 0}
            scheduler.add_job("scheduler:work", "cron", id=f"s{n}", timezone="Europe/Paris", **when)
        scheduler.resume()
        await asyncio.sleep(2)
        module = sys.modules["scheduler"]  # where its text reference finds the handler
        module._SEEN.clear()
        await asyncio.sleep(options.seconds - 2)
        print(json.dumps(list(module._SEEN)))
        scheduler.shutdown(wait=False)

    sys.path.insert(0, str(Path(__file__).parent))
    asyncio.run(run())


ROLES = {"worker": _worker, "apscheduler": _apscheduler}


def _arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="turns of each")
    add("--schedules", type=int, default=10_000, help="how many there are")
    add("--busy", type=int, default=10, help="how many of them tick every second")
    add("--seconds", type=int, default=30, help="for how long start delays are measured")
    add("--url", help="a server to use instead of a private one")
    add("--role", choices=ROLES, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
