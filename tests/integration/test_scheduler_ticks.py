"""A tick enqueues what is due, once, and accounts for every time that it does not run."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgeverything import InvalidArgument, PgEverything
from pgeverything.engine.carriers import PsycopgCarrier
from pgeverything.engine.plan import drive
from pgeverything.scheduler.tick import tick

from .schedules import HOUR, WEEK_AGO, now, overdue

if TYPE_CHECKING:
    Database = psycopg.Connection[Any]


# Tick -----------------------------------------------------------------------------------------------------------------


def ticked(db: Database) -> Any:
    return drive(PsycopgCarrier(db, "pgeverything"), tick())


def outcomes(pg: PgEverything, name: str) -> list[tuple[str, int]]:
    return [(row.outcome, row.count) for row in reversed(pg.scheduler.history(name))]


def test_a_tick_enqueues_and_moves_on(pg: PgEverything, db: Database) -> None:
    pg.scheduler.add("a", "t", {"n": 1}, every="1h", queue="q", priority=5, remaining=2, grace="1h")
    overdue(db, "a", HOUR)
    due = pg.scheduler.get("a")

    done = ticked(db)

    assert (done.acted, done.queues, done.unreadable) == (1, {"q"}, {})
    (job,) = pg.jobs.list()
    assert (job.task, job.args, job.queue, job.priority, job.headers["schedule"]) == ("t", {"n": 1}, "q", 5, "a")
    (row,) = pg.scheduler.history("a")
    assert due.next_tick is not None
    assert (row.tick, row.outcome, row.job_id, row.count) == (due.next_tick, "ran", job.id, 1)
    after = pg.scheduler.get("a")
    assert (after.next_tick, after.remaining) == (due.next_tick + HOUR, 1)
    assert (after.last_tick, after.last_job_id) == (due.next_tick, job.id)
    assert done.wait == pytest.approx((after.next_tick - now(db)).total_seconds(), abs=1)
    assert ticked(db).acted == 0


def test_many_ticks_are_one_transaction(pg: PgEverything, db: Database) -> None:
    for n in range(5):
        pg.scheduler.add(f"s{n}", "t", every="1h", queue=f"q{n % 2}", grace="1h")
        overdue(db, f"s{n}", HOUR)
    done = ticked(db)
    assert (done.acted, done.queues) == (5, {"q0", "q1"})
    assert len({job.created_at for job in pg.jobs.list()}) == 5
    assert pg.jobs.counts()["ready"] == 5


@pytest.mark.parametrize(
    ("options", "expected", "jobs"),
    [
        ({"misfire": "once"}, [("misfire", 4), ("ran", 1)], 1),
        ({"misfire": "skip"}, [("misfire", 5)], 0),
        ({"misfire": "all"}, [("ran", 1)] * 5, 5),
        ({"misfire": "all", "catch_up": 2}, [("misfire", 3), ("ran", 1), ("ran", 1)], 2),
        ({"misfire": "all", "overlap": "skip"}, [("ran", 1), ("overlap", 4)], 1),
        ({"misfire": "all", "remaining": 2}, [("ran", 1), ("ran", 1), ("ended", 3)], 2),
        ({"misfire": "skip", "grace": "3h"}, [("misfire", 2), ("ran", 1), ("ran", 1), ("ran", 1)], 3),
    ],
)
def test_overdue_ticks_have_their_rows(
    pg: PgEverything, db: Database, options: dict[str, Any], expected: list[tuple[str, int]], jobs: int
) -> None:
    pg.scheduler.add("a", "t", every="1h", start_at=now(db) - timedelta(hours=20, minutes=30), **options)
    overdue(db, "a", 5 * HOUR)
    assert ticked(db).acted == 1
    assert outcomes(pg, "a") == expected
    assert len(pg.jobs.list()) == jobs
    assert ticked(db).acted == 0


def test_a_tick_has_one_row_also_when_its_schedule_is_back(pg: PgEverything, db: Database) -> None:
    pg.scheduler.add("a", "t", at=WEEK_AGO)
    ticked(db)
    pg.scheduler.remove("a")
    pg.scheduler.add("a", "t", at=WEEK_AGO)
    assert ticked(db).acted == 1
    assert outcomes(pg, "a") == [("ran", 1)]
    assert len(pg.jobs.list()) == 1
    assert pg.scheduler.get("a").state == "ended"


@pytest.mark.parametrize("undone", ["remove", "pause"])
def test_a_time_that_did_not_run_can_be_added_again(pg: PgEverything, db: Database, undone: str) -> None:
    pg.scheduler.add("a", "mistaken", at=WEEK_AGO)
    if undone == "pause":
        pg.scheduler.pause("a")
    pg.scheduler.remove("a")
    pg.scheduler.add("a", "meant", at=WEEK_AGO)
    ticked(db)
    (job,) = pg.jobs.list()
    (row,) = pg.scheduler.history("a")
    assert (job.task, row.tick, row.outcome, row.job_id, row.reason) == ("meant", WEEK_AGO, "ran", job.id, None)


def test_a_time_that_is_forgotten_does_not_come_twice(pg: PgEverything, db: Database) -> None:
    long, at = timedelta(days=31), now(db) - timedelta(minutes=1)
    pg.scheduler.add("a", "t", at=at)
    ticked(db)
    # As a month later: nothing knows of it any more, and a program that adds its schedules when it starts starts again.
    db.execute("delete from pgeverything.schedules; delete from pgeverything.ticks")
    with pytest.raises(InvalidArgument, match="its time has passed more than 30 days ago; enqueue the job instead"):
        pg.scheduler.add("a", "t", at=at - long)
    pg.scheduler.add("a", "t", at=at)
    pg.scheduler.pause("a")
    assert pg.scheduler.add("a", "t", at=at - long).state == "ended"
    assert len(pg.jobs.list()) == 1


def test_a_full_queue_uses_up_none_of_what_remains(pg: PgEverything, db: Database) -> None:
    pg.jobs.configure("small", max_depth=1)
    pg.scheduler.add("a", "t", every="1h", queue="small", misfire="all", remaining=2)
    overdue(db, "a", 2 * HOUR)
    ticked(db)
    assert outcomes(pg, "a") == [("ran", 1), ("full", 1)]
    assert (pg.scheduler.get("a").remaining, pg.scheduler.get("a").state) == (1, "active")
    pg.jobs.cancel(pg.jobs.list()[0].id)
    overdue(db, "a", HOUR)
    ticked(db)
    assert (pg.scheduler.get("a").remaining, pg.scheduler.get("a").state) == (0, "ended")
    assert pg.scheduler.get("a").next_run_at is None


def test_a_full_queue_is_why_a_tick_did_not_run(pg: PgEverything, db: Database) -> None:
    pg.jobs.configure("small", max_depth=1)
    pg.scheduler.add("a", "t", every="1h", queue="small", misfire="all")
    overdue(db, "a", 3 * HOUR)
    ticked(db)
    assert outcomes(pg, "a") == [("ran", 1), ("full", 1), ("full", 1)]
    assert len(pg.jobs.list()) == 1


def test_one_after_the_other_where_that_was_asked_for(pg: PgEverything, db: Database) -> None:
    pg.scheduler.add("a", "t", every="1h", overlap="queue", misfire="all")
    overdue(db, "a", 3 * HOUR)
    ticked(db)
    assert [job.state for job in pg.jobs.list()] == ["waiting"] * 3
    assert len({job.ordering_key for job in pg.jobs.list()}) == 1


def test_a_year_of_missed_seconds_is_two_rows(pg: PgEverything, db: Database) -> None:
    pg.scheduler.add("a", "t", cron="* * * * * *", seconds=True)
    overdue(db, "a", timedelta(days=365))
    ticked(db)
    missed, ran = reversed(pg.scheduler.history("a"))
    assert (missed.outcome, ran.outcome) == ("misfire", "ran")
    assert missed.count == (ran.tick - missed.since).total_seconds() >= 365 * 86400 - 1


def test_a_schedule_that_cannot_be_read_here_holds_up_no_other(pg: PgEverything, db: Database) -> None:
    for name in ("a", "b"):
        pg.scheduler.add(name, "t", cron="* * * * *", timezone="Europe/Paris")
        overdue(db, name, HOUR)
    db.execute("update pgeverything.schedules set timezone = 'Mars/Olympus' where name = 'a'")
    done = ticked(db)
    assert (done.acted, list(done.unreadable)) == (1, ["a"])
    assert "Mars/Olympus" in done.unreadable["a"]
    assert done.wait is not None
    assert done.wait > 0
    assert pg.scheduler.get("a").last_tick is None
