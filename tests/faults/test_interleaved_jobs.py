"""Two and three sessions in chosen orders on one job: nothing sleeps, the server says who waits for whom."""

from __future__ import annotations

import pytest

from pgeverything import PgEverything
from pgeverything.errors import DuplicateJob, JobStateError

from .accounts import fetch, left_over
from .sessions import Session, Sessions


def enqueue(pg: PgEverything, **options: object) -> int:
    return pg.jobs.enqueue("t", **options).id  # type: ignore[arg-type]


def state(url: str, job: int) -> str | None:
    rows = fetch(url, "select state from pgeverything.all_jobs where id = %s", job)
    assert len(rows) <= 1, f"job {job} is in {len(rows)} places"
    return rows[0][0] if rows else None


# Claim and cancel ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_claim_passes_by_a_job_that_is_being_cancelled(
    url: str, pg: PgEverything, sessions: Sessions, end: str
) -> None:
    job, other = enqueue(pg), enqueue(pg)
    canceller, worker, _ = sessions.three()
    number = worker.register()
    canceller.begin()
    assert canceller.tx.jobs.cancel(job)
    assert worker.claim(number) == [(other, other)]
    getattr(canceller, end)()
    assert worker.claim(number) == ([] if end == "commit" else [(job, job)])
    assert state(url, job) == ("cancelled" if end == "commit" else "running")


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_cancel_that_meets_a_claim_waits_for_it_and_reaches_the_worker(
    url: str, pg: PgEverything, sessions: Sessions, end: str
) -> None:
    job = enqueue(pg)
    canceller, worker, _ = sessions.three()
    number = worker.register()
    worker.begin()
    assert worker.claim(number) == [(job, job)]
    cancelled = canceller.waiting(canceller.tx.jobs.cancel, job)
    getattr(worker, end)()
    assert cancelled.result() is True
    if end == "rollback":
        assert state(url, job) == "cancelled"
        return
    assert state(url, job) == "running"
    beat = worker.run("heartbeat", worker=number, jobs=[job], finished=0, failed=0, refused=0)
    assert beat == [([job],)]


def test_two_claims_at_once_never_take_the_same_job(url: str, pg: PgEverything, sessions: Sessions) -> None:
    jobs = [enqueue(pg) for _ in range(10)]
    one, two, _ = sessions.three()
    first, second = one.register(), two.register()
    one.begin()
    taken = one.claim(first, limit=6)
    rest = two.claim(second, limit=6)
    one.commit()
    assert sorted(job for job, _ in taken + rest) == jobs
    assert len(taken) == 6  # behind skipped rows a claim must still be full where it can


# Finish and cancel ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_long_transaction_with_a_cancel_blocks_no_acknowledgement(
    url: str, pg: PgEverything, sessions: Sessions, end: str
) -> None:
    job = enqueue(pg)
    canceller, worker, sweeper = sessions.three()
    number = worker.register()
    claimed = worker.claim(number)
    canceller.begin()
    assert canceller.tx.jobs.cancel(job)
    assert worker.finish(number, claimed) == [job]
    getattr(canceller, end)()
    sweeper.run("settle_cancellations")
    assert state(url, job) == "succeeded"
    assert fetch(url, "select * from pgeverything.cancellations") == []


def test_a_cancel_during_an_acknowledgement_changes_nothing(url: str, pg: PgEverything, sessions: Sessions) -> None:
    job = enqueue(pg)
    canceller, worker, sweeper = sessions.three()
    number = worker.register()
    claimed = worker.claim(number)
    worker.begin()
    assert worker.finish(number, claimed) == [job]
    assert canceller.tx.jobs.cancel(job)  # it can only ask: nobody knows yet how the acknowledgement ends
    worker.commit()
    sweeper.run("settle_cancellations")
    assert state(url, job) == "succeeded"
    assert left_over(url) == {}


def test_a_cancelled_job_whose_attempt_fails_is_not_tried_again(url: str, pg: PgEverything, sessions: Sessions) -> None:
    job = enqueue(pg)
    canceller, worker, sweeper = sessions.three()
    number = worker.register()
    claimed = worker.claim(number)
    canceller.begin()
    canceller.tx.jobs.cancel(job, "changed my mind")
    assert worker.fail(number, claimed, delay=60.0) == [job]
    assert state(url, job) == "scheduled"
    canceller.commit()
    sweeper.run("settle_cancellations")
    assert (state(url, job), pg.jobs.get(job).reason) == ("cancelled", "changed my mind")


# Rescue and late results ---------------------------------------------------------------------------------------------


def rescued(sessions: Sessions, pg: PgEverything) -> tuple[Session, int, list[tuple[int, int]], Session]:
    """A worker that has claimed a job and fallen silent, and a session that has not rescued it yet."""
    enqueue(pg)
    worker, sweeper = sessions.open(), sessions.open()
    number = worker.register()
    claimed = worker.claim(number)
    sweeper.silence(number)
    return worker, number, claimed, sweeper


