"""What a worker makes of handlers that fail, give a signal, or cannot be run at all."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pgeverything import Cancel, Job, JobContext, PgEverything, Reject, Retry, Snooze
from pgeverything.errors import TaskError

if TYPE_CHECKING:
    import psycopg

    Database = psycopg.Connection[Any]


def work(pg: PgEverything) -> None:
    """Run a worker until nothing is left to do."""
    pg.worker().run(until_idle=True)


def hurry(db: Database) -> None:
    """Make everything that is scheduled due."""
    db.execute("update pgeverything.scheduled set due_at = clock_timestamp()")


# Failures -----------------------------------------------------------------------------------------------------------


def test_a_failure_is_recorded_and_tried_again_until_the_policy_gives_up(pg: PgEverything, db: Database) -> None:
    @pg.task(retry=Retry(attempts=3, first="1h", jitter="none"))
    def fail() -> None:
        raise ValueError("no\0pe")

    job = fail.enqueue()
    work(pg)
    waiting = pg.jobs.get(job.id)
    assert (waiting.state, waiting.attempt) == ("scheduled", 1)
    assert waiting.run_at is not None
    assert timedelta(minutes=59) < waiting.run_at - datetime.now(UTC) < timedelta(minutes=61)

    for _ in range(2):
        hurry(db)
        work(pg)
    dead = pg.jobs.get(job.id)
    assert (dead.state, dead.attempt, dead.reason) == ("dead", 3, "failed at attempt 3")
    assert dead.error is not None
    assert (dead.error["type"], dead.error["message"]) == ("ValueError", "no\\x00pe")
    assert dead.fingerprint
    assert [(each["attempt"], each["error"]["type"]) for each in pg.jobs.failures(job.id)] == [
        (1, "ValueError"),
        (2, "ValueError"),
        (3, "ValueError"),
    ]


def test_the_jobs_own_limit_of_attempts_wins(pg: PgEverything) -> None:
    @pg.task(retry=Retry(attempts=9))
    def fail() -> None:
        raise ValueError

    job = fail.options(max_attempts=1).enqueue()
    work(pg)
    assert pg.jobs.get(job.id).state == "dead"


def test_policies_by_exception(pg: PgEverything) -> None:
    @pg.task(retry=Retry(exceptions={KeyError: None}))
    async def fail() -> None:
        raise KeyError("x")

    job = fail.enqueue()
    work(pg)
    assert pg.jobs.get(job.id).state == "dead"


def test_a_handler_that_exits_takes_no_worker_down(pg: PgEverything) -> None:
    @pg.task(retry=Retry.never())
    def leave() -> NoReturn:
        sys.exit(3)

    @pg.task(retry=Retry.never())
    async def aleave() -> NoReturn:
        sys.exit(4)

    jobs = [leave.enqueue(), aleave.enqueue()]
    work(pg)
    assert [(pg.jobs.get(job.id).state, pg.jobs.get(job.id).error["message"]) for job in jobs] == [  # type: ignore[index]
        ("dead", "3"),
        ("dead", "4"),
    ]


@dataclasses.dataclass
class Order:
    pieces: int

    def __post_init__(self) -> None:
        if self.pieces < 1:
            raise LookupError("an order has pieces")


class Panic(BaseException):
    """What extensions written in Rust raise, for example."""


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("error", [Panic("p"), StopIteration("s"), BaseExceptionGroup("g", [Panic()])], ids=repr)
def test_whatever_a_handler_raises_takes_no_worker_down(
    pg: PgEverything, error: BaseException, asynchronous: bool
) -> None:
    def panic() -> None:
        raise error

    async def apanic() -> None:
        raise error

    task = pg.task(name="panic", retry=Retry.never())(apanic if asynchronous else panic)
    job = task.enqueue()
    asyncio.run(asyncio.wait_for(pg.worker().serve(until_idle=True), 30))
    dead = pg.jobs.get(job.id)
    assert dead.error is not None
    assert (dead.state, dead.error["type"].rpartition(".")[2]) == (
        "dead",
        "RuntimeError" if isinstance(error, StopIteration) else type(error).__name__,
    )


def unaware(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as people write them who think of `def` only."""

    @functools.wraps(function)
    def wrapper(*args: Any, **named: Any) -> Any:
        return function(*args, **named)

    return wrapper


