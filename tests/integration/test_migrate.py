"""Migrations: from nothing, twice, by two at once, by hand; and schemas that are older, newer or somebody else's."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgeverything import AsyncPgEverything, ConfigurationError, NotMigrated, PgEverything, SchemaError, SchemaTooNew
from pgeverything.local import binaries
from pgeverything.schema import migrate
from pgeverything.schema.migrate import Migration
from tests.catalog import describe
from tests.integration import carriers
from tests.waiting import eventually

LATEST = migrate.migrations()[-1].version
ODD_NAMES = [
    'quo"te',
    "apo'strophe",
    "Mixed Case and spaces",
    "100%",
    "%(name)s %s %%",
    "pgeverything.dotted",
    "'pgeverything'",
    "schema_name",
    "select",
    "back\\slash",
    "dollar$1",
    "колонна",
    "队列",
    "x" * 63,
    "ß" * 31,
]


@pytest.fixture
def empty(new_database: Callable[[], str]) -> str:
    """The URL of an empty database."""
    return new_database()


@pytest.fixture
def connection(empty: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(empty, autocommit=True) as connection:
        yield connection


@pytest.fixture
def role(server_url: str) -> Iterator[str]:
    """A role that may log in and do nothing else."""
    name = f"pgeverything_test_{os.getpid()}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"create role {name} login password 'secret'")
        yield name
        connection.execute(f"drop role {name}")


def as_role(url: str, role: str) -> str:
    """Return the URL with everything done as that role: the server's login method does not matter."""
    return psycopg.conninfo.make_conninfo(url, options=f"-c role={role}")


def newer(monkeypatch: pytest.MonkeyPatch, text: str, breaking: bool = False) -> Migration:
    """Give the library one migration more."""
    known = migrate.migrations()
    migration = Migration(LATEST + 1, "one_more", breaking, text)
    monkeypatch.setattr(migrate, "migrations", lambda: (*known, migration))
    return migration


def test_from_nothing_and_again(empty: str, connection: psycopg.Connection[Any]) -> None:
    with PgEverything(empty) as pg:
        assert [step.applied_at for step in pg.migration_status()] == [None] * len(migrate.migrations())
        assert pg.migrate() == list(migrate.migrations())
        before = describe(connection, "pgeverything")
        assert all(step.applied_at for step in pg.migration_status())
        assert pg.migrate() == []
        assert describe(connection, "pgeverything") == before
        assert pg.jobs.enqueue("t").state == "ready"


async def test_from_nothing_and_again_in_asyncio(empty: str) -> None:
    async with AsyncPgEverything(empty) as pg:
        assert await pg.migrate() == list(migrate.migrations())
        assert await pg.migrate() == []
        applied = [step.version for step in await pg.migration_status() if step.applied_at]
        assert applied == [migration.version for migration in migrate.migrations()]


def test_two_at_once_and_one_does_it(empty: str, connection: psycopg.Connection[Any]) -> None:
    def migrated(_: int) -> list[Migration]:
        with PgEverything(empty) as pg:
            return pg.migrate()

    with ThreadPoolExecutor(4) as threads, psycopg.connect(empty) as holder:
        holder.execute(
            "select pg_advisory_xact_lock(hashtextextended('pgeverything migrate ' || %s, 0))", ["pgeverything"]
        )
        results = threads.map(migrated, range(4))
        waiting = "select count(*) = 4 from pg_stat_activity where wait_event_type = 'Lock'"
        eventually(lambda: connection.execute(waiting).fetchone() == (True,))
        holder.rollback()
        applied = [step for steps in results for step in steps]

    assert sorted(applied, key=lambda step: step.version) == list(migrate.migrations())  # they may take turns


