"""No statement of ours, and none inside our functions, is one that Citus would refuse."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.exercise import exercise
from tests.portable_sql import KIND, Linted, parse


@pytest.fixture
def linted(url: str, db: psycopg.Connection[Any]) -> Iterator[Linted]:
    """A session in one transaction, which is rolled back."""
    with psycopg.connect(url) as connection:
        yield Linted(connection)
        connection.rollback()


def test_every_statement_and_function_is_portable(linted: Linted) -> None:
    linted.run("audit.seal", most=1)  # before anything is written
    for queue, on_full in (("drops", "drop"), ("raises", "raise")):
        limits: dict[str, object] = {"max_depth": 1, "on_full": on_full, "concurrency": None, "per_key": 1}
        linted.run("jobs.configure", queue=queue, **limits, given=list(limits))
    linted.run("jobs.pause", queue="paused", paused=True)
    linted.run("jobs.counts", queue=None)
    linted.run("jobs.queues")
    linted.run("worker.sweep_turn", name="jobs", every=1.0, chores=["partitions"])
    linted.run("worker.take_chore", name="partitions", every=1.0)
    linted.run("worker.partitions", keep=1e6)
    linted.run("worker.busy", queues=["a"])
    linted.execute("publish", "select pgeverything.publish('t', '1', key => 'k')")
    for queue in ("drops", "raises"):
        for _ in range(2):
            linted.execute("enqueue", f"select * from pgeverything.enqueue('t', queue => '{queue}', quiet => true)")
    for _ in range(3):
        linted.execute("enqueue", "insert into pgeverything.jobs select * from pgeverything.jobs where false")
        exercise(linted)

    linted.execute("require", "select pgeverything.audit_require('t')")
    linted.execute("protect", "select pgeverything.audit_protect(session_user::regrole, reads => false)")

    assert linted.faults == set()
    assert linted.functions_not_called() == []


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("update jobs set died_at = clock_timestamp()", "SET uses clock_timestamp()"),
        ("update jobs set died_at = (select now())", "SET uses now()"),
        ("update jobs set expires_at = expires_at + interval '1 day'", "SET uses timestamptz_pl_interval()"),
        ("update jobs set reason = 'attempt ' || attempt", "SET uses textanycat()"),
        ("update jobs set died_at = current_timestamp", "SET uses CURRENT_..."),
        ("delete from jobs returning now()", "RETURNING uses now()"),
        ("insert into jobs values (nextval('job_seq')) returning random()", "RETURNING uses random()"),
        (
            "insert into sweeps values ('x', now(), now()) on conflict (name) do update set swept_at = now()",
            "ON CONFLICT SET uses now()",
        ),
        (
            (
                "insert into sweeps as s values ('x', now(), now()) on conflict (name) do update set name = 'y'"
                " where s.next_at < now()"
            ),
            "ON CONFLICT WHERE uses now()",
        ),
        ("with gone as (delete from jobs returning clock_timestamp()) select 1", "RETURNING uses clock_timestamp()"),
        ("select xmin from jobs", "reads xmin"),
        (
            "insert into queues values ('x') on conflict (name) do update set name = 'y' returning (xmax = 0)",
            "reads xmax",
        ),
        ("merge into queues q using jobs j on q.name = j.queue when matched then delete", "is a MERGE"),
    ],
)
def test_what_is_not_portable_is_found(linted: Linted, statement: str, fault: str) -> None:
    linted.execute("path", "set local search_path = pgeverything")
    with contextlib.suppress(psycopg.IntegrityError):  # the tree is shown before a row is refused
        linted.execute("this", statement)

    assert fault in {found for _, found in linted.faults}


@pytest.mark.parametrize(
    "statement",
    [
        (
            "insert into sweeps as s values ('x', clock_timestamp(), now()) on conflict (name)"
            " do update set swept_at = excluded.swept_at where s.next_at <= excluded.swept_at returning s.name"
        ),
        "with now as (select clock_timestamp() as at) update jobs set died_at = now.at, attempt = attempt + 1 from now",
        "insert into queues values ('x') returning name || '!'",
    ],
)
def test_what_is_portable_passes(linted: Linted, statement: str) -> None:
    linted.execute("path", "set local search_path = pgeverything")
    linted.execute("this", statement)

    assert linted.trees > 0
    assert linted.faults == set()


def test_trees_are_read() -> None:
    text = r'{QUERY :a 1 :b (1 2 {VAR :n \"x\ y <>}) :c 4 [ 1 0 ] :d <> :e "a \" b" :f ()}'

    assert parse(text) == {
        KIND: "QUERY",
        "a": "1",
        "b": ["1", "2", {KIND: "VAR", "n": [r"\"x\ y", "<>"]}],
        "c": ["4", ["1", "0"]],
        "d": "<>",
        "e": r'"a \" b"',
        "f": [],
    }


@pytest.mark.parametrize(
    ("what", "query"),
    [
        ("triggers", "select tgname from pg_trigger where tgrelid::regclass::text like 'pgeverything.%'"),
        (
            "identity columns",
            (
                "select attname from pg_attribute"
                " where attidentity <> '' and attrelid::regclass::text like 'pgeverything.%'"
            ),
        ),
        (
            "SQL functions with parameters",
            (
                "select proname from pg_proc p join pg_language l on l.oid = p.prolang"
                " where pronamespace = 'pgeverything'::regnamespace and lanname = 'sql' and pronargs > 0"
            ),
        ),
        (
            "foreign keys",
            "select conname from pg_constraint where contype = 'f' and connamespace = 'pgeverything'::regnamespace",
        ),
    ],
)
def test_there_are_none(db: psycopg.Connection[Any], what: str, query: str) -> None:
    assert db.execute(query).fetchall() == [], what  # type: ignore[arg-type]
