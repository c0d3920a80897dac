"""Migrators at the same time, and one that is killed half way."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
from collections.abc import Callable

import psycopg

from pgeverything import PgEverything
from pgeverything.schema.migrate import migrations
from tests.waiting import eventually

from .accounts import fetch
from .fleet import REPOSITORY

TABLES = "select tablename from pg_tables where schemaname = 'pgeverything' order by 1"


def test_of_many_migrators_each_migration_has_one(new_database: Callable[[], str]) -> None:
    url = new_database()

    def migrate(_: int) -> list[int]:
        with PgEverything(url) as pg:
            return [migration.version for migration in pg.migrate()]

    with psycopg.connect(url) as gate, concurrent.futures.ThreadPoolExecutor(4) as threads:
        # None of them gets past the lock before all of them wait for it.
        gate.execute("select pg_advisory_xact_lock(hashtextextended('pgeverything migrate pgeverything', 0))")
        applied = threads.map(migrate, range(4))
        eventually(
            lambda: (
                fetch(
                    url,
                    "select count(*) from pg_locks l join pg_database d on d.oid = l.database"
                    " where d.datname = current_database() and locktype = 'advisory' and not granted",
                )
                == [(4,)]
            ),
            "four migrators to wait",
        )
        gate.commit()
        assert sorted(version for versions in applied for version in versions) == [m.version for m in migrations()]
    with PgEverything(url) as pg:
        assert pg.migrate() == []
        assert pg.jobs.enqueue("t").state == "ready"


def test_a_killed_migrator_leaves_nothing_half_done(new_database: Callable[[], str]) -> None:
    """It is killed in the middle of its first migration, where another session's table of the same name holds it up."""
    url = new_database()
    fetch(url, "create schema pgeverything")
    script = "import sys; from pgeverything import PgEverything; PgEverything(sys.argv[1]).migrate()"
    with psycopg.connect(url) as blocker:
        blocker.execute("create table pgeverything.waiting ()")
        migrator = subprocess.Popen([sys.executable, "-c", script, url], cwd=REPOSITORY)
        try:
            blocked = eventually(
                lambda: fetch(
                    url,
                    "select pid from pg_stat_activity where %s = any (pg_blocking_pids(pid))",
                    blocker.info.backend_pid,
                ),
                "the migrator to reach the table",
            )
        finally:
            migrator.kill()
            migrator.wait()
        blocker.rollback()
    eventually(
        lambda: not fetch(url, "select pid from pg_stat_activity where pid = %s", blocked[0][0]), "its backend to end"
    )
    assert fetch(url, TABLES) == []
    with PgEverything(url) as pg:
        assert [migration.version for migration in pg.migrate()] == [m.version for m in migrations()]
        assert pg.jobs.enqueue("t").state == "ready"
