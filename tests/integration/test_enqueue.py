"""Enqueue, on every carrier: options, transactions, duplicates, full queues, many at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from pgeverything import AsyncPgEverything, DuplicateJob, PgEverything, QueueFull

from . import carriers

if TYPE_CHECKING:
    import psycopg

    from .carriers import Face

    Database = psycopg.Connection[Any]


def jobs(db: Database) -> list[tuple[Any, ...]]:
    return db.execute("select id, task from pgeverything.all_jobs order by id").fetchall()


def test_the_job_that_is_returned_is_the_job_that_is_read(on: Face) -> None:
    job = on.jobs.enqueue("mail")

    assert (job.state, job.queue, job.args, job.priority, job.duplicate) == ("ready", "default", {}, 0, False)
    assert on.jobs.get(job.id) == job


def test_every_option_arrives(on: Face) -> None:
    due = datetime.now(UTC) + timedelta(days=1)
    job = on.jobs.enqueue(
        "mail",
        {"to": ["ada"], "n": 1.5, "ü": None},
        queue="letters",
        priority=-7,
        run_at=due,
        unique_key="unique 'key'",
        on_duplicate="raise",
        ordering_key='ordering "key"',
        max_attempts=3,
        timeout="2m",
        expires="1h",
        headers={"traceparent": "00-1-2-00"},
    )

    assert job.state == "scheduled"
    assert job.args == {"to": ["ada"], "n": 1.5, "ü": None}
    assert (job.queue, job.priority, job.run_at, job.max_attempts, job.timeout) == ("letters", -7, due, 3, 120)
    assert (job.unique_key, job.ordering_key) == ("unique 'key'", 'ordering "key"')
    assert job.expires_at == due + timedelta(hours=1)
    assert job.headers == {"traceparent": "00-1-2-00"}
    assert on.jobs.get(job.id) == job


def test_a_delay_is_counted_from_now_and_one_that_is_over_is_none(on: Face) -> None:
    later, now = on.jobs.enqueue("mail", delay="10m", expires=5), on.jobs.enqueue("mail", delay=0, expires=5)
    past = on.jobs.enqueue("mail", run_at=datetime(2020, 1, 1, tzinfo=UTC))

    assert later.state == "scheduled"
    assert later.run_at == later.created_at + timedelta(minutes=10)
    assert later.expires_at == later.created_at + timedelta(minutes=10, seconds=5)
    assert (now.state, now.run_at, now.expires_at) == ("ready", None, now.created_at + timedelta(seconds=5))
    assert (past.state, past.run_at) == ("ready", None)
    for job in (later, now, past):
        assert on.jobs.get(job.id) == job


def test_a_key_makes_it_wait_for_its_turn(on: Face) -> None:
    job = on.jobs.enqueue("mail", ordering_key="ada")

    assert job.state == "waiting"
    assert on.jobs.get(job.id) == job


def test_a_rollback_leaves_nothing_and_a_commit_keeps(tx: Face, db: Database) -> None:
    tx.jobs.enqueue("gone")
    tx.jobs.enqueue_many("gone", [{}, {}], ordering_key="ada")
    tx.rollback()
    assert jobs(db) == []
    assert db.execute("select from pgeverything.turn_notes").fetchall() == []

    kept = tx.jobs.enqueue("kept")
    assert jobs(db) == []
    tx.commit()
    assert jobs(db) == [(kept.id, "kept")]


def test_savepoints_hold(tx: Face, db: Database) -> None:
    first = tx.jobs.enqueue("kept")
    tx.execute("savepoint here")
    tx.jobs.enqueue("gone")
    tx.execute("rollback to savepoint here")
    second = tx.jobs.enqueue("kept")
    tx.commit()

    assert jobs(db) == [(first.id, "kept"), (second.id, "kept")]


class Sabotage(Exception):
    pass


@pytest.mark.parametrize("name", ["url", "pool", "engine"])
def test_a_transaction_of_our_own(name: str, url: str, db: Database) -> None:
    with carriers.SYNC[name](url) as (target, _), PgEverything(target) as pg:
        with pg.transaction() as tx:
            tx.jobs.enqueue("kept")
            assert jobs(db) == []
        with pytest.raises(Sabotage), pg.transaction() as tx:  # noqa: PT012
            tx.jobs.enqueue("gone")
            raise Sabotage
    assert [task for _, task in jobs(db)] == ["kept"]


@pytest.mark.parametrize("name", ["async-url", "async-pool", "async-engine-psycopg", "async-engine-asyncpg"])
async def test_a_transaction_of_our_own_awaited(name: str, url: str, db: Database) -> None:
    async with carriers.ASYNC[name](url) as (target, _), AsyncPgEverything(target) as pg:
        async with pg.transaction() as tx:
            await tx.jobs.enqueue("kept")
            assert jobs(db) == []
        with pytest.raises(Sabotage):  # noqa: PT012
            async with pg.transaction() as tx:
                await tx.jobs.enqueue("gone")
                raise Sabotage
    assert [task for _, task in jobs(db)] == ["kept"]


# Unique keys --------------------------------------------------------------------------------------------------------


def test_skip_returns_the_job_that_is_there(on: Face) -> None:
    first = on.jobs.enqueue("mail", {"n": 1}, unique_key="ada")
    second = on.jobs.enqueue("mail", {"n": 2}, unique_key="ada")

    assert (second.id, second.args, second.duplicate) == (first.id, {"n": 1}, True)
    assert on.jobs.enqueue("other", unique_key="ada").duplicate is False


def test_raise_names_the_job_and_leaves_the_transaction_usable(on: Face) -> None:
    first = on.jobs.enqueue("mail", unique_key="ada", on_duplicate="raise")
    with pytest.raises(DuplicateJob, match=f"job {first.id} of task 'mail' has unique_key='ada'") as caught:
        on.jobs.enqueue("mail", unique_key="ada", on_duplicate="raise")

    assert caught.value.job_id == first.id
    assert on.jobs.get(first.id) == first


@pytest.mark.parametrize("options", [{}, {"delay": "1h"}, {"ordering_key": "k"}], ids=["ready", "scheduled", "waiting"])
def test_replace_cancels_the_one_before(on: Face, options: dict[str, Any]) -> None:
    first = on.jobs.enqueue("mail", {"n": 1}, unique_key="ada", **options)
    second = on.jobs.enqueue("mail", {"n": 2}, unique_key="ada", on_duplicate="replace")

    assert (second.id != first.id, second.args, second.duplicate) == (True, {"n": 2}, False)
    assert (on.jobs.get(first.id).state, on.jobs.get(first.id).reason) == ("cancelled", "replaced")
    assert on.jobs.get(second.id).state == "ready"


# Full queues --------------------------------------------------------------------------------------------------------


def test_a_full_queue_raises_and_leaves_the_transaction_usable(on: Face) -> None:
    on.jobs.configure("mail", max_depth=2)
    on.jobs.enqueue("mail", queue="mail")
    on.jobs.enqueue("mail", queue="mail", ordering_key="ada")

    with pytest.raises(QueueFull, match="queue 'mail' has no room for 1 more"):
        on.jobs.enqueue("mail", queue="mail")
    with pytest.raises(QueueFull, match="no room for 1 more"):
        on.jobs.enqueue("mail", queue="mail", unique_key="ada")
    with pytest.raises(QueueFull, match="no room for 2 more"):
        on.jobs.enqueue_many("mail", [{}, {}], queue="mail")
    assert sum(on.jobs.counts("mail").values()) == 2
    assert on.jobs.enqueue("mail").state == "ready"


def test_a_full_queue_drops(on: Face) -> None:
    on.jobs.configure("mail", max_depth=1, on_full="drop")
    on.jobs.enqueue("mail", queue="mail")

    job = on.jobs.enqueue("mail", queue="mail", unique_key="ada")
    ids = on.jobs.enqueue_many("mail", [{}, {}], queue="mail")

    assert (job.state, job.reason) == ("cancelled", "dropped: the queue was full")
    assert on.jobs.get(job.id) == job
    assert {on.jobs.get(each).state for each in ids} == {"cancelled"}
    assert on.jobs.counts("mail")["ready"] == 1


def test_replacing_needs_no_room(on: Face) -> None:
    on.jobs.configure("mail", max_depth=1)
    first = on.jobs.enqueue("mail", queue="mail", unique_key="ada", delay="1h")
    on.jobs.enqueue("other", queue="mail")

    second = on.jobs.enqueue("mail", queue="mail", unique_key="ada", on_duplicate="replace")

    assert [on.jobs.get(job.id).state for job in (first, second)] == ["cancelled", "ready"]


# Many ---------------------------------------------------------------------------------------------------------------


def test_many_of_none_and_of_one(on: Face, db: Database) -> None:
    assert on.jobs.enqueue_many("mail", []) == []
    assert jobs(db) == []
    (only,) = on.jobs.enqueue_many("mail", iter([None]))
    assert (on.jobs.get(only).args, on.jobs.get(only).state) == ({}, "ready")


def test_many_keep_their_order_and_options(on: Face) -> None:
    ids = on.jobs.enqueue_many(
        "mail", ({"n": n} for n in range(20)), queue="letters", priority=3, ordering_key="ada", headers={"a": "b"}
    )

    read = sorted(on.jobs.list(queue="letters"), key=lambda job: job.id)
    assert [job.id for job in read] == ids
    assert [job.args["n"] for job in read] == list(range(20))
    assert {(job.priority, job.ordering_key, job.headers["a"]) for job in read} == {(3, "ada", "b")}


# Tasks --------------------------------------------------------------------------------------------------------------


def test_tasks_enqueue_by_their_signature(on: Face) -> None:
    @on.pg.task(name="welcome", queue="letters", priority=2)
    def welcome(user: int, *, greeting: str = "hello") -> None: ...

    task = on.task(welcome)
    job = task.enqueue(7, greeting="hi")
    other = task.options(delay="10m", unique_key="welcome-7", ordering_key="user-7", priority=5).enqueue(user=7)
    many = task.enqueue_many([(1,), (2,)])

    assert (job.task, job.queue, job.priority, job.args) == ("welcome", "letters", 2, {"user": 7, "greeting": "hi"})
    assert (other.state, other.unique_key, other.ordering_key, other.priority) == (
        "scheduled",
        "welcome-7",
        "user-7",
        5,
    )
    assert [on.jobs.get(each).args for each in many] == [{"user": 1}, {"user": 2}]
