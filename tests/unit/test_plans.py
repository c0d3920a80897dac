"""Plans driven by hand: no database, no clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgeverything import JobFailed, JobNotFound, QueueFull, WaitTimeout
from pgeverything import dead_letters as dead
from pgeverything.engine.plan import Async, Atomic, Plan, Query, Sleep, Sync, adrive, drive, nothing, op, same
from pgeverything.engine.statements import statements
from pgeverything.jobs import read
from pgeverything.jobs.enqueue import enqueue, enqueue_many
from pgeverything.jobs.why import Facts, explain

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB_ROW = (7, "q", "mail", "ready", 0, "{}", None, *[None] * 15, None, None, None, None, None)


class Script:
    """Answers the queries of a plan by statement name, and notes every step."""

    def __init__(self, **answers: Callable[[dict[str, Any]], list[tuple[Any, ...]]]) -> None:
        self.answers = answers
        self.steps: list[Any] = []

    def run(self, plan: Plan[Any]) -> Any:
        try:
            step = next(plan)
            while True:
                step = plan.send(self.perform(step))
        except StopIteration as stop:
            return stop.value

    def perform(self, step: Any) -> Any:
        if isinstance(step, Query):
            self.steps.append(step.statement.name)
            return step.read(self.answers[step.statement.name](dict(step.params)))
        if isinstance(step, Sleep):
            self.steps.append(step.seconds)
            return None
        self.steps.append("atomic")
        return self.run(step.plan)

    @property
    def slept(self) -> list[float]:
        return [step for step in self.steps if isinstance(step, float)]


# Enqueue ------------------------------------------------------------------------------------------------------------


def test_enqueue_is_one_statement() -> None:
    script = Script(enqueue=lambda _: [(7, "scheduled", NOW)])
    job = script.run(enqueue("mail", {"a": 1}, delay=90, expires="1m"))
    assert script.steps == ["enqueue"]
    assert (job.id, job.args, job.run_at) == (7, {"a": 1}, NOW + timedelta(seconds=90))
    assert job.expires_at == NOW + timedelta(seconds=150)


def test_a_full_queue_that_says_wait_is_asked_again_with_growing_pauses() -> None:
    full = iter([("wait",), ("wait",), ("wait",), (None,)])
    states = iter([(None, "full", NOW), (7, "ready", NOW)])
    script = Script(enqueue=lambda _: [next(states)], full=lambda _: [next(full)])
    assert script.run(enqueue("mail", queue="q")).id == 7
    assert script.steps == ["enqueue", "full", 0.02, "full", 0.04, "full", 0.08, "full", "enqueue"]


def test_it_gives_up_after_half_a_minute() -> None:
    script = Script(enqueue=lambda _: [(None, "full", NOW)], full=lambda _: [("wait",)])
    with pytest.raises(QueueFull, match="no room for 1 more within 30 s"):
        script.run(enqueue("mail", queue="q"))
    assert 30 <= sum(script.slept) < 31
    assert max(script.slept) == 0.5


def test_it_gives_up_too_where_others_are_always_faster() -> None:
    script = Script(enqueue=lambda _: [(None, "full", NOW)], full=lambda _: [(None,)])
    with pytest.raises(QueueFull, match="no room for 1 more within 30 s"):
        script.run(enqueue("mail", queue="q"))
    assert script.slept == []


@pytest.mark.parametrize(("size", "count", "batches"), [(10, 5000, 1), (10, 5001, 2), (900_000, 9, 3)])
def test_many_travel_in_batches_that_are_one_unit(size: int, count: int, batches: int) -> None:
    sent: list[int] = []

    def answer(params: dict[str, Any]) -> list[tuple[Any, ...]]:
        number = params["args"].count('"a"')
        sent.append(len(params["args"]))
        return [([*range(number)], "ready", NOW)]

    script = Script(enqueue_many=answer)
    assert len(script.run(enqueue_many("mail", [{"a": "x" * size}] * count))) == count
    assert script.steps == ["enqueue_many"] * 1 if batches == 1 else ["atomic", *["enqueue_many"] * batches]
    assert max(sent) < 4_100_000


# Wait ---------------------------------------------------------------------------------------------------------------


def wait(*states: str, timeout: Any = None, row: tuple[Any, ...] | None = JOB_ROW) -> tuple[Script, Callable[[], Any]]:
    left = iter(states)
    script = Script(
        state=lambda _: [(state,)] if (state := next(left, states[-1])) != "unknown" else [],
        get=lambda _: [row] if row else [],
    )
    return script, lambda: script.run(read.wait(7, timeout))


def test_wait_looks_again_with_growing_pauses() -> None:
    script, run = wait("ready", "ready", "running", "succeeded", row=(*JOB_ROW[:3], "succeeded", *JOB_ROW[4:]))
    assert run().state == "succeeded"
    assert script.steps[::2] == ["state"] * 4
    assert script.slept == [pytest.approx(0.01 * 1.5**n) for n in (1, 2, 3)]
    assert script.steps[-1] == "get"


def test_wait_has_an_end() -> None:
    script, run = wait("running", timeout="2s")
    with pytest.raises(WaitTimeout, match="job 7 is still running"):
        run()
    assert sum(script.slept) == pytest.approx(2.0)
    assert max(script.slept) == 0.5
    script, run = wait("ready", timeout=0)
    with pytest.raises(WaitTimeout):
        run()
    assert script.steps == ["state"]


def test_wait_raises_for_what_did_not_succeed() -> None:
    dead_row = (*JOB_ROW[:3], "dead", *JOB_ROW[4:25], '{"message": "m"}', None)
    with pytest.raises(JobFailed, match="job 7 is dead: m"):
        wait("dead", row=dead_row)[1]()
    with pytest.raises(JobNotFound):
        wait("unknown", row=None)[1]()


# Redrive ------------------------------------------------------------------------------------------------------------


def test_redrive_goes_on_until_nothing_moves() -> None:
    moves = iter([1000, 1000, 300, 0])
    asked: list[tuple[int, float]] = []

    def answer(params: dict[str, Any]) -> list[tuple[Any, ...]]:
        asked.append((params["limit"], params["start"]))
        return [([*range(next(moves))], [])]

    assert Script(now=lambda _: [(NOW,)], redrive=answer).run(dead.redrive(task="mail", rate=100)) == 2300
    assert asked == [(1000, 0.0), (1000, 10.0), (1000, 20.0), (1000, 23.0)]


def test_redrive_stops_at_its_limit() -> None:
    asked: list[int] = []

    def answer(params: dict[str, Any]) -> list[tuple[Any, ...]]:
        asked.append(params["limit"])
        return [([*range(params["limit"])], [])]

    assert Script(now=lambda _: [(NOW,)], redrive=answer).run(dead.redrive(everything=True, limit=1500)) == 1500
    assert asked == [1000, 500]


def test_dry_run_only_counts() -> None:
    script = Script(count=lambda _: [(12,)])
    assert script.run(dead.redrive(task="mail", dry_run=True, limit=5)) == 5
    assert script.run(dead.discard(task="mail", dry_run=True)) == 12
    assert script.steps == ["count", "count"]


# Drivers ------------------------------------------------------------------------------------------------------------

BEGIN, END = (Query(statements("jobs")[name], {}, same) for name in ("get", "list"))


def scenario() -> Plan[list[Any]]:
    """A query, one that fails and is survived, and two that are one unit."""
    seen: list[Any] = [(yield from BEGIN)]
    try:
        yield from END
    except ValueError as error:
        seen.append(str(error))

    def unit() -> Plan[str]:
        yield from BEGIN
        yield Sleep(0)
        return "unit"

    seen.append((yield from Atomic(unit())))
    return seen


class Recorder:
    """A carrier that fails the statement `list`."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def execute(self, query: Query[Any]) -> Any:
        self.log.append(query.statement.name)
        if query.statement.name == "list":
            raise ValueError("it failed")
        return [(1,)]

    def atomic(self) -> Any:
        return self

    def __enter__(self) -> Recorder:
        self.log.append("begin")
        return self

    def __exit__(self, *error: object) -> None:
        self.log.append("commit")


