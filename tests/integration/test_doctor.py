"""The health check: each thing that can go wrong is made to go wrong, and found; and all is well when nothing is."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgeverything import AsyncPgEverything, PgEverything, Reject, local
from pgeverything.doctor import modules, vacuum
from tests import pgbouncer

from .health import only, open_transaction, wrong

Database = psycopg.Connection[Any]

_WORKER = """insert into pgeverything.workers (id, name, queues, concurrency, started_at, heartbeat_at, lease, refused)
             values (%s, %s, '{default}', 4, now(), now() - %s::interval, '30 seconds', %s)"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is open for a moment has been open for too long."""
    for module, names in ((vacuum, ("PATIENCE", "LONG", "WAIT")), (modules, ("SLOW", "STALLED"))):
        for name in names:
            monkeypatch.setattr(module, name, 0.0)


# All is well ------------------------------------------------------------------------------------------------------


@pgbouncer.needs_a_session("it is found, which is another test's")
def test_all_is_well(pg: PgEverything) -> None:
    pg.jobs.enqueue("t")
    pg.worker(queues=["default"]).run(until_idle=True)
    health = pg.doctor()

    assert wrong(health) == {"dead letters": "warning"}  # nobody knows the task
    assert health.migrated
    assert health["listen"].found.startswith("notifications arrive")
    assert len({each.name for each in health.checks}) == len(health.checks) > 25


@pgbouncer.needs_a_session("it is found, which is another test's")
async def test_asyncio_is_told_the_same(url: str, pg: PgEverything) -> None:
    async with AsyncPgEverything(url) as apg:
        told = await apg.doctor()

    blocking = await asyncio.to_thread(pg.doctor)
    assert [(each.name, each.verdict) for each in told.checks] == [(e.name, e.verdict) for e in blocking.checks]


async def test_it_may_block_within_an_event_loop(pg: PgEverything) -> None:
    assert pg.doctor().migrated


def test_a_pool_and_an_engine_are_examined(url: str, db: Database) -> None:
    from psycopg_pool import ConnectionPool
    from sqlalchemy import create_engine

    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    with ConnectionPool(url, min_size=1, open=True) as pool, PgEverything(pool) as one, PgEverything(engine) as two:
        assert one.doctor().migrated
        assert two.doctor().migrated
    engine.dispose()


# The server ---------------------------------------------------------------------------------------------------------


def test_a_server_that_is_not_there() -> None:
    health = PgEverything("postgresql://127.0.0.1:1/nowhere").doctor()
    (check,) = health.checks

    assert (check.name, health.verdict, health.migrated, health.ok) == ("server", "problem", None, False)
    assert "127.0.0.1" in check.found


@pgbouncer.needs_a_session("a session of the pool has the settings that it began with")
@pytest.mark.parametrize(
    ("setting", "name", "verdict"),
    [
        ("synchronous_commit = off", "durability", "warning"),
        ("default_transaction_isolation = 'serializable'", "session", "problem"),
        ("default_transaction_read_only = on", "session", "problem"),
    ],
)
def test_settings_that_are_not_for_us(pg: PgEverything, db: Database, setting: str, name: str, verdict: str) -> None:
    with changed_database(db, f"set {setting}", f"reset {setting.split(maxsplit=1)[0]}"):
        check = pg.doctor()[name]

    if name != "durability":  # where fsync is off, that is said instead
        assert check.verdict == verdict
        assert setting.split(maxsplit=1)[0] in check.found
    assert check.figures[setting.split(maxsplit=1)[0]] == setting.split()[2].strip("'")


@contextmanager
def changed_database(db: Database, change: str, back: str) -> Iterator[None]:
    name = sql.Identifier(db.info.dbname)
    db.execute(sql.SQL("alter database {} ").format(name) + sql.SQL(change))  # type: ignore[arg-type]
    try:
        yield
    finally:
        db.execute(sql.SQL("alter database {} ").format(name) + sql.SQL(back))  # type: ignore[arg-type]


def test_a_test_server_that_may_lose_everything_is_told_so(pg: PgEverything, db: Database) -> None:
    fsync = db.execute("select current_setting('fsync')").fetchone()
    check = pg.doctor()["durability"]

    assert check.verdict == ("problem" if fsync == ("off",) else "ok")


def test_a_standby(home: Path) -> None:
    server = local.ensure(home, durable=False)
    with PgEverything(server.url) as pg:
        pg.migrate()
    local.stop(home)
    signal = server.data_dir / "standby.signal"
    signal.touch()
    os.chown(signal, server.data_dir.stat().st_uid, server.data_dir.stat().st_gid)
    with PgEverything(local.ensure(home, durable=False).url) as pg:
        health = pg.doctor()

    found = {each.name: each.verdict for each in health.checks if each.verdict != "ok" and each.name != "durability"}
    # The cache's table is unlogged, and how far the log is only the primary knows.
    assert found == {"server": "problem", "listen": "warning", "subscriptions": "unknown", "cache": "unknown"}
    assert health["server"].fix == "connect to the primary"


