"""What the tests of schedules need beside them: times, and workers that run for so long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from pgeverything import AsyncPgEverything, PgEverything

Database = psycopg.Connection[Any]

HOUR = timedelta(hours=1)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
WEEK_AGO = datetime.now(UTC).replace(microsecond=0) - timedelta(days=7)


def now(db: Database) -> datetime:
    return db.execute("select clock_timestamp()").fetchall()[0][0]


def overdue(db: Database, name: str, by: timedelta) -> None:
    """Make a schedule look as if nobody had acted on it for so long."""
    db.execute(
        "update pgeverything.schedules set ticked_until = ticked_until - %(by)s, next_tick = next_tick - %(by)s,"
        " next_run_at = next_run_at - %(by)s where name = %(name)s",
        {"by": by, "name": name},
    )


def soon(db: Database, seconds: float) -> datetime:
    row = db.execute("select clock_timestamp() + make_interval(secs => %s)", [seconds]).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


@contextlib.asynccontextmanager
async def working(pg: PgEverything | AsyncPgEverything, **options: Any) -> AsyncIterator[None]:
    """Run a worker for so long."""
    worker = pg.worker(**options)
    ready = asyncio.Event()
    serving = asyncio.create_task(worker.serve(ready=ready.set))
    try:
        await asyncio.wait([serving, asyncio.create_task(ready.wait())], return_when=asyncio.FIRST_COMPLETED)
        yield
    finally:
        worker.stop()
        await serving
