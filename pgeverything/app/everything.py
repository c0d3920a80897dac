"""Everything on one object, for blocking code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import psycopg

from ..audit import AuditTrail
from ..cache import Cache
from ..cache.cached import Cached, CachedDecorator, Key, Options, Tags
from ..dead_letters import DeadLetters
from ..doctor import Health, unreachable
from ..doctor import doctor as examine
from ..durations import Duration
from ..engine.carriers import PsycopgCarrier, join
from ..engine.modules import database
from ..engine.plan import Carrier, Plan, drive
from ..engine.probe import probe
from ..events import EventLog
from ..jobs import JobQueue
from ..locks import Locks
from ..pubsub import PubSub
from ..retry import Retry
from ..scheduler import Scheduler
from ..schema import migrate as migrations
from ..tasks import Task, TaskDecorator
from ..trace import Trace, trace
from .application import Application
from .bound import Bound

if TYPE_CHECKING:
    from ..engine.carriers import Joinable
    from ..engine.pool import Target

T = TypeVar("T")


class PgEverything(Application):
    """Postgres as job queue and dead-letter store, for blocking code.

    Args:
        target: a ``postgresql://`` URL, a SQLAlchemy ``Engine`` on psycopg, or a psycopg ``ConnectionPool``. None means
            ``$PGEVERYTHING_URL``, then ``$DATABASE_URL``, then libpq's own variables, then the private local server.
        schema: the Postgres schema that holds our tables; several live side by side in one database.

    Nothing is connected before the first use, so a module may define its tasks at import.

    Attributes:
        jobs: the job queue.
        events: the event log.
        pubsub: subscriptions to it.
        dead_letters: what failed for good.
        scheduler: jobs at set times.
        cache: values with a time to live.
        locks: leases on names.
        audit: who changed what, when and why.
        tasks: the tasks that are registered here.
    """

    def __init__(self, target: Target = None, *, schema: str = "pgeverything") -> None:
        shared = database(target, schema)
        super().__init__(shared)
        self.jobs = JobQueue(shared)
        self.events = EventLog(shared)
        self.pubsub = PubSub(shared)
        self.dead_letters = DeadLetters(shared)
        self.scheduler = Scheduler(shared, code=self.code)
        self.cache = Cache(shared)
        self.locks = Locks(shared)
        self.audit = AuditTrail(shared)

    def migrate(self) -> list[migrations.Migration]:
        """Create or update the schema; returns the migrations that were applied.

        Raises:
            SchemaError: this role may not create tables, or a newer release has changed the schema.
        """
        return self._on_own_connection(migrations.migrate(self.schema))

    def migration_status(self) -> list[migrations.MigrationStatus]:
        """Return every migration, with the time it was applied or None."""
        return self._on_own_connection(migrations.status(self.schema))

    def doctor(self) -> Health:
        """Examine everything that can go wrong: the server, its settings, the schema, this role's rights, every module.

        Reads only, waits for no lock for more than 2 s, and sends one test notification. A server that cannot be
        reached, a schema that is not migrated and what this role may not see are findings, not errors.

        Returns:
            The checks, each with a verdict, what was found, and what to do.
        """
        conninfo = self._database.conninfo()
        found = probe(conninfo, self.schema)
        if found.refused is not None:
            return unreachable(found.refused)
        return self._on_own_connection(examine(self.schema, found))

    def trace(self, transaction_id: int) -> Trace:
        """Return what one transaction did: its audit entries, its events and its jobs.

        Args:
            transaction_id: its number, which audit entries have, and which `tx.transaction_id()` tells.
        """
        return drive(self._database.carrier(), trace(transaction_id))

    def _on_own_connection(self, plan: Plan[T]) -> T:
        with psycopg.connect(self._database.conninfo(), autocommit=True, prepare_threshold=None) as connection:
            return drive(PsycopgCarrier(connection, self.schema), plan)

    def on(self, held: Joinable) -> Bound:
        """Join the transaction of a psycopg connection, a SQLAlchemy ``Connection`` or a ``Session``.

        Args:
            held: what you hold. It is never committed, rolled back or closed here.

        Returns:
            The modules on that connection: what they write commits and rolls back with your own statements.

        Raises:
            InvalidArgument: it is nothing that can be joined, or of the other kind, blocking or asyncio.
        """
        return Bound(join(held, self.schema), held, self.code)

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
    ) -> CachedDecorator:
        """Keep the results of a function: in the whole fleet it runs once for each key, and again after `ttl`.

        Results come back as the function's return annotation says: a dataclass as that dataclass. One that is not of
        that type, because another release has stored it, is computed anew.

        Args:
            key: a template that the arguments fill, ``"rate:{currency}"``, or a function of the same arguments.
            ttl: how long a result lives.
            tags: templates, or a function of the same arguments that returns the tags.
            stale: how long after it has expired the others get the old result while one caller computes.
            early: compute it anew before it expires, by chance; 1.0 is the usual factor.
            lease: after how long the others no longer wait for a caller that computes.
            errors: how long to remember that computing failed; :meth:`Cache.get_or_set` says more on each.
            near: keep results in this process's memory too, for so long; see :meth:`Cache.near`.

        Raises:
            InvalidArgument: a template names what is no parameter, or the function is asynchronous.
        """
        options = Options(ttl, stale, early, lease, errors, near)

        def decorate(function: Any) -> Any:
            return Cached(self.cache, function, key, tags, options)

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
