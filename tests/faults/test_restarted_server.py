"""Postgres is restarted under a working fleet: the workers survive, nothing is lost, nothing that ended runs again.

The server is the test's own, so that stopping it disturbs nobody.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgeverything import PgEverything, local
from tests import server

from .accounts import fetch, left_over, wait_until_done
from .conftest import prepare
from .fleet import Fleet, eventually
from .history import lost, read_journal

RESTARTS = int(os.environ.get("FAULTS_RESTARTS", "2"))
JOBS = 2000 * (RESTARTS + 1)


@pytest.fixture
def home() -> Iterator[Path]:
    """The directory of a server of the test's own; not under pytest's, which the server's account could not enter."""
    home = Path(tempfile.gettempdir()).resolve() / f"pgeverything-restarted-{secrets.token_hex(6)}"
    yield home
    local.stop(home)
    shutil.rmtree(home, ignore_errors=True)


def restart(home: Path, how: signal.Signals) -> None:
    """Stop the server by the signal its postmaster knows, and start it again."""
    running = local.ensure(home)
    os.kill(running.pid, how)
    eventually(lambda: local.status(home)[0].state == "stopped", "the server to end")
    assert local.ensure(home).url == running.url


def ended(url: str) -> int:
    return int(fetch(url, "select count(*) from pgeverything.finished")[0][0])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
def test_workers_survive_a_restart(home: Path, new_fleet: Callable[[str], Fleet], how: signal.Signals) -> None:
    url = server.create_database(local.ensure(home).url)
    prepare(url)
    tasks = ["journaled", "exact", "exact_in_thread", "exact"]
    numbers = {task: [n for n in range(JOBS) if tasks[n % 4] == task] for task in tasks}
    with PgEverything(url) as pg:
        for task, mine in numbers.items():
            pg.jobs.enqueue_many(task, [{"number": number} for number in mine])
    fleet = new_fleet(url)
    for _ in range(2):
        fleet.start(concurrency=10, lease="15s")  # longer than the server is away

    for _ in range(RESTARTS):
        enough = ended(url) + JOBS // 10
        eventually(lambda enough=enough: ended(url) >= enough, lambda: f"work to go on\n{fleet.logs()}")
        restart(home, how)
        assert ended(url) < JOBS, "everything had ended before the restart: this run has shown nothing"
    wait_until_done(fleet, within=60)
    assert all(process.poll() is None for process in fleet.processes), fleet.logs()
    fleet.drain()

    journal = Counter(effect.number for effect in read_journal(fleet.journal) if effect.kind == "effect")
    effects = Counter(number for (number,) in fetch(url, "select number from effects"))
    assert lost(numbers["journaled"], journal) == []
    assert {number: count for number, count in journal.items() if count > 1} == {}
    assert lost(numbers["exact"] + numbers["exact_in_thread"], effects) == []
    assert {number: count for number, count in effects.items() if count > 1} == {}
    assert fetch(url, "select state, count(*) from pgeverything.finished group by state") == [("succeeded", JOBS)]
    assert left_over(url) == {}


def test_a_server_that_is_away_for_longer_than_the_lease(home: Path, new_fleet: Callable[[str], Fleet]) -> None:
    """The only worker lets go; when the server is back it finds its jobs again and does them."""
    url = server.create_database(local.ensure(home).url)
    prepare(url)
    with PgEverything(url) as pg:
        pg.jobs.enqueue_many("gated", [{"number": number} for number in range(5)])
    fleet = new_fleet(url)
    fleet.start(lease="2s")
    eventually(lambda: len(read_journal(fleet.journal)) == 5, lambda: f"the jobs to begin\n{fleet.logs()}")
    os.kill(local.ensure(home).pid, signal.SIGINT)
    eventually(lambda: "letting go of 5 job(s)" in fleet.logs(), lambda: f"it to let go\n{fleet.logs()}")
    local.ensure(home)
    fleet.gate.touch()
    wait_until_done(fleet, within=60)
    fleet.drain()
    effects = Counter(effect.number for effect in read_journal(fleet.journal) if effect.kind == "effect")
    assert effects == dict.fromkeys(range(5), 1)
    assert fetch(url, "select state, count(*) from pgeverything.finished group by state") == [("succeeded", 5)]
    assert left_over(url) == {}
