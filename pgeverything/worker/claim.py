"""Claims jobs: knows the lanes, remembers where the last claim of each ended, looks at everything now and then.

A lane is a (queue, priority). Rows leave a lane at its front, and until vacuum can remove them a scan from the front
walks over all of them: under a snapshot that somebody holds for minutes, that made every queue shape we measured
collapse to a tenth of its speed. A claim therefore starts behind the place where the last one ended. What such a
claim cannot see (a job committed late with an earlier place, a lane that is new) a full scan finds, which may take at
most a twentieth of the time and so costs nothing when it is cheap and little when it is not.
"""

from __future__ import annotations

import random
import time
from itertools import groupby

from ..engine.plan import AsyncCarrier, Query, Rows, same
from ..engine.statements import statements
from .claimed import Claimed

SQL = statements("worker")


_MOST_LANES = 100  # known lanes; an empty one costs a claim one index descent


class Pace:
    """Rations what may be cheap or expensive: at most `share` of the time, at most `longest` seconds apart."""

    def __init__(self, share: float = 0.05, longest: float = 2.0) -> None:
        self._share, self._longest = share, longest
        self._next = 0.0
        self._last = 0.0

    @property
    def due(self) -> bool:
        """Whether it may be done again."""
        return time.monotonic() >= self._next

    @property
    def wait(self) -> float:
        """In how many seconds it may be done again."""
        return max(0.0, self._next - time.monotonic())

    def overdue(self, seconds: float) -> bool:
        """Whether the last time is longer ago than that."""
        return time.monotonic() - self._last >= seconds

    def done(self, began: float) -> None:
        """Note that it was done, beginning at that time of the monotonic clock."""
        self._last = now = time.monotonic()
        self._next = now + min((now - began) / self._share, self._longest)


class Claimer:
    """Takes jobs for one worker process."""

    def __init__(self, queues: list[str]) -> None:
        self._queues = queues
        self._cursors: dict[tuple[str, int], int] = {}
        self._limited: set[tuple[str, int]] = set()
        self._full = Pace()
        self.unseen = 0.0  # seconds until what the last claim could not look at may be looked at; 0 if it saw all

    async def claim(self, carrier: AsyncCarrier, worker: int, limit: int, *, soon: bool) -> list[Claimed]:
        """Take up to `limit` jobs: from behind the cursors, and from everywhere when that yields nothing.

        `soon` returns before the claim is on disk; see `Fetcher`.
        """
        if self._full.overdue(2.0):
            return await self._claim_everywhere(carrier, worker, limit, soon)
        jobs = await self._claim_lanes(carrier, worker, limit, soon)
        if not jobs and self._full.due:
            return await self._claim_everywhere(carrier, worker, limit, soon)
        self.unseen = 0.0 if jobs else self._full.wait
        return jobs

    async def _claim_everywhere(self, carrier: AsyncCarrier, worker: int, limit: int, soon: bool) -> list[Claimed]:
        began = time.monotonic()
        rows = await carrier.execute(Query(SQL["lanes"], {"queues": self._queues}, same))
        # Lanes that are empty now stay known, so that the next job in one needs no full scan to be found.
        known = self._cursors if len(self._cursors) < _MOST_LANES else {}
        self._cursors = known | {(queue, priority): 0 for queue, priority, _ in rows}
        self._limited = {(queue, priority) for queue, priority, limited in rows if limited}
        jobs = await self._claim_lanes(carrier, worker, limit, soon) if rows else []
        self._full.done(began)
        self.unseen = 0.0
        return jobs

    async def _claim_lanes(self, carrier: AsyncCarrier, worker: int, limit: int, soon: bool) -> list[Claimed]:
        """Take jobs: highest priority first; of equal ones from a random queue, so that none starves behind another.

        Lanes of queues with a fleet-wide limit need a statement of their own. Of one priority they are all tried before
        the others, or all after them.
        """
        limited_first = {priority: random.random() < 0.5 for _, priority in self._limited}  # noqa: S311
        lanes = sorted(
            self._cursors,
            key=lambda lane: (-lane[1], (lane in self._limited) is not limited_first.get(lane[1]), random.random()),  # noqa: S311
        )
        jobs: list[Claimed] = []
        for limited, alike in groupby(lanes, key=self._limited.__contains__):
            wanted = limit - len(jobs)
            if wanted > 0:
                take = self._claim_limited if limited else self._claim_open
                jobs += await take(carrier, worker, wanted, list(alike), soon)
        return jobs

    async def _claim_open(
        self, carrier: AsyncCarrier, worker: int, limit: int, lanes: list[tuple[str, int]], soon: bool
    ) -> list[Claimed]:
        params = {
            "queues": [queue for queue, _ in lanes],
            "priorities": [priority for _, priority in lanes],
            "after": [self._cursors[lane] for lane in lanes],
            "worker": worker,
            "limit": limit,
            "soon": soon,
        }
        return self._read(await carrier.execute(Query(SQL["claim"], params, same)), worker)

    async def _claim_limited(
        self, carrier: AsyncCarrier, worker: int, limit: int, lanes: list[tuple[str, int]], _soon: bool
    ) -> list[Claimed]:
        """Take jobs of queues with a fleet-wide limit."""
        params = {
            "worker": worker,
            "queues": [queue for queue, _ in lanes],
            "priorities": [priority for _, priority in lanes],
            "limit": limit,
        }
        return self._read(await carrier.execute(Query(SQL["claim_limited"], params, same)), worker)

    def _read(self, rows: Rows, worker: int) -> list[Claimed]:
        jobs = [Claimed(row, worker) for row in rows]
        jobs.sort(key=lambda job: (-job.priority, job.token))
        for job in jobs:
            lane = (job.queue, job.priority)
            if job.token > self._cursors.get(lane, 0):
                self._cursors[lane] = job.token
        return jobs
