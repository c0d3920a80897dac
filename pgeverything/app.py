"""Everything on one object: the modules over one database, tasks, workers, and the caller's transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import psycopg

from .dead_letters import AsyncBoundDeadLetters, AsyncDeadLetters, BoundDeadLetters, DeadLetters
from .durations import Duration
from .engine.carriers import AsyncPsycopgCarrier, PsycopgCarrier, ajoin, join
from .engine.modules import async_database, database
from .engine.plan import AsyncCarrier, Carrier, Plan, adrive, drive
from .jobs import AsyncBoundJobs, AsyncJobQueue, BoundJobs, JobQueue
from .retry import Retry
from .schema import migrate as migrations
from .tasks import AsyncTask, AsyncTaskDecorator, Registry, Task, TaskDecorator
from .worker.worker import Worker

if TYPE_CHECKING:
    from .engine.carriers import AsyncJoinable, Joinable
    from .engine.pool import AsyncTarget, Target

T = TypeVar("T")


class Bound:
    """The modules inside the caller's transaction: what they do commits with it or vanishes with it.

    Attributes:
        connection: the connection or session it joined, for the caller's own SQL.
        jobs: enqueue, cancel, retry, read.
        dead_letters: list, redrive, discard.
    """

    def __init__(self, carrier: Carrier, connection: Any) -> None:
        self.connection = connection
        self.carrier = carrier
        self.jobs = BoundJobs(lambda: carrier)
        self.dead_letters = BoundDeadLetters(lambda: carrier)


class AsyncBound:
    """The same for asyncio."""

    def __init__(self, carrier: AsyncCarrier, connection: Any) -> None:
        async def joined() -> AsyncCarrier:
            return carrier

        self.connection = connection
        self.carrier = carrier
        self.jobs = AsyncBoundJobs(joined)
        self.dead_letters = AsyncBoundDeadLetters(joined)


class _Application:
    """What both kinds of application share: the schema, the tasks and the worker."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self.schema: str = database.schema
        self.tasks = Registry()

    def worker(
        self,
        *,
        queues: Sequence[str] | None = None,
        concurrency: int = 10,
        drain: Duration = "30s",
        poll: Duration | None = None,
        listen: bool = True,
        retention: Duration = "7d",
        lease: Duration = "30s",
        name: str | None = None,
    ) -> Worker:
        """Return a worker for this application's tasks; call its `run()`, or await its `serve()`.

        Args:
            queues: the queues it serves; by default those that the tasks name.
            concurrency: how many handlers run at once in this process.
            drain: how long running handlers may go on after SIGTERM before they are interrupted.
            poll: the longest sleep of an idle worker; by default 30 s where LISTEN works and 1 s where it does not.
            listen: False for a connection through a transaction pooler, to spare the self-test.
            retention: how long finished jobs are kept; they are dropped by whole days.
            lease: how long after its last heartbeat the others take this worker's jobs, at least 2 s. A killed worker's
                jobs move on after it; handlers that hold the event loop or the GIL for a third of it put it at risk.
            name: what lists call it; by default host:pid.
        """
        return Worker(
            self.tasks,
            self._database.conninfo,
            self.schema,
            migrations.verify,
            lambda connection: Bound(PsycopgCarrier(connection, self.schema), connection),
            lambda connection: AsyncBound(AsyncPsycopgCarrier(connection, self.schema), connection),
            queues=queues,
            concurrency=concurrency,
            drain=drain,
            poll=poll,
            listen=listen,
            retention=retention,
            lease=lease,
            name=name,
        )


