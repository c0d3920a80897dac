"""Acknowledges finished jobs in batches: at once when there is little to do, together when there is much.

While one batch is on its way the next one gathers, so batches grow with the load and nothing ever waits on a timer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TypeVar

import psycopg

from ..engine.plan import AsyncCarrier, Query
from .lease import Lease
from .outcome import Ended, Failed, Outcome, fail, finish

log = logging.getLogger("pgeverything.worker")

T = TypeVar("T")

_MOST = 500  # outcomes in a statement: larger ones hold their locks longer and are no faster
_MOST_TEXT = 8_000_000  # characters of results in one: a message of more than 1 GB is refused, time and again
_LONGEST_PAUSE = 5.0


class Acknowledger:
    """Writes outcomes, trying until the database has taken or refused each.

    Args:
        carrier: where to write.
        lease: counts what was finished, failed and refused.
        settled: called with the jobs that are out of our hands, and whether others became ready by it.
    """

    def __init__(self, carrier: AsyncCarrier, lease: Lease, settled: Callable[[Sequence[Outcome], bool], None]) -> None:
        self._carrier, self._lease, self._settled = carrier, lease, settled
        self._outcomes: list[Outcome] = []
        self._some = asyncio.Event()

    def put(self, outcome: Outcome) -> None:
        """Hand over an outcome."""
        self._outcomes.append(outcome)
        self._some.set()

    async def run(self) -> None:
        """Write outcomes until cancelled."""
        while True:
            await self._some.wait()
            await self.flush()

    async def flush(self) -> None:
        """Write what there is now."""
        while self._outcomes:
            count = _fitting(self._outcomes)
            batch, self._outcomes = self._outcomes[:count], self._outcomes[count:]
            if not self._outcomes:
                self._some.clear()
            # A lost lease leaves outcomes of two worker numbers in one batch, but never for long.
            for worker, outcomes in groupby(batch, key=lambda outcome: outcome.claimed.worker):
                await self._write(worker, list(outcomes))

    async def _write(self, worker: int, outcomes: list[Outcome]) -> None:
        ended = [outcome for outcome in outcomes if isinstance(outcome, Ended)]
        failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
        # One batch in one order, so that two acknowledgements that pass turns of the same keys cannot deadlock: the
        # statements themselves take the keys sorted.
        freed = 0
        if ended:
            accepted, freed = await self._insist(finish(worker, ended))
            self._lease.finished += len(accepted)
            self._refuse(ended, accepted)
        if failed:
            accepted, more = await self._insist(fail(worker, failed))
            self._lease.failed += len(accepted)
            self._refuse(failed, accepted)
            freed += more
        self._settled(outcomes, freed > 0 or any(o.delay is not None for o in failed))

    async def _insist(self, query: Query[T]) -> T:
        """Run a statement until it went through. Repeating it is safe: what it has done, its fence refuses to redo."""
        pause = 0.05
        while True:
            try:
                return query.read(await self._carrier.execute(query))
            except psycopg.DataError:
                raise
            except psycopg.Error as error:
                log.warning("could not acknowledge, trying again in %.1f s: %s", pause, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    def _refuse(self, outcomes: Sequence[Outcome], accepted: Sequence[int]) -> None:
        if len(accepted) == len(outcomes):
            return
        kept = set(accepted)
        for outcome in outcomes:
            claimed = outcome.claimed
            if claimed.job not in kept:
                self._lease.refused += 1
                log.warning(
                    "the result of job %s (%s) was refused: the job is not ours any more",
                    claimed.job,
                    claimed.task,
                )


def _fitting(outcomes: Sequence[Outcome]) -> int:
    """How many outcomes go into the next statement: one at least."""
    size = 0
    for count, outcome in enumerate(outcomes[:_MOST]):
        if isinstance(outcome, Ended) and outcome.result is not None:
            size += len(outcome.result)
            if size > _MOST_TEXT and count:
                return count
    return min(len(outcomes), _MOST)