class AsyncRecorder(Recorder):
    async def execute(self, query: Query[Any]) -> Any:
        return Recorder.execute(self, query)

    async def __aenter__(self) -> AsyncRecorder:
        self.__enter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.__exit__()


def test_both_drivers_do_the_same() -> None:
    log, alog = list[str](), list[str]()
    result = drive(Recorder(log), scenario())
    assert result == asyncio.run(adrive(AsyncRecorder(alog), scenario()))
    assert result == [[(1,)], "it failed", "unit"]
    assert log == alog == ["get", "list", "begin", "get", "commit"]


def test_an_operation_is_a_method_with_the_plans_name_and_words() -> None:
    def double(n: int) -> Plan[int]:
        """Twice as much."""
        yield Query(statements("jobs")["get"], {}, nothing)
        return 2 * n

    class Blocking(Sync):
        twice = op(double)

    class Awaiting(Async):
        twice = op(double)

    async def carrier() -> Any:
        return AsyncRecorder([])

    blocking, awaiting = Blocking(lambda: Recorder([])), Awaiting(carrier)
    assert blocking.twice(4) == 8
    assert asyncio.run(awaiting.twice(n=4)) == 8
    assert blocking.twice.__doc__ == awaiting.twice.__doc__ == Blocking.twice.__doc__ == "Twice as much."
    assert Blocking.twice.plan is double


