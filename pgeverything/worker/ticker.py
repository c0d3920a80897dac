"""Ticks: sleeps until the next schedule is due, acts on it, sleeps again. Every worker does it; row locks share it out.

The database says how long to sleep, because its clock is the one that counts. A worker that comes too late for a tick
lets the one that was faster go first the next time: then one of them acts and the others only look.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable

import psycopg
from psycopg_pool import PoolTimeout

from ..engine.plan import AsyncCarrier, adrive
from ..errors import PgEverythingError
from ..scheduler import rules, tick
from ..scheduler.code import Code, sync
from .fetch import DATABASE_ERRORS
from .lease import Lease

log = logging.getLogger("pgeverything.scheduler")

_NEVER = float("inf")
_CODE = 15.0  # seconds between looks at definitions that wait for another worker to go
_ASIDE = 60.0  # seconds for which a schedule that fails is left to others
_TAKEN = 0.5  # seconds until another look at schedules that are due and that somebody else is acting on
_STEP_BACK = (0.02, 0.06)  # seconds that one who came too late waits for others; together with the work below 100 ms


class Ticker:
    """The part of a worker that acts on schedules.

    Args:
        carrier: where they are.
        code: the schedules that this application's code defines.
        lease: in whose name.
        poll: returns the longest sleep in seconds; a hint ends it early.
        enqueued: called with the queues that got jobs.
    """

    def __init__(
        self,
        carrier: AsyncCarrier,
        code: Code,
        lease: Lease,
        poll: Callable[[], float],
        enqueued: Callable[[frozenset[str]], None],
    ) -> None:
        self._carrier, self._code, self._lease = carrier, code, lease
        self._poll, self._enqueued = poll, enqueued
        self._wake = asyncio.Event()
        self._most = tick.BATCH
        self._aside: dict[str, float] = {}  # schedules that fail here, until when they are left to others
        self._due_at = _NEVER  # when the next schedule is due, as far as is known
        self._step_back = 0.0
        self._declared = 0  # the number under which this worker has said what its code defines
        self._look_at_code = 0.0

    def wake(self) -> None:
        """A schedule may be due earlier than was known."""
        self._wake.set()

    async def begin(self) -> None:
        """Bring the code's schedules into the database and act on what is due. What fails is tried again by `run`."""
        try:
            await self._sync()
            await adrive(self._carrier, rules.refresh())
            if await self._look() <= 0:
                await self._tick()
        except (psycopg.Error, PoolTimeout, PgEverythingError) as error:
            log.warning("could not begin with the schedules, trying again: %s", error)

    async def run(self) -> None:
        """Act on schedules until cancelled."""
        trouble = 0.1
        while True:
            self._wake.clear()
            try:
                if time.monotonic() >= self._look_at_code or self._declared != self._lease.worker:
                    await self._sync()
                wait = await (self._tick() if time.monotonic() >= self._due_at else self._look())
                trouble = 0.1
            except DATABASE_ERRORS as error:
                log.warning("lost the database, ticking again in %.1f s: %s", trouble, error)
                wait, trouble = trouble, min(trouble * 2, 5.0)
            except (psycopg.Error, PgEverythingError):
                log.exception("the database refuses what the scheduler asks, trying again in %g s", _CODE)
                wait = _CODE
            if wait <= 0:
                wait = 0.0 if self._step_back == 0 else _TAKEN
            wait += self._step_back
            now = time.monotonic()
            self._due_at = now + wait
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wait, self._poll(), max(self._look_at_code - now, 0.0))):
                    await self._wake.wait()

    async def _look(self) -> float:
        """Return in how many seconds the next schedule is due."""
        wait = await adrive(self._carrier, tick.next_due(self._left_alone()))
        return _NEVER if wait is None else wait

    async def _tick(self) -> float:
        """Act on the schedules that are due, and return in how many seconds the next one is."""
        while True:
            try:
                done = await adrive(self._carrier, tick.tick(self._left_alone(), self._most))
            except tick.TickFailed as failed:
                if isinstance(failed.__cause__, DATABASE_ERRORS):
                    raise failed.__cause__ from None
                self._isolate(failed)
                continue
            for name, why in done.unreadable.items():
                log.error("schedule %r cannot be computed here, leaving it to others: %s", name, why)
                self._aside[name] = time.monotonic() + _ASIDE
            self._most = min(self._most * 2, tick.BATCH)
            self._step_back = 0.0 if done.acted else random.uniform(*_STEP_BACK)  # noqa: S311
            if done.queues:
                self._enqueued(done.queues)
            if done.wait is None:
                return _NEVER
            if done.wait > 0 or not done.acted:
                return done.wait
            await asyncio.sleep(0)  # more is due: the handlers first

    def _isolate(self, failed: tick.TickFailed) -> None:
        """Find the schedule that the database refuses, by acting on them one by one, and leave it alone for a while."""
        if len(failed.names) == 1:
            name = failed.names[0]
            log.error("schedule %r cannot be acted on, trying again in %g s: %s", name, _ASIDE, failed.__cause__)
            self._aside[name] = time.monotonic() + _ASIDE
        self._most = 1

    def _left_alone(self) -> list[str]:
        now = time.monotonic()
        self._aside = {name: until for name, until in self._aside.items() if until > now}
        return list(self._aside)

    async def _sync(self) -> None:
        worker = self._lease.worker
        self._look_at_code = time.monotonic() + _CODE  # also when this fails
        result = await adrive(self._carrier, sync(self._code, worker=worker))
        self._declared = worker
        if not result.waiting:
            self._look_at_code = _NEVER
