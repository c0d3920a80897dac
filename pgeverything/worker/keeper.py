"""Keeps the lease of a process alive, and lets go of everything when it cannot."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from ..engine.plan import AsyncCarrier, Query, nothing
from ..engine.statements import statements
from .fetch import DATABASE_ERRORS, Fetcher
from .hands import Hands
from .lease import Lease

log = logging.getLogger("pgeverything.worker")
SQL = statements("worker")

_SUSPICION = 15.0  # seconds for which a broken connection's last statement may still be at work in the server


class Keeper:
    """Renews the lease; when it is lost or cannot be renewed in time, lets go of everything and begins a new one.

    Args:
        carrier: where heartbeats go.
        lease: what is kept.
        hands: what it protects.
        fetcher: claims under it.
        cancel: called with each job that somebody wants cancelled.
    """

    def __init__(
        self, carrier: AsyncCarrier, lease: Lease, hands: Hands, fetcher: Fetcher, cancel: Callable[[int], None]
    ) -> None:
        self._carrier, self._lease, self._hands, self._fetcher = carrier, lease, hands, fetcher
        self._cancel = cancel

    async def beat(self) -> None:
        """Renew the lease until cancelled."""
        rest = self._lease.heartbeat
        while True:
            await asyncio.sleep(rest)
            rest = self._lease.heartbeat
            try:
                cancelled = await self._lease.renew(self._carrier, self._hands.held)
                if cancelled is None:
                    self._let_go("another worker declared this one dead")
                    await self._lease.begin(self._carrier)
                    self._fetcher.begin_anew()
                    continue
                for job in cancelled:
                    self._cancel(job)
                if self._fetcher.suspected_at is not None:
                    await self._put_back_orphans(self._fetcher.suspected_at)
            except DATABASE_ERRORS as error:
                log.warning("could not send a heartbeat: %s", error)
                rest = min(1.0, rest)

    async def watch(self) -> None:
        """Let go in time: a heartbeat may hang in a dead connection for longer than the lease lasts."""
        while True:
            if self._lease.trusted:
                await asyncio.sleep(self._lease.left)
            else:
                self._let_go("no heartbeat got through for too long")
                await asyncio.sleep(0.1)

    def _let_go(self, why: str) -> None:
        if held := [claimed for claimed in self._hands.held.values() if not claimed.lost]:
            log.error("%s: letting go of %s job(s)", why, len(held))
        self._hands.unstarted()
        for claimed in held:
            claimed.lost = True
            claimed.interrupt()
        if held:
            self._fetcher.suspect()  # should the lease turn out to be ours still, they are ours and nobody runs them

    async def _put_back_orphans(self, suspected_at: float) -> None:
        """Put back the running jobs in our name that are not in our hands.

        No claim may be under way meanwhile. What is in our hands leaves them only after the database has said so, or
        when it is let go, which is a suspicion of its own.
        """
        async with self._fetcher.claiming:
            began = time.monotonic()
            params = {"worker": self._lease.worker, "jobs": list(self._hands.held)}
            rows = await self._carrier.execute(Query(SQL["orphans"], params, nothing))
        if began - suspected_at > _SUSPICION and self._fetcher.suspected_at == suspected_at:
            self._fetcher.suspected_at = None
        if rows[0][0]:
            log.warning("put back %s job(s) that were in this worker's name and not in its hands", rows[0][0])
            self._fetcher.wake()