@pytest.mark.parametrize("schema", ["pgeverything", 'O\'Brien "100%"'])
def test_the_script_for_psql_makes_the_same_schema(
    new_database: Callable[[], str], tmp_path: Path, schema: str
) -> None:
    by_hand, by_library = new_database(), new_database()
    script = tmp_path / "migrate.sql"
    script.write_text(migrate.script(schema), "utf-8")
    command = [psql(), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={script}", by_hand]

    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    with PgEverything(by_library, schema=schema) as pg:
        pg.migrate()

    with psycopg.connect(by_hand) as one, psycopg.connect(by_library) as other:
        assert describe(one, schema) == describe(other, schema)
    with PgEverything(by_hand, schema=schema) as pg:
        assert pg.migrate() == []
        assert pg.jobs.enqueue("t").state == "ready"


def psql() -> str:
    """Return the program's path: the one on the PATH, or the one beside the local server's."""
    return shutil.which("psql") or str(binaries.find_binaries([]).directory / "psql")


def test_a_script_can_begin_behind_what_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    newer(monkeypatch, "create table pgeverything.more ();\n")

    text = migrate.script("pgeverything", after=LATEST)

    assert "create table pgeverything.more ();" in text
    assert "pgeverything.jobs" not in text
    assert text.startswith("begin;")
    assert text.rstrip().endswith("commit;")


def test_an_older_schema_is_refused_and_names_the_command(
    url: str, pg: PgEverything, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer(monkeypatch, "")

    with pytest.raises(NotMigrated, match=r"lacks 1 migration.*`pgeverything migrate`"):
        pg.jobs.enqueue("t")
    with pytest.raises(NotMigrated, match="`pgeverything migrate`"):
        pg.worker().run(until_idle=True)


def test_a_newer_schema_works_unless_it_broke_something(pg: PgEverything, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        try:
            connection.execute(f"insert into pgeverything.migrations values ({LATEST + 1}, 'later', false)")
            assert pg.jobs.enqueue("t").state == "ready"
            assert [step.name for step in pg.migration_status()][-1] == "later"
            assert pg.migrate() == []

            connection.execute(f"insert into pgeverything.migrations values ({LATEST + 2}, 'much_later', true)")
            with PgEverything(url) as late, pytest.raises(SchemaTooNew, match=r"much_later.*upgrade"):
                late.jobs.enqueue("t")
            with pytest.raises(SchemaTooNew, match="much_later"):
                pg.migrate()
        finally:
            connection.execute(f"delete from pgeverything.migrations where version > {LATEST}")


def test_a_failing_migration_leaves_nothing(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with PgEverything(empty) as pg, psycopg.connect(empty, autocommit=True) as connection:
        pg.migrate()
        before = describe(connection, "pgeverything")
        newer(monkeypatch, "create table pgeverything.half ();\nselect 1 / 0;\n")

        with pytest.raises(psycopg.errors.DivisionByZero):
            pg.migrate()

        assert describe(connection, "pgeverything") == before
        assert pg.migration_status()[-1].applied_at is None


def test_a_first_migration_that_fails_leaves_no_schema(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "migrations", lambda: (Migration(1, "bad", False, "select 1 / 0"),))

    with PgEverything(empty) as pg, pytest.raises(psycopg.errors.DivisionByZero):
        pg.migrate()

    with psycopg.connect(empty) as connection:
        assert connection.execute("select to_regnamespace('pgeverything')").fetchone() == (None,)


def test_a_role_that_may_not_create_is_told_what_to_do(empty: str, role: str) -> None:
    fix = rf"role '{role}' may not create.*`pgeverything migrate` as its owner.*`pgeverything migrate --sql`"
    with PgEverything(as_role(empty, role)) as pg, pytest.raises(SchemaError, match=fix):
        pg.migrate()


def test_a_role_that_may_not_look_is_told_too(new_database: Callable[[], str], role: str) -> None:
    url = new_database()
    with PgEverything(url) as owner:
        owner.migrate()
    with PgEverything(as_role(url, role)) as pg, pytest.raises(SchemaError, match=r"permission denied.*roles\.md"):
        pg.jobs.enqueue("t")


def test_a_schema_made_by_the_administrator_is_enough(
    empty: str, connection: psycopg.Connection[Any], role: str
) -> None:
    connection.execute(sql.SQL("create schema pgeverything authorization {}").format(sql.Identifier(role)))

    with PgEverything(as_role(empty, role)) as pg:
        assert pg.migrate() == list(migrate.migrations())
        assert pg.jobs.enqueue("t").state == "ready"

    connection.execute("drop schema pgeverything cascade")


@pytest.mark.parametrize("schema", ODD_NAMES)
def test_odd_names(empty: str, schema: str) -> None:
    with PgEverything(empty, schema=schema) as pg:
        pg.migrate()
        done = []

        @pg.task()
        def note(number: int) -> int:
            done.append(number)
            return number

        job = note.enqueue(7)
        line = note.options(ordering_key="key").enqueue(8)
        later = note.options(delay="1h").enqueue(9)
        pg.worker(poll="50ms").run(until_idle=True)

        assert sorted(done) == [7, 8]
        assert pg.jobs.get(job.id).result == 7
        assert pg.jobs.get(line.id).state == "succeeded"
        assert [each.id for each in pg.jobs.list(state="scheduled")] == [later.id]
        assert "due in" in pg.jobs.why(later.id)
        with psycopg.connect(empty, autocommit=True) as connection:
            home = sql.Identifier(schema)
            days = connection.execute(
                sql.SQL("select * from {}.maintain_partitions(9, '1 day')").format(home)
            ).fetchone()
            assert days == (4, 0)  # two days more, of finished jobs and of failures
            assert connection.execute("select to_regnamespace('pgeverything')").fetchone() == (None,)


@pytest.mark.parametrize(
    "schema", ["", "x" * 64, "ß" * 32, "pg_mine", "nul\0", "line\nbreak", "tab\t", "two$$dollars", "\ud800", None, 7]
)
def test_bad_names_are_refused_before_anything_is_connected(schema: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot name a schema"):
        PgEverything("postgresql://nowhere.invalid/none", schema=schema)


def test_two_schemas_in_one_database_do_not_meet(empty: str) -> None:
    with PgEverything(empty, schema="one") as one, PgEverything(empty, schema="two") as two:
        seen: list[tuple[str, int]] = []
        arrived = threading.Event()

        def handler_of(name: str) -> Callable[[int], None]:
            def handle(number: int) -> None:
                seen.append((name, number))
                arrived.set()

            return handle

        for name, pg in (("one", one), ("two", two)):
            pg.migrate()
            pg.task(name="t")(handler_of(name))
        one.jobs.enqueue("t", {"number": 1}, unique_key="k")
        two.jobs.enqueue("t", {"number": 2}, unique_key="k")
        one.jobs.pause("default")

        two.worker().run(until_idle=True)
        assert seen == [("two", 2)]
        assert one.jobs.counts()["ready"] == 1
        assert two.jobs.counts()["ready"] == 0

        one.jobs.resume("default")
        one.worker().run(until_idle=True)
        assert seen == [("two", 2), ("one", 1)]


def test_hints_stay_in_their_schema(empty: str) -> None:
    with (
        PgEverything(empty, schema="one") as one,
        PgEverything(empty, schema="Two") as two,
        psycopg.connect(empty, autocommit=True) as listener,
    ):
        for pg in (one, two):
            pg.migrate()
            with psycopg.connect(empty, autocommit=True) as connection:
                connection.execute(
                    sql.SQL(
                        "insert into {}.workers"
                        " (id, name, queues, concurrency, started_at, heartbeat_at, lease, asleep) "
                        " values (1, 'sleeper', '{{default}}', 1, now(), now(), '1 hour', true)"
                    ).format(sql.Identifier(pg.schema))
                )
        listener.execute('listen "one"; listen "Two"; listen done')
        one.jobs.enqueue("t")
        two.jobs.enqueue("t")
        listener.execute("notify done")

        heard = []
        for notification in listener.notifies():
            if notification.channel == "done":
                break
            heard.append((notification.channel, notification.payload))

    assert heard == [("one", "queue default"), ("Two", "queue default")]


@pytest.mark.parametrize("carrier", carriers.CARRIERS)
def test_no_schema_at_all_is_said_on_every_carrier(empty: str, carrier: str) -> None:
    with carriers.opened(carrier, empty) as face:
        with pytest.raises(NotMigrated, match="`pgeverything migrate`"):
            face.jobs.enqueue("t")
        face.rollback()


def test_no_schema_at_all_is_said_to_a_worker(empty: str) -> None:
    with PgEverything(empty) as pg, pytest.raises(NotMigrated, match="`pgeverything migrate`"):
        pg.worker().run(until_idle=True)
