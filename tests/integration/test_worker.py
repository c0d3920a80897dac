"""The worker process: how it ends, what it gives back, what wakes it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from pgeverything import JobContext, NotMigrated, PgEverything
from pgeverything.engine.carriers import AsyncPoolCarrier
from pgeverything.engine.plan import Query
from pgeverything.worker.fetch import Fetcher
from tests import pgbouncer
from tests.waiting import PATIENCE, until

if TYPE_CHECKING:
    import psycopg

    Database = psycopg.Connection[Any]


def states(pg: PgEverything) -> dict[str, int]:
    return {state: n for state, n in pg.jobs.counts().items() if n}


def workers(db: Database) -> list[tuple[Any, ...]]:
    return db.execute("select name, queues, concurrency, finished, failed from pgeverything.workers").fetchall()


def test_until_idle_ends_when_nothing_is_left_to_do(pg: PgEverything, db: Database) -> None:
    @pg.task()
    def chain(n: int) -> None:
        if n:
            chain.enqueue(n - 1)

    chain.enqueue(3)
    chain.options(delay="1h").enqueue(0)
    pg.jobs.enqueue("other", queue="other")
    pg.worker().run(until_idle=True)
    assert states(pg) == {"succeeded": 4, "scheduled": 1, "ready": 1}
    assert workers(db) == []


def test_it_serves_the_queues_of_its_tasks_unless_told(pg: PgEverything) -> None:
    assert pg.worker().queues == ["default"]

    @pg.task(queue="b")
    def one() -> None: ...

    @pg.task(queue="a")
    def two() -> None: ...

    assert pg.worker().queues == ["a", "b"]
    assert pg.worker(queues=["c"]).queues == ["c"]


def test_it_is_listed_while_it_works(pg: PgEverything, db: Database) -> None:
    seen: list[Any] = []

    @pg.task(queue="q")
    def look() -> None:
        seen.append((workers(db), pg.jobs.queues()[0].workers))

    look.enqueue()
    pg.worker(name="one", concurrency=3).run(until_idle=True)
    assert seen == [([("one", ["q"], 3, 0, 0)], 1)]


async def test_a_handler_of_an_idle_worker_begins_before_its_claim_is_hardened(
    pg: PgEverything, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    answered: list[str] = []
    execute = AsyncPoolCarrier.execute

    async def noted(carrier: AsyncPoolCarrier, query: Query[Any]) -> Any:
        name = f"{query.statement.name} {query.params.get('soon', '')}".strip()
        if query.statement.name in ("claim", "harden"):
            seen.append(name)
        answer = await execute(carrier, query)
        answered.append(name)
        return answer

    @pg.task()
    async def work() -> None:
        seen.append("work")

    monkeypatch.setattr(AsyncPoolCarrier, "execute", noted)
    work.enqueue()
    worker = pg.worker()
    serving = asyncio.create_task(worker.serve())
    await until(lambda: "claim True" in answered)  # it has said that it sleeps, and looked once more
    await asyncio.to_thread(work.enqueue)
    await until(lambda: states(pg) == {"succeeded": 2})
    worker.stop()
    await serving

    first, second = (place for place, name in enumerate(seen) if name == "work")
    assert seen[first - 1 : first + 2] != ["claim True", "work", "harden"]
    assert seen[second - 1 : second + 2] == ["claim True", "work", "harden"]


def test_sigterm_drains(pg: PgEverything, db: Database) -> None:
    """What runs is finished and acknowledged; what was claimed ahead goes back to its very place."""
    finished: list[int] = []

    @pg.task()
    def first(n: int) -> None:
        finished.append(n)

    @pg.task()
    async def slow(n: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: db.execute("select 1 from pgeverything.running having count(*) = 1").fetchone())
        finished.append(n)

    def mine(number: int, frame: object) -> None:
        raise AssertionError("the worker did not take the signal")

    before = signal.signal(signal.SIGTERM, mine)
    try:
        first.enqueue_many([(n,) for n in range(50)])  # short ones, so that it claims ahead
        slow.options(priority=-1).enqueue(50)
        rest = first.options(priority=-2).enqueue_many([(n,) for n in range(100, 600)])
        pg.worker(concurrency=1).run()
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    assert finished == list(range(51))
    assert states(pg) == {"succeeded": 51, "ready": 500}
    rows = db.execute("select job, seq, attempt from pgeverything.ready order by seq").fetchall()
    assert rows == [(job, job, 0) for job in rest]
    assert workers(db) == []


def test_what_outlasts_the_drain_is_interrupted(pg: PgEverything, db: Database) -> None:
    ended: list[str] = []

    @pg.task()
    async def asleep() -> None:
        await asyncio.sleep(3600)

    @pg.task()
    def spinning(context: JobContext) -> None:
        while not context.cancelled:
            pass
        ended.append("told")

    jobs = [asleep.enqueue(), spinning.enqueue()]

    async def scenario() -> None:
        worker = pg.worker(drain=0)
        serving = asyncio.create_task(worker.serve())
        await until(lambda: pg.jobs.counts()["running"] == 2)
        worker.stop()
        await serving

    asyncio.run(scenario())
    again = pg.jobs.get(jobs[0].id)
    assert (again.state, again.attempt) == ("scheduled", 0)  # back into line: it was not the job's fault
    assert (pg.jobs.get(jobs[1].id).state, ended) == ("succeeded", ["told"])


def test_cancelling_it_leaves_its_jobs_to_be_rescued(pg: PgEverything, db: Database) -> None:
    @pg.task()
    async def asleep() -> None:
        await asyncio.sleep(3600)

    job = asleep.enqueue()

    async def scenario() -> None:
        serving = asyncio.create_task(pg.worker().serve())
        await until(lambda: pg.jobs.counts()["running"] == 1)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

    asyncio.run(scenario())
    assert pg.jobs.get(job.id).state == "running"
    assert len(workers(db)) == 1


def test_it_outlives_a_server_that_takes_no_writes(
    pg: PgEverything, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a failover, while connections end up at the old primary or at a standby that is not promoted yet."""

    @pg.task()
    async def ping() -> None: ...

    def reconnect(read_only: str) -> None:
        """Have every connection but the test's own made anew."""
        name = db.info.dbname
        db.execute(f"alter database {name} set default_transaction_read_only = {read_only}".encode())
        db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and pid <> pg_backend_pid()",
            [name],
        )

    async def scenario() -> None:
        worker = pg.worker(poll="50ms", lease="2s", listen=False)
        serving = asyncio.create_task(worker.serve())
        try:
            await until(lambda: workers(db))
            reconnect("on")
            await until(lambda: serving.done() or caplog.text.count("read-only transaction") >= 3)
            reconnect("off")
            job = pg.on(db).jobs.enqueue("ping")
            await until(lambda: serving.done() or pg.on(db).jobs.get(job.id).state == "succeeded")
        finally:
            db.execute(f"alter database {db.info.dbname} reset default_transaction_read_only".encode())
        worker.stop()
        await serving

    asyncio.run(scenario())


