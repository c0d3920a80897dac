"""The jobs in the hands of one process: claimed ahead, running, and ended but not acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence

from .claimed import Claimed
from .outcome import Outcome

_MOST_AHEAD = 200  # jobs claimed ahead of the handlers: batches beyond this size are no faster
_AHEAD_SECONDS = 0.05  # how much work a process may hold that nobody else can take
_MOST_UNACKNOWLEDGED = 5000  # ended jobs the database has not taken yet; more would only grow


class Hands:
    """Counts what is held and says how much more to claim.

    Args:
        concurrency: how many handlers run at once.
    """

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.held: dict[int, Claimed] = {}
        self.running = 0
        self._ahead: asyncio.Queue[Claimed] = asyncio.Queue()
        self._average: float | None = None  # seconds a job takes
        self._room = asyncio.Event()

    def take(self, jobs: Iterable[Claimed]) -> None:
        """Take claimed jobs into our hands.

        One that is there already by the same claim runs on: the server crashed before that was durable, and now it has
        been claimed once more.
        """
        for job in jobs:
            held = self.held.get(job.job)
            if held is not None and (held.token, held.worker) == (job.token, job.worker) and not held.lost:
                continue
            self.held[job.job] = job
            self._ahead.put_nowait(job)

    async def next(self) -> Claimed:
        """Return the next job to run, when there is one."""
        claimed = await self._ahead.get()
        self.running += 1
        return claimed

    def ran(self, took: float) -> None:
        """Note that a handler has ended after so many seconds."""
        self.running -= 1
        self._average = took if self._average is None else self._average + (took - self._average) * 0.05
        if not self._room.is_set() and self.wanted() > 0:
            self._room.set()

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """Let go of jobs that the database has taken, or refused."""
        for outcome in outcomes:
            claimed = outcome.claimed
            if self.held.get(claimed.job) is claimed:
                del self.held[claimed.job]

    def drop(self, claimed: Claimed) -> None:
        """Let go of one job."""
        if self.held.get(claimed.job) is claimed:
            del self.held[claimed.job]

    def unstarted(self) -> list[Claimed]:
        """Take back out what was claimed ahead and not started."""
        jobs = []
        while not self._ahead.empty():
            jobs.append(self._ahead.get_nowait())
        for job in jobs:
            self.drop(job)
        return jobs

    def wanted(self) -> int:
        """How many jobs to claim now: what the handlers can take at once, and as much ahead as is short work.

        Until half of that is gone it is 0, so that claims are few and large when jobs are short.
        """
        if len(self.held) > _MOST_UNACKNOWLEDGED:
            return 0
        ahead = 0
        if self._average is not None:
            ahead = min(_MOST_AHEAD, int(self.concurrency * _AHEAD_SECONDS / max(self._average, 1e-6)))
        wanted = self.concurrency - self.running + ahead - self._ahead.qsize()
        return wanted if wanted >= ahead // 2 else 0

    async def room(self, longest: float) -> bool:
        """Wait until there is room for more, at most so many seconds; return whether there is."""
        self._room.clear()
        if self.wanted() > 0:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest):
                await self._room.wait()
        return self.wanted() > 0
