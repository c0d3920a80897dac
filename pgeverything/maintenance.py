"""Keeps the house in order: rescues, settles, looks after partitions. Any worker does it, one at a time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from psycopg_pool import PoolTimeout

from .audit import retention as audit
from .cache import upkeep
from .engine.plan import AsyncCarrier, Plan, Query, Rows, adrive, nothing, same
from .engine.statements import statements
from .events import retention as events
from .locks import plans as locks
from .scheduler import chores as scheduler

log = logging.getLogger("pgeverything.maintenance")
SQL = statements("worker")

EVERY = 10.0  # seconds between the sweeps of a whole fleet; less where leases are shorter than three times that
STRAY = 30.0  # seconds after its claim at which a running job is taken back whose worker is not registered
MOST_CRASHES = 3  # workers one job may take down before it is dead


@dataclass(frozen=True, slots=True)
class Chore:
    """What a fleet does now and then: one of its workers, every so many seconds, or later when nobody is free.

    Its plan does a bounded amount of work, because rescues wait for it; what it leaves undone waits for its next turn.
    """

    name: str
    every: float
    plan: Callable[[], Plan[None]]


CHORES: tuple[Chore, ...] = (
    Chore("events", 300.0, events.tend),
    Chore("ticks", 3600.0, scheduler.maintain),
    Chore("cache", 60.0, upkeep.sweep),
    Chore("locks", 60.0, locks.sweep),
    Chore("audit", 60.0, audit.tend),
)
"""What the modules need done, whatever the worker's own settings."""


class Sweeper:
    """Sweeps when it is this process's turn.

    There is no leader: each worker tries to take the turn when the last one is old enough, and one gets it.

    Args:
        carrier: where to sweep.
        retention: how many seconds finished jobs are kept.
        lease: the length of this worker's lease: a third of it, or `EVERY`, is how long a fleet goes unswept.
    """

    def __init__(self, carrier: AsyncCarrier, retention: float, lease: float) -> None:
        self._carrier = carrier
        self._lease, self._every = lease, min(EVERY, lease / 3)
        chores = (Chore("partitions", 3600.0, lambda: _partitions(retention)), *CHORES)
        self._chores = {chore.name: chore for chore in chores}

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
        left, silent, cancelled, lined, due = (
            await self._run("sweep_turn", name="jobs", every=self._every, chores=list(self._chores))
        )[0]
        if left > 0:
            return float(left)
        await self.sweep(silent=silent, cancelled=cancelled, lined=lined)
        for name in due:
            await self._do(self._chores[name])
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

    async def _do(self, chore: Chore) -> None:
        """Do a chore if its turn can be had. One that fails must not keep the others from being done."""
        if await self._run("take_chore", name=chore.name, every=chore.every):
            try:
                await adrive(self._carrier, chore.plan())
            except psycopg.Error as error:
                log.warning("%s failed, trying again in %g s: %s", chore.name, chore.every, error)

    async def _run(self, statement: str, **params: object) -> Rows:
        return await self._carrier.execute(Query(SQL[statement], params, nothing))


def _partitions(keep: float) -> Plan[None]:
    """Create the daily partitions of finished jobs ahead, and drop them behind."""
    created, dropped = (yield from Query(SQL["partitions"], {"keep": keep}, same))[0]
    if created or dropped:
        log.info("created %s and dropped %s partitions of finished jobs", created, dropped)
