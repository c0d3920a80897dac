"""Ticks in a fleet that is killed, and beside a server that goes away: each has one row and at most one job.

``FAULTS_TICKS`` is for how many seconds the fleet is killed (20), ``FAULTS_DOWN`` for how many the server is away (4).
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pgeverything import PgEverything, Tick, local
from pgeverything.scheduler.cron import Cron
from pgeverything.scheduler.definitions import Timing
from pgeverything.scheduler.recurrence import Recurrence, Zoned
from pgeverything.scheduler.zones import zone
from tests import server
from tests.waiting import eventually

from .accounts import fetch, wait_until_done
from .conftest import prepare
from .fleet import Fleet

KILLED = float(os.environ.get("FAULTS_TICKS", "20"))
DOWN = float(os.environ.get("FAULTS_DOWN", "4"))
SECOND = timedelta(seconds=1)


def now(url: str) -> datetime:
    return fetch(url, "select clock_timestamp()")[0][0]  # type: ignore[no-any-return]


def recurrence(pg: PgEverything, name: str) -> Recurrence:
    found = pg.scheduler.get(name)
    if found.cron is not None:
        return Zoned(Cron(found.cron, found.seconds), zone(found.timezone))
    return Timing(None, False, found.every, found.at, "UTC", found.start_at, found.end_at).recurrence


def account(pg: PgEverything, name: str, since: datetime, until: datetime) -> list[Tick]:
    """Return the rows of a schedule, after checking that they cover its ticks without a gap and without an overlap."""
    rows = [row for row in reversed(pg.scheduler.history(name, limit=100_000)) if row.outcome != "manual"]
    expected, ticks = since, recurrence(pg, name)
    for row in rows:
        assert row.since == ticks.next(expected), f"{name}: after {expected} comes {row}"
        assert row.count == ticks.count(expected, row.tick), f"{name}: {row}"
        expected = row.tick
    assert ticks.count(expected, until) == 0, f"{name}: nothing is known of the ticks after {expected}"
    return rows


def jobs_of(pg: PgEverything, url: str, name: str) -> dict[str, int]:
    """Return the job of each tick, by the tick that the job itself names."""
    rows = fetch(
        url, "select headers ->> 'tick', id from pgeverything.all_jobs where headers ->> 'schedule' = %s", name
    )
    assert len({tick for tick, _ in rows}) == len(rows), f"{name}: a tick has two jobs"
    return dict(rows)


def check_jobs(pg: PgEverything, url: str, name: str, rows: list[Tick]) -> None:
    """Check that every row that says so has its job, and that there is no other job."""
    jobs = jobs_of(pg, url, name)
    recorded = {row.tick: row.job_id for row in rows if row.outcome == "ran"}
    assert recorded == {datetime.fromisoformat(tick): job for tick, job in jobs.items()}, name


def test_each_tick_runs_once_while_workers_are_killed(
    url: str, pg: PgEverything, fleet: Fleet, chance: random.Random
) -> None:
    since = now(url)
    schedules: dict[str, dict[str, Any]] = {
        "interval": {"every": "1s", "misfire": "all"},
        "expression": {"cron": "* * * * * *", "seconds": True, "timezone": "Europe/Paris", "misfire": "all"},
        "spread": {"every": "1s", "misfire": "all", "jitter": "1s"},
        "coalesced": {"every": "1s", "misfire": "once"},
        "queued": {"every": "2s", "misfire": "all", "overlap": "queue"},
        "alone": {"every": "1s", "misfire": "all", "overlap": "skip"},
    }
    for name, options in schedules.items():
        pg.scheduler.add(name, "noted", {"number": 0}, **options)
        since = max(since, now(url))
    starts = {name: fetch(url, "select ticked_until from pgeverything.schedules where name = %s", name)[0][0]
              for name in schedules}  # fmt: skip
    options = {"lease": "6s", "concurrency": 10}
    for _ in range(4):
        fleet.start(**options)
    eventually(lambda: pg.scheduler.history("interval"), lambda: f"the first tick\n{fleet.logs()}")

    end = time.monotonic() + KILLED
    kills = 0
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.6, 1.4))  # the fault itself: a kill at no particular moment
        fleet.check()
        fleet.kill(chance.choice([process for process in fleet.processes if process.poll() is None]))
        fleet.start(**options)
        kills += 1
    for name in schedules:
        pg.scheduler.pause(name)
    fleet.check()
    wait_until_done(fleet)

    for name in schedules:
        until = fetch(url, "select ticked_until from pgeverything.schedules where name = %s", name)[0][0]
        rows = account(pg, name, starts[name], until)
        check_jobs(pg, url, name, rows)
        ran = sum(row.outcome == "ran" for row in rows)
        print(f"{name}: {sum(row.count for row in rows)} ticks, {ran} ran, {kills} kills")
        assert until > starts[name] + timedelta(seconds=KILLED / 2), f"{name} stood still: this run has shown nothing"
        if schedules[name]["misfire"] == "all" and name != "alone":
            assert {row.outcome for row in rows} == {"ran"}, name
    assert {row.outcome for row in pg.scheduler.history("alone")} <= {"ran", "overlap"}
    fleet.drain()


@pytest.fixture
def home() -> Iterator[Path]:
    """The directory of a server of the test's own; not under pytest's, which the server's account could not enter."""
    home = Path(tempfile.gettempdir()).resolve() / f"pgeverything-ticks-{secrets.token_hex(6)}"
    yield home
    local.stop(home)
    shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