def test_cancelling_it_ends_it_whatever_its_handlers_make_of_that(pg: PgEverything, db: Database) -> None:
    began = asyncio.Event()

    @pg.task()
    async def stubborn() -> None:
        began.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)

    async def scenario() -> None:
        stubborn.enqueue()
        serving = asyncio.create_task(pg.worker().serve())
        await asyncio.wait_for(began.wait(), PATIENCE)
        serving.cancel()
        ended, _ = await asyncio.wait([serving], timeout=PATIENCE)
        assert ended

    asyncio.run(scenario())


@pytest.mark.parametrize("listen", [pytest.param(True, marks=pgbouncer.needs_hints), False])
def test_a_sleeping_worker_is_woken_or_looks_again(
    pg: PgEverything, listen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    nap = Fetcher._nap

    async def noted(fetcher: Fetcher, length: float) -> bool:
        naps.append(length)
        return await nap(fetcher, length)

    monkeypatch.setattr(Fetcher, "_nap", noted)
    if listen:  # only a hint can end its sleep
        monkeypatch.setattr("pgeverything.worker.fetch._DROWSY", 3600.0)

    @pg.task()
    async def ping() -> None: ...

    async def scenario() -> None:
        worker = pg.worker(listen=listen, poll="1h" if listen else "50ms")
        serving = asyncio.create_task(worker.serve())
        await until(lambda: naps and naps[-1] == (3600.0 if listen else 0.05))
        for options in ({}, {"delay": "10ms"}, {"ordering_key": "k"}, {"priority": 3}):
            job = await asyncio.to_thread(ping.options(**options).enqueue)
            await until(lambda job=job: pg.jobs.get(job.id).state == "succeeded")
        worker.stop()
        await serving

    asyncio.run(scenario())


def test_an_idle_worker_rests(pg: PgEverything, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pauses grow fourfold up to the poll: looking again costs less and less."""
    naps: list[float] = []

    async def noted(fetcher: Fetcher, length: float) -> bool:
        naps.append(length)
        await asyncio.sleep(min(length, 0.01))
        return False

    monkeypatch.setattr(Fetcher, "_nap", noted)

    @pg.task()
    def nothing() -> None: ...

    async def scenario() -> None:
        worker = pg.worker(poll="400ms")
        serving = asyncio.create_task(worker.serve())
        await until(lambda: naps.count(0.4) >= 3)
        worker.stop()
        await serving

    asyncio.run(scenario())
    rests = [length for length in naps if length == 0.4 or length in (0.05, 0.05 * 4)]
    assert rests[:3] == [0.05, 0.05 * 4, 0.4]


def test_a_worker_refuses_a_database_that_is_not_migrated(server_url: str) -> None:
    with PgEverything(server_url) as pg, pytest.raises(NotMigrated, match="run `pgeverything migrate`"):
        pg.worker(queues=["q"]).run(until_idle=True)
