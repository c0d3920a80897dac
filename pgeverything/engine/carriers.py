"""Runs a query on whatever the caller holds: a pool, a psycopg connection, or what ``alchemy.py`` has carriers for.

The files of this folder are the only ones that know the drivers.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg
from psycopg import errors as pg
from psycopg.rows import tuple_row

from ..errors import InvalidArgument
from .alchemy import (
    AlchemyCarrier,
    AsyncAlchemyCarrier,
    AsyncSessionCarrier,
    SessionCarrier,
    async_supported,
    is_alchemy,
    supported,
)
from .lines import Line, Lines, line
from .plan import AsyncCarrier, Carrier, Hints, Query, Rows
from .refusals import explain, refuse_alone
from .statements import Statement, named

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool, ConnectionPool
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

Joinable: TypeAlias = "psycopg.Connection[Any] | Connection | Session"
"""What a sync facade joins: the caller's transaction."""
AsyncJoinable: TypeAlias = "psycopg.AsyncConnection[Any] | AsyncConnection | AsyncSession"

IDLE = psycopg.pq.TransactionStatus.IDLE


def _prepare(statement: Statement, wanted: bool) -> bool | None:
    """Whether psycopg may prepare it: never when its plan must be fresh, else when it has run often enough."""
    return None if wanted and not statement.fresh else False


def _in_autocommit(connection: psycopg.BaseConnection[Any]) -> bool:
    return connection.autocommit and connection.info.transaction_status == IDLE


class PsycopgCarrier:
    """A psycopg connection. What runs on it belongs to the transaction its owner has open."""

    hints = None

    def __init__(self, connection: psycopg.Connection[Any], schema: str) -> None:
        self.connection, self.schema = connection, schema

    def execute(self, query: Query[Any], *, prepare: bool = True) -> Rows:
        if query.statement.inside:
            refuse_alone(query, autocommit=_in_autocommit(self.connection))
        try:
            with self.connection.cursor(row_factory=tuple_row) as cursor:
                cursor.execute(
                    named(query.statement, self.schema), query.params, prepare=_prepare(query.statement, prepare)
                )
                return cursor.fetchall() if cursor.description else ()
        except pg.Error as error:
            if better := explain(error, self.schema):
                raise better from error
            raise

    @contextmanager
    def atomic(self) -> Iterator[Carrier]:
        if _in_autocommit(self.connection):
            with self.connection.transaction():
                yield self
        else:
            yield self


class AsyncPsycopgCarrier:
    """An async psycopg connection."""

    hints = None

    def __init__(self, connection: psycopg.AsyncConnection[Any], schema: str) -> None:
        self.connection, self.schema = connection, schema

    async def execute(self, query: Query[Any], *, prepare: bool = True) -> Rows:
        if query.statement.inside:
            refuse_alone(query, autocommit=_in_autocommit(self.connection))
        try:
            async with self.connection.cursor(row_factory=tuple_row) as cursor:
                await cursor.execute(
                    named(query.statement, self.schema), query.params, prepare=_prepare(query.statement, prepare)
                )
                return await cursor.fetchall() if cursor.description else ()
        except pg.Error as error:
            if better := explain(error, self.schema):
                raise better from error
            raise

    @asynccontextmanager
    async def atomic(self) -> AsyncIterator[AsyncCarrier]:
        if _in_autocommit(self.connection):
            async with self.connection.transaction():
                yield self
        else:
            yield self


class PoolCarrier:
    """A psycopg pool: a connection for each statement, a transaction for each atomic plan."""

    def __init__(self, pool: ConnectionPool[Any], schema: str, hints: Hints | None = None) -> None:
        self.pool, self.schema, self.hints = pool, schema, hints

    def execute(self, query: Query[Any]) -> Rows:
        with self.pool.connection() as connection:
            if connection.autocommit:
                return _on_line(line(connection), query, self.schema)
            connection.autocommit = True  # in the caller's pool: one round trip, and no commit to be late with
            try:
                return _on_line(line(connection), query, self.schema)
            finally:
                if not connection.closed:
                    connection.autocommit = False

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        with self.pool.connection() as connection, connection.transaction():
            yield connection

    @contextmanager
    def atomic(self) -> Iterator[Carrier]:
        with self.transaction() as connection:
            yield PsycopgCarrier(connection, self.schema)