def test_ticks_that_were_missed_while_the_database_was_down(
    home: Path, new_fleet: Callable[[str], Fleet], how: signal.Signals
) -> None:
    url = server.create_database(local.ensure(home).url)
    prepare(url)
    fleet = new_fleet(url)
    policies = {"run-all": "all", "run-once": "once", "skip": "skip"}
    with PgEverything(url) as pg:
        for name, misfire in policies.items():
            pg.scheduler.add(name, "noted", {"number": 0}, every="1s", misfire=misfire, grace="1s")  # type: ignore[arg-type]
        starts = dict(fetch(url, "select name, ticked_until from pgeverything.schedules"))
        for _ in range(2):
            fleet.start(lease="30s")
        eventually(lambda: fetch(url, "select count(*) from pgeverything.workers") == [(2,)], "two workers")
        eventually(lambda: len(pg.scheduler.history("skip")) > 1, lambda: f"ticks\n{fleet.logs()}")

    running = local.ensure(home)
    os.kill(running.pid, how)
    eventually(lambda: local.status(home)[0].state == "stopped", "the server to end")
    went = time.time()
    time.sleep(DOWN)  # the fault itself
    local.ensure(home)
    back = time.time()

    def caught_up() -> bool:
        rows = fetch(url, "select min(ticked_until) from pgeverything.schedules")
        return bool(rows[0][0].timestamp() > back + 1)

    eventually(caught_up, lambda: f"ticks after the restart\n{fleet.logs()}")
    with PgEverything(url) as pg:
        for name in policies:
            pg.scheduler.pause(name)
        fleet.check()
        wait_until_done(fleet)
        fates = {}
        for name in policies:
            until = fetch(url, "select ticked_until from pgeverything.schedules where name = %s", name)[0][0]
            rows = account(pg, name, starts[name], until)
            check_jobs(pg, url, name, rows)
            down = [row for row in rows if went + 1 < row.tick.timestamp() and row.since.timestamp() < back - 2]
            fates[name] = [row.outcome for row in down]
    assert set(fates["run-all"]) == {"ran"}
    assert len(fates["run-all"]) >= DOWN - 3
    assert fates["run-once"].count("misfire") == 1
    assert fates["skip"].count("misfire") == 1
    fleet.drain()
