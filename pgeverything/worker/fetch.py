"""Fetches jobs: claims while there are any, then sleeps until a hint, the next due time, or the next poll."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable

import psycopg
from psycopg_pool import PoolTimeout

from ..engine.plan import AsyncCarrier, Query, nothing, one
from ..engine.statements import statements
from .claim import Claimer, Pace
from .hands import Hands
from .lease import Lease

log = logging.getLogger("pgeverything.worker")
SQL = statements("worker")

DATABASE_ERRORS = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    PoolTimeout,
    psycopg.errors.ReadOnlySqlTransaction,  # a failover under way: this server is, or is not yet, the standby
)

_DROWSY = 0.05  # the first pause of an idle worker
_DROWSIER = 4.0  # each further one is so many times as long, up to the poll
_IDLE_CHECK = 0.1  # the longest pause when it is to end as soon as it is idle
_BATCH = 1000


class Fetcher:
    """The one claimer of a process: the number of claimers is the number of processes, not of handlers.

    An idle worker says so in the database, looks once more, and sleeps; only then do enqueues send hints. What began
    before it said so and commits later sends none: its pauses therefore start short and grow fourfold, so such a job
    is found after at most about three times as long again as its transaction stayed open.

    An idle worker's claim is made durable while the handlers begin, and not before. A server that crashes in these
    milliseconds has its jobs in line still: they run again, as jobs do whose worker was killed.

    Args:
        carrier: where to claim.
        lease: in whose name.
        hands: takes the jobs.
        queues: from where.
        poll: returns the longest sleep in seconds.
        until_idle: whether to end when nothing is left to do.
    """

    def __init__(
        self,
        carrier: AsyncCarrier,
        lease: Lease,
        hands: Hands,
        queues: list[str],
        poll: Callable[[], float],
        until_idle: bool,
    ) -> None:
        self._carrier, self._lease, self._hands = carrier, lease, hands
        self._queues, self._poll, self._until_idle = queues, poll, until_idle
        self._claimer, self._advancing = Claimer(queues), Pace()
        self._wake = asyncio.Event()
        self._asleep = False
        self._next_due = math.inf
        self._undone = 0.0  # seconds until an advance that was rationed may be made; 0 when it was made
        self._stopping = False
        self.claiming = asyncio.Lock()  # held while a claim is under way: what it takes is not in our hands yet
        self.beside: Callable[[], Awaitable[bool]] | None = None  # whether what else this worker does is idle too
        self.suspected_at: float | None = None  # when a job may have become ours without being in our hands

    def wake(self) -> None:
        """There may be work."""
        self._wake.set()

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopping = True
        self._wake.set()

    def suspect(self) -> None:
        """There may be running jobs in our name that are not in our hands."""
        self.suspected_at = time.monotonic()

    def begin_anew(self) -> None:
        """The lease is a new one, which has not said that it sleeps."""
        self._asleep = False
        self._wake.set()

    async def run(self) -> None:
        """Fetch until stopped, or until idle."""
        pause, trouble, busy_since = _DROWSY, 0.1, time.monotonic()
        while not self._stopping:
            try:
                if not await self._room() or self._stopping:  # room made by the drain is not for more
                    continue
                self._wake.clear()
                wanted = self._hands.wanted()
                found = await self._claim(wanted)
                moved = await self._advance(short=found < wanted)
                trouble = 0.1
                if found == wanted or moved:
                    pause = _DROWSY
                    if self._asleep and time.monotonic() - busy_since > 1.0:
                        await self._say_asleep(False)
                    continue
                busy_since = time.monotonic()
                if found:
                    pause = _DROWSY
                if self._until_idle:
                    if not found and await self._idle():
                        return
                elif not self._asleep:
                    await self._say_asleep(True)
                    continue  # look once more: what was enqueued before we said so sent no hint
            except DATABASE_ERRORS as error:
                log.warning("lost the database, trying again in %.1f s: %s", trouble, error)
                await asyncio.sleep(trouble)
                trouble = min(trouble * 2, 5.0)
                continue
            if (unseen := max(self._undone, self._claimer.unseen)) > 0:
                await self._nap(unseen)  # what was rationed may hold work: look again as soon as it is allowed
                continue
            longest = _IDLE_CHECK if self._until_idle else self._poll()
            if not await self._nap(min(pause, longest, self._next_due)):
                pause = min(pause * _DROWSIER, longest)

    async def _room(self) -> bool:
        if not self._lease.trusted:
            await asyncio.sleep(0.1)  # not a nap, which an unheard hint ends at once: that starved the heartbeat
            return False
        if await self._hands.room(1.0):
            return True
        if self._asleep:  # all hands full for a second: no hints, please
            await self._say_asleep(False)
        return False

    async def _claim(self, wanted: int) -> int:
        soon = self._asleep and not self._hands.held
        async with self.claiming:
            try:
                jobs = await self._claimer.claim(self._carrier, self._lease.worker, wanted, soon=soon)
            except BaseException:
                self.suspect()  # it may have gone through without its answer reaching us
                raise
            self._hands.take(jobs)
        if jobs:
            await asyncio.sleep(0)  # the handlers first: the next statement can wait half a millisecond, they need not
            if soon:
                await self._carrier.execute(Query(SQL["harden"], {"worker": self._lease.worker}, nothing))
        return len(jobs)

    async def _advance(self, *, short: bool) -> int:
        """Move what is due: after a claim that fell short, and ten times a second when none does."""
        self._undone = 0.0
        if not (self._advancing.due if short else self._advancing.overdue(0.1)):
            self._undone = self._advancing.wait
            return 0
        began = time.monotonic()
        rows = await self._carrier.execute(Query(SQL["advance"], {"batch": _BATCH}, nothing))
        moved, next_due = rows[0]
        self._advancing.done(began)
        self._next_due = math.inf if next_due is None else max(next_due, 0.001)
        return int(moved)

    async def _say_asleep(self, asleep: bool) -> None:
        await self._carrier.execute(Query(SQL["sleep"], {"worker": self._lease.worker, "asleep": asleep}, nothing))
        self._asleep = asleep

    async def _idle(self) -> bool:
        if self._hands.held or await self._busy():
            return False
        # What else there is may have enqueued jobs since, and only then have become idle.
        return self.beside is None or (await self.beside() and not await self._busy())

    async def _busy(self) -> bool:
        return bool(one(await self._carrier.execute(Query(SQL["busy"], {"queues": self._queues}, nothing))))

    async def _nap(self, length: float) -> bool:
        """Sleep until a hint or for so many seconds; return whether it was a hint."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(length):
                await self._wake.wait()
        return self._wake.is_set()
