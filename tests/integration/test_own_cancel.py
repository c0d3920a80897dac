"""Handlers that cancel the task they run in, which is no one else's business."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from pgeverything import AsyncMessage, JobContext, PgEverything, Retry
from tests.waiting import PATIENCE, until

if TYPE_CHECKING:
    import psycopg

    from pgeverything.worker.worker import Worker

    Database = psycopg.Connection[Any]

UNASKED = "cancelled, but not by the worker: by the handler itself, or by something that it awaited"


async def served(worker: Worker) -> None:
    """Let a worker work until nothing is left to do, and no longer than patience lasts."""
    await asyncio.wait_for(worker.serve(until_idle=True), PATIENCE)


def current() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


@pytest.mark.parametrize("timeout", [None, "1m"])
@pytest.mark.parametrize("then", ["awaits", "returns", "goes on", "raises"])
async def test_a_handler_that_cancels_its_own_task_takes_down_neither_worker_nor_neighbour(
    pg: PgEverything, then: str, timeout: str | None
) -> None:
    @pg.task(retry=Retry.never(), timeout=timeout)
    async def confused() -> None:
        current().cancel()
        if then == "awaits":
            await asyncio.sleep(60)
        elif then == "raises":
            raise ValueError("mine")
        elif then == "goes on":
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            await asyncio.sleep(0)

    @pg.task(retry=Retry.never(), timeout=timeout)
    async def next_one() -> int:
        await asyncio.sleep(0)
        return current().cancelling()

    jobs = [await asyncio.to_thread(task.enqueue) for task in (confused, next_one)]
    await served(pg.worker(concurrency=1))
    ended, after = [await asyncio.to_thread(pg.jobs.get, job.id) for job in jobs]
    assert (after.state, after.result) == ("succeeded", 0)
    error = ended.error or {}
    assert (ended.state, ended.attempt, error.get("type"), error.get("message")) == {
        "awaits": ("dead", 1, "asyncio.exceptions.CancelledError", UNASKED),
        "raises": ("dead", 1, "ValueError", "mine"),
    }.get(then, ("succeeded", 1, None, None))


async def test_a_handler_that_cancels_its_own_task_is_still_cut_off(pg: PgEverything) -> None:
    @pg.task(timeout="50ms", retry=Retry.never())
    async def confused() -> None:
        current().cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    job = await asyncio.to_thread(confused.enqueue)
    await served(pg.worker())
    dead = await asyncio.to_thread(pg.jobs.get, job.id)
    assert (dead.state, dead.error["type"]) == ("dead", "TimeoutError")  # type: ignore[index]


async def test_a_handler_that_cancels_its_own_task_can_still_be_cancelled(pg: PgEverything) -> None:
    @pg.task(retry=Retry.never())
    async def confused(context: JobContext) -> None:
        current().cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.to_thread(pg.jobs.cancel, context.job.id, "changed my mind")
        await asyncio.sleep(PATIENCE)

    job = await asyncio.to_thread(confused.enqueue)
    await served(pg.worker(poll="50ms", lease="2s"))
    ended = await asyncio.to_thread(pg.jobs.get, job.id)
    assert (ended.state, ended.reason) == ("cancelled", "changed my mind")


async def test_a_handler_that_cancels_its_own_task_still_ends_with_its_worker(pg: PgEverything) -> None:
    goes_on = asyncio.Event()

    @pg.task(timeout="1h")
    async def confused() -> None:
        current().cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        goes_on.set()
        await asyncio.sleep(3600)

    job = await asyncio.to_thread(confused.enqueue)
    serving = asyncio.create_task(pg.worker().serve())
    await asyncio.wait_for(goes_on.wait(), PATIENCE)
    serving.cancel()
    ended, _ = await asyncio.wait([serving], timeout=PATIENCE)
    assert ended
    assert serving.cancelled()
    assert (await asyncio.to_thread(pg.jobs.get, job.id)).state == "running"  # to be rescued


async def test_a_handler_whose_cancel_comes_after_its_end_takes_nothing_down(pg: PgEverything) -> None:
    """A timer that it left behind, for example: it knows the task, which goes on to other jobs."""
    late: list[asyncio.Task[Any]] = []

    @pg.task()
    async def careless() -> None:
        late.append(current())

    @pg.task(retry=Retry.never())
    def blocking() -> str:
        asyncio.run_coroutine_threadsafe(cancel_late(), loop).result(PATIENCE)
        return "done"

    async def cancel_late() -> None:
        late[-1].cancel()

    loop = asyncio.get_running_loop()
    worker = pg.worker(concurrency=1)
    serving = asyncio.create_task(worker.serve())
    for task in (careless, blocking, careless):
        job = await asyncio.to_thread(task.enqueue)
        await until(lambda job=job: serving.done() or pg.jobs.get(job.id).state == "succeeded")
        await cancel_late()  # while it waits for the next one
    worker.stop()
    await asyncio.wait_for(serving, PATIENCE)
    assert pg.jobs.counts()["succeeded"] == 3


@pytest.mark.parametrize("transactional", [False, True])
@pytest.mark.parametrize("then", ["awaits", "returns"])
async def test_a_handler_that_cancels_its_own_task_has_failed(
    pg: PgEverything, db: Database, then: str, transactional: bool
) -> None:
    seen: list[int] = []

    @pg.subscriber("t", name="s", start="earliest", max_deliveries=1, transactional=transactional)
    async def confused(message: AsyncMessage) -> None:
        if message.data == 1:
            seen.append(message.data)
            return
        current().cancel()
        if then == "awaits":
            await asyncio.sleep(60)

    await asyncio.to_thread(pg.events.append_many, "t", [0, 1], key="k")
    await served(pg.worker(concurrency=1))
    assert seen == [1]
    query = "select reason, error ->> 'type', error ->> 'message' from pgeverything.deliveries"
    assert db.execute(query).fetchall() == [("failed at delivery 1", "asyncio.exceptions.CancelledError", UNASKED)]