def test_a_coroutine_that_nobody_awaited_is_no_success(pg: PgEverything) -> None:
    ran: list[int] = []

    @pg.task(retry=Retry.never())
    @unaware
    async def blocking(number: int) -> None:
        ran.append(number)

    @pg.task(retry=Retry.never())
    async def outer(number: int) -> Any:
        return blocking(number=number)

    @pg.task(retry=Retry.never())
    def lazy(number: int) -> Any:
        return (ran.append(number) for _ in range(1))

    jobs = [blocking.enqueue(1), outer.enqueue(2), lazy.enqueue(3)]
    work(pg)
    dead = [pg.jobs.get(job.id) for job in jobs]
    assert ran == []
    assert [job.state for job in dead] == ["dead"] * 3
    assert "its body has not run" in str(dead[0].error)


def test_a_generator_is_no_task(pg: PgEverything) -> None:
    with pytest.raises(TaskError, match=r"each is a generator"):

        @pg.task()
        def each() -> Any:
            yield 1

    with pytest.raises(TaskError, match=r"aeach is a generator"):

        @pg.task()
        async def aeach() -> Any:
            yield 1


@pytest.mark.parametrize(
    ("signal", "state", "reason"),
    [
        (Reject("cannot read caf\udce9.csv\0"), "dead", "rejected: cannot read caf?.csv\ufffd"),
        (Cancel("cannot read caf\udce9.csv\0"), "cancelled", "cannot read caf?.csv\ufffd"),
    ],
    ids=["reject", "cancel"],
)
def test_a_reason_that_is_no_utf8_is_kept_as_far_as_it_can_be(
    pg: PgEverything, signal: Exception, state: str, reason: str
) -> None:
    @pg.task()
    def refuse() -> None:
        raise signal

    job = refuse.enqueue()
    work(pg)
    ended = pg.jobs.get(job.id)
    assert (ended.state, ended.reason) == (state, reason)


def test_a_signal_that_is_made_wrong_is_a_failure(pg: PgEverything) -> None:
    class NotYet(Snooze):
        def __init__(self) -> None:
            pass

    @pg.task(retry=Retry.never())
    def hesitate() -> None:
        raise NotYet

    job = hesitate.enqueue()
    work(pg)
    assert pg.jobs.get(job.id).state == "dead"


def test_a_cancelled_error_of_the_handlers_own_is_a_failure(pg: PgEverything) -> None:
    @pg.task(retry=Retry.never())
    async def confused() -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await task

    job = confused.enqueue()
    work(pg)
    assert (pg.jobs.get(job.id).state, pg.jobs.get(job.id).error["type"]) == (  # type: ignore[index]
        "dead",
        "asyncio.exceptions.CancelledError",
    )


# Signals ------------------------------------------------------------------------------------------------------------


def test_snooze_uses_no_attempt(pg: PgEverything, db: Database) -> None:
    attempts: list[int] = []

    @pg.task(retry=Retry.never())
    def wait(context: JobContext) -> None:
        attempts.append(context.attempt)
        if len(attempts) < 3:
            raise Snooze("1h")

    job = wait.enqueue()
    for _ in range(3):
        work(pg)
        hurry(db)
    assert attempts == [1, 1, 1]
    assert pg.jobs.get(job.id).state == "succeeded"
    assert pg.jobs.failures(job.id) == []


def test_cancel_ends_it(pg: PgEverything) -> None:
    @pg.task()
    async def stop() -> None:
        raise Cancel("nothing to do")

    job = stop.enqueue()
    work(pg)
    assert (pg.jobs.get(job.id).state, pg.jobs.get(job.id).reason) == ("cancelled", "nothing to do")


def test_reject_kills_it(pg: PgEverything) -> None:
    @pg.task()
    def refuse() -> None:
        raise Reject("no such user")

    job = refuse.enqueue()
    work(pg)
    dead = pg.jobs.get(job.id)
    assert (dead.state, dead.reason, dead.attempt) == ("dead", "rejected: no such user", 1)
    assert dead.fingerprint


# What cannot be run -------------------------------------------------------------------------------------------------


def test_an_unknown_task_is_dead_and_says_so(pg: PgEverything) -> None:
    job = pg.jobs.enqueue("nobody")
    work(pg)
    dead = pg.jobs.get(job.id)
    assert (dead.state, dead.attempt) == ("dead", 0)
    assert dead.reason == "unknown task: no worker here has 'nobody' registered"


