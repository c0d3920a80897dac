"""What a worker makes of what handlers do: results, progress, timeouts, cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pgeverything import InvalidArgument, JobContext, PgEverything, Retry

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    Database = psycopg.Connection[Any]


def work(pg: PgEverything, **options: Any) -> None:
    """Run a worker until nothing is left to do."""
    pg.worker(**options).run(until_idle=True)


def test_handlers_run_where_they_belong(pg: PgEverything) -> None:
    seen: dict[str, Any] = {}

    @pg.task()
    def blocking(a: int, b: str = "b") -> list[object]:
        seen["thread"] = threading.current_thread()
        return [a, b]

    @pg.task()
    async def awaiting(a: int, b: str = "b") -> dict[str, object]:
        seen["loop"] = asyncio.get_running_loop(), threading.current_thread()
        return {"a": a, "b": b}

    jobs = [blocking.enqueue(1), awaiting.enqueue(2, "c")]
    work(pg)

    first, second = (pg.jobs.get(job.id) for job in jobs)
    assert seen["thread"] is not threading.main_thread()
    assert seen["loop"][1] is threading.main_thread()
    assert (first.state, first.result, first.attempt) == ("succeeded", [1, "b"], 1)
    assert (second.state, second.result) == ("succeeded", {"a": 2, "b": "c"})
    assert first.created_at < first.started_at < first.finished_at  # type: ignore[operator]
    assert first.worker is not None


@pytest.mark.parametrize("timeout", [None, "1m"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_handler_sets_in_its_context_is_not_for_the_next_one(
    pg: PgEverything, asynchronous: bool, timeout: str | None
) -> None:
    tenant: contextvars.ContextVar[str | None] = contextvars.ContextVar("tenant", default=None)
    seen: list[tuple[str | None, str | None]] = []

    def serve(name: str) -> None:
        before = tenant.get()
        tenant.set(name)
        seen.append((before, tenant.get()))

    async def aserve(name: str) -> None:
        before = tenant.get()
        tenant.set(name)
        await asyncio.sleep(0)
        seen.append((before, await asyncio.create_task(told())))

    async def told() -> str | None:
        return tenant.get()

    task = pg.task(name="serve", timeout=timeout)(aserve if asynchronous else serve)
    task.enqueue_many([("a",), ("b",)])
    pg.worker(concurrency=1).run(until_idle=True)
    assert seen == [(None, "a"), (None, "b")]


def test_a_result_that_is_not_json_is_not_kept(pg: PgEverything, caplog: pytest.LogCaptureFixture) -> None:
    @pg.task()
    def odd() -> object:
        return object()

    job = odd.enqueue()
    work(pg)

    assert (pg.jobs.get(job.id).state, pg.jobs.get(job.id).result) == ("succeeded", None)
    assert "its result is not kept" in caplog.text


@pytest.mark.parametrize("raw", [b"<html>", b"1e400", b""])
async def test_a_result_that_is_not_json_ends_no_worker(pg: PgEverything, raw: bytes) -> None:
    @pg.task()
    def odd() -> object:
        return {"page": msgspec.Raw(raw)}

    @pg.task()
    def good() -> object:
        return {"page": msgspec.Raw(b"[1, null]")}

    jobs = [await asyncio.to_thread(task.enqueue) for task in (odd, good)]
    await pg.worker().serve(until_idle=True)
    ended = [await asyncio.to_thread(pg.jobs.get, job.id) for job in jobs]
    assert [(job.state, job.result) for job in ended] == [("succeeded", None), ("succeeded", {"page": [1, None]})]


def test_a_result_that_cannot_even_be_looked_at_is_not_kept(pg: PgEverything) -> None:
    class Unbound:
        """A proxy of something that is gone."""

        def __getattribute__(self, name: str) -> object:
            raise RuntimeError("not bound")

    @pg.task()
    def odd() -> object:
        return Unbound()

    job = odd.enqueue()
    work(pg)
    assert (pg.jobs.get(job.id).state, pg.jobs.get(job.id).result) == ("succeeded", None)


def test_a_handler_sees_its_job(pg: PgEverything) -> None:
    seen: list[Any] = []

    @pg.task()
    def look(context: JobContext, n: int) -> None:
        seen.append((context.job, context.attempt, context.cancelled))

    @pg.task()
    async def alook(n: int, *, context: JobContext) -> None:
        seen.append((context.job, context.attempt, context.cancelled))

    options: dict[str, Any] = {
        "ordering_key": "k",
        "unique_key": "u",
        "headers": {"a": "b"},
        "timeout": 30,
        "priority": 2,
    }
    for task in (look, alook):
        job = task.options(**options, max_attempts=4).enqueue(n=1)
        work(pg)
        found, attempt, cancelled = seen.pop()
        assert (attempt, cancelled) == (1, False)
        assert (found.id, found.task, found.state, found.args, found.attempt) == (
            job.id,
            job.task,
            "running",
            {"n": 1},
            1,
        )
        for name in (*options, "created_at", "max_attempts", "queue"):
            assert getattr(found, name) == getattr(job, name)


def test_progress_is_written_and_checked(pg: PgEverything, db: Database) -> None:
    @pg.task()
    def walk(context: JobContext) -> None:
        for share in (-0.1, 1.1, float("nan"), "half"):
            with pytest.raises(InvalidArgument, match="progress"):
                context.progress(share)  # type: ignore[arg-type]
        context.progress(0.4, "n\0early")
        while db.execute("select progress, note from pgeverything.running").fetchone() != (0.4, "nearly"):
            pass
        context.progress(0.5)
        while db.execute("select progress, note from pgeverything.running").fetchone() != (0.5, None):
            pass
        context.progress(1e-60, "caf\udce9.csv")
        while db.execute("select progress, note from pgeverything.running").fetchone() != (0.0, "caf?.csv"):
            pass

    job = walk.enqueue()
    work(pg)
    assert (pg.jobs.get(job.id).state, pg.jobs.get(job.id).error) == ("succeeded", None)


def test_the_highest_priority_runs_first_and_then_the_oldest(pg: PgEverything) -> None:
    order: list[int] = []

    @pg.task()
    def note(n: int) -> None:
        order.append(n)

    for n, priority in enumerate([0, 5, 0, 5, -1]):
        note.options(priority=priority).enqueue(n)
    work(pg, concurrency=1)
    assert order == [1, 3, 0, 2, 4]


# Timeouts -----------------------------------------------------------------------------------------------------------


def test_an_async_handler_is_cut_off(pg: PgEverything) -> None:
    @pg.task(timeout="60s", retry=Retry.never())
    async def sleep() -> None:
        await asyncio.sleep(60)

    job = sleep.options(timeout="50ms").enqueue()  # the job's own wins
    work(pg)
    dead = pg.jobs.get(job.id)
    assert (dead.state, dead.error["type"]) == ("dead", "TimeoutError")  # type: ignore[index]
    assert dead.error["message"] == "the attempt took longer than its timeout of 0.05 s"  # type: ignore[index]


def test_a_blocking_handler_is_told_and_keeps_its_slot_until_it_ends(pg: PgEverything) -> None:
    order: list[str] = []

    @pg.task(timeout="50ms", retry=Retry.never())
    def hang(context: JobContext) -> None:
        while not context.cancelled:
            pass
        order.append("hung")

    @pg.task()
    def after() -> None:
        order.append("after")

    hung, _ = hang.enqueue(), after.enqueue()
    work(pg, concurrency=1)
    assert order == ["hung", "after"]
    assert pg.jobs.get(hung.id).error["type"] == "TimeoutError"  # type: ignore[index]


def test_a_timeout_that_the_handler_raises_itself_is_its_own(pg: PgEverything) -> None:
    @pg.task(timeout="1h", retry=Retry.never())
    async def own() -> None:
        raise TimeoutError("mine")

    job = own.enqueue()
    work(pg)
    assert pg.jobs.get(job.id).error["message"] == "mine"  # type: ignore[index]


# Cancelling what runs -----------------------------------------------------------------------------------------------


def test_a_running_async_handler_is_cancelled(pg: PgEverything) -> None:
    @pg.task()
    async def sleep(context: JobContext) -> None:
        await asyncio.to_thread(pg.jobs.cancel, context.job.id, "changed my mind")
        await asyncio.sleep(60)

    job = sleep.enqueue()
    work(pg)
    assert (pg.jobs.get(job.id).state, pg.jobs.get(job.id).reason) == ("cancelled", "changed my mind")


@pytest.mark.parametrize("ending", ["returns", "raises"])
def test_a_running_blocking_handler_is_told(pg: PgEverything, ending: str) -> None:
    @pg.task()
    def spin(context: JobContext) -> None:
        assert pg.jobs.cancel(context.job.id, "changed my mind")
        while not context.cancelled:
            pass
        if ending == "raises":
            raise ValueError

    job = spin.enqueue()
    work(pg)
    ended = pg.jobs.get(job.id)
    if ending == "raises":  # it is not tried again
        assert (ended.state, ended.reason) == ("cancelled", "changed my mind")
    else:  # it has done its work
        assert ended.state == "succeeded"


def test_the_worker_outlives_handlers_that_swallow_their_cancellation(
    pg: PgEverything, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    @pg.task()
    async def stubborn(context: JobContext) -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.to_thread(pg.jobs.cancel, context.job.id)
            await asyncio.sleep(60)
        return "done anyway"

    @pg.task(retry=Retry.never())
    async def counting() -> int:
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    first, second = stubborn.enqueue(), counting.enqueue()
    work(pg, concurrency=1)
    assert (pg.jobs.get(first.id).state, pg.jobs.get(first.id).result) == ("succeeded", "done anyway")
    assert pg.jobs.get(second.id).result == 0


def test_workers_share_what_there_is(pg: PgEverything, url: str) -> None:
    def run(define: Callable[[PgEverything], None]) -> None:
        with PgEverything(url) as other:
            define(other)
            work(other, concurrency=2)

    seen: list[int] = []

    def define(application: PgEverything) -> None:
        @application.task(name="count")
        def count(n: int) -> None:
            seen.append(n)

    define(pg)
    pg.jobs.enqueue_many("count", [{"n": n} for n in range(500)])
    threads = [threading.Thread(target=run, args=[define]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(500))
