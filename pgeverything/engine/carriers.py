"""Runs a query on whatever the caller holds: a pool, a psycopg connection, or a SQLAlchemy object.

This file and ``pool.py`` are the only ones that know the drivers. SQLAlchemy is never imported here: its objects are
recognised by the module of their class, and arrive only when the caller has imported it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg
from psycopg import errors as pg
from psycopg.rows import tuple_row

from ..errors import ConfigurationError, InvalidArgument, NotMigrated, PgEverythingError, SchemaError
from .plan import AsyncCarrier, Carrier, Query, Rows
from .statements import Statement, named, numbered

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool, ConnectionPool
    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

Joinable: TypeAlias = "psycopg.Connection[Any] | Connection | Session"
"""What a sync facade joins: the caller's transaction."""
AsyncJoinable: TypeAlias = "psycopg.AsyncConnection[Any] | AsyncConnection | AsyncSession"

IDLE = psycopg.pq.TransactionStatus.IDLE
_MISSING = ("42P01", "3F000", "42883", "42703")  # undefined table, schema, function, column


def explain(error: Exception, schema: str) -> PgEverythingError | None:
    """Return the error to raise instead when the database lacks our schema, or keeps it from this role, or None."""
    original = getattr(error, "orig", error)
    state = getattr(original, "sqlstate", None)
    if state in _MISSING and schema in str(original):
        return NotMigrated(
            f"schema {schema!r} is missing or older than this library: run `pgeverything migrate` ({original})"
        )
    if state == "42501" and f"schema {schema}" in str(original):
        return SchemaError(f"{original}: have the schema's owner grant this role what it needs (docs/how-to/roles.md)")
    return None


def _prepare(statement: Statement) -> bool | None:
    """Whether psycopg may prepare it: never when its plan must be fresh, else when it has run often enough."""
    return False if statement.fresh else None


# psycopg ------------------------------------------------------------------------------------------------------------


class PsycopgCarrier:
    """A psycopg connection. What runs on it belongs to the transaction its owner has open."""

    def __init__(self, connection: psycopg.Connection[Any], schema: str) -> None:
        self.connection, self.schema = connection, schema

    def execute(self, query: Query[Any]) -> Rows:
        try:
            with self.connection.cursor(row_factory=tuple_row) as cursor:
                cursor.execute(named(query.statement, self.schema), query.params, prepare=_prepare(query.statement))
                return cursor.fetchall() if cursor.description else ()
        except pg.Error as error:
            if better := explain(error, self.schema):
                raise better from error
            raise

    @contextmanager
    def atomic(self) -> Iterator[Carrier]:
        if self.connection.info.transaction_status == IDLE and self.connection.autocommit:
            with self.connection.transaction():
                yield self
        else:
            yield self