class PgEverything(_Application):
    """Postgres as job queue and dead-letter store, for blocking code.

    Args:
        target: a ``postgresql://`` URL, a SQLAlchemy ``Engine`` on psycopg, or a psycopg ``ConnectionPool``. None means
            ``$PGEVERYTHING_URL``, then ``$DATABASE_URL``, then libpq's own variables, then the private local server.
        schema: the Postgres schema that holds our tables; several live side by side in one database.

    Nothing is connected before the first use, so a module may define its tasks at import.

    Attributes:
        jobs: the job queue.
        dead_letters: what failed for good.
        tasks: the tasks that are registered here.
    """

    def __init__(self, target: Target = None, *, schema: str = "pgeverything") -> None:
        shared = database(target, schema)
        super().__init__(shared)
        self.jobs = JobQueue(shared)
        self.dead_letters = DeadLetters(shared)

    def migrate(self) -> list[migrations.Migration]:
        """Create or update the schema; returns the migrations that were applied.

        Raises:
            SchemaError: this role may not create tables, or a newer release has changed the schema.
        """
        return self._on_own_connection(migrations.migrate(self.schema))

    def migration_status(self) -> list[migrations.MigrationStatus]:
        """Return every migration, with the time it was applied or None."""
        return self._on_own_connection(migrations.status(self.schema))

    def _on_own_connection(self, plan: Plan[T]) -> T:
        with psycopg.connect(self._database.conninfo(), autocommit=True) as connection:
            return drive(PsycopgCarrier(connection, self.schema), plan)

    def on(self, held: Joinable) -> Bound:
        """Join the transaction of a psycopg connection, a SQLAlchemy ``Connection`` or a ``Session``."""
        return Bound(join(held, self.schema), held)

    @contextmanager
    def transaction(self) -> Iterator[Bound]:
        """Open a transaction of our own; `.connection` of the bound facade is for your own SQL.

        It is a psycopg connection, or a SQLAlchemy ``Connection`` when the target is an ``Engine``.
        """
        with self._database.carrier().transaction() as connection:
            yield self.on(connection)

    def task(
        self,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int = 0,
        retry: Retry | None = None,
        timeout: Duration | None = None,
    ) -> TaskDecorator:
        """Register a function as a task: `def` runs in a thread, `async def` on the worker's event loop.

        Args:
            name: what jobs call it; by default the function's `__name__`.
            queue: where its jobs go.
            priority: higher runs first.
            retry: what happens after a failure; by default 5 attempts with exponential backoff from 1 s.
            timeout: how long one attempt may run; by default without limit.

        Raises:
            TaskError: the name is taken, or a parameter cannot be sent as JSON.
        """

        def decorate(function: Any) -> Any:
            definition = self.tasks.add(
                function, name=name, queue=queue, priority=priority, retry=retry, timeout=timeout
            )
            return Task(definition, function, self._database.carrier, self._joined, definition.options)

        return decorate

    def _joined(self, held: Any) -> Carrier:
        return held.carrier if isinstance(held, Bound) else join(held, self.schema)

    def close(self) -> None:
        """Close our own connections. The next use opens them again."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncPgEverything(_Application):
    """The same for asyncio: the same names and parameters, awaited."""

    def __init__(self, target: AsyncTarget = None, *, schema: str = "pgeverything") -> None:
        shared = async_database(target, schema)
        super().__init__(shared)
        self.jobs = AsyncJobQueue(shared)
        self.dead_letters = AsyncDeadLetters(shared)

    async def migrate(self) -> list[migrations.Migration]:
        """Create or update the schema; returns the migrations that were applied."""
        return await self._on_own_connection(migrations.migrate(self.schema))

    async def migration_status(self) -> list[migrations.MigrationStatus]:
        """Return every migration, with the time it was applied or None."""
        return await self._on_own_connection(migrations.status(self.schema))

    async def _on_own_connection(self, plan: Plan[T]) -> T:
        async with await psycopg.AsyncConnection.connect(self._database.conninfo(), autocommit=True) as connection:
            return await adrive(AsyncPsycopgCarrier(connection, self.schema), plan)

    def on(self, held: AsyncJoinable) -> AsyncBound:
        """Join the transaction of an async psycopg connection, an ``AsyncConnection`` or an ``AsyncSession``."""
        return AsyncBound(ajoin(held, self.schema), held)

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

    def _joined(self, held: Any) -> AsyncCarrier:
        return held.carrier if isinstance(held, AsyncBound) else ajoin(held, self.schema)

    async def close(self) -> None:
        """Close our own connections. The next use opens them again."""
        await self._database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()
