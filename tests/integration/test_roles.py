"""The grants that `docs/how-to/roles.md` shows are enough, and are no more than they say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgeverything import DuplicateJob, JobContext, PgEverything, Retry

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "roles.md"
DENIED = psycopg.errors.InsufficientPrivilege


@pytest.fixture(scope="module")
def roles(server_url: str, url: str) -> Iterator[dict[str, str]]:
    """The roles of the page, with the rights it gives them in this module's database; what each is really called."""
    real = {name: f"pgeverything_test_{name}_{os.getpid()}" for name in ("app", "producer")}
    blocks = re.findall(r"```sql\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    grants = re.sub(r"\b(to|from) (app|producer);", lambda found: f"{found[1]} {real[found[2]]};", "".join(blocks))
    assert all(role in grants for role in real.values())
    with psycopg.connect(url, autocommit=True) as connection:
        for role in real.values():
            connection.execute(f"create role {role}")  # type: ignore[arg-type]
        connection.execute(grants)  # type: ignore[arg-type]
        yield real
        for role in real.values():
            connection.execute(f"drop owned by {role}; drop role {role}")  # type: ignore[arg-type]


@pytest.fixture
def app(url: str, db: psycopg.Connection[object], roles: dict[str, str]) -> Iterator[PgEverything]:
    with PgEverything(make_conninfo(url, options=f"-c role={roles['app']}")) as pg:
        yield pg


@pytest.fixture
def producer(url: str, db: psycopg.Connection[object], roles: dict[str, str]) -> Iterator[PgEverything]:
    with PgEverything(make_conninfo(url, options=f"-c role={roles['producer']}")) as pg:
        yield pg


def test_the_application_does_everything_but_migrate(app: PgEverything, roles: dict[str, str]) -> None:
    @app.task(retry=Retry(attempts=2, first="10ms", most="10ms"))
    def work(fail: bool) -> str:
        if fail:
            raise RuntimeError("as told")
        return "done"

    @app.task()
    def together(context: JobContext) -> None:
        with context.transaction() as tx:
            assert tx.connection.execute("select current_user").fetchone() == (roles["app"],)

    done = work.options(ordering_key="k").enqueue(False)
    unique = work.options(unique_key="u", delay="1h").enqueue(False)
    replaced = work.options(unique_key="u", on_duplicate="replace", delay="1h").enqueue(False)
    joined = together.enqueue()
    dead = work.enqueue(True)
    app.jobs.configure("default", concurrency=5, per_key=2)
    app.jobs.configure("small", max_depth=1, on_full="drop")
    work.options(queue="small").enqueue_many([(False,)])
    dropped = work.options(queue="small").enqueue(False)

    app.worker(queues=["default", "small"]).run(until_idle=True)

    states = {job.id: job.state for job in app.jobs.list()}
    assert (states[done.id], states[joined.id], states[dead.id]) == ("succeeded", "succeeded", "dead")
    assert (states[unique.id], states[replaced.id]) == ("cancelled", "scheduled")
    assert dropped.state == "cancelled"
    assert app.dead_letters.groups()[0].count == 1
    assert app.dead_letters.redrive([dead.id]) == 1
    app.jobs.pause("default")
    app.jobs.resume("default")
    app.jobs.retry(replaced.id)
    assert app.jobs.cancel(replaced.id)
    assert app.jobs.why(dead.id)
    assert app.jobs.failures(dead.id)
    assert app.jobs.queues()
    assert app.migrate() == []


def test_the_application_keeps_partitions_without_owning_them(app: PgEverything) -> None:
    with app.transaction() as tx:
        made = tx.connection.execute("select * from pgeverything.maintain_partitions(10, '7 days')").fetchone()
        assert made == (6, 0)

    with app.transaction() as tx, pytest.raises(DENIED):
        tx.connection.execute("create table pgeverything.mine ()")


def test_the_application_does_not_write_migrations(app: PgEverything) -> None:
    with app.transaction() as tx, pytest.raises(DENIED):
        tx.connection.execute("delete from pgeverything.migrations")


def test_a_producer_adds_jobs_and_looks(producer: PgEverything) -> None:
    jobs = producer.jobs
    plain, later = jobs.enqueue("t", {"n": 1}), jobs.enqueue("t", delay="1h")
    in_line = jobs.enqueue("t", ordering_key="k")
    unique = jobs.enqueue("t", unique_key="u")
    assert jobs.enqueue("t", unique_key="u").id == unique.id
    with pytest.raises(DuplicateJob):
        jobs.enqueue("t", unique_key="u", on_duplicate="raise")
    many = jobs.enqueue_many("t", [{"n": 2}, {"n": 3}])
    with producer.transaction() as tx:
        by_function = tx.connection.execute("select id from pgeverything.enqueue('t')").fetchone()
    assert by_function is not None

    expected = [plain.id, later.id, in_line.id, unique.id, *many, by_function[0]]
    assert sorted(job.id for job in jobs.list()) == sorted(expected)
    assert jobs.counts()["ready"] == 5
    assert jobs.why(plain.id)


@pytest.mark.parametrize(
    "statement",
    [
        "delete from pgeverything.jobs",
        "update pgeverything.jobs set args = '{}'",
        "select pgeverything.cancel(1 + (select min(id) - 1 from pgeverything.jobs))",
        "select * from pgeverything.claim(1, '{default}', '{0}', '{0}', 1)",
        "select * from pgeverything.advance(1)",
        "select * from pgeverything.maintain_partitions(0, '-1 year')",
        "insert into pgeverything.queues (name, paused) values ('default', true)",
    ],
)
def test_a_producer_changes_runs_and_ends_nothing(producer: PgEverything, statement: str) -> None:
    producer.jobs.enqueue("t")

    with producer.transaction() as tx, pytest.raises(DENIED):
        tx.connection.execute(statement)


def test_only_one_function_has_its_owners_rights_and_it_is_not_everybodys(db: psycopg.Connection[object]) -> None:
    privileged = db.execute(
        "select proname, has_function_privilege('public', oid, 'execute'), proconfig::text from pg_proc"
        " where pronamespace = 'pgeverything'::regnamespace and prosecdef"
    ).fetchall()

    assert [row[:2] for row in privileged] == [("maintain_partitions", False)]
    assert '"search_path=pg_catalog, pg_temp"' in privileged[0][2]


def test_every_function_says_where_it_looks(db: psycopg.Connection[object]) -> None:
    careless = db.execute(
        "select proname from pg_proc where pronamespace = 'pgeverything'::regnamespace"
        " and not coalesce('search_path=pg_catalog, pg_temp' = any (proconfig), false)"
    ).fetchall()

    assert careless == []