class AsyncPsycopgCarrier:
    """An async psycopg connection."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], schema: str) -> None:
        self.connection, self.schema = connection, schema

    async def execute(self, query: Query[Any]) -> Rows:
        try:
            async with self.connection.cursor(row_factory=tuple_row) as cursor:
                await cursor.execute(
                    named(query.statement, self.schema), query.params, prepare=_prepare(query.statement)
                )
                return await cursor.fetchall() if cursor.description else ()
        except pg.Error as error:
            if better := explain(error, self.schema):
                raise better from error
            raise

    @asynccontextmanager
    async def atomic(self) -> AsyncIterator[AsyncCarrier]:
        if self.connection.info.transaction_status == IDLE and self.connection.autocommit:
            async with self.connection.transaction():
                yield self
        else:
            yield self


class PoolCarrier:
    """A psycopg pool: a connection for each statement, a transaction for each atomic plan."""

    def __init__(self, pool: ConnectionPool[Any], schema: str) -> None:
        self.pool, self.schema = pool, schema

    def execute(self, query: Query[Any]) -> Rows:
        with self.pool.connection() as connection:
            return PsycopgCarrier(connection, self.schema).execute(query)

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        with self.pool.connection() as connection, connection.transaction():
            yield connection

    @contextmanager
    def atomic(self) -> Iterator[Carrier]:
        with self.transaction() as connection:
            yield PsycopgCarrier(connection, self.schema)


class AsyncPoolCarrier:
    """An async psycopg pool."""

    def __init__(self, pool: AsyncConnectionPool[Any], schema: str) -> None:
        self.pool, self.schema = pool, schema

    async def execute(self, query: Query[Any]) -> Rows:
        async with self.pool.connection() as connection:
            return await AsyncPsycopgCarrier(connection, self.schema).execute(query)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with self.pool.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def atomic(self) -> AsyncIterator[AsyncCarrier]:
        async with self.transaction() as connection:
            yield AsyncPsycopgCarrier(connection, self.schema)


# SQLAlchemy ---------------------------------------------------------------------------------------------------------
# `exec_driver_sql` keeps the caller's echo, events and autobegin, which digging out the driver connection would not.


class AlchemyCarrier:
    """A SQLAlchemy `Connection` on psycopg."""

    def __init__(self, connection: Connection, schema: str) -> None:
        self.connection, self.schema = connection, schema

    def execute(self, query: Query[Any]) -> Rows:
        try:
            result = self.connection.exec_driver_sql(named(query.statement, self.schema), dict(query.params))
            return [tuple(row) for row in result] if result.returns_rows else ()
        except Exception as error:
            if better := explain(error, self.schema):
                raise better from error
            raise

    @contextmanager
    def atomic(self) -> Iterator[Carrier]:
        yield self


class AsyncAlchemyCarrier:
    """A SQLAlchemy `AsyncConnection` on psycopg or asyncpg."""

    def __init__(self, connection: AsyncConnection, schema: str) -> None:
        self.connection, self.schema = connection, schema

    async def execute(self, query: Query[Any]) -> Rows:
        text: str
        params: Any
        if self.connection.dialect.driver == "asyncpg":
            text, names = numbered(query.statement, self.schema)
            params = tuple(query.params[name] for name in names)
        else:
            text, params = named(query.statement, self.schema), dict(query.params)
        try:
            result = await self.connection.exec_driver_sql(text, params)
            return [tuple(row) for row in result] if result.returns_rows else ()
        except Exception as error:
            if better := explain(error, self.schema):
                raise better from error
            raise

    @asynccontextmanager
    async def atomic(self) -> AsyncIterator[AsyncCarrier]:
        yield self


class SessionCarrier:
    """A SQLAlchemy `Session`: its connection is asked for at each statement, because a session may begin anew."""

    def __init__(self, session: Session, schema: str) -> None:
        self.session, self.schema = session, schema

    def execute(self, query: Query[Any]) -> Rows:
        return AlchemyCarrier(supported(self.session.connection()), self.schema).execute(query)

    @contextmanager
    def atomic(self) -> Iterator[Carrier]:
        yield self


class AsyncSessionCarrier:
    """A SQLAlchemy `AsyncSession`."""

    def __init__(self, session: AsyncSession, schema: str) -> None:
        self.session, self.schema = session, schema

    async def execute(self, query: Query[Any]) -> Rows:
        connection = async_supported(await self.session.connection())
        return await AsyncAlchemyCarrier(connection, self.schema).execute(query)

    @asynccontextmanager
    async def atomic(self) -> AsyncIterator[AsyncCarrier]:
        yield self


class EngineCarrier:
    """A SQLAlchemy `Engine`: a connection and a transaction for each statement or atomic plan."""

    def __init__(self, engine: Engine, schema: str) -> None:
        self.engine, self.schema = supported(engine), schema

    def execute(self, query: Query[Any]) -> Rows:
        with self.atomic() as carrier:
            return carrier.execute(query)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def atomic(self) -> Iterator[Carrier]:
        with self.transaction() as connection:
            yield AlchemyCarrier(connection, self.schema)


class AsyncEngineCarrier:
    """A SQLAlchemy `AsyncEngine`."""

    def __init__(self, engine: AsyncEngine, schema: str) -> None:
        self.engine, self.schema = async_supported(engine), schema

    async def execute(self, query: Query[Any]) -> Rows:
        async with self.atomic() as carrier:
            return await carrier.execute(query)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        async with self.engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def atomic(self) -> AsyncIterator[AsyncCarrier]:
        async with self.transaction() as connection:
            yield AsyncAlchemyCarrier(connection, self.schema)


def supported(bind: Any) -> Any:
    """Return a SQLAlchemy bind whose driver we can speak to, for blocking callers."""
    if (driver := bind.dialect.driver) != "psycopg" or bind.dialect.name != "postgresql":
        raise ConfigurationError(f"{bind.dialect.name}+{driver} is not supported here: use postgresql+psycopg://")
    return bind


def async_supported(bind: Any) -> Any:
    """Return a SQLAlchemy bind whose driver we can speak to, for asyncio."""
    if (driver := bind.dialect.driver) not in ("psycopg", "asyncpg") or bind.dialect.name != "postgresql":
        raise ConfigurationError(
            f"{bind.dialect.name}+{driver} is not supported here: use postgresql+psycopg:// or postgresql+asyncpg://"
        )
    return bind


def _is(held: object, name: str) -> bool:
    """Whether `held` is an instance of a SQLAlchemy class of that name, without importing SQLAlchemy."""
    return any(cls.__name__ == name and cls.__module__.startswith("sqlalchemy.") for cls in type(held).__mro__)


def join(held: Joinable, schema: str) -> Carrier:
    """Return the carrier for a connection or session the caller holds.

    Raises:
        InvalidArgument: it is none of the kinds that can be joined from blocking code.
    """
    if isinstance(held, psycopg.Connection):
        return PsycopgCarrier(held, schema)
    if _is(held, "Session") or _is(held, "scoped_session"):
        return SessionCarrier(held, schema)  # type: ignore[arg-type]
    if _is(held, "Connection"):
        return AlchemyCarrier(supported(held), schema)
    raise InvalidArgument(
        _refusal(held, "a psycopg.Connection, a SQLAlchemy Connection or a Session", "AsyncPgEverything")
    )


def ajoin(held: AsyncJoinable, schema: str) -> AsyncCarrier:
    """Return the carrier for an async connection or session the caller holds."""
    if isinstance(held, psycopg.AsyncConnection):
        return AsyncPsycopgCarrier(held, schema)
    if _is(held, "AsyncSession") or _is(held, "async_scoped_session"):
        return AsyncSessionCarrier(held, schema)  # type: ignore[arg-type]
    if _is(held, "AsyncConnection"):
        return AsyncAlchemyCarrier(async_supported(held), schema)
    raise InvalidArgument(
        _refusal(held, "a psycopg.AsyncConnection, a SQLAlchemy AsyncConnection or an AsyncSession", "PgEverything")
    )


def _refusal(held: object, wanted: str, other: str) -> str:
    kind = type(held)
    return f"on() takes {wanted}, not {kind.__module__}.{kind.__qualname__}; for the other kind of code use {other}"
