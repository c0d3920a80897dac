"""Everything an operation can run on, each behind one blocking face, so that a test is written once for all."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import NullPool, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from pgeverything import AsyncPgEverything, PgEverything
from tests import pgbouncer


class Face:
    """A facade on one carrier: its modules, and the end of the transaction where the caller holds one.

    `pg` is the application, `held` the caller's connection or session, or None where the carrier has none.
    """

    def __init__(self, pg: Any, held: Any, run: Callable[[Any], Any]) -> None:
        self.pg, self.held, self.run = pg, held, run
        facade = pg if held is None else pg.on(held)
        self.jobs: Any = _Blocking(facade.jobs, run)
        self.events: Any = _Blocking(facade.events, run)
        self.pubsub: Any = _Blocking(facade.pubsub, run)
        self.dead_letters: Any = _Blocking(facade.dead_letters, run)
        self.scheduler: Any = _Blocking(facade.scheduler, run)
        self.cache: Any = _Blocking(facade.cache, run)
        self.locks: Any = _Blocking(facade.locks, run)
        self.audit: Any = _Blocking(facade.audit, run)
        self._facade = facade

    def transaction_id(self) -> int:
        """Return the number of the caller's transaction."""
        return int(self.run(self._facade.transaction_id()))

    @property
    def joined(self) -> bool:
        """Whether the operations belong to a transaction of the caller's."""
        return self.held is not None

    def task(self, task: Any) -> Any:
        """Return a task of `pg` that enqueues on this carrier."""
        return _Blocking(task.on(self.held) if self.joined else task, self.run)

    def execute(self, statement: str) -> None:
        """Run the caller's own SQL in the caller's own transaction."""
        if isinstance(self.held, psycopg.Connection | psycopg.AsyncConnection):
            self.run(self.held.execute(statement))
        elif isinstance(self.held, Session):
            self.held.connection().exec_driver_sql(statement)
        elif isinstance(self.held, AsyncSession):
            self.run(self.run(self.held.connection()).exec_driver_sql(statement))
        else:
            self.run(self.held.exec_driver_sql(statement))

    def commit(self) -> None:
        if self.held is not None:
            self.run(self.held.commit())

    def rollback(self) -> None:
        if self.held is not None:
            self.run(self.held.rollback())


class _Blocking:
    """Runs what the methods of `target` return, where that is a coroutine."""

    def __init__(self, target: Any, run: Callable[[Any], Any]) -> None:
        self._target, self._run = target, run

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            value = self._run(method(*args, **kwargs))
            if isinstance(value, AsyncIterator):
                return self._run(_listed(value))
            return _Blocking(value, self._run) if hasattr(value, "enqueue") else value

        return call


def blocking(target: Any, run: Callable[[Any], Any]) -> Any:
    """Return `target` with methods that block, whether they are awaited or not; `run` is a face's."""
    return _Blocking(target, run)


async def _listed(values: AsyncIterator[Any]) -> list[Any]:
    return [value async for value in values]


Opened = tuple[Any, Any]  # target, held


@contextmanager
def _url(url: str) -> Iterator[Opened]:
    yield url, None


@contextmanager
def _pool(url: str) -> Iterator[Opened]:
    with ConnectionPool(url, min_size=1, max_size=4, open=True) as pool:
        yield pool, None


@contextmanager
def _engine(url: str) -> Iterator[Opened]:
    engine = create_engine(_driver(url, "psycopg"))
    yield engine, None
    engine.dispose()


@contextmanager
def _psycopg(url: str) -> Iterator[Opened]:
    with psycopg.connect(url) as connection:
        yield url, connection


@contextmanager
def _alchemy(url: str) -> Iterator[Opened]:
    with create_engine(_driver(url, "psycopg"), poolclass=NullPool).connect() as connection:
        yield url, connection


@contextmanager
def _session(url: str) -> Iterator[Opened]:
    with Session(create_engine(_driver(url, "psycopg"), poolclass=NullPool)) as session:
        yield url, session


@asynccontextmanager
async def _async_url(url: str) -> AsyncIterator[Opened]:
    yield url, None


@asynccontextmanager
async def _async_pool(url: str) -> AsyncIterator[Opened]:
    async with AsyncConnectionPool(url, min_size=1, max_size=4, open=False) as pool:
        yield pool, None


@asynccontextmanager
async def _async_psycopg(url: str) -> AsyncIterator[Opened]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield url, connection


def _async_engine(driver: str) -> Any:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Opened]:
        engine = _create(url, driver)
        yield engine, None
        await engine.dispose()

    return opened


def _async_connection(driver: str) -> Any:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Opened]:
        async with _create(url, driver, poolclass=NullPool).connect() as connection:
            yield url, connection

    return opened


def _async_session(driver: str) -> Any:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Opened]:
        async with AsyncSession(_create(url, driver, poolclass=NullPool)) as session:
            yield url, session

    return opened


SYNC: dict[str, Any] = {
    "url": _url,
    "pool": _pool,
    "engine": _engine,
    "on-psycopg": _psycopg,
    "on-connection": _alchemy,
    "on-session": _session,
}
ASYNC: dict[str, Any] = {
    "async-url": _async_url,
    "async-pool": _async_pool,
    "async-engine-psycopg": _async_engine("psycopg"),
    "async-engine-asyncpg": _async_engine("asyncpg"),
    "async-on-psycopg": _async_psycopg,
    "async-on-connection-psycopg": _async_connection("psycopg"),
    "async-on-connection-asyncpg": _async_connection("asyncpg"),
    "async-on-session-psycopg": _async_session("psycopg"),
    "async-on-session-asyncpg": _async_session("asyncpg"),
}
# For a second run on another server, which needs not show again what only the drivers make different.
CHOSEN = os.environ.get("PGEVERYTHING_TEST_CARRIERS", ",".join([*SYNC, *ASYNC])).split(",")
assert not {*CHOSEN} - {*SYNC, *ASYNC}, f"PGEVERYTHING_TEST_CARRIERS names some of {', '.join([*SYNC, *ASYNC])}"
CARRIERS = [name for name in (*SYNC, *ASYNC) if name in CHOSEN]
JOINED = [name for name in CARRIERS if "on-" in name]


@contextmanager
def opened(name: str, url: str) -> Iterator[Face]:
    """Open one of `CARRIERS` on a migrated database."""
    if name in SYNC:
        with SYNC[name](url) as (target, held), PgEverything(target) as pg:
            yield Face(pg, held, lambda value: value)
        return
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()

        async def enter() -> Any:
            target, held = await stack.enter_async_context(ASYNC[name](url))
            return await stack.enter_async_context(AsyncPgEverything(target)), held

        def run(value: Any) -> Any:
            return runner.run(value) if asyncio.iscoroutine(value) else value

        try:
            yield Face(*runner.run(enter()), run)
        finally:
            runner.run(stack.aclose())


def _driver(url: str, driver: str) -> str:
    return url.replace("postgresql://", f"postgresql+{driver}://", 1)


def _create(url: str, driver: str, **options: Any) -> AsyncEngine:
    arguments = pgbouncer.ASYNCPG if pgbouncer.EVERYWHERE and driver == "asyncpg" else {}
    return create_async_engine(_driver(url, driver), connect_args=arguments, **options)
