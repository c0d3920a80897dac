"""The parts of a worker by themselves: what it holds, how it paces itself, how it acknowledges."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg
import pytest

from pgeverything import PgEverything
from pgeverything.engine.plan import Query
from pgeverything.errors import ConfigurationError
from pgeverything.worker import claim
from pgeverything.worker.acknowledge import Acknowledger
from pgeverything.worker.claim import Pace
from pgeverything.worker.claimed import Claimed
from pgeverything.worker.crew import Crew
from pgeverything.worker.execute import Executor
from pgeverything.worker.hands import Hands
from pgeverything.worker.lease import Lease
from pgeverything.worker.outcome import Ended, Failed
from tests.waiting import PATIENCE


def claimed(job: int, worker: int = 1) -> Claimed:
    return Claimed((job, job, "mail", "{}", 1, "q", 0, None, None, None, False, 0, None, None, None), worker)


async def test_run_names_serve_where_an_event_loop_runs() -> None:
    worker = PgEverything("postgresql://127.0.0.1:1/nowhere").worker(queues=["q"])
    with pytest.raises(ConfigurationError, match=r"`await worker.serve\(\)`"):
        worker.run()


# Hands --------------------------------------------------------------------------------------------------------------


async def test_it_claims_what_its_handlers_can_take() -> None:
    hands = Hands(3)
    assert hands.wanted() == 3
    hands.take([claimed(n) for n in range(3)])
    assert hands.wanted() == 0
    for _ in range(3):
        await hands.next()
    assert (hands.wanted(), hands.running) == (0, 3)
    hands.ran(60.0)
    assert hands.wanted() == 1


@pytest.mark.parametrize(
    ("took", "ahead"),
    [(60.0, 0), (0.05, 4), (0.025, 8), (0.001, 200), (0.0, 200)],
    ids=["long", "50ms", "25ms", "1ms", "none"],
)
async def test_it_claims_ahead_as_much_as_is_short_work(took: float, ahead: int) -> None:
    hands = Hands(4)
    hands.take([claimed(1)])
    await hands.next()
    hands.ran(took)
    assert hands.wanted() == 4 + ahead


async def test_short_work_is_claimed_in_batches() -> None:
    hands = Hands(1)
    hands.take([claimed(0)])
    await hands.next()
    hands.ran(0.0005)  # so it wants 100 ahead
    assert hands.wanted() == 101
    hands.take([claimed(n) for n in range(1, 102)])
    asked = []
    for _ in range(60):
        await hands.next()
        asked.append(hands.wanted())
        hands.ran(0.0005)
    assert set(asked[:49]) == {0}
    assert asked[-1] >= 50


async def test_what_the_database_has_not_taken_yet_is_bounded() -> None:
    hands = Hands(1)
    jobs = [claimed(n) for n in range(5001)]
    hands.take(jobs)
    for _ in jobs:
        await hands.next()
        hands.ran(0.0)
    assert hands.wanted() == 0
    hands.settled([Ended(job, "succeeded") for job in jobs[:2]])
    assert hands.wanted() == 201
    assert 0 not in hands.held
    assert 2 in hands.held


async def test_only_what_is_still_held_is_let_go() -> None:
    hands, old, new = Hands(1), claimed(7), claimed(7, worker=2)
    hands.take([old])
    hands.take([new])  # claimed again after a rescue
    hands.settled([Ended(old, "succeeded")])
    hands.drop(old)
    assert hands.held == {7: new}
    hands.drop(new)
    assert hands.held == {}


async def test_a_claim_that_a_crash_undid_and_that_was_made_again_runs_once() -> None:
    hands, first, again = Hands(2), claimed(7), claimed(7)
    hands.take([first])
    hands.take([again])
    assert hands.held == {7: first}
    assert await hands.next() is first
    assert hands.unstarted() == []
    first.lost = True
    hands.take([again])
    assert hands.held == {7: again}


async def test_what_has_not_started_is_taken_back_out() -> None:
    hands = Hands(2)
    jobs = [claimed(n) for n in range(3)]
    hands.take(jobs)
    await hands.next()
    assert hands.unstarted() == jobs[1:]
    assert hands.held == {0: jobs[0]}


async def test_room_is_waited_for_until_a_handler_ends() -> None:
    hands = Hands(1)
    assert await hands.room(60)
    hands.take([claimed(1)])
    await hands.next()
    assert not await hands.room(0)
    waiting = asyncio.create_task(hands.room(60))
    await asyncio.sleep(0)
    hands.ran(60.0)
    assert await waiting


# Pace ---------------------------------------------------------------------------------------------------------------


def test_what_is_expensive_is_done_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(claim.time, "monotonic", lambda: now)
    pace = Pace(share=0.05, longest=2.0)
    assert pace.due
    assert pace.overdue(2.0)

    now = 100.01
    pace.done(100.0)  # it took 10 ms, so 200 ms must pass
    assert (pace.due, pace.wait, pace.overdue(0.1)) == (False, pytest.approx(0.2), False)
    now = 100.2
    assert (pace.due, pace.overdue(0.1)) == (False, True)
    now = 100.2101
    assert (pace.due, pace.wait) == (True, 0.0)

    now = 101.0
    pace.done(100.0)  # a second: 20 s would be too long
    assert pace.wait == pytest.approx(2.0)


# Acknowledging ------------------------------------------------------------------------------------------------------


class Database:
    """Takes what it is told to, and notes the batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, int, list[int]]] = []
        self.refused: set[int] = set()
        self.trouble: list[Exception] = []
        self.freed = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def execute(self, query: Query[Any]) -> Any:
        await self.gate.wait()
        if self.trouble:
            raise self.trouble.pop(0)
        jobs: Any = query.params["jobs"]
        worker: Any = query.params["worker"]
        self.batches.append((query.statement.name, worker, jobs))
        return [([job for job in jobs if job not in self.refused], self.freed, None)]

    def atomic(self) -> Any:
        raise AssertionError("one statement is enough")


