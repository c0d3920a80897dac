"""Postgres is restarted under a working fleet: the workers survive, nothing is lost, nothing that ended runs again.

The server is the test's own, so that stopping it disturbs nobody.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from pgeverything import PgEverything, local
from tests import server
from tests.waiting import eventually

from .accounts import fetch, left_over, wait_until_done
from .conftest import prepare
from .fleet import Fleet
from .history import lost, read_journal
from .sessions import Sessions

RESTARTS = int(os.environ.get("FAULTS_RESTARTS", "2"))
JOBS = 2000 * (RESTARTS + 1)


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
    # Both at work before the first stop: a worker whose very first connection is refused ends, as it should.
    eventually(lambda: fetch(url, "select count(*) from pgeverything.workers")[0][0] == 2, fleet.logs)

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


@pytest.mark.parametrize("hardened", [True, False], ids=["hardened", "not-yet"])
def test_a_crash_before_a_claim_is_durable_leaves_the_job_in_line(home: Path, hardened: bool) -> None:
    url = server.create_database(local.ensure(home).url)
    prepare(url)
    with Sessions(url) as sessions:
        session = sessions.open()
        worker, job = session.register(), session.tx.jobs.enqueue("t").id
        ((writer,),) = session.sql("select pid from pg_stat_activity where backend_type = 'walwriter'")
        os.kill(writer, signal.SIGSTOP)  # it would write the claim soon
        claimed = session.claim(worker, soon=True)
        if hardened:
            session.run("harden", worker=worker)
        os.kill(writer, signal.SIGKILL)  # for the server a crash: it throws away what is not on disk
        with pytest.raises(psycopg.OperationalError):
            session.sql("select pg_sleep(60)")

    def back() -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            return fetch(url, "select 1") == [(1,)]
        return False

    eventually(back, "the server to recover")
    with Sessions(url) as sessions:
        session = sessions.open()
        assert claimed == [(job, job)]
        assert session.sql("select job from pgeverything.running") == ([(job,)] if hardened else [])
        assert session.finish(worker, claimed) == ([job] if hardened else [])
        assert session.claim(worker) == ([] if hardened else claimed)


@pytest.mark.parametrize(("soon", "key", "commit"), [(True, None, "off"), (True, "k", "on"), (False, None, "on")])
def test_a_claim_that_does_not_wait_for_the_disk_is_of_jobs_without_an_ordering_key(
    pg: PgEverything, sessions: Sessions, soon: bool, key: str | None, commit: str
) -> None:
    session = sessions.open()
    worker = session.register()
    pg.jobs.enqueue("t")
    pg.jobs.enqueue("t", ordering_key=key)
    session.advance()
    session.sql("set synchronous_commit = on")
    session.begin()
    assert len(session.claim(worker, soon=soon)) == 2
    assert session.sql("show synchronous_commit") == [(commit,)]
    session.commit()
    assert session.sql("show synchronous_commit") == [("on",)]


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
