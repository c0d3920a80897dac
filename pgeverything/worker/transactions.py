"""Transactions of handlers, which end their job or their message in the same commit."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from ..engine.carriers import AsyncPsycopgCarrier, PsycopgCarrier
from ..engine.plan import Plan, Query, adrive, drive, same
from ..engine.pool import new_async_pool, new_pool
from ..engine.statements import statements
from ..errors import JobError, JobLost
from .claimed import Claimed

SQL = statements("worker")


class Transactions:
    """Hands out transactions to handlers, from pools that are opened when the first handler asks.

    Args:
        conninfo: where to connect to.
        schema: our schema.
        most: how many handlers may hold one at once.
        bind: makes the bound facade of a psycopg connection.
        abind: the same for an async one.
    """

    def __init__(
        self,
        conninfo: str,
        schema: str,
        most: int,
        bind: Callable[[psycopg.Connection[Any]], Any],
        abind: Callable[[psycopg.AsyncConnection[Any]], Any],
    ) -> None:
        self._conninfo, self._schema, self._most = conninfo, schema, most
        self._bind, self._abind = bind, abind
        self._lock = threading.Lock()
        self._pool: ConnectionPool[Any] | None = None
        self._apool: AsyncConnectionPool[Any] | None = None

    @contextmanager
    def blocking(self, claimed: Claimed) -> Iterator[Any]:
        """The transaction of a `def` handler, which runs in a thread."""
        with _only(claimed), self.ending(lambda: _finish(claimed)) as bound:
            yield bound
        claimed.completed = True

    @asynccontextmanager
    async def awaiting(self, claimed: Claimed) -> AsyncIterator[Any]:
        """The transaction of an `async def` handler."""
        with _only(claimed):
            async with self.aending(lambda: _finish(claimed)) as bound:
                yield bound
        claimed.completed = True

    @contextmanager
    def ending(self, end: Callable[[], Plan[None]]) -> Iterator[Any]:
        """A transaction that ends with a plan: when that raises, nothing is committed."""
        with self._lock:
            if self._pool is None:
                self._pool = new_pool(self._conninfo, "handlers", most=self._most)
        with self._pool.connection() as connection, connection.transaction():
            yield self._bind(connection)
            drive(PsycopgCarrier(connection, self._schema), end())

    @asynccontextmanager
    async def aending(self, end: Callable[[], Plan[None]]) -> AsyncIterator[Any]:
        """The same for asyncio."""
        if self._apool is None:
            self._apool = new_async_pool(self._conninfo, "handlers", most=self._most)
        await self._apool.open()
        async with self._apool.connection() as connection, connection.transaction():
            yield self._abind(connection)
            await adrive(AsyncPsycopgCarrier(connection, self._schema), end())

    async def close(self) -> None:
        """Close the pools that were opened."""
        if self._apool is not None:
            await self._apool.close()
        if self._pool is not None:
            self._pool.close()


@contextmanager
def _only(claimed: Claimed) -> Iterator[None]:
    """Refuse a second transaction after or within one: whichever ends first ends the job, and the other is undone."""
    if claimed.completed:
        raise JobError(f"job {claimed.job} was completed by its first transaction(): do all its writes in one")
    if claimed.transacting:
        raise JobError(f"job {claimed.job} has a transaction() open already: do all its writes in that one")
    claimed.transacting = True
    try:
        yield
    finally:
        claimed.transacting = False


def _finish(claimed: Claimed) -> Plan[None]:
    params = {"job": claimed.job, "token": claimed.token, "worker": claimed.worker}
    if not (yield from Query(SQL["finish_here"], params, same)):
        raise JobLost(f"job {claimed.job} is not this worker's any more: its lease was lost; nothing was committed")
