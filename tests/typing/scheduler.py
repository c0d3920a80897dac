"""Checked by mypy, never run: what the scheduler promises. An unused ignore is an error, so each one is a test."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import datetime, timedelta
from typing import Any, assert_type

from pgeverything import AsyncPgEverything, Job, PgEverything, Schedule, Scheduler, Tick
from pgeverything.scheduler import SyncResult, explain
from pgeverything.tasks import AsyncTask

pg, apg = PgEverything(), AsyncPgEverything()


@pg.cron("0 7 * * MON-FRI", args={"to": "all"}, timezone="Europe/Berlin", misfire="once", overlap="allow", jitter=0)
@pg.cron(every="5m", name="often", args={"to": "ops"}, grace="1m", remaining=3)
@pg.task()
def digest(to: str) -> int:
    return len(to)


@apg.cron(every=timedelta(hours=1))
@apg.task()
async def fetch() -> bytes:
    return b""


def decorated() -> None:
    """What stands above a task leaves it what it is."""
    assert_type(digest("ops"), int)
    assert_type(digest.enqueue("ops"), Job)
    assert_type(fetch, AsyncTask[[], Coroutine[Any, Any, bytes]])
    pg.cron(every="1h")(lambda: None)  # type: ignore[type-var]
    pg.cron(7)  # type: ignore[arg-type]
    pg.cron("* * * * *", misfire="never")  # type: ignore[arg-type]
    pg.cron("* * * * *", at=datetime.now())  # type: ignore[call-arg]  # noqa: DTZ005


def blocking(pg: PgEverything, at: datetime) -> None:
    assert_type(pg.scheduler, Scheduler)
    assert_type(pg.scheduler.add("s", digest, {"to": "x"}, cron="0 7 * * *", timezone="Europe/Berlin"), Schedule)
    assert_type(pg.scheduler.add("s", "digest", at=at), Schedule)
    assert_type(pg.scheduler.get("s"), Schedule)
    assert_type(pg.scheduler.list(state="paused", after="a"), list[Schedule])
    assert_type(pg.scheduler.history("s", limit=3, before=at), list[Tick])
    assert_type(pg.scheduler.history("s")[0].tick, datetime)
    assert_type(pg.scheduler.history("s")[0].job_id, int | None)
    assert_type(pg.scheduler.preview("0 7 * * *", timezone="Europe/Berlin", count=3, start=at), list[datetime])
    assert_type(pg.scheduler.run_now("s"), Job)
    assert_type(pg.scheduler.remove("s"), bool)
    assert_type(pg.scheduler.sync(), SyncResult)
    pg.scheduler.pause("s")
    pg.scheduler.resume("s")
    assert_type(explain("@daily"), str)
    pg.scheduler.add("s", digest, cron=5)  # type: ignore[arg-type]
    pg.scheduler.add("s", digest, every="1h", overlap="never")  # type: ignore[arg-type]
    pg.scheduler.add("s", lambda: None, every="1h")  # type: ignore[arg-type]
    pg.scheduler.add("s")  # type: ignore[call-arg]
    pg.scheduler.list(state="off")  # type: ignore[arg-type]


async def awaited(pg: AsyncPgEverything) -> None:
    _ = assert_type(pg.scheduler.add("s", fetch, every="1h"), Coroutine[Any, Any, Schedule])
    assert_type(await pg.scheduler.run_now("s"), Job)
    assert_type(await pg.scheduler.history("s"), list[Tick])


def bound(pg: PgEverything) -> None:
    with pg.transaction() as tx:
        assert_type(tx.scheduler.add("s", "t", every="1h"), Schedule)
        tx.scheduler.sync()  # type: ignore[attr-defined]