class Desk:
    def __init__(self) -> None:
        self.database, self.lease = Database(), Lease(["q"], 1, None, 30.0)
        self.settled: list[tuple[list[int], bool]] = []
        self.acknowledger = Acknowledger(
            self.database,
            self.lease,
            lambda outcomes, freed: self.settled.append(([o.claimed.job for o in outcomes], freed)),
        )

    def put(self, *outcomes: Ended | Failed) -> None:
        for outcome in outcomes:
            self.acknowledger.put(outcome)


def ended(job: int, worker: int = 1) -> Ended:
    return Ended(claimed(job, worker), "succeeded")


async def test_what_gathers_while_a_batch_is_on_its_way_goes_together() -> None:
    desk = Desk()
    desk.database.gate.clear()
    running = asyncio.create_task(desk.acknowledger.run())
    desk.put(ended(1))
    await asyncio.sleep(0)
    desk.put(*map(ended, range(2, 1000)))
    desk.database.gate.set()
    while sum(len(jobs) for jobs, _ in desk.settled) < 999:  # noqa: ASYNC110 - one turn of the loop each
        await asyncio.sleep(0)
    running.cancel()
    assert [len(jobs) for _, _, jobs in desk.database.batches] == [1, 500, 498]
    assert desk.lease.finished == 999


async def test_results_that_are_large_together_go_apart() -> None:
    """In one message they would be more than the protocol takes, and nothing of this worker would be acknowledged."""
    database = Database()
    acknowledger = Acknowledger(database, Lease(["default"], 1, None, 30.0), lambda *_: None)
    for job, size in enumerate([9_000_000, 1, 3_000_000, 5_000_000, 1_000_000]):
        acknowledger.put(Ended(claimed(job), "succeeded", "9" * size))
    await acknowledger.flush()
    assert [jobs for _, _, jobs in database.batches] == [[0], [1, 2], [3, 4]]


async def test_failures_and_successes_are_one_statement_each() -> None:
    desk = Desk()
    desk.put(ended(1), Failed(claimed(2), 1.0), ended(3), Failed(claimed(4), None, "dead"))
    await desk.acknowledger.flush()
    assert desk.database.batches == [("finish", 1, [1, 3]), ("fail", 1, [2, 4])]
    assert (desk.lease.finished, desk.lease.failed, desk.lease.refused) == (2, 2, 0)
    assert desk.settled == [([1, 2, 3, 4], True)]  # 2 is due again: the fetcher has to look when


async def test_others_are_woken_only_when_there_is_something_for_them() -> None:
    desk = Desk()
    desk.put(ended(1), Failed(claimed(2), None, "dead"))
    await desk.acknowledger.flush()
    desk.database.freed = 1
    desk.put(ended(3))
    await desk.acknowledger.flush()
    assert [freed for _, freed in desk.settled] == [False, True]


async def test_outcomes_of_a_lost_lease_are_told_apart() -> None:
    desk = Desk()
    desk.put(ended(1, worker=1), ended(2, worker=2), ended(3, worker=2))
    await desk.acknowledger.flush()
    assert desk.database.batches == [("finish", 1, [1]), ("finish", 2, [2, 3])]


async def test_a_refused_result_is_counted_and_let_go(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.database.refused = {2}
    desk.put(ended(1), ended(2), Failed(claimed(2), 1.0))
    await desk.acknowledger.flush()
    assert (desk.lease.finished, desk.lease.failed, desk.lease.refused) == (1, 0, 2)
    assert desk.settled[0][0] == [1, 2, 2]
    assert "the result of job 2 (mail) was refused" in caplog.text


async def test_it_insists_through_trouble(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("pgeverything.worker.acknowledge.asyncio.sleep", note)
    desk = Desk()
    desk.database.trouble = [psycopg.OperationalError("gone")] * 9
    desk.put(ended(1))
    await desk.acknowledger.flush()
    assert desk.database.batches == [("finish", 1, [1])]
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert "could not acknowledge" in caplog.text


# The crew -----------------------------------------------------------------------------------------------------------


class Suspicious:
    """What a crew needs of a fetcher."""

    def __init__(self) -> None:
        self.suspicion = asyncio.Event()

    def suspect(self) -> None:
        self.suspicion.set()


class LetGo(Executor):
    """An executor whose job is let go while its handler runs."""

    def __init__(self) -> None:
        self.ending = False

    async def run(self, job: Claimed) -> None:
        job.lost = True


async def test_a_job_that_was_let_go_is_suspected_when_its_handler_ends() -> None:
    """The lease may be ours again by then. Only a suspicion makes somebody look for jobs that nobody runs."""
    hands, fetcher, lease = Hands(1), Suspicious(), Lease(["default"], 1, None, 30.0)
    lease._renewed = time.monotonic()
    crew = Crew(Database(), lease, hands, fetcher, LetGo())  # type: ignore[arg-type]
    hands.take([claimed(1)])
    running = asyncio.create_task(crew.run())
    try:
        await asyncio.wait_for(fetcher.suspicion.wait(), PATIENCE)
        assert hands.held == {}
    finally:
        crew.end()
        running.cancel()
