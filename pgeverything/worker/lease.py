"""A worker's lease on its jobs: renewed by heartbeats, measured on our own clock from before each one was sent."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Collection, Sequence

from ..engine.plan import AsyncCarrier, Query, nothing, whole
from ..engine.statements import statements

log = logging.getLogger("pgeverything.worker")
SQL = statements("worker")

HEARTBEAT = 10.0  # seconds between heartbeats
SILENCE = 30.0  # seconds without one after which others take the jobs
TRUSTED = 25.0  # seconds since the last good heartbeat was sent for which we trust the lease: less than SILENCE


class Lease:
    """The row of this process in `workers`, and how long it can still be trusted."""

    def __init__(self, queues: Sequence[str], concurrency: int, name: str | None) -> None:
        self.queues, self.concurrency = list(queues), concurrency
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self.worker = 0
        self.finished = self.failed = self.refused = 0
        self._renewed = float("-inf")

    @property
    def trusted(self) -> bool:
        """Whether the jobs are certainly still ours."""
        return time.monotonic() - self._renewed < TRUSTED

    async def begin(self, carrier: AsyncCarrier) -> None:
        """Register this process under a new number."""
        sent = time.monotonic()
        params = {"name": self.name, "queues": self.queues, "concurrency": self.concurrency}
        self.worker = whole(await carrier.execute(Query(SQL["register"], params, whole)))
        self._renewed = sent
        log.info("worker %s (%s) serves %s", self.worker, self.name, ", ".join(self.queues))

    async def renew(self, carrier: AsyncCarrier, jobs: Collection[int]) -> list[int] | None:
        """Send a heartbeat.

        Args:
            carrier: where to send it.
            jobs: the jobs in our hands.

        Returns:
            Those of them that somebody wants cancelled, or None when the lease is lost.
        """
        sent = time.monotonic()
        params = {
            "worker": self.worker,
            "jobs": list(jobs),
            "finished": self.finished,
            "failed": self.failed,
            "refused": self.refused,
        }
        rows = await carrier.execute(Query(SQL["heartbeat"], params, nothing))
        if not rows:
            self._renewed = float("-inf")
            return None
        self._renewed = sent
        return list(rows[0][0])

    async def end(self, carrier: AsyncCarrier) -> None:
        """Leave the table of workers; jobs still in our name are rescued by others once the silence is long enough."""
        await carrier.execute(Query(SQL["leave"], {"worker": self.worker}, nothing))
