"""Transactions of handlers, which end their job in the same commit."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from ..engine.carriers import AsyncPsycopgCarrier, PsycopgCarrier
from ..engine.plan import Query, Rows, same
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
        _refuse_second(claimed)
        with self._lock:
            if self._pool is None:
                self._pool = new_pool(self._conninfo, "handlers", most=self._most)
        with self._pool.connection() as connection:
            with connection.transaction():
                yield self._bind(connection)
                _accept(PsycopgCarrier(connection, self._schema).execute(_finish(claimed)), claimed)
            claimed.completed = True

    @asynccontextmanager
    async def awaiting(self, claimed: Claimed) -> AsyncIterator[Any]:
        """The transaction of an `async def` handler."""
        _refuse_second(claimed)
        if self._apool is None:
            self._apool = new_async_pool(self._conninfo, "handlers", most=self._most)
        await self._apool.open()
        async with self._apool.connection() as connection:
            async with connection.transaction():
                yield self._abind(connection)
                _accept(await AsyncPsycopgCarrier(connection, self._schema).execute(_finish(claimed)), claimed)
            claimed.completed = True

    async def close(self) -> None:
        """Close the pools that were opened."""
        if self._apool is not None:
            await self._apool.close()
        if self._pool is not None:
            self._pool.close()


def _refuse_second(claimed: Claimed) -> None:
    if claimed.completed:
        raise JobError(f"job {claimed.job} was completed by its first transaction(): do all its writes in one")


def _finish(claimed: Claimed) -> Query[Rows]:
    return Query(SQL["finish_here"], {"job": claimed.job, "token": claimed.token, "worker": claimed.worker}, same)


def _accept(rows: Rows, claimed: Claimed) -> None:
    if not rows:
        raise JobLost(f"job {claimed.job} is not this worker's any more: its lease was lost; nothing was committed")
