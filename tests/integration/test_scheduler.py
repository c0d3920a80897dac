"""Schedules, on every carrier: defined, changed, paused, run by hand, looked at."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgeverything import InvalidArgument, InvalidTaskArguments, PgEverything, QueueFull, ScheduleNotFound, Scheduler

from .schedules import HOUR, LONG_AGO, WEEK_AGO, now, overdue

if TYPE_CHECKING:
    from .carriers import Face

    Database = psycopg.Connection[Any]


# Define ---------------------------------------------------------------------------------------------------------------


def test_a_schedule_is_what_was_added(on: Face) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(days=300)
    added = on.scheduler.add(
        "digest",
        "send_digest",
        {"to": "ops", "n": [1, None]},
        cron="0 7 * * MON-FRI",
        timezone="Europe/Berlin",
        misfire="all",
        grace="5m",
        catch_up=7,
        overlap="queue",
        jitter="90s",
        queue="mail",
        priority=3,
        start_at=LONG_AGO,
        end_at=end,
        remaining=12,
    )
    assert on.scheduler.get("digest") == added
    assert on.scheduler.list() == [added]
    assert (added.name, added.task, added.args) == ("digest", "send_digest", {"to": "ops", "n": [1, None]})
    assert (added.cron, added.seconds, added.every, added.at) == ("0 7 * * MON-FRI", False, None, None)
    assert (added.timezone, added.start_at, added.end_at) == ("Europe/Berlin", LONG_AGO, end)
    assert (added.misfire, added.grace, added.catch_up, added.overlap) == ("all", 300.0, 7, "queue")
    assert (added.queue, added.priority, added.runs, added.remaining) == ("mail", 3, 12, 12)
    assert (added.state, added.origin, added.last_tick, added.last_job_id) == ("active", None, None, None)
    assert added.next_tick == on.scheduler.preview("0 7 * * MON-FRI", timezone="Europe/Berlin", count=1)[0]
    assert timedelta(0) <= added.next_run_at - added.next_tick < timedelta(seconds=90)
    assert on.scheduler.history("digest") == []


def test_it_is_part_of_the_callers_transaction(tx: Face, db: Database) -> None:
    tx.scheduler.add("a", "t", every="1h")
    assert db.execute("select name from pgeverything.schedules").fetchall() == []
    tx.rollback()
    tx.scheduler.add("b", "t", every="1h")
    tx.commit()
    assert db.execute("select name from pgeverything.schedules").fetchall() == [("b",)]


def test_intervals_are_counted_from_the_epoch_or_their_start(on: Face, db: Database) -> None:
    hourly = on.scheduler.add("hourly", "t", every="1h")
    assert (hourly.next_tick.minute, hourly.next_tick.second, hourly.next_tick.microsecond) == (0, 0, 0)
    assert timedelta(0) < hourly.next_tick - now(db) <= HOUR
    start = datetime(2021, 5, 17, 10, 42, 11, tzinfo=UTC)
    anchored = on.scheduler.add("anchored", "t", every="1h", start_at=start)
    assert (anchored.next_tick - start) % HOUR == timedelta(0)
    assert timedelta(0) < anchored.next_tick - now(db) <= HOUR
    later = now(db) + timedelta(days=3)
    assert on.scheduler.add("later", "t", every="1h", start_at=later).next_tick == later


def test_a_single_time_in_the_past_is_overdue(on: Face) -> None:
    added = on.scheduler.add("once", "t", at=WEEK_AGO)
    assert (added.state, added.next_tick, added.at) == ("active", WEEK_AGO, WEEK_AGO)


def test_a_schedule_that_would_never_tick_is_refused(on: Face) -> None:
    with pytest.raises(InvalidArgument, match="'late' would never tick"):
        on.scheduler.add("late", "t", every="1h", end_at=LONG_AGO)
    assert on.scheduler.list() == []


def test_adding_it_again_leaves_its_ticks_alone(on: Face, db: Database) -> None:
    on.scheduler.add("a", "t", {"n": 1}, every="1h", remaining=5)
    on.commit()
    overdue(db, "a", 3 * HOUR)
    db.execute("update pgeverything.schedules set remaining = 2, last_tick = %s, last_job = 7", [LONG_AGO])
    before = on.scheduler.get("a")

    again = on.scheduler.add("a", "other", {"n": 2}, every="1h", remaining=5, queue="q", misfire="skip")

    assert (again.task, again.args, again.queue, again.misfire) == ("other", {"n": 2}, "q", "skip")
    for kept in ("next_tick", "next_run_at", "remaining", "last_tick", "last_job_id", "created_at"):
        assert getattr(again, kept) == getattr(before, kept)
    assert on.scheduler.history("a") == []


def test_another_timing_counts_from_now_and_says_what_was_not_run(on: Face, db: Database) -> None:
    on.scheduler.add("a", "t", every="1h", remaining=5)
    on.commit()
    db.execute("update pgeverything.schedules set remaining = 2, last_tick = %s, last_job = 7", [LONG_AGO])
    overdue(db, "a", 3 * HOUR)
    before = on.scheduler.get("a")

    again = on.scheduler.add("a", "t", cron="0 0 1 1 *", remaining=5)

    assert again.next_tick > now(db)
    assert (again.next_tick.month, again.next_tick.day) == (1, 1)
    assert (again.remaining, again.last_tick, again.last_job_id) == (2, LONG_AGO, 7)
    (missed,) = on.scheduler.history("a")
    assert (missed.outcome, missed.count, missed.reason) == ("ended", 3, "the definition changed")
    assert (missed.since, missed.tick) == (before.next_tick, before.next_tick + 2 * HOUR)


def test_another_number_of_runs_begins_anew(on: Face, db: Database) -> None:
    on.scheduler.add("a", "t", every="1h", remaining=5)
    on.commit()
    db.execute("update pgeverything.schedules set remaining = 0, next_tick = null, next_run_at = null")
    assert on.scheduler.get("a").state == "ended"
    assert on.scheduler.add("a", "t", every="1h", remaining=5).state == "ended"
    again = on.scheduler.add("a", "t", every="1h", remaining=6)
    assert (again.state, again.remaining) == ("active", 6)
    assert again.next_tick > now(db)


def test_a_task_of_this_program_is_known(pg: PgEverything) -> None:
    @pg.task(queue="mail", priority=4)
    def greet(name: str, times: int = 1) -> None: ...

    for task in (greet, "greet"):
        added = pg.scheduler.add("g", task, {"name": "ada"}, every="1h")
        assert (added.task, added.queue, added.priority) == ("greet", "mail", 4)
        assert pg.scheduler.add("g", task, {"name": "ada"}, every="1h", queue="q", priority=0).queue == "q"
        with pytest.raises(InvalidTaskArguments, match="missing a required argument: 'name'"):
            pg.scheduler.add("g", task, every="1h")
        with pytest.raises(InvalidTaskArguments, match="times: Expected `int`"):
            pg.scheduler.add("g", task, {"name": "ada", "times": "2"}, every="1h")
        with pg.transaction() as tx, pytest.raises(InvalidTaskArguments):
            tx.scheduler.add("g", task, {"nam": "ada"}, every="1h")
    assert pg.scheduler.add("u", "unknown", {"x": 1}, every="1h").queue == "default"


def test_the_module_alone_is_the_same(url: str, pg: PgEverything) -> None:
    added = pg.scheduler.add("a", "t", every="1h")
    assert Scheduler(url).get("a") == added


# Pause, resume, remove ------------------------------------------------------------------------------------------------


def test_a_pause_is_accounted_for_when_it_ends(on: Face, db: Database) -> None:
    on.scheduler.add("a", "t", every="1h")
    on.scheduler.pause("a")
    paused = on.scheduler.get("a")
    assert (paused.state, paused.next_run_at) == ("paused", None)
    on.scheduler.pause("a")
    on.commit()
    overdue(db, "a", 5 * HOUR)

    on.scheduler.resume("a")

    resumed = on.scheduler.get("a")
    assert (resumed.state, resumed.next_tick) == ("active", paused.next_tick)
    assert resumed.next_run_at == resumed.next_tick
    (missed,) = on.scheduler.history("a")
    assert (missed.outcome, missed.count, missed.job_id) == ("paused", 5, None)
    assert (missed.since, missed.tick) == (paused.next_tick - 5 * HOUR, paused.next_tick - HOUR)
    on.scheduler.resume("a")
    assert on.scheduler.get("a") == resumed


def test_a_pause_survives_a_change(on: Face) -> None:
    on.scheduler.add("a", "t", every="1h")
    on.scheduler.pause("a")
    again = on.scheduler.add("a", "t", every="2h")
    assert (again.state, again.next_run_at) == ("paused", None)


def test_a_single_time_that_fell_into_a_pause_is_over(on: Face, db: Database) -> None:
    on.scheduler.add("a", "t", at=WEEK_AGO)
    on.scheduler.pause("a")
    on.scheduler.resume("a")
    assert on.scheduler.get("a").state == "ended"
    assert [(row.tick, row.outcome) for row in on.scheduler.history("a")] == [(WEEK_AGO, "paused")]


def test_what_is_removed_leaves_its_history(on: Face, db: Database) -> None:
    on.scheduler.add("a", "t", every="1h")
    on.commit()
    overdue(db, "a", 2 * HOUR)
    assert on.scheduler.remove("a") is True
    assert on.scheduler.remove("a") is False
    with pytest.raises(ScheduleNotFound, match="'a'"):
        on.scheduler.get("a")
    (missed,) = on.scheduler.history("a")
    assert (missed.outcome, missed.count, missed.reason) == ("ended", 2, "it was removed")


@pytest.mark.parametrize("operation", ["get", "pause", "resume", "run_now"])
def test_what_is_not_there_is_not_found(on: Face, operation: str) -> None:
    with pytest.raises(ScheduleNotFound, match="there is no schedule 'nothing'"):
        getattr(on.scheduler, operation)("nothing")


# Run now --------------------------------------------------------------------------------------------------------------


def test_run_now_enqueues_beside_the_ticks(on: Face) -> None:
    before = on.scheduler.add("a", "t", {"n": 1}, every="1h", queue="q", priority=2, remaining=3)

    job = on.scheduler.run_now("a")

    assert (job.state, job.task, job.args, job.queue, job.priority) == ("ready", "t", {"n": 1}, "q", 2)
    (row,) = on.scheduler.history("a")
    assert (row.outcome, row.job_id) == ("manual", job.id)
    assert datetime.fromisoformat(job.headers["tick"]) == row.tick
    assert job.headers["schedule"] == "a"
    after = on.scheduler.get("a")
    assert (after.next_tick, after.remaining, after.last_job_id) == (before.next_tick, 3, job.id)


def test_run_now_runs_what_is_paused_or_has_ended(on: Face) -> None:
    on.scheduler.add("a", "t", every="1h")
    on.scheduler.pause("a")
    assert on.scheduler.run_now("a").state == "ready"
    assert on.scheduler.get("a").state == "paused"


def test_run_now_does_not_overlap_where_that_is_not_allowed(on: Face, db: Database) -> None:
    on.scheduler.add("a", "t", every="1h", overlap="skip")
    first = on.scheduler.run_now("a")
    second = on.scheduler.run_now("a")
    assert (second.id, second.duplicate) == (first.id, True)
    on.jobs.cancel(first.id)
    third = on.scheduler.run_now("a")
    assert (third.id != first.id, third.duplicate) == (True, False)


def test_run_now_queues_where_that_was_asked_for(on: Face) -> None:
    on.scheduler.add("a", "t", every="1h", overlap="queue")
    assert [on.scheduler.run_now("a").state for _ in range(2)] == ["waiting", "waiting"]


def test_run_now_says_when_the_queue_is_full(on: Face, db: Database) -> None:
    db.execute("insert into pgeverything.queues (name, max_depth) values ('small', 1)")
    on.scheduler.add("a", "t", every="1h", queue="small")
    on.scheduler.run_now("a")
    with pytest.raises(QueueFull, match="'a' has no room"):
        on.scheduler.run_now("a")


# Look -----------------------------------------------------------------------------------------------------------------


def test_schedules_are_listed_by_name(on: Face) -> None:
    for name, task in (("b", "t"), ("a", "u"), ("c", "t")):
        on.scheduler.add(name, task, every="1h")
    on.scheduler.pause("c")

    def listed(**filters: Any) -> list[str]:
        return [schedule.name for schedule in on.scheduler.list(**filters)]

    assert listed() == ["a", "b", "c"]
    assert listed(task="t") == ["b", "c"]
    assert listed(state="paused") == ["c"]
    assert listed(state="active", limit=1) == ["a"]
    assert listed(after="a", limit=1) == ["b"]
    assert listed(state="disabled") == []


def test_history_is_read_page_by_page(on: Face, db: Database) -> None:
    db.execute(
        "insert into pgeverything.ticks (schedule, tick, outcome, job, at)"
        " select 'a', %s::timestamptz + make_interval(mins => i), 'ran', i, now() from generate_series(1, 5) i",
        [LONG_AGO],
    )
    first = on.scheduler.history("a", limit=2)
    assert [row.job_id for row in first] == [5, 4]
    assert [row.job_id for row in on.scheduler.history("a", before=first[-1].tick)] == [3, 2, 1]
    assert on.scheduler.history("b") == []


def test_a_preview_is_in_its_time_zone(on: Face) -> None:
    start = datetime(2026, 10, 24, tzinfo=UTC)
    shown = on.scheduler.preview("30 2 * * *", timezone="Europe/Paris", count=3, start=start)
    assert [each.isoformat() for each in shown] == [
        "2026-10-24T02:30:00+02:00",
        "2026-10-25T02:30:00+02:00",
        "2026-10-26T02:30:00+01:00",
    ]
    from_now = on.scheduler.preview("*/10 * * * * *", seconds=True)
    assert len(from_now) == 5
    assert from_now[0] - datetime.now(UTC) < timedelta(minutes=1)
