"""Dead letters, on every carrier: what died of what, a fresh life, or the end."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from pgeverything import InvalidArgument, JobNotFound, PgEverything, Retry

if TYPE_CHECKING:
    import psycopg

    from .carriers import Face

    Database = psycopg.Connection[Any]


def graves(face: Face, db: Database, *deaths: tuple[str, str, str], **options: Any) -> list[int]:
    """Enqueue jobs of (task, queue, fingerprint) and let them die in that order."""
    ids = [face.jobs.enqueue(task, queue=queue, **options).id for task, queue, _ in deaths]
    face.commit()
    for n, (id_, (_, _, fingerprint)) in enumerate(zip(ids, deaths, strict=True)):
        db.execute("delete from pgeverything.ready where job = %s", [id_])
        db.execute(
            """update pgeverything.jobs
               set dead = true, died_at = timestamptz '2026-01-01' + make_interval(mins => %s), reason = 'tired',
               fingerprint = %s, attempt = 5, crashes = 1, error = jsonb_build_object('type', 'E', 'message', 'm' || %s)
               where id = %s""",
            [n, fingerprint, str(n), id_],
        )
    return ids


DEATHS = [("a", "q", "f1"), ("a", "q", "f1"), ("a", "r", "f2"), ("b", "q", "f3")]


def test_they_are_listed_latest_death_first(on: Face, db: Database) -> None:
    ids = graves(on, db, *DEATHS)

    def listed(**filters: Any) -> list[int]:
        return [ids.index(job.id) for job in on.dead_letters.list(**filters)]

    on.jobs.enqueue("a", queue="q")
    assert listed() == [3, 2, 1, 0]
    assert listed(queue="q") == [3, 1, 0]
    assert listed(task="a", limit=2) == [2, 1]
    assert listed(fingerprint="f1") == [1, 0]
    assert listed(queue="nowhere") == []
    dead = on.dead_letters.get(ids[1])
    assert (dead.state, dead.reason, dead.fingerprint, dead.attempt, dead.crashes) == ("dead", "tired", "f1", 5, 1)
    assert dead.error == {"type": "E", "message": "m1"}
    assert dead.finished_at is not None


def test_groups_say_what_they_died_of(on: Face, db: Database) -> None:
    ids = graves(on, db, *DEATHS)

    groups = on.dead_letters.groups()
    assert [(group.task, group.fingerprint, group.count) for group in groups] == [
        ("a", "f1", 2),
        ("b", "f3", 1),
        ("a", "f2", 1),
    ]
    largest = groups[0]
    assert (largest.latest_id, largest.error_type, largest.error_message, largest.reason) == (
        ids[1],
        "E",
        "m1",
        "tired",
    )
    assert largest.last_at - largest.first_at == timedelta(minutes=1)
    assert [group.fingerprint for group in on.dead_letters.groups(queue="r")] == ["f2"]
    assert [group.fingerprint for group in on.dead_letters.groups(task="b")] == ["f3"]
    assert len(on.dead_letters.groups(limit=1)) == 1


def test_they_are_counted(on: Face, db: Database) -> None:
    graves(on, db, *DEATHS)
    count = on.dead_letters.count
    assert [count(), count(queue="q"), count(task="b"), count(fingerprint="f1", queue="r")] == [4, 3, 1, 0]


def test_what_is_not_dead_is_not_found(on: Face) -> None:
    job = on.jobs.enqueue("a")
    with pytest.raises(JobNotFound, match=f"there is no dead letter {job.id}: job {job.id} is ready"):
        on.dead_letters.get(job.id)
    with pytest.raises(
        JobNotFound, match="there is no dead letter 999999999: no dead job and no dead message has this id"
    ):
        on.dead_letters.get(999_999_999)
    assert on.dead_letters.redrive([job.id]) == 0
    assert on.dead_letters.discard([job.id]) == 0
    assert on.jobs.get(job.id) == job


def test_an_empty_filter_is_refused(on: Face, db: Database) -> None:
    graves(on, db, *DEATHS)
    for operation in (on.dead_letters.redrive, on.dead_letters.discard):
        with pytest.raises(InvalidArgument, match="everything=True"):
            operation()
        assert operation([]) == 0
    assert on.dead_letters.redrive(everything=True) == 4


@pytest.mark.parametrize(
    ("filters", "chosen"),
    [
        ({"queue": "q"}, {0, 1, 3}),
        ({"task": "a", "queue": "q"}, {0, 1}),
        ({"fingerprint": "f3"}, {3}),
        ({"everything": True, "limit": 3}, {0, 1, 2}),
    ],
)
def test_a_redrive_gives_a_fresh_life(on: Face, db: Database, filters: dict[str, Any], chosen: set[int]) -> None:
    ids = graves(on, db, *DEATHS, expires="1h", headers={"a": "b"})

    assert on.dead_letters.redrive(**filters, dry_run=True) == len(chosen)
    assert on.dead_letters.count() == 4
    assert on.dead_letters.redrive(**filters) == len(chosen)
    for n, id_ in enumerate(ids):
        job = on.jobs.get(id_)
        if n in chosen:
            fresh = ("scheduled", 0, 0, 1, None, None, None, None, {"a": "b"})
            assert (job.state, job.attempt, job.crashes, job.redriven, job.error, job.reason, job.fingerprint,
                    job.expires_at, job.headers) == fresh  # fmt: skip
        else:
            assert job.state == "dead"


def test_a_redrive_to_another_queue_remembers_where_they_died(on: Face, db: Database) -> None:
    ids = graves(on, db, *DEATHS)
    assert on.dead_letters.redrive(ids[1:3], to_queue="r") == 2
    assert [(on.jobs.get(id_).queue, on.jobs.get(id_).origin) for id_ in ids[:3]] == [
        ("q", None),
        ("r", "q"),
        ("r", None),
    ]


def test_a_rate_spreads_them_over_time(on: Face, db: Database) -> None:
    ids = graves(on, db, *DEATHS)
    assert on.dead_letters.redrive(everything=True, rate=0.5) == 4
    due = [on.jobs.get(id_).run_at for id_ in ids]
    for one, next_ in pairwise(due):
        assert (next_ - one).total_seconds() == pytest.approx(2.0, abs=0.01)


def test_a_unique_key_that_is_in_use_keeps_it_dead(on: Face, db: Database) -> None:
    twins = graves(on, db, ("a", "q", "f1"), unique_key="u") + graves(on, db, ("a", "q", "f1"), unique_key="u")
    other = graves(on, db, ("a", "q", "f1"), unique_key="v")
    live = on.jobs.enqueue("a", unique_key="v")

    assert on.dead_letters.redrive(everything=True, dry_run=True) == 3
    assert on.dead_letters.redrive(everything=True) == 1
    assert sorted(on.jobs.get(id_).state for id_ in twins) == ["dead", "scheduled"]
    assert on.jobs.get(other[0]).state == "dead"
    assert on.jobs.get(live.id).state == "ready"


def test_discarded_ones_are_cancelled(on: Face, db: Database) -> None:
    ids = graves(on, db, *DEATHS)
    assert on.dead_letters.discard(task="a", dry_run=True) == 3
    assert on.dead_letters.discard(task="a", limit=2) == 2
    assert on.dead_letters.count() == 2
    gone = on.jobs.get(ids[0])
    assert (gone.state, gone.reason, gone.attempt, gone.crashes) == ("cancelled", "discarded", 5, 1)


def test_more_than_one_statement_takes(pg: PgEverything, db: Database) -> None:
    ids = pg.jobs.enqueue_many("a", [{}] * 2500)
    db.execute("delete from pgeverything.ready")
    db.execute("update pgeverything.jobs set dead = true, died_at = now()")

    assert pg.dead_letters.redrive(task="a", limit=2100, rate=1000) == 2100
    row = db.execute("select extract(epoch from max(due_at) - min(due_at)) from pgeverything.scheduled").fetchone()
    assert row is not None
    assert row[0] >= 2.099  # each statement starts from its own now, which is later than the one before
    assert pg.dead_letters.discard(ids) == 400


def test_a_redriven_job_runs(pg: PgEverything) -> None:
    working = False

    @pg.task(retry=Retry.never())
    def flaky() -> str:
        if not working:
            raise ValueError
        return "done"

    job = flaky.enqueue()
    pg.worker().run(until_idle=True)
    (group,) = pg.dead_letters.groups()
    assert (group.task, group.count, group.error_type) == ("flaky", 1, "ValueError")

    working = True
    assert pg.dead_letters.redrive(fingerprint=group.fingerprint) == 1
    pg.worker().run(until_idle=True)
    done = pg.jobs.get(job.id)
    assert (done.state, done.result, done.attempt, done.redriven) == ("succeeded", "done", 1, 1)
