"""Keeps the queue's house in order: rescues, settles, looks after partitions. Any worker does it, one at a time."""

from __future__ import annotations

import asyncio
import logging
import random

import psycopg
from psycopg_pool import PoolTimeout

from .engine.plan import AsyncCarrier, Query, Rows, nothing
from .engine.statements import statements

log = logging.getLogger("pgeverything.maintenance")
SQL = statements("worker")

EVERY = 10.0  # seconds between the sweeps of a whole fleet; less where leases are shorter than three times that
PARTITIONS_EVERY = 3600.0
STRAY = 30.0  # seconds after its claim at which a running job is taken back whose worker is not registered
MOST_CRASHES = 3  # workers one job may take down before it is dead


class Sweeper:
    """Sweeps when it is this process's turn.

    There is no leader: each worker tries to take the turn when the last one is old enough, and one gets it.

    Args:
        carrier: where to sweep.
        retention: how many seconds finished jobs are kept.
        lease: the length of this worker's lease: a third of it, or `EVERY`, is how long a fleet goes unswept.
    """

    def __init__(self, carrier: AsyncCarrier, retention: float, lease: float) -> None:
        self._carrier, self._retention = carrier, retention
        self._lease, self._every = lease, min(EVERY, lease / 3)

    async def run(self) -> None:
        """Sweep until cancelled. A sweep that fails is tried again at the next turn."""
        while True:
            try:
                wait = await self.turn()
            except (psycopg.Error, PoolTimeout) as error:
                log.warning("could not sweep, trying again: %s", error)
                wait = self._every
            await asyncio.sleep(wait * random.uniform(1.0, 1.2))  # noqa: S311 - so that a fleet does not try in step

    async def turn(self) -> float:
        """Sweep if it is our turn; return in how many seconds the next turn is worth trying."""
        left, silent, cancelled, lined, aged = await self._take("jobs", self._every)
        if left > 0:
            return left
        await self.sweep(silent=silent, cancelled=cancelled, lined=lined)
        if aged and (await self._take("partitions", PARTITIONS_EVERY))[0] <= 0:
            await self._partitions()
        return self._every

    async def sweep(self, *, silent: bool = True, cancelled: bool = True, lined: bool = True) -> None:
        """Rescue the jobs of silent workers, settle cancellations, and nudge lines that nobody holds."""
        if silent:
            rows = await self._run("rescue", stray=STRAY, most=MOST_CRASHES, apart=self._lease)
            rescued, dead = rows[0][:2]
            if rescued:
                log.warning("rescued %s job(s) of silent workers; %s of them had crashed too often", rescued, dead)
        if cancelled:
            await self._run("settle_cancellations")
        if lined:
            await self._run("nudge_lines")

    async def _partitions(self) -> None:
        created, dropped = (await self._run("partitions", keep=self._retention))[0]
        if created or dropped:
            log.info("created %s and dropped %s partitions of finished jobs", created, dropped)

    async def _take(self, name: str, every: float) -> tuple[float, bool, bool, bool, bool]:
        """Take a turn: 0 when it is ours, else the seconds until the next one; and what there is to sweep."""
        left, silent, cancelled, lined, aged = (await self._run("sweep_turn", name=name, every=every))[0]
        return left, silent, cancelled, lined, aged

    async def _run(self, statement: str, **params: object) -> Rows:
        return await self._carrier.execute(Query(SQL[statement], params, nothing))