# Why ----------------------------------------------------------------------------------------------------------------

FACTS: dict[str, Any] = {
    "state": "ready", "task": "mail", "queue": "q", "ordering_key": None, "attempt": 0, "crashes": 0, "reason": None,
    "note": None, "message": None, "expires_at": None, "due_in": None, "running_for": None, "paused": False,
    "concurrency": None, "in_queue": 0, "workers": 1, "ahead": 0, "ahead_of_key": 0, "holders": None, "worker": None,
    "cancelling": False,
}  # fmt: skip


READY = "It is ready and next in line."


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "It is ready and next in line."),
        ({"ahead": 3}, "It is ready with 3 job(s) before it."),
        ({"ahead": 10_000}, "It is ready with at least 10000 job(s) before it."),
        ({"paused": True}, "It is ready and next in line. The queue 'q' is paused: resume it."),
        ({"workers": 0}, "It is ready and next in line. No live worker serves the queue 'q': start one."),
        ({"concurrency": 2, "in_queue": 1}, "It is ready and next in line."),
        ({"concurrency": 2, "in_queue": 2}, READY + " The queue runs 2 of at most 2 jobs at once."),
        ({"crashes": 1, "expires_at": NOW},
         READY + " It has crashed 1 worker(s). It expires at 2026-01-01 00:00:00 UTC."),
        ({"state": "scheduled", "due_in": 4.25}, "It is due in 4.2 s."),
        ({"state": "scheduled", "due_in": -1.0}, "It is due in 0.0 s."),
        ({"state": "scheduled", "due_in": 9.0, "attempt": 2},
         "It is due in 9.0 s. It failed 2 time(s) and tries again then."),
        ({"state": "waiting", "ordering_key": "k"}, "It waits for its turn of ordering_key='k'."),
        ({"state": "waiting", "ordering_key": "k", "ahead_of_key": 2, "holders": "1, 5"},
         "It waits for its turn of ordering_key='k', with 2 before it in line; held by job 1, 5."),
        ({"state": "running", "attempt": 2, "running_for": 1.0, "worker": "w"},
         "It is running: attempt 2, for 1.0 s, on w."),
        ({"state": "running", "attempt": 1, "running_for": 1.0, "worker": "w", "note": "half", "cancelling": True},
         "It is running: attempt 1, for 1.0 s, on w. It says: half. It was asked to stop."),
        ({"state": "running", "attempt": 1},
         "It is running: attempt 1, for 0.0 s, on a worker that has left; it will be rescued."),
        ({"state": "succeeded", "attempt": 3}, "It succeeded at attempt 3."),
        ({"state": "cancelled", "reason": "late"}, "It was cancelled: late."),
        ({"state": "dead", "reason": "expired"}, "It is dead: expired. Redrive it or discard it."),
        ({"state": "dead", "reason": "rejected: no", "message": "E"},
         "It is dead: rejected: no (E). Redrive it or discard it."),
    ],
)  # fmt: skip
def test_why_in_words(facts: dict[str, Any], words: str) -> None:
    assert explain(Facts(**FACTS | facts)) == words


@pytest.mark.parametrize("blocking", [True, False])
def test_an_interrupted_plan_is_closed_at_once(blocking: bool) -> None:
    """Not when the last traceback that knows it is forgotten: what it holds is free where the interrupt is handled."""

    class Interrupted:
        hints = None

        def execute(self, query: Query[Any]) -> Any:
            raise KeyboardInterrupt

    closed = []

    def waits() -> Plan[None]:
        try:
            yield from Query(statements("events")["dropped"], {}, nothing)
        finally:
            closed.append(True)

    carrier: Any = Interrupted()
    try:
        drive(carrier, waits()) if blocking else asyncio.run(adrive(carrier, waits()))
    except KeyboardInterrupt:
        assert closed
