"""Look at jobs and change what happens to them, on every carrier: get, list, counts, cancel, retry, pause, why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pgeverything import JobFailed, JobNotFound, JobStateError, WaitTimeout
from pgeverything.jobs import Queue

if TYPE_CHECKING:
    import psycopg

    from .carriers import Face

    Database = psycopg.Connection[Any]

NOBODY = 2**62


def kill(db: Database, job: int, reason: str = "failed at attempt 5", fingerprint: str = "f00") -> None:
    """Make a ready job a dead one, as a worker would."""
    db.execute("delete from pgeverything.ready where job = %s", [job])
    db.execute(
        """update pgeverything.jobs set dead = true, died_at = clock_timestamp(), reason = %s, fingerprint = %s,
           attempt = 5, crashes = 0, error = '{"type": "ValueError", "message": "nope"}' where id = %s""",
        [reason, fingerprint, job],
    )


def start(db: Database, job: int, *, worker: int = 0) -> None:
    """Make a ready job a running one, as a worker would."""
    db.execute(
        """with gone as (delete from pgeverything.ready where job = %s returning *)
           insert into pgeverything.running (job, token, worker, queue, attempt, crashes, started_at)
           select job, seq, %s, queue, attempt + 1, crashes, clock_timestamp() from gone""",
        [job, worker],
    )


def finish(db: Database, job: int, result: str | None = None) -> None:
    """Make a ready job a succeeded one, as a worker would."""
    db.execute("delete from pgeverything.ready where job = %s", [job])
    db.execute(
        """with gone as (delete from pgeverything.jobs where id = %s returning *)
           insert into pgeverything.finished (id, queue, task, state, priority, args, created_at, started_at,
                                              finished_at, attempt, crashes, result)
           select id, queue, task, 'succeeded', priority, args, created_at, clock_timestamp(),
                  clock_timestamp(), 1, 0, %s
           from gone""",
        [job, result],
    )


# Reading ------------------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_not_found(on: Face) -> None:
    for operation in (on.jobs.get, on.jobs.retry, on.jobs.why):
        with pytest.raises(JobNotFound, match=f"there is no job {NOBODY}"):
            operation(NOBODY)
    assert on.jobs.cancel(NOBODY) is False
    assert on.jobs.failures(NOBODY) == []


def test_lists_are_filtered_and_read_page_by_page(on: Face) -> None:
    ids = [on.jobs.enqueue(task, queue=queue).id for task in ("a", "b") for queue in ("x", "y", "y")]
    later = on.jobs.enqueue("a", delay="1h").id

    def listed(**filters: Any) -> list[int]:
        return [job.id for job in on.jobs.list(**filters)]

    assert listed() == [later, *reversed(ids)]
    assert listed(queue="x") == [ids[3], ids[0]]
    assert listed(task="b", queue="y") == [ids[5], ids[4]]
    assert listed(state="scheduled") == [later]
    assert listed(state="dead") == []
    pages, before = [], None
    while page := listed(limit=3, before=before):
        pages.append(page)
        before = page[-1]
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [id_ for page in pages for id_ in page] == listed()


def test_counts_and_queues(on: Face) -> None:
    assert on.jobs.queues() == []
    on.jobs.enqueue("a", queue="x")
    on.jobs.enqueue("a", queue="x", delay="1h")
    on.jobs.enqueue("a", queue="y", ordering_key="k")
    on.jobs.cancel(on.jobs.enqueue("a", queue="y").id)
    on.jobs.configure("x", max_depth=9, on_full="drop", concurrency=3, per_key=2)
    on.jobs.configure("x", max_depth=None, per_key=4)
    on.jobs.pause("z")

    nothing = dict.fromkeys(("scheduled", "waiting", "ready", "running", "succeeded", "cancelled", "dead"), 0)
    assert on.jobs.counts() == nothing | {"ready": 1, "scheduled": 1, "waiting": 1, "cancelled": 1}
    assert on.jobs.counts("x") == nothing | {"ready": 1, "scheduled": 1}
    assert on.jobs.counts("nowhere") == nothing
    empty = {"ready": 0, "waiting": 0, "scheduled": 0, "running": 0, "dead": 0, "workers": 0}
    fresh = {"paused": False, "max_depth": None, "on_full": "raise", "concurrency": None, "per_key": 1}
    assert on.jobs.queues() == [
        Queue(
            "x", **fresh | {"on_full": "drop", "concurrency": 3, "per_key": 4} | empty | {"ready": 1, "scheduled": 1}
        ),
        Queue("y", **fresh | empty | {"waiting": 1}),
        Queue("z", **fresh | {"paused": True} | empty),
    ]
    on.jobs.resume("z")
    assert on.jobs.queues()[2] == Queue("z", **fresh | empty)


def test_failures_are_read_oldest_first(on: Face, db: Database) -> None:
    job = on.jobs.enqueue("a")
    for attempt in (2, 1):
        db.execute(
            "insert into pgeverything.failures values (%s, now() - make_interval(secs => 9 - %s), %s, 7, %s)",
            [job.id, attempt, attempt, f'{{"type": "E{attempt}"}}'],
        )
    failures = on.jobs.failures(job.id)
    assert [(each["attempt"], each["worker"], each["error"]) for each in failures] == [
        (1, 7, {"type": "E1"}),
        (2, 7, {"type": "E2"}),
    ]
    assert failures[0]["at"] < failures[1]["at"]


# Cancel and retry ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"delay": "1h"}, {"ordering_key": "k"}], ids=["ready", "scheduled", "waiting"])
def test_what_has_not_begun_is_cancelled(on: Face, db: Database, options: dict[str, Any]) -> None:
    job = on.jobs.enqueue("a", {"n": 1}, unique_key="u", **options)

    assert on.jobs.cancel(job.id, "why not") is True
    ended = on.jobs.get(job.id)
    assert (ended.state, ended.reason, ended.args, ended.attempt) == ("cancelled", "why not", {"n": 1}, 0)
    assert on.jobs.cancel(job.id) is False
    assert on.jobs.enqueue("a", unique_key="u").duplicate is False
    on.commit()
    for table in ("scheduled", "waiting"):
        assert db.execute(f"select from pgeverything.{table}").fetchall() == []  # type: ignore[arg-type]


def test_a_dead_one_is_cancelled_and_a_running_one_is_asked(on: Face, db: Database) -> None:
    dead, running = (on.jobs.enqueue("a").id for _ in range(2))
    on.commit()
    kill(db, dead)
    start(db, running)

    assert on.jobs.cancel(dead) is True
    assert on.jobs.get(dead).state == "cancelled"
    assert on.jobs.cancel(running, "stop it") is True
    assert on.jobs.cancel(running, "again") is True
    assert on.jobs.get(running).state == "running"
    on.commit()
    assert db.execute("select job, reason from pgeverything.cancellations").fetchall() == [(running, "stop it")]


def test_a_cancel_that_is_rolled_back_was_none(tx: Face, db: Database) -> None:
    job = tx.jobs.enqueue("a")
    tx.commit()
    assert tx.jobs.cancel(job.id)
    assert tx.jobs.get(job.id).state == "cancelled"
    tx.rollback()
    assert tx.jobs.get(job.id) == job


def test_a_dead_job_is_retried_from_its_first_attempt(on: Face, db: Database) -> None:
    job = on.jobs.enqueue("a")
    on.commit()
    kill(db, job.id)
    assert (on.jobs.get(job.id).state, on.jobs.get(job.id).attempt) == ("dead", 5)

    on.jobs.retry(job.id)
    again = on.jobs.get(job.id)
    assert (again.state, again.attempt, again.redriven, again.error, again.reason) == ("scheduled", 0, 1, None, None)
    on.commit()
    db.execute("select pgeverything.advance(10)")
    assert on.jobs.get(job.id).state == "ready"


def test_a_scheduled_job_is_retried_at_once(on: Face, db: Database) -> None:
    job = on.jobs.enqueue("a", delay="1h")
    on.jobs.retry(job.id)
    on.commit()
    db.execute("select pgeverything.advance(10)")
    assert on.jobs.get(job.id).state == "ready"


def test_what_cannot_be_retried_says_why(on: Face, db: Database) -> None:
    ready, dead = on.jobs.enqueue("a"), on.jobs.enqueue("a", unique_key="u")
    on.commit()
    kill(db, dead.id)
    on.jobs.enqueue("a", unique_key="u")

    with pytest.raises(JobStateError, match=f"job {ready.id} is ready: only a dead or a scheduled job"):
        on.jobs.retry(ready.id)
    with pytest.raises(JobStateError, match="another unfinished job has its unique_key='u'"):
        on.jobs.retry(dead.id)


# Wait ---------------------------------------------------------------------------------------------------------------


def test_wait(on: Face, db: Database) -> None:
    if on.joined:
        assert not hasattr(on.pg.on(on.held).jobs, "wait")
        return
    done, failed, stopped, never = (on.jobs.enqueue("a").id for _ in range(4))
    finish(db, done, '{"answer": 42}')
    kill(db, failed)
    on.jobs.cancel(stopped, "not needed")

    assert on.jobs.wait(done).result == {"answer": 42}
    with pytest.raises(JobFailed, match=f"job {failed} is dead: failed at attempt 5"):
        on.jobs.wait(failed)
    with pytest.raises(JobFailed, match=f"job {stopped} is cancelled: not needed"):
        on.jobs.wait(stopped)
    with pytest.raises(WaitTimeout, match=f"job {never} is still ready; ask pg.jobs.why"):
        on.jobs.wait(never, timeout="50ms")
    with pytest.raises(JobNotFound):
        on.jobs.wait(NOBODY)


# Why ----------------------------------------------------------------------------------------------------------------


def test_why_says_what_stands_in_the_way(on: Face, db: Database) -> None:
    first, second = on.jobs.enqueue("a"), on.jobs.enqueue("a")
    urgent, due = on.jobs.enqueue("a", priority=1), on.jobs.enqueue("a", delay="1h")
    on.jobs.pause("default")
    obstacles = " The queue 'default' is paused: resume it. No live worker serves the queue 'default': start one."

    assert on.jobs.why(urgent.id) == "It is ready and next in line." + obstacles
    assert on.jobs.why(second.id) == "It is ready with 2 job(s) before it." + obstacles
    assert on.jobs.why(due.id).startswith("It is due in 3")
    on.jobs.cancel(first.id, "too old")
    assert on.jobs.why(first.id) == "It was cancelled: too old."


def test_why_of_what_ended_or_runs(on: Face, db: Database) -> None:
    dead, done, runs = (on.jobs.enqueue("a").id for _ in range(3))
    on.commit()
    kill(db, dead, "rejected: never")
    finish(db, done)
    start(db, runs)

    assert on.jobs.why(dead) == "It is dead: rejected: never (nope). Redrive it or discard it."
    assert on.jobs.why(done) == "It succeeded at attempt 1."
    assert "on a worker that has left; it will be rescued." in on.jobs.why(runs)
    on.jobs.cancel(runs)
    assert on.jobs.why(runs).endswith("It was asked to stop.")


def test_why_names_who_holds_the_turn(on: Face, db: Database) -> None:
    on.jobs.enqueue("a", ordering_key="k", delay="1h")
    holder, second, third = (on.jobs.enqueue("a", ordering_key="k").id for _ in range(3))
    on.commit()
    db.execute("select pgeverything.advance(10)")

    assert on.jobs.get(holder).state == "ready"
    assert on.jobs.why(second).startswith(f"It waits for its turn of ordering_key='k'; held by job {holder}.")
    assert on.jobs.why(third).startswith(
        f"It waits for its turn of ordering_key='k', with 1 before it in line; held by job {holder}."
    )