class OwnPoolCarrier:
    """A pool of our own, whose connections stay at hand from one statement to the next."""

    def __init__(self, lines: Lines, schema: str, hints: Hints | None = None) -> None:
        self.lines, self.schema, self.hints = lines, schema, hints

    def execute(self, query: Query[Any]) -> Rows:
        taken = self.lines.take()
        try:
            return _on_line(taken, query, self.schema)
        finally:
            self.lines.give(taken)

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        taken = self.lines.take()
        try:
            with taken.connection.transaction():
                yield taken.connection
        finally:
            self.lines.give(taken)

    @contextmanager
    def atomic(self) -> Iterator[Carrier]:
        with self.transaction() as connection:
            yield PsycopgCarrier(connection, self.schema)


def _on_line(taken: Line[psycopg.Connection[Any]], query: Query[Any], schema: str) -> Rows:
    """Run a statement by itself, the short way where it runs often."""
    try:
        # Ctrl-C reaches the main thread only: there, a statement has to be waited for in a way that it can end.
        rows = None if threading.get_ident() == threading.main_thread().ident else taken.call(query, schema)
        if rows is None:
            rows = taken.connection.wait(taken.run(query, schema))
    except pg.Error as error:
        if better := explain(error, schema):
            raise better from error
        raise
    return PsycopgCarrier(taken.connection, schema).execute(query, prepare=False) if rows is None else rows


async def _on_aline(taken: Line[psycopg.AsyncConnection[Any]], query: Query[Any], schema: str) -> Rows:
    try:
        rows = await taken.connection.wait(taken.run(query, schema))
    except pg.Error as error:
        if better := explain(error, schema):
            raise better from error
        raise
    return await AsyncPsycopgCarrier(taken.connection, schema).execute(query, prepare=False) if rows is None else rows


class AsyncPoolCarrier:
    """An async psycopg pool."""

    def __init__(self, pool: AsyncConnectionPool[Any], schema: str, hints: Hints | None = None) -> None:
        self.pool, self.schema, self.hints = pool, schema, hints

    async def execute(self, query: Query[Any]) -> Rows:
        async with self.pool.connection() as connection:
            if connection.autocommit:
                return await _on_aline(line(connection), query, self.schema)
            await connection.set_autocommit(True)
            try:
                return await _on_aline(line(connection), query, self.schema)
            finally:
                if not connection.closed:
                    await connection.set_autocommit(False)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with self.pool.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def atomic(self) -> AsyncIterator[AsyncCarrier]:
        async with self.transaction() as connection:
            yield AsyncPsycopgCarrier(connection, self.schema)


def join(held: Joinable, schema: str) -> Carrier:
    """Return the carrier for a connection or session the caller holds.

    Raises:
        InvalidArgument: it is none of the kinds that can be joined from blocking code.
    """
    if isinstance(held, psycopg.Connection):
        return PsycopgCarrier(held, schema)
    if is_alchemy(held, "Session") or is_alchemy(held, "scoped_session"):
        return SessionCarrier(held, schema)  # type: ignore[arg-type]  # is_alchemy has looked
    if is_alchemy(held, "Connection"):
        return AlchemyCarrier(supported(held), schema)
    raise InvalidArgument(
        _refusal(held, "a psycopg.Connection, a SQLAlchemy Connection or a Session", "AsyncPgEverything")
    )


def ajoin(held: AsyncJoinable, schema: str) -> AsyncCarrier:
    """Return the carrier for an async connection or session the caller holds."""
    if isinstance(held, psycopg.AsyncConnection):
        return AsyncPsycopgCarrier(held, schema)
    if is_alchemy(held, "AsyncSession") or is_alchemy(held, "async_scoped_session"):
        return AsyncSessionCarrier(held, schema)  # type: ignore[arg-type]  # is_alchemy has looked
    if is_alchemy(held, "AsyncConnection"):
        return AsyncAlchemyCarrier(async_supported(held), schema)
    raise InvalidArgument(
        _refusal(held, "a psycopg.AsyncConnection, a SQLAlchemy AsyncConnection or an AsyncSession", "PgEverything")
    )


def _refusal(held: object, wanted: str, other: str) -> str:
    kind = type(held)
    return f"on() takes {wanted}, not {kind.__module__}.{kind.__qualname__}; for the other kind of code use {other}"
