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

SHORTEST = 2.0  # seconds: a busy event loop or a slow commit may hold up a heartbeat for that long


class Lease:
    """The row of this process in `workers`, and how long it can still be trusted.

    Args:
        queues: the queues it serves.
        concurrency: how many handlers it runs at once.
        name: what lists call it; None means host:pid.
        length: how many seconds after its last heartbeat others take its jobs.
    """

    def __init__(self, queues: Sequence[str], concurrency: int, name: str | None, length: float) -> None:
        self.length = length
        self.heartbeat = length / 3  # two may get lost
        self._trust = length * 5 / 6  # counted from before a heartbeat was sent, so it ends before the others' patience
        self.queues, self.concurrency = list(queues), concurrency
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self.worker = 0
        self.finished = self.failed = self.refused = 0
        self._renewed = float("-inf")

    @property
    def trusted(self) -> bool:
        """Whether the jobs are certainly still ours."""
        return self.left > 0

    @property
    def left(self) -> float:
        """For how many seconds the jobs are certainly still ours; below 0 when they are not."""
        return self._renewed + self._trust - time.monotonic()

    async def begin(self, carrier: AsyncCarrier) -> None:
        """Register this process under a new number."""
        sent = time.monotonic()
        params = {
            "name": self.name,
            "queues": self.queues,
            "concurrency": self.concurrency,
            "lease": self.length,
        }
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
        """Leave the table of workers; jobs still in our name are rescued by others a while after their claim."""
        await carrier.execute(Query(SQL["leave"], {"worker": self.worker}, nothing))
