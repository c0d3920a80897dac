"""A worker's connections break at the worst moment, or hang: what it has claimed is neither lost nor done twice.

The worker runs in the test's own event loop, behind a proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pgeverything import AsyncPgEverything, JobContext, PgEverything
from tests.waiting import PATIENCE, until

from .accounts import fetch, left_over, remaining
from .proxy import Proxy
from .sessions import Sessions

CLAIM = b"from pgeverything.claim("
FINISH = b"from pgeverything.finish("


@pytest.fixture(autouse=True)
def spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements travel as text, so that the proxy knows them."""
    monkeypatch.setenv("PGEVERYTHING_PREPARE", "off")


@asynccontextmanager
async def working(app: AsyncPgEverything, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
    worker = app.worker(**options)
    serving = asyncio.create_task(worker.serve())
    try:
        yield serving
        worker.stop()
        await asyncio.wait_for(serving, PATIENCE)
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


async def test_jobs_whose_claim_was_never_answered_are_put_back(url: str, pg: PgEverything) -> None:
    """The claim commits and its answer is lost: the jobs are this worker's, and it does not know."""
    runs: Counter[int] = Counter()
    async with Proxy(url) as proxy, AsyncPgEverything(proxy.url) as app:

        @app.task()
        async def count(number: int) -> None:
            runs[number] += 1

        proxy.drop_answer_to(CLAIM)
        pg.jobs.enqueue_many("count", [{"number": number} for number in range(5)])
        async with working(app, lease="3s"):
            await asyncio.wait_for(proxy.dropped.wait(), PATIENCE)
            pg.jobs.enqueue("count", {"number": 5})  # and it goes on claiming meanwhile
            await until(lambda: remaining(url) == 0, f"all jobs to end; the worker ran {runs}")
    assert runs == dict.fromkeys(range(6), 1)
    assert left_over(url) == {}
    assert fetch(url, "select distinct attempt, crashes from pgeverything.finished") == [(1, 0)]


async def test_an_acknowledgement_whose_answer_is_lost_is_repeated_and_changes_nothing(
    url: str, pg: PgEverything
) -> None:
    runs: Counter[int] = Counter()
    async with Proxy(url) as proxy, AsyncPgEverything(proxy.url) as app:

        @app.task()
        async def count(number: int) -> None:
            runs[number] += 1

        proxy.drop_answer_to(FINISH)
        pg.jobs.enqueue_many("count", [{"number": number} for number in range(5)], ordering_key="k")
        async with working(app):
            await asyncio.wait_for(proxy.dropped.wait(), PATIENCE)
            await until(lambda: remaining(url) == 0, f"all jobs to end; the worker ran {runs}")
    assert runs == dict.fromkeys(range(5), 1)
    assert left_over(url) == {}


async def test_a_transaction_whose_commit_was_never_answered_ends_its_job_once(url: str, pg: PgEverything) -> None:
    """The handler sees an error and cannot know that all was committed; its failure is refused by the fence."""
    async with Proxy(url) as proxy, AsyncPgEverything(proxy.url) as app:
        failures = 0

        @app.task()
        async def write(context: JobContext, number: int) -> None:
            nonlocal failures
            try:
                async with context.transaction() as tx:
                    await tx.connection.execute("insert into effects (number) values (%s)", [number])
                    if failures == 0:
                        proxy.drop_answer_to(b"COMMIT")
            except Exception:
                failures += 1
                raise

        pg.jobs.enqueue("write", {"number": 1})
        async with working(app):
            await asyncio.wait_for(proxy.dropped.wait(), PATIENCE)
            await until(lambda: failures, "the handler to see the error")
            await until(lambda: remaining(url) == 0, "the job to end")
    assert failures == 1
    assert fetch(url, "select number from effects") == [(1,)]
    assert fetch(url, "select state, attempt from pgeverything.finished") == [("succeeded", 1)]
    assert left_over(url) == {}


async def test_a_worker_whose_heartbeats_hang_lets_go_before_the_others_take_its_jobs(
    url: str, pg: PgEverything
) -> None:
    async with Proxy(url) as proxy, AsyncPgEverything(proxy.url) as app:
        begun, let_go = asyncio.Event(), asyncio.Event()
        lease_left: list[bool] = []

        @app.task()
        async def hold() -> None:
            if begun.is_set():
                return  # the second time, when the connection works again
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                rows = fetch(url, "select heartbeat_at + lease > clock_timestamp() from pgeverything.workers")
                lease_left.extend(left for (left,) in rows)
                let_go.set()

        pg.jobs.enqueue("hold")
        async with working(app, lease="6s"):
            await asyncio.wait_for(begun.wait(), PATIENCE)
            proxy.hang()
            await asyncio.wait_for(let_go.wait(), PATIENCE)
            proxy.resume()
            await until(lambda: remaining(url) == 0, "the job to be run again")
    assert lease_left == [True]
    assert left_over(url) == {}


async def test_a_worker_declared_dead_by_mistake_begins_anew(url: str, pg: PgEverything, sessions: Sessions) -> None:
    """Its row is gone at the next heartbeat: it lets go of what it holds, registers again and goes on."""
    async with Proxy(url) as proxy, AsyncPgEverything(proxy.url) as app:
        begun = asyncio.Event()
        ends: list[str] = []

        @app.task()
        async def hold() -> None:
            if begun.is_set():
                ends.append("finished")
                return
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ends.append("let go")
                raise

        job = pg.jobs.enqueue("hold")
        async with working(app, lease="2s"):
            await asyncio.wait_for(begun.wait(), PATIENCE)
            other = sessions.open()
            other.sql("begin")
            other.sql("update pgeverything.workers set heartbeat_at = now() - interval '1 hour'")
            assert other.rescue() == 1
            other.sql("commit")
            await until(lambda: remaining(url) == 0, "the job to be run again")
            assert fetch(url, "select count(*) from pgeverything.workers") == [(1,)]
    assert ends == ["let go", "finished"]
    assert pg.jobs.get(job.id).crashes == 1
    assert left_over(url) == {}
