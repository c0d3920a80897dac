"""The modules inside the caller's transaction."""

from __future__ import annotations

from typing import Any

from ..audit import AsyncBoundAudit, BoundAudit
from ..cache import AsyncBoundCache, BoundCache
from ..dead_letters import AsyncBoundDeadLetters, BoundDeadLetters
from ..engine.plan import AsyncCarrier, Carrier, adrive, drive
from ..events import AsyncBoundEvents, BoundEvents
from ..jobs import AsyncBoundJobs, BoundJobs
from ..locks import AsyncBoundLocks, BoundLocks
from ..pubsub import AsyncBoundPubSub, BoundPubSub
from ..scheduler import AsyncBoundScheduler, BoundScheduler, Code
from ..trace import current


class Bound:
    """The modules inside the caller's transaction: what they do commits with it or vanishes with it.

    Attributes:
        connection: the connection or session it joined, for the caller's own SQL.
        jobs: enqueue, cancel, retry, read.
        events: append, read.
        pubsub: publish, ack.
        dead_letters: list, redrive, discard.
        scheduler: add, change and read schedules.
        cache: read, write and invalidate; not `get_or_set`.
        locks: guard.
        audit: say who acts and why, record, look back, undo.
    """

    def __init__(self, carrier: Carrier, connection: Any, code: Code | None = None) -> None:
        self.connection = connection
        self.carrier = carrier
        self.jobs = BoundJobs(lambda: carrier)
        self.events = BoundEvents(lambda: carrier)
        self.pubsub = BoundPubSub(lambda: carrier)
        self.dead_letters = BoundDeadLetters(lambda: carrier)
        self.scheduler = BoundScheduler(lambda: carrier, code)
        self.cache = BoundCache(lambda: carrier)
        self.locks = BoundLocks(lambda: carrier)
        self.audit = BoundAudit(lambda: carrier)

    def transaction_id(self) -> int:
        """Return the number of this transaction, for :meth:`PgEverything.trace`."""
        return drive(self.carrier, current())


class AsyncBound:
    """The same for asyncio."""

    def __init__(self, carrier: AsyncCarrier, connection: Any, code: Code | None = None) -> None:
        async def joined() -> AsyncCarrier:
            return carrier

        self.connection = connection
        self.carrier = carrier
        self.jobs = AsyncBoundJobs(joined)
        self.events = AsyncBoundEvents(joined)
        self.pubsub = AsyncBoundPubSub(joined)
        self.dead_letters = AsyncBoundDeadLetters(joined)
        self.scheduler = AsyncBoundScheduler(joined, code)
        self.cache = AsyncBoundCache(joined)
        self.locks = AsyncBoundLocks(joined)
        self.audit = AsyncBoundAudit(joined)

    async def transaction_id(self) -> int:
        """Return the number of this transaction, for :meth:`AsyncPgEverything.trace`."""
        return await adrive(self.carrier, current())
