"""Everything on one object, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import psycopg

from ..audit import AsyncAuditTrail
from ..cache import AsyncCache
from ..cache.cached import AsyncCached, AsyncCachedDecorator, Key, Options, Tags
from ..dead_letters import AsyncDeadLetters
from ..doctor import Health, unreachable
from ..doctor import doctor as examine
from ..durations import Duration
from ..engine.carriers import AsyncPsycopgCarrier, ajoin
from ..engine.modules import async_database
from ..engine.plan import AsyncCarrier, Plan, adrive
from ..engine.probe import aprobe
from ..events import AsyncEventLog
from ..jobs import AsyncJobQueue
from ..locks import AsyncLocks
from ..pubsub import AsyncPubSub
from ..retry import Retry
from ..scheduler import AsyncScheduler
from ..schema import migrate as migrations
from ..tasks import AsyncTask, AsyncTaskDecorator
from ..trace import Trace, trace
from .application import Application
from .bound import AsyncBound

if TYPE_CHECKING:
    from ..engine.carriers import AsyncJoinable
    from ..engine.pool import AsyncTarget

T = TypeVar("T")


class AsyncPgEverything(Application):
    """The same as :class:`PgEverything` for asyncio: the same names and parameters, awaited."""

    def __init__(self, target: AsyncTarget = None, *, schema: str = "pgeverything") -> None:
        shared = async_database(target, schema)
        super().__init__(shared)
        self.jobs = AsyncJobQueue(shared)
        self.events = AsyncEventLog(shared)
        self.pubsub = AsyncPubSub(shared)
        self.dead_letters = AsyncDeadLetters(shared)
        self.scheduler = AsyncScheduler(shared, code=self.code)
        self.cache = AsyncCache(shared)
        self.locks = AsyncLocks(shared)
        self.audit = AsyncAuditTrail(shared)

    async def migrate(self) -> list[migrations.Migration]:
        """Create or update the schema; returns the migrations that were applied."""
        return await self._on_own_connection(migrations.migrate(self.schema))

    async def migration_status(self) -> list[migrations.MigrationStatus]:
        """Return every migration, with the time it was applied or None."""
        return await self._on_own_connection(migrations.status(self.schema))

    async def doctor(self) -> Health:
        """Examine everything that can go wrong; see :meth:`PgEverything.doctor`."""
        conninfo = await asyncio.to_thread(self._database.conninfo)  # may start the local server
        found = await aprobe(conninfo, self.schema)
        if found.refused is not None:
            return unreachable(found.refused)
        return await self._on_own_connection(examine(self.schema, found))

    async def trace(self, transaction_id: int) -> Trace:
        """Return what one transaction did: its audit entries, its events and its jobs."""
        return await adrive(await self._database.carrier(), trace(transaction_id))

    async def _on_own_connection(self, plan: Plan[T]) -> T:
        async with await psycopg.AsyncConnection.connect(
            self._database.conninfo(), autocommit=True, prepare_threshold=None
        ) as connection:
            return await adrive(AsyncPsycopgCarrier(connection, self.schema), plan)

    def on(self, held: AsyncJoinable) -> AsyncBound:
        """Join the transaction of an async psycopg connection, an ``AsyncConnection`` or an ``AsyncSession``."""
        return AsyncBound(ajoin(held, self.schema), held, self.code)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncBound]:
        """Open a transaction of our own; `.connection` of the bound facade is for your own SQL."""
        async with (await self._database.carrier()).transaction() as connection:
            yield self.on(connection)

    def task(
        self,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int = 0,
        retry: Retry | None = None,
        timeout: Duration | None = None,
    ) -> AsyncTaskDecorator:
        """Register a function as a task; see :meth:`PgEverything.task`."""

        def decorate(function: Any) -> Any:
            definition = self.tasks.add(
                function, name=name, queue=queue, priority=priority, retry=retry, timeout=timeout
            )
            return AsyncTask(definition, function, self._database.carrier, self._joined, definition.options)

        return decorate

    def cached(
        self,
        *,
        key: Key,
        ttl: Duration | None = "5m",
        tags: Tags = (),
        stale: Duration | None = None,
        early: float | None = None,
        lease: Duration = "30s",
        errors: Duration | None = None,
        near: Duration | None = None,
    ) -> AsyncCachedDecorator:
        """Keep the results of a function or a coroutine function; see :meth:`PgEverything.cached`.

        What it returns is awaited. A function that is not a coroutine function runs on the event loop.
        """
        options = Options(ttl, stale, early, lease, errors, near)

        def decorate(function: Any) -> Any:
            return AsyncCached(self.cache, function, key, tags, options)

        return decorate

    def _joined(self, held: Any) -> AsyncCarrier:
        return held.carrier if isinstance(held, AsyncBound) else ajoin(held, self.schema)

    async def close(self) -> None:
        """Close our own connections. The next use opens them again."""
        await self._database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()
