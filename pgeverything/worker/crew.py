"""The handlers at work: runs what was claimed, acknowledges it, and lets go of all of it when the worker ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Sequence

from ..engine.plan import AsyncCarrier, Query, nothing
from ..engine.statements import statements
from .acknowledge import Acknowledger
from .claimed import Claimed
from .execute import Executor
from .fetch import DATABASE_ERRORS, Fetcher
from .hands import Hands
from .lease import Lease
from .outcome import Outcome, tell

log = logging.getLogger("pgeverything.worker")
SQL = statements("worker")


class Crew:
    """Runs the jobs in the hands of a process.

    Args:
        carrier: where to write.
        lease: in whose name the jobs were claimed.
        hands: holds them.
        fetcher: is told when others may have become ready.
        executor: turns one into its outcome.
    """

    def __init__(self, carrier: AsyncCarrier, lease: Lease, hands: Hands, fetcher: Fetcher, executor: Executor) -> None:
        self._carrier, self._lease, self._hands = carrier, lease, hands
        self._fetcher, self._executor = fetcher, executor
        self._freed = False  # whether others have become ready that this worker will not take: it drains
        self.acknowledger = Acknowledger(carrier, lease, self._settled)

    async def run(self) -> None:
        """Run one job after the other: one of `concurrency` such loops."""
        while not self._executor.ending:  # a handler may swallow the cancellation that the end of the worker is
            claimed = await self._executor.undisturbed(self._hands.next)
            began = time.monotonic()
            if not self._lease.trusted:  # frozen for too long: the job is somebody else's by now, or soon
                claimed.lost = True
                outcome = None
            else:
                outcome = await self._executor.run(claimed)
            if outcome is None:
                self._hands.drop(claimed)
                if claimed.lost:
                    self._fetcher.suspect()  # the lease may have turned out to be ours still: then nobody runs it now
                self._lease.finished += claimed.completed
                if claimed.completed and claimed.ordering_key is not None:
                    self._fetcher.wake()  # its turn is in a note, which the fetcher passes on
            else:
                tell(outcome)
                self.acknowledger.put(outcome)
            if claimed.thread is not None:
                await self._executor.undisturbed(functools.partial(asyncio.wait, {claimed.thread}))
            self._hands.ran(time.monotonic() - began)

    def end(self) -> None:
        """The runners are to end when they are cancelled now."""
        self._executor.ending = True

    def _settled(self, outcomes: Sequence[Outcome], freed: bool) -> None:
        self._hands.settled(outcomes)
        if freed:
            self._freed = True
            self._fetcher.wake()

    def cancel(self, job: int) -> None:
        """Interrupt a job, if it is in our hands: somebody wants it cancelled."""
        if (claimed := self._hands.held.get(job)) is not None and not claimed.cancelled:
            log.info("job %s (%s) is to be cancelled", claimed.job, claimed.task)
            claimed.cancelled = True
            claimed.interrupt()

    async def write_progress(self) -> None:
        """Write what handlers said of their progress, once a second, all in one statement."""
        while True:
            await asyncio.sleep(1.0)
            changed = [claimed for claimed in self._hands.held.values() if claimed.progress_changed]
            if not changed:
                continue
            for claimed in changed:
                claimed.progress_changed = False
            params = {
                "worker": self._lease.worker,
                "jobs": [claimed.job for claimed in changed],
                "tokens": [claimed.token for claimed in changed],
                "progress": [claimed.progress for claimed in changed],
                "notes": [claimed.note for claimed in changed],
            }
            with contextlib.suppress(*DATABASE_ERRORS):  # progress is for show; the next one tells more
                await self._carrier.execute(Query(SQL["progress"], params, nothing))

    async def drain(self, longest: float) -> None:
        """Give back what has not started, and wait until what has is over and acknowledged.

        After `longest` seconds `async def` handlers are cancelled and their jobs given back; `def` handlers are told,
        but a thread cannot be stopped: waiting for it is better than a second run beside it.
        """
        if unstarted := self._hands.unstarted():
            await self._give_back(unstarted)
        deadline = time.monotonic() + longest
        while self._hands.running or self._hands.held:
            if self._freed:
                self._freed = False
                await self._hand_over()
            if time.monotonic() > deadline:
                deadline = float("inf")
                log.warning(
                    "%s job(s) outlasted the drain of %g s: interrupting them",
                    self._hands.running,
                    longest,
                )
                for claimed in list(self._hands.held.values()):
                    claimed.interrupted = True
                    claimed.interrupt()
            await asyncio.sleep(0.01)

    async def _hand_over(self) -> None:
        with contextlib.suppress(*DATABASE_ERRORS):  # else they find it when they look the next time
            await self._carrier.execute(Query(SQL["hand_over"], {"queues": self._lease.queues}, nothing))

    async def _give_back(self, jobs: Sequence[Claimed]) -> None:
        params = {
            "worker": self._lease.worker,
            "jobs": [j.job for j in jobs],
            "tokens": [j.token for j in jobs],
        }
        with contextlib.suppress(*DATABASE_ERRORS):  # else they are rescued
            await self._carrier.execute(Query(SQL["give_back"], params, nothing))