@pytest.mark.parametrize("args", [{}, {"n": "seven"}, {"n": 7, "m": 8}])
def test_arguments_that_do_not_fit_any_more(pg: PgEverything, args: dict[str, Any]) -> None:
    @pg.task()
    def strict(n: int) -> None: ...

    job = pg.jobs.enqueue("strict", args)
    work(pg)
    dead = pg.jobs.get(job.id)
    assert (dead.state, dead.reason, dead.attempt) == ("dead", "its arguments do not fit the task any more", 0)
    assert "strict(n: int)" in dead.error["message"]  # type: ignore[index]


def test_arguments_that_a_class_of_the_callers_refuses(pg: PgEverything) -> None:
    """Enqueued by name, or before the class became stricter."""

    @pg.task()
    def ship(order: Order) -> None:
        raise AssertionError("never reached")

    job = pg.jobs.enqueue("ship", {"order": {"pieces": 0}})
    work(pg)
    dead = pg.jobs.get(job.id)
    assert (dead.state, dead.reason) == ("dead", "its arguments do not fit the task any more")
    assert dead.error is not None
    assert dead.error["message"] == "an order has pieces"


def test_what_has_expired_is_not_started(pg: PgEverything, db: Database) -> None:
    ran: list[int] = []

    @pg.task()
    def late() -> None:
        ran.append(1)

    job, other = late.options(expires="1h").enqueue(), late.options(expires="1h").enqueue()
    db.execute("update pgeverything.jobs set expires_at = clock_timestamp() - interval '1s' where id = %s", [job.id])
    work(pg)
    assert (pg.jobs.get(job.id).state, pg.jobs.get(job.id).reason) == ("dead", "expired before it started")
    assert pg.jobs.get(other.id).state == "succeeded"
    assert ran == [1]


def test_what_expires_after_a_crash_says_so(pg: PgEverything, db: Database) -> None:
    job = pg.jobs.enqueue("late", expires="1h")
    db.execute("update pgeverything.jobs set expires_at = clock_timestamp() - interval '1s'")
    db.execute("update pgeverything.ready set crashes = 1")
    lost = """insert into pgeverything.failures (job, at, attempt, worker, error)
              values (%s, clock_timestamp(), 0, 7, '{"type": "WorkerLost", "message": "it fell silent"}')"""
    db.execute(lost, [job.id])
    work(pg)
    dead = pg.jobs.get(job.id)
    assert (dead.reason, dead.attempt, dead.crashes) == ("expired before it started", 0, 1)
    assert (dead.error["type"], dead.fingerprint) == ("WorkerLost", "crash")  # type: ignore[index]


def test_what_expires_between_two_attempts_keeps_the_error_of_the_last(pg: PgEverything, db: Database) -> None:
    @pg.task(retry=Retry(attempts=9, first="1h"))
    def fail(message: str) -> None:
        raise ValueError(message)

    job, other = fail.options(expires="1h").enqueue("first"), fail.enqueue("other")
    unknown = pg.jobs.enqueue("fail", {"message": "of a task that is gone"})
    work(pg)
    db.execute("update pgeverything.jobs set args = jsonb_build_object('message', 'second') where id = %s", [job.id])
    hurry(db)
    work(pg)
    db.execute("update pgeverything.jobs set expires_at = clock_timestamp() - interval '1s' where id = %s", [job.id])
    db.execute("update pgeverything.jobs set task = 'gone' where id = %s", [unknown.id])
    hurry(db)
    work(pg)

    dead, waiting, gone = (pg.dead_letters.get(job.id), pg.jobs.get(other.id), pg.dead_letters.get(unknown.id))
    assert isinstance(dead, Job)
    assert isinstance(gone, Job)
    assert dead.error is not None
    assert gone.error is not None
    assert gone.reason is not None
    assert (dead.reason, dead.attempt, dead.error["message"]) == ("expired before it started", 2, "second")
    assert (waiting.state, waiting.attempt) == ("scheduled", 3)
    assert dead.fingerprint == dead.error["fingerprint"]
    assert gone.reason.startswith("unknown task")
    assert gone.error["message"] == "of a task that is gone"
    assert len(pg.jobs.failures(job.id)) == 2  # its death was no attempt

    pg.dead_letters.redrive(ids=[unknown.id])
    work(pg)
    assert pg.jobs.get(unknown.id).error is None  # of this life there is none
