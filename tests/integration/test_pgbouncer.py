"""Behind PgBouncer in transaction mode: no session of ours is kept, and nothing misses it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import psycopg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from pgeverything import AsyncPgEverything, JobContext, PgEverything, Retry
from tests.pgbouncer import ASYNCPG


@pytest.fixture
def pooled(
    url: str,
    db: psycopg.Connection[object],
    through: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The URL, through the pooler, of a database without jobs; prepared statements are off, as that asks for."""
    monkeypatch.setenv("PGEVERYTHING_PREPARE", "off")
    return through(url)


def test_sessions_really_change(pooled: str) -> None:
    with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as one:
        with psycopg.connect(pooled, prepare_threshold=None) as other:
            other.execute("select 1")
            one.execute("select 1")
        pids = {one.execute("select pg_backend_pid()").fetchone() for _ in range(8)}

    assert len(pids) > 1


def test_jobs_of_every_kind_run(pooled: str) -> None:
    with PgEverything(pooled) as pg:
        order: list[int] = []

        @pg.task(retry=Retry(attempts=2, first="10ms", most="10ms"))
        def work(number: int) -> int:
            if number < 0:
                raise ValueError("as told")
            order.append(number)
            return number

        @pg.task(queue="limited")
        def together(context: JobContext) -> None:
            with context.transaction() as tx:
                tx.jobs.enqueue("work", {"number": 99})

        pg.jobs.configure("limited", concurrency=1)
        for _ in range(3):  # the sixth run of a statement would be the first prepared one
            work.enqueue_many([(number,) for number in range(10)])
            work.options(ordering_key="line").enqueue_many([(number,) for number in range(100, 110)])
            work.options(unique_key="same", delay="20ms").enqueue(50)
            together.enqueue()
            dead = work.enqueue(-1)
            worker = pg.worker(queues=["default", "limited"], listen=False, poll="50ms")
            worker.run(until_idle=True)
            while pg.jobs.counts()["scheduled"]:  # a retry and a delay that were not due yet leave a worker idle
                worker.run(until_idle=True)

        assert sorted(order) == sorted([*range(10), *range(100, 110), 50, 99] * 3)
        assert [number for number in order if 100 <= number < 110] == [*range(100, 110)] * 3
        assert pg.jobs.get(dead.id).state == "dead"
        assert pg.dead_letters.count() == 3
        assert pg.jobs.counts()["succeeded"] == 3 * 23
        with pg.transaction() as tx:
            kept = tx.jobs.enqueue("work", {"number": 1})
        assert pg.jobs.why(kept.id).startswith("It is ready")


async def test_async_handlers_too(pooled: str) -> None:
    async with AsyncPgEverything(pooled) as pg:
        done = []

        @pg.task()
        async def work(number: int, context: JobContext) -> None:
            async with context.transaction() as tx:
                await tx.connection.execute("select 1")
            done.append(number)

        await work.enqueue_many([(number,) for number in range(20)])
        await pg.worker(listen=False, poll="50ms").serve(until_idle=True)

        assert sorted(done) == list(range(20))
        assert (await pg.jobs.counts())["succeeded"] == 20


def test_a_worker_finds_out_that_nothing_is_heard_and_polls(pooled: str, caplog: pytest.LogCaptureFixture) -> None:
    with PgEverything(pooled) as pg:
        ran = threading.Event()
        pg.task(name="work")(ran.set)
        worker = pg.worker()

        async def work() -> None:
            serving = asyncio.create_task(worker.serve())
            while "LISTEN does not work" not in caplog.text:  # noqa: ASYNC110 - the log has no event to wait for
                await asyncio.sleep(0.02)
            await asyncio.to_thread(pg.jobs.enqueue, "work")
            await asyncio.to_thread(ran.wait, 30)
            worker.stop()
            await serving

        asyncio.run(work())

    assert ran.is_set()


def test_the_event_log(pooled: str) -> None:
    """Fences belong to transactions, so a pooler that hands a session to the next one changes nothing."""
    with PgEverything(pooled) as pg:
        pg.events.append("t", 0, key="k", expected_version=0)
        with pg.transaction() as tx:
            tx.events.append("t", 1, key="k")
            threads = [threading.Thread(target=pg.events.append, args=("t", n)) for n in (2, 3, 4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [event.data for event in pg.events.read()] == [0]
            assert len(pg.events.stalled_by()) == 1
        assert sorted(event.data for event in pg.events.read()) == [0, 1, 2, 3, 4]
        assert pg.events.stalled_by() == []


async def test_asyncpg_prepares_and_executes_on_one_connection_of_the_server(pooled: str) -> None:
    """Alone in autocommit it would not: by then the pooler may have given that connection to somebody else."""
    engine = create_async_engine(pooled.replace("postgresql", "postgresql+asyncpg", 1), connect_args=ASYNCPG)

    async def use(pg: AsyncPgEverything, number: int) -> None:
        for n in range(20):
            await pg.cache.set(f"{number}:{n}", n)
            assert await pg.cache.get(f"{number}:{n}") == n

    async with AsyncPgEverything(engine) as pg:
        await asyncio.gather(*(use(pg, number) for number in range(5)))
        lease = await pg.locks.acquire("a")
        assert lease is not None
        assert await lease.release()
    await engine.dispose()
