"""Limits of queues: concurrency of the whole fleet, depth, pause."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgeverything import JobContext, PgEverything, QueueFull
from pgeverything.worker.fetch import Fetcher
from tests import pgbouncer
from tests.waiting import PATIENCE, until

if TYPE_CHECKING:
    Database = psycopg.Connection[Any]


class Fleet:
    """Two workers in one loop, whose handlers wait until they are let go."""

    def __init__(self, pg: PgEverything) -> None:
        self.pg, self.now, self.most, self.done = pg, 0, 0, 0
        self.gate = asyncio.Semaphore(0)

        @pg.task(name="hold", queue="q")
        async def hold() -> None:
            self.now += 1
            self.most = max(self.most, self.now)
            await self.gate.acquire()
            self.now -= 1
            self.done += 1

    def run(self, scenario: Any, **options: Any) -> None:
        async def serve() -> None:
            workers = [self.pg.worker(queues=["q"], concurrency=5, **options) for _ in range(2)]
            serving = [asyncio.create_task(worker.serve()) for worker in workers]
            try:
                async with asyncio.timeout(PATIENCE):  # a failure, and not a test run that never ends
                    await scenario()
            finally:
                for worker in workers:
                    worker.stop()
                for _ in range(100):
                    self.gate.release()
                await asyncio.gather(*serving)

        asyncio.run(serve())


@pytest.fixture
def fleet(pg: PgEverything) -> Fleet:
    return Fleet(pg)


def test_a_queue_never_runs_more_than_its_concurrency(fleet: Fleet, pg: PgEverything) -> None:
    pg.jobs.configure("q", concurrency=3)
    pg.jobs.enqueue_many("hold", [{}] * 30, queue="q")

    async def scenario() -> None:
        for n in range(1, 31):
            await until(lambda n=n: fleet.now == min(3, 31 - n))
            fleet.gate.release()
            await until(lambda n=n: fleet.done == n)

    fleet.run(scenario, poll="20ms")
    assert fleet.most == 3


@pytest.mark.parametrize("listen", [True, False])
def test_a_slot_that_gets_free_is_taken_at_once(
    fleet: Fleet, pg: PgEverything, listen: bool, sleepers: set[Fetcher]
) -> None:
    pg.jobs.configure("q", concurrency=1)
    pg.jobs.enqueue_many("hold", [{}] * 3, queue="q")

    async def scenario() -> None:
        for n in range(1, 4):
            await until(lambda: fleet.now == 1)
            await until(lambda: len(sleepers) == 2)
            fleet.gate.release()
            await until(lambda n=n: fleet.done == n)

    fleet.run(scenario, poll="1h", listen=listen)
    assert fleet.most == 1


@pgbouncer.needs_hints
def test_a_limit_that_is_raised_is_used_at_once(fleet: Fleet, pg: PgEverything, sleepers: set[Fetcher]) -> None:
    pg.jobs.configure("q", concurrency=1)
    pg.jobs.enqueue_many("hold", [{}] * 4, queue="q")

    async def scenario() -> None:
        await until(lambda: fleet.now == 1)
        await until(lambda: len(sleepers) == 2)
        await asyncio.to_thread(pg.jobs.configure, "q", concurrency=3)
        await until(lambda: fleet.now == 3)

    fleet.run(scenario, poll="1h")


@pgbouncer.needs_hints
def test_more_jobs_of_a_key_are_started_at_once(fleet: Fleet, pg: PgEverything, sleepers: set[Fetcher]) -> None:
    for _ in range(4):
        pg.jobs.enqueue("hold", queue="q", ordering_key="k")

    async def scenario() -> None:
        await until(lambda: fleet.now == 1)
        await until(lambda: len(sleepers) == 2)
        await asyncio.to_thread(pg.jobs.configure, "q", per_key=3)
        await until(lambda: fleet.now == 3)

    fleet.run(scenario, poll="1h")


@pytest.mark.parametrize("listen", [True, False])
def test_a_turn_that_a_transaction_gives_back_is_passed_on_at_once(
    fleet: Fleet, pg: PgEverything, sleepers: set[Fetcher], listen: bool
) -> None:
    @pg.task(queue="q")
    async def atomic(context: JobContext) -> None:
        async with context.transaction():
            await fleet.gate.acquire()

    jobs = [atomic.options(ordering_key="k").enqueue().id for _ in range(3)]

    async def scenario() -> None:
        for job in jobs:
            await until(lambda job=job: pg.jobs.get(job).state == "running")
            await until(lambda: len(sleepers) == 2)
            fleet.gate.release()
            await until(lambda job=job: pg.jobs.get(job).state == "succeeded")

    fleet.run(scenario, poll="1h", listen=listen)


@pgbouncer.needs_hints
def test_a_paused_queue_is_left_alone_until_it_is_resumed(
    fleet: Fleet, pg: PgEverything, sleepers: set[Fetcher]
) -> None:
    pg.jobs.pause("q")
    job = pg.jobs.enqueue("hold", queue="q")

    async def scenario() -> None:
        await until(lambda: len(sleepers) == 2)
        assert pg.jobs.get(job.id).state == "ready"
        await asyncio.to_thread(pg.jobs.resume, "q")
        await until(lambda: fleet.now == 1)

    fleet.run(scenario, poll="1h")


def test_a_paused_queue_with_a_limit_is_left_alone_too(fleet: Fleet, pg: PgEverything) -> None:
    pg.jobs.configure("q", concurrency=2)
    pg.jobs.pause("q")
    job, other = pg.jobs.enqueue("hold", queue="q"), pg.jobs.enqueue("other", queue="r")

    @pg.task(name="other", queue="r")
    def nothing() -> None: ...

    pg.worker(queues=["r"]).run(until_idle=True)
    assert (pg.jobs.get(job.id).state, pg.jobs.get(other.id).state) == ("ready", "succeeded")


# Depth --------------------------------------------------------------------------------------------------------------


def test_an_enqueue_waits_for_room(pg: PgEverything, db: Database) -> None:
    pg.jobs.configure("q", max_depth=2, on_full="wait")
    first, _ = pg.jobs.enqueue("a", queue="q"), pg.jobs.enqueue("a", queue="q")
    done: list[Any] = []
    threads = [
        threading.Thread(target=lambda: done.append(pg.jobs.enqueue("b", queue="q"))),
        threading.Thread(target=lambda: done.append(pg.jobs.enqueue_many("b", [{}], queue="q"))),
    ]
    for thread in threads:
        thread.start()
    # Both have asked, were told to wait, and have left nothing behind.
    for thread in threads:
        thread.join(0.1)
    assert done == []
    assert pg.jobs.counts("q")["ready"] == 2
    assert db.execute("select count(*) from pgeverything.jobs").fetchone() == (2,)

    pg.jobs.configure("q", max_depth=4)
    for thread in threads:
        thread.join()
    assert len(done) == 2
    assert pg.jobs.counts("q")["ready"] == 4
    assert pg.jobs.get(first.id).state == "ready"


def test_what_can_never_fit_is_not_waited_for(pg: PgEverything) -> None:
    pg.jobs.configure("q", max_depth=2, on_full="wait")
    with pytest.raises(QueueFull, match="no room for 3"):
        pg.jobs.enqueue_many("b", [{}, {}, {}], queue="q")
    assert pg.jobs.counts("q")["ready"] == 0


def test_depth_counts_what_is_ready_or_waiting(pg: PgEverything) -> None:
    pg.jobs.configure("q", max_depth=3)
    pg.jobs.enqueue("a", queue="q", delay="1h")
    pg.jobs.enqueue("a", queue="q")
    pg.jobs.enqueue("a", queue="q", ordering_key="k")
    with pytest.raises(QueueFull):
        pg.jobs.enqueue_many("a", [{}, {}], queue="q")
    with pytest.raises(QueueFull):
        pg.jobs.enqueue_many("a", [{}, {}], queue="q", delay="1h")
    pg.jobs.enqueue_many("a", [{}], queue="q", ordering_key="k")
    with pytest.raises(QueueFull):
        pg.jobs.enqueue("a", queue="q", ordering_key="k")


def test_many_that_do_not_fit_leave_nothing_although_some_did(pg: PgEverything) -> None:
    pg.jobs.configure("q", max_depth=6000)
    with pytest.raises(QueueFull, match="no room for 2000 more"):
        pg.jobs.enqueue_many("a", [{}] * 7000, queue="q")
    assert sum(pg.jobs.counts("q").values()) == 0


def test_the_sql_function_raises(pg: PgEverything, db: Database) -> None:
    pg.jobs.configure("q", max_depth=1)
    db.execute("select pgeverything.enqueue('a', queue => 'q')")
    with pytest.raises(psycopg.Error, match="queue q is full") as caught:
        db.execute("select pgeverything.enqueue('a', queue => 'q')")
    assert caught.value.sqlstate == "PGE01"


# Who goes first -----------------------------------------------------------------------------------------------------


def test_a_limited_queue_goes_before_what_has_a_lower_priority(pg: PgEverything) -> None:
    order: list[str] = []

    @pg.task(name="note")
    async def note(name: str) -> None:
        order.append(name)

    pg.jobs.configure("limited", concurrency=5)
    pg.jobs.enqueue_many("note", [{"name": "low"}] * 1000, queue="unlimited")
    pg.jobs.enqueue_many("note", [{"name": "high"}] * 5, queue="limited", priority=1)
    pg.worker(queues=["limited", "unlimited"], concurrency=5).run(until_idle=True)
    assert order[:5] == ["high"] * 5


@pytest.mark.parametrize("concurrency", [None, 500])
def test_a_limited_queue_has_its_share_beside_one_with_a_backlog(pg: PgEverything, concurrency: int | None) -> None:
    """Once with an unlimited queue that has more to do than the worker can take, once with another limited one."""
    order: list[str] = []

    @pg.task(name="note")
    async def note(name: str) -> None:
        order.append(name)

    pg.jobs.configure("a", concurrency=concurrency)
    pg.jobs.configure("b", concurrency=500)
    for name in ("a", "b"):
        pg.jobs.enqueue_many("note", [{"name": name}] * 5000, queue=name)
    pg.worker(queues=["a", "b"], concurrency=5).run(until_idle=True)
    assert len(order) == 10_000
    assert {order.index("a"), order.index("b")} != {0, 5000}  # by chance: once in 2 ** (claims of 200 jobs)
