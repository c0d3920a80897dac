"""Finished jobs and failures by the day: made ahead, dropped behind, and never in anybody's way."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

if TYPE_CHECKING:
    Database = psycopg.Connection[Any]

TODAY = datetime.now(UTC).replace(hour=12)


def name(table: str, days: int) -> str:
    return f"{table}_{TODAY + timedelta(days=days):%Y%m%d}"


def partitions(db: Database, table: str) -> set[str]:
    rows = db.execute(
        "select inhrelid::regclass::text from pg_inherits where inhparent = %s::regclass", [f"pgeverything.{table}"]
    ).fetchall()
    return {row[0].removeprefix("pgeverything.") for row in rows}


def maintain(db: Database, ahead: int = 7, keep: str = "7 days") -> tuple[int, int]:
    row = db.execute("select created, dropped from pgeverything.maintain_partitions(%s, %s)", [ahead, keep]).fetchone()
    assert row is not None
    return row[0], row[1]


def finished(db: Database, days: int) -> None:
    """A job that ended so many days ago, and one failure of it."""
    at = TODAY - timedelta(days=days)
    db.execute(
        """insert into pgeverything.finished
             (id, queue, task, state, priority, args, created_at, finished_at, attempt, crashes)
           values (%s, 'q', 't', 'succeeded', 0, '{}', now(), %s, 1, 0)""",
        [1000 + days, at],
    )
    db.execute("insert into pgeverything.failures values (%s, %s, 1, 1, '{}')", [1000 + days, at])


def where(db: Database, table: str) -> dict[int, str]:
    column = "id" if table == "finished" else "job"
    rows = db.execute(f"select {column}, tableoid::regclass::text from pgeverything.{table}").fetchall()  # type: ignore[arg-type]
    return {row[0]: row[1].removeprefix("pgeverything.") for row in rows}


@pytest.mark.parametrize("table", ["finished", "failures"])
def test_they_are_made_ahead_and_dropped_behind(db: Database, table: str) -> None:
    assert {name(table, days) for days in range(8)} < partitions(db, table)
    for days in (0, 6, 7, 8, 30):
        finished(db, days)
    assert where(db, table)[1000] == name(table, 0)
    assert {where(db, table)[1000 + days] for days in (6, 7, 8, 30)} == {f"{table}_default"}

    created, _ = maintain(db, ahead=9, keep="100 days")
    assert created > 0
    assert {name(table, 8), name(table, 9), name(table, -6), name(table, -30)} <= partitions(db, table)
    # What was in the default partition is now in its own.
    assert where(db, table) == {1000 + days: name(table, -days) for days in (0, 6, 7, 8, 30)}
    assert maintain(db, ahead=9, keep="100 days") == (0, 0)

    _, dropped = maintain(db, ahead=9, keep="7 days")
    assert dropped == 2 * 2  # of each table, the days 8 and 30
    assert set(where(db, table)) == {1000, 1006, 1007}
    assert not {name(table, -8), name(table, -30)} & partitions(db, table)
    assert name(table, 0) in partitions(db, table)
    maintain(db, keep="1 day")  # leaves the module's database as it was
    for days in (8, 9):
        db.execute(f"drop table pgeverything.{name('finished', days)}, pgeverything.{name('failures', days)}")  # type: ignore[arg-type]


def test_a_long_reader_is_not_waited_for_and_blocks_nobody(db: Database, url: str) -> None:
    finished(db, 9)
    maintain(db, keep="100 days")
    with psycopg.connect(url) as reader, psycopg.connect(url, autocommit=True) as worker:
        reader.execute("select count(*) from pgeverything.finished")
        assert maintain(db, keep="7 days") == (0, 1)  # only of the failures, which nobody reads
        worker.execute("set lock_timeout = '5s'")
        finished(worker, 0)
        assert 1009 in where(worker, "finished")
        reader.rollback()
        assert maintain(db, keep="7 days") == (0, 1)
    assert 1009 not in where(db, "finished")


def test_days_without_a_partition_are_made_beside_a_long_reader_too(db: Database, url: str) -> None:
    with psycopg.connect(url) as reader:
        reader.execute("select count(*) from pgeverything.finished")
        finished(db, 20)
        created, _ = maintain(db, ahead=7, keep="100 days")
        assert where(db, "failures")[1020] == name("failures", -20)
        assert 1020 in where(db, "finished")
        assert created in (1, 2)
    maintain(db, ahead=7, keep="100 days")
    assert where(db, "finished")[1020] == name("finished", -20)
    maintain(db, keep="1 day")


def test_a_day_that_gets_rows_while_it_is_made_is_made_later(db: Database, direct_url: str) -> None:
    """A job ends after the day's rows were moved and before the day is attached, which Postgres then refuses."""
    maintain(db)
    finished(db, 20)
    waits = "select from pg_locks where not granted and pid = %s"
    made = threading.Event()
    with psycopg.connect(direct_url) as ending, psycopg.connect(direct_url, autocommit=True) as sweeper:
        finished(ending, 20)

        def end_when_it_waits() -> None:
            while not made.is_set() and db.execute(waits, [sweeper.info.backend_pid]).fetchone() is None:
                pass
            ending.commit()

        thread = threading.Thread(target=end_when_it_waits)
        thread.start()
        maintain(sweeper, keep="100 days")  # the day of the failures may be made: nobody waits for them any more
        made.set()
        thread.join()
    maintain(db, keep="100 days")
    assert where(db, "finished") == {1020: name("finished", -20)}
    assert db.execute("select count(*) from pgeverything.finished").fetchone() == (2,)
    maintain(db, keep="1 day")
