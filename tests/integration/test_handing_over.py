"""A worker that drains leaves the others nothing that they hear of only when they look the next time."""

from __future__ import annotations

import asyncio

from pgeverything import JobContext, PgEverything, Retry
from pgeverything.worker.fetch import Fetcher
from tests import pgbouncer
from tests.waiting import until

pytestmark = pgbouncer.needs_hints


def test_the_next_job_of_a_key_goes_to_who_stays(pg: PgEverything, sleepers: set[Fetcher]) -> None:
    first_may_end, leaver_may_end = asyncio.Event(), asyncio.Event()

    @pg.task(queue="lines")
    async def step(number: int) -> None:
        if number == 1:
            await first_may_end.wait()

    @pg.task(queue="other")
    async def hold() -> None:
        await leaver_may_end.wait()

    async def scenario() -> None:
        first, second = (step.options(ordering_key="k").enqueue(number) for number in (1, 2))
        held = hold.enqueue()
        leaver = pg.worker(poll="1h")
        leaving = asyncio.create_task(leaver.serve())
        await until(lambda: pg.jobs.get(first.id).state == pg.jobs.get(held.id).state == "running")
        stayer = pg.worker(queues=["lines"], poll="1h")
        staying = asyncio.create_task(stayer.serve())
        await until(lambda: len(sleepers) == 2)
        leaver.stop()
        first_may_end.set()
        await until(lambda: pg.jobs.get(second.id).state == "succeeded")
        assert pg.jobs.get(held.id).state == "running"  # it drains still
        leaver_may_end.set()
        await leaving
        stayer.stop()
        await staying

    asyncio.run(scenario())


def test_what_failed_last_is_tried_again_in_time_by_who_stays(pg: PgEverything, sleepers: set[Fetcher]) -> None:
    may_fail = asyncio.Event()

    @pg.task(retry=Retry.fixed("10ms"))
    async def fail(context: JobContext) -> None:
        if context.attempt == 1:
            await may_fail.wait()
            raise ValueError

    async def scenario() -> None:
        job = fail.enqueue()
        leaver, stayer = pg.worker(poll="1h"), pg.worker(poll="1h")
        leaving = asyncio.create_task(leaver.serve())
        await until(lambda: pg.jobs.get(job.id).state == "running")
        staying = asyncio.create_task(stayer.serve())
        await until(lambda: len(sleepers) == 2)
        leaver.stop()
        may_fail.set()
        await leaving
        await until(lambda: pg.jobs.get(job.id).state == "succeeded")
        stayer.stop()
        await staying

    asyncio.run(scenario())