def test_a_result_that_meets_a_rescue_waits_for_it_and_is_refused(
    url: str, pg: PgEverything, sessions: Sessions
) -> None:
    worker, number, claimed, sweeper = rescued(sessions, pg)
    sweeper.begin()
    assert sweeper.rescue() == 1
    late = worker.waiting(worker.finish, number, claimed)
    sweeper.commit()
    assert late.result() == []
    assert state(url, claimed[0][0]) == "ready"
    assert worker.fail(number, claimed, delay=None) == []
    assert worker.run("heartbeat", worker=number, jobs=[], finished=0, failed=0, refused=0) == []


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_rescue_passes_by_a_job_that_is_being_acknowledged(
    url: str, pg: PgEverything, sessions: Sessions, end: str
) -> None:
    worker, number, claimed, sweeper = rescued(sessions, pg)
    worker.begin()
    assert worker.finish(number, claimed) == [claimed[0][0]]
    assert sweeper.rescue() == 0
    getattr(worker, end)()
    assert state(url, claimed[0][0]) == ("succeeded" if end == "commit" else "running")
    # Its worker is not registered any more, so without the acknowledgement it is a stray one.
    assert sweeper.rescue(stray=0.0) == (0 if end == "commit" else 1)


def test_a_result_of_an_earlier_claim_by_the_same_worker_is_refused(
    url: str, pg: PgEverything, sessions: Sessions
) -> None:
    """Worker and job are the same, only the token tells the two claims apart."""
    job = enqueue(pg)
    worker = sessions.open()
    number = worker.register()
    first = worker.claim(number)
    worker.run("orphans", worker=number, jobs=[])
    second = worker.claim(number)
    assert first[0][0] == second[0][0] == job
    assert worker.finish(number, first) == []
    assert worker.fail(number, first, delay=None) == []
    assert worker.run("finish_here", job=job, token=first[0][1], worker=number) == []
    assert worker.run("give_back", jobs=[job], tokens=[first[0][1]], worker=number) == []
    assert state(url, job) == "running"
    assert worker.finish(number, second) == [job]


def test_a_transaction_that_ended_its_job_is_not_robbed_before_it_commits(
    url: str, pg: PgEverything, sessions: Sessions
) -> None:
    worker, number, claimed, sweeper = rescued(sessions, pg)
    (job, token) = claimed[0]
    worker.begin()
    assert worker.run("finish_here", job=job, token=token, worker=number)[0][0] == job
    assert sweeper.rescue() == 0
    worker.commit()
    assert state(url, job) == "succeeded"


def test_two_rescues_at_once_share_the_silent_workers(url: str, pg: PgEverything, sessions: Sessions) -> None:
    jobs = [enqueue(pg) for _ in range(4)]
    worker, one, two = sessions.three()
    first, second = worker.register(), worker.register()
    worker.claim(first, limit=2)
    worker.claim(second, limit=2)
    one.silence(first)
    one.begin()
    assert one.rescue() == 2
    two.silence(second)
    assert two.rescue() == 2
    one.commit()
    assert {job: state(url, job) for job in jobs} == dict.fromkeys(jobs, "ready")
    assert fetch(url, "select distinct crashes from pgeverything.ready") == [(1,)]


# Unique keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_two_enqueues_of_one_unique_key_wait_for_each_other(
    url: str, pg: PgEverything, sessions: Sessions, end: str
) -> None:
    one, two, _ = sessions.three()
    one.begin()
    first = one.tx.jobs.enqueue("t", unique_key="u")
    waiting = two.waiting(two.tx.jobs.enqueue, "t", unique_key="u")
    getattr(one, end)()
    second = waiting.result()
    assert second.duplicate is (end == "commit")
    assert (second.id == first.id) is (end == "commit")
    assert fetch(url, "select count(*) from pgeverything.ready") == [(1,)]


@pytest.mark.parametrize("joined", [False, True], ids=["alone", "in a transaction"])
@pytest.mark.parametrize("how", ["redrive", "retry"])
def test_a_dead_job_whose_unique_key_is_taken_meanwhile_stays_dead(
    url: str, pg: PgEverything, sessions: Sessions, how: str, joined: bool
) -> None:
    one, two, worker = sessions.three()
    dead = pg.jobs.enqueue("t", unique_key="u").id
    number = worker.register()
    worker.fail(number, worker.claim(number), delay=None)
    one.begin()
    one.tx.jobs.enqueue("t", unique_key="u")
    if joined:
        two.begin()
    if how == "redrive":
        waiting = two.waiting(two.tx.dead_letters.redrive, [dead])
    else:
        waiting = two.waiting(two.tx.jobs.retry, dead)
    one.commit()
    if how == "redrive" and not joined:
        assert waiting.result() == 0
    else:
        with pytest.raises(JobStateError, match="another transaction has just" if joined else "has its unique_key='u'"):
            waiting.result()
    if joined:
        two.rollback()
    assert pg.jobs.get(dead).state == "dead"


