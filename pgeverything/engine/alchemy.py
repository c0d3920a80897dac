"""Runs a query on what a caller holds of SQLAlchemy's.

SQLAlchemy is never imported here: its objects are recognised by the module of their class, and arrive only when the
caller has imported it. `exec_driver_sql` keeps the caller's echo, events and autobegin, which digging out the driver's
connection would not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from .plan import AsyncCarrier, Carrier, Hints, Query, Rows
from .refusals import explain, refuse_alone
from .statements import named, numbered

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

_NOT_PREPARED = "26000"  # invalid SQL statement name


class AlchemyCarrier:
    """A SQLAlchemy `Connection` on psycopg."""

    hints = None

    def __init__(self, connection: Connection, schema: str) -> None:
        self.connection, self.schema = connection, schema

    def execute(self, query: Query[Any]) -> Rows:
        if query.statement.inside:
            raw: Any = self.connection.connection.dbapi_connection
            refuse_alone(query, autocommit=raw.autocommit)
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

    hints = None

    def __init__(self, connection: AsyncConnection, schema: str) -> None:
        self.connection, self.schema = connection, schema

    async def execute(self, query: Query[Any]) -> Rows:
        text: str
        params: Any
        if query.statement.inside:
            raw: Any = (await self.connection.get_raw_connection()).dbapi_connection
            refuse_alone(query, autocommit=raw.autocommit)
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

    hints = None

    def __init__(self, session: Session, schema: str) -> None:
        self.session, self.schema = session, schema

    def execute(self, query: Query[Any]) -> Rows:
        return AlchemyCarrier(supported(self.session.connection()), self.schema).execute(query)

    @contextmanager
    def atomic(self) -> Iterator[Carrier]:
        yield self


class AsyncSessionCarrier:
    """A SQLAlchemy `AsyncSession`."""

    hints = None

    def __init__(self, session: AsyncSession, schema: str) -> None:
        self.session, self.schema = session, schema

    async def execute(self, query: Query[Any]) -> Rows:
        connection = async_supported(await self.session.connection())
        return await AsyncAlchemyCarrier(connection, self.schema).execute(query)

    @asynccontextmanager
    async def atomic(self) -> AsyncIterator[AsyncCarrier]:
        yield self


class EngineCarrier:
    """A SQLAlchemy `Engine`: a connection for each statement, a transaction for each atomic plan."""

    def __init__(self, engine: Engine, schema: str, hints: Hints | None = None) -> None:
        self.engine, self.schema, self.hints = supported(engine), schema, hints

    def execute(self, query: Query[Any]) -> Rows:
        with self.engine.connect() as connection:
            alone = connection.execution_options(isolation_level="AUTOCOMMIT")
            return AlchemyCarrier(alone, self.schema).execute(query)

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

    def __init__(self, engine: AsyncEngine, schema: str, hints: Hints | None = None) -> None:
        self.engine, self.schema, self.hints = async_supported(engine), schema, hints
        self._pooled = False

    async def execute(self, query: Query[Any]) -> Rows:
        try:
            if not self._pooled:
                async with self.engine.connect() as connection:
                    alone = await connection.execution_options(isolation_level="AUTOCOMMIT")
                    return await AsyncAlchemyCarrier(alone, self.schema).execute(query)
        except Exception as error:
            if getattr(getattr(error, "orig", None), "sqlstate", None) != _NOT_PREPARED:
                raise
            # Behind a transaction pooler asyncpg prepares on one connection of the server and executes on another,
            # unless both are in a transaction. Nothing was carried out.
            self._pooled = True
        async with self.transaction() as connection:
            return await AsyncAlchemyCarrier(connection, self.schema).execute(query)

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


def is_alchemy(held: object, name: str) -> bool:
    """Whether `held` is an instance of a SQLAlchemy class of that name, without importing SQLAlchemy."""
    return any(cls.__name__ == name and cls.__module__.startswith("sqlalchemy.") for cls in type(held).__mro__)