def test_connections_that_run_out(pg: PgEverything, db: Database) -> None:
    used = pg.doctor()["connections"].figures["the server"]["used"]
    assert used >= 2
    with changed_database(db, "connection limit 2", "connection limit -1"):
        check = pg.doctor()["connections"]

    assert check.verdict == "problem"
    assert f"of 2 connections of database {db.info.dbname} are used" in check.found


def pgbouncer_version() -> tuple[int, ...]:
    assert pgbouncer.PROGRAM is not None
    said = subprocess.run([pgbouncer.PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, said.split()[1].split(".")[:2]))


def test_behind_a_pooler(
    through: Callable[[str], str], direct_url: str, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGEVERYTHING_PREPARE", raising=False)
    with PgEverything(through(direct_url)) as pg:
        health = pg.doctor()

    assert health["listen"].verdict == "warning"
    assert health["pooler"].figures["pooled"] is True
    # From 1.21 on it knows prepared statements, and from 1.24 on it is told to.
    if pgbouncer_version() < (1, 21):
        assert (health["pooler"].verdict, health["pooler"].figures["prepares"]) == ("problem", False)
    elif pgbouncer_version() >= (1, 24):
        assert health["pooler"].figures["prepares"] is True
    assert health["schema"].verdict == "ok"


def test_behind_a_pooler_without_prepared_statements(
    through: Callable[[str], str], direct_url: str, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGEVERYTHING_PREPARE", "off")
    with PgEverything(through(direct_url)) as pg:
        assert pg.doctor()["pooler"].verdict == "ok"


# What holds vacuum back, and locks ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
def test_a_program_that_forgot_to_commit(pg: PgEverything, db: Database, url: str) -> None:
    assert pg.doctor()["vacuum"].verdict == "ok"
    with open_transaction(url, "create temp table t ()", application_name="forgetful") as open_:
        check = only(pg.doctor(), "vacuum")
        if not pgbouncer.EVERYWHERE:  # which has numbers of its own for sessions
            assert f"pid {open_.info.backend_pid} (" in check.found

    assert check.verdict == "problem"
    assert "forgetful) is idle in transaction for" in check.found
    assert "create temp table" in check.found
    assert "pg_terminate_backend" in (check.fix or "")


@pytest.mark.usefixtures("impatient")
def test_a_publisher_that_does_not_end(pg: PgEverything, db: Database, url: str) -> None:
    with psycopg.connect(url) as connection:
        pg.on(connection).events.append("t", 1)
        health = pg.doctor()
        connection.rollback()

    assert wrong(health) == {"vacuum": "problem", "events": "problem"}
    assert "has published, and holds readers back at position" in health["events"].found


def test_a_moment_is_no_problem(pg: PgEverything, db: Database, url: str) -> None:
    with open_transaction(url, "create temp table t ()"):
        assert wrong(pg.doctor()) == {}


@pytest.mark.usefixtures("impatient")
def test_a_slot_that_nobody_reads(pg: PgEverything, db: Database, server_url: str) -> None:
    name = f"slot_{db.info.dbname[-16:]}"
    db.execute("select pg_create_physical_replication_slot(%s, true)", [name])
    try:
        check = only(pg.doctor(), "vacuum")
    finally:
        db.execute("select pg_drop_replication_slot(%s)", [name])

    assert check.verdict == "warning"
    assert f"replication slot '{name}' (physical) is inactive" in check.found
    assert "pg_drop_replication_slot" in (check.fix or "")


@pytest.mark.usefixtures("impatient")
def test_who_waits_for_whom(pg: PgEverything, db: Database, url: str) -> None:
    insert = "insert into pgeverything.queues (name) values ('q')"
    with open_transaction(url, insert) as holder, psycopg.connect(url) as waiter:
        waiting = threading.Thread(target=waiter.execute, args=[insert])
        waiting.start()
        deadline = time.monotonic() + 30
        while (check := pg.doctor()["locks"]).verdict == "ok" and time.monotonic() < deadline:
            pass
        holder.rollback()
        waiting.join()
        if not pgbouncer.EVERYWHERE:
            assert f"pid {waiter.info.backend_pid} (" in check.found
            assert f"for pid {holder.info.backend_pid} (" in check.found
        waiter.rollback()

    assert check.verdict == "problem"


def test_a_table_that_somebody_has_locked_keeps_nobody_waiting(pg: PgEverything, db: Database, url: str) -> None:
    with open_transaction(url, "lock table pgeverything.workers"):
        health = pg.doctor()

    assert health["workers"].verdict == "problem"
    assert "a table is locked" in health["workers"].found
    assert health["cache"].verdict == "ok"


# Workers ------------------------------------------------------------------------------------------------------------


def test_a_silent_worker(pg: PgEverything, db: Database) -> None:
    db.execute(_WORKER, (1, "fresh", "1 second", 0))
    assert pg.doctor()["workers"].figures == {"alive": 1, "silent": []}
    db.execute(_WORKER, (2, "stale", "5 minutes", 0))
    check = only(pg.doctor(), "workers")

    assert check.verdict == "problem"
    assert re.search(r"worker stale was last heard 3\d\d s ago", check.found)


def test_a_worker_whose_results_came_too_late(pg: PgEverything, db: Database) -> None:
    db.execute(_WORKER, (1, "slow", "1 second", 3))
    check = only(pg.doctor(), "leases")

    assert check.verdict == "warning"
    assert "3 result(s) of worker slow" in check.found


def test_a_job_that_takes_workers_down(pg: PgEverything, db: Database) -> None:
    job = pg.jobs.enqueue("poison")
    db.execute(_WORKER, (1, "next", "1 second", 0))
    db.execute(
        "insert into pgeverything.running (job, token, worker, queue, attempt, crashes, started_at)"
        " values (%s, 1, 1, 'default', 1, 2, now())",
        [job.id],
    )
    db.execute("delete from pgeverything.ready")
    check = only(pg.doctor(), "crashes")

    assert check.verdict == "warning"
    assert f"job {job.id} (poison) 2 time(s)" in check.found


def test_nobody_sweeps(pg: PgEverything, db: Database) -> None:
    db.execute("delete from pgeverything.sweeps")
    db.execute("insert into pgeverything.sweeps values ('cache', now(), now() - interval '1 hour')")
    try:
        alone = only(pg.doctor(), "maintenance")
        db.execute(_WORKER, (1, "idle", "1 second", 0))
        lazy = only(pg.doctor(), "maintenance")
    finally:
        db.execute("delete from pgeverything.sweeps")

    assert (alone.verdict, alone.fix) == ("warning", "start a worker")
    assert (lazy.verdict, lazy.found) == ("problem", "workers live and do not sweep; overdue: cache by 60 min")


# Queues -------------------------------------------------------------------------------------------------------------


def test_work_that_nobody_takes(pg: PgEverything, db: Database) -> None:
    pg.jobs.enqueue("t", queue="lonely")
    assert wrong(pg.doctor()) == {}
    db.execute("update pgeverything.jobs set created_at = created_at - interval '1 minute'")
    check = only(pg.doctor(), "queues")
    assert check.verdict == "problem"
    assert re.search(r"queue 'lonely' has work that is \d+ s old and no live worker", check.found)
    db.execute("update pgeverything.jobs set created_at = created_at - interval '17 minutes'")
    assert "has work that is 18 min old" in only(pg.doctor(), "queues").found

    pg.jobs.pause("lonely")
    check = only(pg.doctor(), "paused")
    assert (check.verdict, check.figures["jobs"]) == ("warning", {"lonely": 1})


def test_work_that_waits_too_long(pg: PgEverything, db: Database) -> None:
    pg.jobs.enqueue("t")
    db.execute(_WORKER, (1, "busy", "1 second", 0))
    assert wrong(pg.doctor()) == {}
    db.execute("update pgeverything.jobs set created_at = created_at - interval '10 minutes'")
    check = only(pg.doctor(), "backlog")

    assert check.verdict == "warning"
    assert check.found == "the oldest ready job of queue 'default' is 10 min old"


def test_a_job_that_waited_for_its_time_is_no_backlog(pg: PgEverything, db: Database) -> None:
    pg.jobs.enqueue("t", delay="1h")
    db.execute(_WORKER, (1, "busy", "1 second", 0))
    db.execute("update pgeverything.jobs set created_at = created_at - interval '1 day'")
    db.execute("update pgeverything.scheduled set due_at = now()")
    db.execute("select pgeverything.advance(10)")

    assert pg.jobs.counts()["ready"] == 1
    assert wrong(pg.doctor()) == {}


def test_a_full_queue(pg: PgEverything) -> None:
    pg.jobs.configure("small", max_depth=2, on_full="drop")
    pg.jobs.enqueue("t", queue="small")
    assert wrong(pg.doctor()) == {}
    pg.jobs.enqueue("t", queue="small")
    check = only(pg.doctor(), "limits")

    assert check.verdict == "warning"
    assert check.found == "queue 'small' is full at 2: new jobs are dropped"


def test_jobs_that_die(pg: PgEverything, db: Database) -> None:
    @pg.task()
    def broken() -> None:
        raise Reject("no such account")

    broken.enqueue_many([(), ()])
    pg.worker(listen=False).run(until_idle=True)
    check = only(pg.doctor(), "dead letters")
    assert check.verdict == "warning"
    assert "2 job(s) died in the last hour, 2 are dead; most often broken" in check.found

    db.execute("update pgeverything.jobs set died_at = died_at - interval '2 hours'")
    health = pg.doctor()
    assert wrong(health) == {}
    assert health["dead letters"].figures["total"] == 2