def test_a_refused_duplicate_leaves_the_transaction_usable(url: str, pg: PgEverything, sessions: Sessions) -> None:
    one, two, _ = sessions.three()
    one.begin()
    one.tx.jobs.enqueue("t", unique_key="u")
    two.begin()
    waiting = two.waiting(two.tx.jobs.enqueue, "t", unique_key="u", on_duplicate="raise")
    one.commit()
    with pytest.raises(DuplicateJob):
        waiting.result()
    two.tx.jobs.enqueue("t", unique_key="v")
    two.commit()
    assert fetch(url, "select count(*) from pgeverything.ready") == [(2,)]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_enqueue_that_meets_the_end_of_its_duplicate_waits_and_is_new(
    url: str, pg: PgEverything, sessions: Sessions, end: str
) -> None:
    job = enqueue(pg, unique_key="u")
    worker, producer, _ = sessions.three()
    number = worker.register()
    claimed = worker.claim(number)
    worker.begin()
    assert worker.finish(number, claimed) == [job]
    waiting = producer.waiting(producer.tx.jobs.enqueue, "t", unique_key="u")
    getattr(worker, end)()
    assert waiting.result().duplicate is (end == "rollback")


def test_the_end_of_a_running_job_waits_for_the_one_that_replaces_it(
    url: str, pg: PgEverything, sessions: Sessions
) -> None:
    job = enqueue(pg, unique_key="u")
    worker, producer, _ = sessions.three()
    number = worker.register()
    claimed = worker.claim(number)
    producer.begin()
    new = producer.tx.jobs.enqueue("t", unique_key="u", on_duplicate="replace")
    ending = worker.waiting(worker.finish, number, claimed)
    producer.commit()
    assert ending.result() == [job]
    assert new.id != job
    assert (state(url, job), state(url, new.id)) == ("succeeded", "ready")
    assert pg.jobs.enqueue("t", unique_key="u").id == new.id


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_two_replacements_of_one_job_leave_one(url: str, pg: PgEverything, sessions: Sessions, end: str) -> None:
    old = enqueue(pg, unique_key="u")
    one, two, _ = sessions.three()
    one.begin()
    first = one.tx.jobs.enqueue("t", unique_key="u", on_duplicate="replace").id
    waiting = two.waiting(two.tx.jobs.enqueue, "t", unique_key="u", on_duplicate="replace")
    getattr(one, end)()
    last = waiting.result().id
    assert state(url, old) == "cancelled"
    assert state(url, first) == ("cancelled" if end == "commit" else None)
    assert fetch(url, "select job from pgeverything.ready") == [(last,)]


# Turns of the sweep --------------------------------------------------------------------------------------------------


def test_one_of_two_takes_the_turn_to_sweep(url: str, sessions: Sessions) -> None:
    one, two, _ = sessions.three()
    one.begin()
    assert one.run("sweep_turn", name="jobs", every=60.0, chores=[])[0][0] == 0.0
    other = two.waiting(two.run, "sweep_turn", name="jobs", every=60.0, chores=[])
    one.commit()
    assert other.result()[0][0] > 0
    one.begin()  # a sweeper that dies with its turn uncommitted has not had it
    one.sql("update pgeverything.sweeps set next_at = now() - interval '1 s'")
    one.commit()
    one.begin()
    assert one.run("sweep_turn", name="jobs", every=60.0, chores=[])[0][0] == 0.0
    other = two.waiting(two.run, "sweep_turn", name="jobs", every=60.0, chores=[])
    one.rollback()
    assert other.result()[0][0] == 0.0


def test_a_clock_that_was_set_back_does_not_keep_the_fleet_from_sweeping(url: str, sessions: Sessions) -> None:
    """As after a failover to a server whose clock is behind, or the repair of one that was ahead."""
    one, two, _ = sessions.three()
    for name in ("jobs", "partitions"):
        one.sql(
            "insert into pgeverything.sweeps values (%s, now() + interval '1 year', now() + interval '366 days')", name
        )
    assert one.run("sweep_turn", name="jobs", every=60.0, chores=["partitions"])[0][::4] == (0.0, ["partitions"])
    assert one.run("take_chore", name="partitions", every=60.0)
    assert two.run("sweep_turn", name="jobs", every=60.0, chores=["partitions"])[0][0] > 0
    assert not two.run("take_chore", name="partitions", every=60.0)


# Hints ---------------------------------------------------------------------------------------------------------------


def test_who_sleeps_hears_of_a_job_that_is_to_be_tried_again(url: str, sessions: Sessions) -> None:
    """The worker that failed may have its hands full by the time it is due."""
    worker, sleeper, _ = sessions.three()
    worker.tx.jobs.enqueue("t")
    number = worker.register()
    claimed = worker.claim(number)
    sleeper.run("sleep", worker=sleeper.register(), asleep=True)
    sleeper.sql("listen pgeverything")
    worker.fail(number, claimed, 5.0)
    hints = [hint.payload for hint in sleeper.connection.notifies(timeout=30.0, stop_after=1)]
    assert hints == ["queue default"]
