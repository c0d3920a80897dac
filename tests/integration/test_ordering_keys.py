"""Ordering keys: jobs of one key run in the order of enqueue, whatever happens to some of them."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgeverything import JobContext, PgEverything, Retry, Snooze
from pgeverything.engine.carriers import AsyncPsycopgCarrier
from pgeverything.maintenance import Sweeper

if TYPE_CHECKING:
    Database = psycopg.Connection[Any]


class Line:
    """Notes which jobs ran, and how many of them at once."""

    def __init__(self, pg: PgEverything) -> None:
        self.pg, self.ran, self.most, self._now, self._lock = pg, list[int](), 0, 0, threading.Lock()

        @pg.task(name="note")
        def note(n: int) -> None:
            with self._lock:
                self._now += 1
                self.most = max(self.most, self._now)
                self.ran.append(n)
            with self._lock:
                self._now -= 1

        self.task = note

    def enqueue(self, n: int, **options: Any) -> int:
        return self.task.options(ordering_key="k", **options).enqueue(n).id

    def work(self) -> None:
        self.pg.worker(queues=["default"]).run(until_idle=True)


@pytest.fixture
def line(pg: PgEverything) -> Line:
    return Line(pg)


def advance(db: Database) -> None:
    db.execute("select pgeverything.advance(100)")


def states(pg: PgEverything, *jobs: int) -> list[str]:
    return [pg.jobs.get(job).state for job in jobs]


def due(db: Database) -> None:
    db.execute("update pgeverything.scheduled set due_at = clock_timestamp()")


def sweep(url: str) -> None:
    async def once() -> None:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await Sweeper(AsyncPsycopgCarrier(connection, "pgeverything"), 3600, 30).sweep()

    asyncio.run(once())


def test_one_at_a_time_in_the_order_of_enqueue(line: Line, db: Database) -> None:
    for n in range(8):
        line.enqueue(n, priority=n)  # a priority does not jump the line
    line.work()
    assert (line.ran, line.most) == (list(range(8)), 1)
    assert db.execute("select from pgeverything.turns").fetchall() == []
    assert db.execute("select from pgeverything.turn_notes").fetchall() == []


def test_keys_do_not_wait_for_each_other(pg: PgEverything, db: Database) -> None:
    jobs = [pg.jobs.enqueue("a", ordering_key=key, queue=queue).id for key in "kl" for queue in "qr" for _ in range(2)]
    advance(db)
    assert states(pg, *jobs) == ["ready", "waiting"] * 4


def test_so_many_at_a_time(pg: PgEverything, db: Database) -> None:
    pg.jobs.configure("default", per_key=2)
    jobs = [pg.jobs.enqueue("a", ordering_key="k").id for _ in range(4)]
    advance(db)
    assert states(pg, *jobs) == ["ready", "ready", "waiting", "waiting"]

    pg.jobs.cancel(jobs[0])
    advance(db)
    assert states(pg, *jobs[1:]) == ["ready", "ready", "waiting"]


def test_two_open_transactions_on_one_key_do_not_wait_for_each_other(pg: PgEverything, line: Line) -> None:
    with pg.transaction() as one, pg.transaction() as two:
        line.task.options(ordering_key="k").on(one).enqueue(1)
        line.task.options(ordering_key="k").on(two).enqueue(2)
        line.task.options(ordering_key="k").on(one).enqueue(3)
    line.work()
    assert sorted(line.ran) == [1, 2, 3]
    assert line.ran.index(1) < line.ran.index(3)


def test_a_delayed_job_joins_the_line_when_it_is_due(line: Line, db: Database) -> None:
    line.enqueue(1, delay="1h")
    line.enqueue(2)
    line.work()
    assert line.ran == [2]

    due(db)
    line.enqueue(3)
    line.work()
    assert sorted(line.ran[1:]) == [1, 3]


def test_one_that_is_cancelled_leaves_the_line(pg: PgEverything, line: Line, db: Database) -> None:
    jobs = [line.enqueue(n) for n in range(5)]
    advance(db)
    pg.jobs.cancel(jobs[0])  # it has the turn
    pg.jobs.cancel(jobs[2])  # it waits
    line.work()
    assert line.ran == [1, 3, 4]


def test_a_cancel_that_is_rolled_back_loses_no_turn(pg: PgEverything, line: Line, db: Database) -> None:
    jobs = [line.enqueue(n) for n in range(3)]
    advance(db)
    with pg.transaction() as tx:
        tx.jobs.cancel(jobs[0])
        advance(db)  # a worker looks while it is open
        raise psycopg.Rollback
    advance(db)
    assert states(pg, *jobs) == ["ready", "waiting", "waiting"]
    line.work()
    assert line.ran == [0, 1, 2]


def test_a_line_that_nobody_holds_is_nudged(pg: PgEverything, line: Line, db: Database, url: str) -> None:
    first, second = line.enqueue(1), line.enqueue(2)
    advance(db)
    with pg.transaction() as tx:
        tx.jobs.cancel(second)
        pg.jobs.cancel(first)
        advance(db)  # gives the turn to nobody: the only job in line is hidden by the cancel
        raise psycopg.Rollback
    advance(db)
    assert states(pg, first, second) == ["cancelled", "waiting"]

    sweep(url)
    line.work()
    assert line.ran == [2]


def test_a_retry_keeps_its_turn(pg: PgEverything, db: Database) -> None:
    ran: list[int] = []

    @pg.task(retry=Retry.fixed("1h", attempts=2))
    def fail(context: JobContext, n: int) -> None:
        ran.append(n)
        if context.attempt == 1 and n == 0:
            raise ValueError

    jobs = [fail.options(ordering_key="k").enqueue(n).id for n in range(3)]
    advance(db)
    stop_when(pg, lambda: pg.jobs.get(jobs[0]).state == "scheduled")
    assert (ran, states(pg, *jobs)) == ([0], ["scheduled", "waiting", "waiting"])
    due(db)
    pg.worker().run(until_idle=True)
    assert ran == [0, 0, 1, 2]


def test_a_snooze_keeps_its_turn(pg: PgEverything, db: Database) -> None:
    ran: list[int] = []

    @pg.task()
    def doze(n: int) -> None:
        ran.append(n)
        if ran == [0]:
            raise Snooze("1h")

    jobs = [doze.options(ordering_key="k").enqueue(n).id for n in range(2)]
    stop_when(pg, lambda: pg.jobs.get(jobs[0]).state == "scheduled")
    assert (ran, states(pg, *jobs)) == ([0], ["scheduled", "waiting"])
    due(db)
    pg.worker().run(until_idle=True)
    assert ran == [0, 0, 1]


@pytest.mark.parametrize("first", ["dead", "unknown"])
def test_a_death_passes_the_turn_on(pg: PgEverything, line: Line, first: str) -> None:
    @pg.task(retry=Retry.never())
    def dead() -> None:
        raise ValueError

    job = pg.jobs.enqueue(first, ordering_key="k")
    line.enqueue(1)
    line.work()
    assert pg.jobs.get(job.id).state == "dead"
    assert line.ran == [1]


def test_a_rescue_keeps_its_turn(pg: PgEverything, line: Line, db: Database, url: str) -> None:
    jobs = [line.enqueue(n) for n in range(3)]
    advance(db)
    db.execute(
        """with gone as (delete from pgeverything.ready returning *)
           insert into pgeverything.running (job, token, worker, queue, attempt, crashes, started_at)
           select job, seq, 0, queue, 1, 0, clock_timestamp() - interval '1h' from gone"""
    )
    sweep(url)
    rescued = pg.jobs.get(jobs[0])
    assert (rescued.state, rescued.attempt, rescued.crashes) == ("ready", 0, 1)
    assert states(pg, *jobs[1:]) == ["waiting", "waiting"]
    line.work()
    assert line.ran == [0, 1, 2]


def test_a_redriven_job_goes_to_the_end_of_the_line(pg: PgEverything, line: Line, db: Database) -> None:
    job = pg.jobs.enqueue("unknown", ordering_key="k")
    line.work()

    @pg.task(name="unknown")
    def known() -> None:
        line.ran.append(-1)

    line.enqueue(1)
    pg.jobs.retry(job.id)
    line.enqueue(2)
    advance(db)
    line.work()
    assert line.ran[0] == 1
    assert sorted(line.ran) == [-1, 1, 2]
    assert db.execute("select from pgeverything.turns").fetchall() == []


def stop_when(pg: PgEverything, condition: Any) -> None:
    """Run a worker until a condition holds: for what never gets idle."""

    async def serve() -> None:
        worker = pg.worker(poll="10ms")
        serving = asyncio.create_task(worker.serve())
        while not await asyncio.to_thread(condition):
            assert not serving.done()
        worker.stop()
        await serving

    asyncio.run(serve())
