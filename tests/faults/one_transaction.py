"""A client that does everything in one transaction, and kills itself at the point that it is told.

``python -m tests.faults.one_transaction CARRIER URL``. For each line ``ORDER POINT`` it forks, and the child goes
through the transaction with that order. Each statement and the commit have two points, before and after. A child that
comes to its point sends itself SIGKILL; one that does not, because its POINT is 0, says how many there were. The line
that is written back is the child's exit code and that number.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import psycopg
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from pgeverything import AsyncPgEverything, PgEverything


class Fuse:
    """Ends this process when it has been passed so often."""

    def __init__(self, point: int) -> None:
        self.point, self.passed = point, 0

    def __call__(self, *_: object) -> None:
        self.passed += 1
        if self.passed == self.point:
            os.kill(os.getpid(), signal.SIGKILL)


def everything(tx: Any, insert: Callable[[int], Any], lease: Any, order: int) -> Iterator[Any]:
    """A row and all that goes with it, step by step; what a step yields is awaited where it can be."""
    yield tx.audit.context(actor="ada", reason="checkout")
    yield insert(order)
    yield tx.jobs.enqueue("ship", {"order": order})
    yield tx.events.append("orders", {"order": order}, type="placed", key=str(order))
    yield tx.pubsub.publish("shop", {"order": order})
    yield tx.cache.invalidate(f"cart:{order}", tags=[f"user:{order}"])
    yield tx.scheduler.add(f"remind-{order}", "remind", {"order": order}, every="1d")
    yield tx.locks.guard(lease)


_INSERT = "insert into orders (id, total) values ({}, 990)"


def through_psycopg(url: str, order: int, fuse: Fuse) -> None:
    class Cursor(psycopg.Cursor[Any]):
        def execute(self, *args: Any, **options: Any) -> Any:
            fuse()
            result = super().execute(*args, **options)
            fuse()
            return result

    class Connection(psycopg.Connection[Any]):
        def commit(self) -> None:
            fuse()
            super().commit()
            fuse()

    def insert(order: int) -> object:
        return connection.execute(_INSERT.format("%s").encode(), [order])

    with PgEverything(url) as pg:
        lease = pg.locks.acquire(f"order:{order}", ttl="5m")
        with Connection.connect(url, cursor_factory=Cursor) as connection:
            for _ in everything(pg.on(connection), insert, lease, order):
                pass


def through_a_session(url: str, order: int, fuse: Fuse) -> None:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    watch(engine, fuse)

    def insert(order: int) -> object:
        return session.execute(text(_INSERT.format(":id")), {"id": order})

    with PgEverything(url) as pg:
        lease = pg.locks.acquire(f"order:{order}", ttl="5m")
        with Session(engine) as session, session.begin():
            for _ in everything(pg.on(session), insert, lease, order):
                pass
        fuse()


def through_an_async_session(driver: str) -> Callable[[str, int, Fuse], None]:
    async def through(url: str, order: int, fuse: Fuse) -> None:
        engine = create_async_engine(make_url(url).set(drivername=f"postgresql+{driver}"))
        watch(engine.sync_engine, fuse)

        def insert(order: int) -> Awaitable[object]:
            return session.execute(text(_INSERT.format(":id")), {"id": order})

        async with AsyncPgEverything(url) as pg:
            lease = await pg.locks.acquire(f"order:{order}", ttl="5m")
            async with AsyncSession(engine) as session, session.begin():
                for step in everything(pg.on(session), insert, lease, order):
                    await step
            fuse()
        await engine.dispose()

    return lambda url, order, fuse: asyncio.run(through(url, order, fuse))


def watch(engine: Any, fuse: Fuse) -> None:
    """Pass the fuse before and after each statement, and before the commit."""

    def pass_it(connection: object, cursor: DBAPICursor, *_: object) -> None:
        fuse()

    event.listen(engine, "before_cursor_execute", pass_it)
    event.listen(engine, "after_cursor_execute", pass_it)
    event.listen(engine, "commit", fuse)


CARRIERS: dict[str, Callable[[str, int, Fuse], None]] = {
    "psycopg": through_psycopg,
    "session": through_a_session,
    "async-session-psycopg": through_an_async_session("psycopg"),
    "async-session-asyncpg": through_an_async_session("asyncpg"),
}


def main() -> None:
    carrier, url = sys.argv[1:]
    for line in sys.stdin:
        order, point = map(int, line.split())
        assert threading.active_count() == 1  # nothing is going on that a fork would leave half done
        reading, writing = os.pipe()
        if not (child := os.fork()):
            fuse = Fuse(point)
            CARRIERS[carrier](url, order, fuse)
            os.write(writing, str(fuse.passed).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as said:
            passed = said.read() or "0"
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), passed, flush=True)


if __name__ == "__main__":
    main()
