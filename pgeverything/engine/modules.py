"""What makes a module usable alone: ``JobQueue(url)`` is the same thing as ``PgEverything(url).jobs``."""

from __future__ import annotations

from ..schema.migrate import verify
from .plan import Async, Sync
from .pool import AsyncDatabase, AsyncTarget, Database, Target
from .statements import check_schema


class Module(Sync):
    """A module over a target of its own, or over the database that a :class:`PgEverything` shares among its modules.

    Args:
        target: a ``postgresql://`` URL, a SQLAlchemy ``Engine``, a psycopg ``ConnectionPool``, or None to look at the
            environment. Nothing is connected before the first use.
        schema: the Postgres schema that holds our tables.
    """

    def __init__(self, target: Target | Database = None, *, schema: str = "pgeverything") -> None:
        self._database = target if isinstance(target, Database) else database(target, schema)
        super().__init__(self._database.carrier)


class AsyncModule(Async):
    """The same for asyncio: an ``AsyncEngine``, an ``AsyncConnectionPool``, a URL or None."""

    def __init__(self, target: AsyncTarget | AsyncDatabase = None, *, schema: str = "pgeverything") -> None:
        self._database = target if isinstance(target, AsyncDatabase) else async_database(target, schema)
        super().__init__(self._database.carrier)


def database(target: Target, schema: str) -> Database:
    """Return the database of a target; its first use checks that the schema fits this library."""
    return Database(target, check_schema(schema), verify)


def async_database(target: AsyncTarget, schema: str) -> AsyncDatabase:
    """Return the database of an async target."""
    return AsyncDatabase(target, check_schema(schema), verify)
