"""Renews leases in the background and tells in time when one is lost: for all leases of an application together.

Two rounds, each a thread or a task: one renews, all that are due in one statement; the other watches the clock. They
are two because a renewal may hang with the network, and then the clock has to be watched all the more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Collection

from ..engine.plan import AsyncCarrier, Carrier, adrive_on, drive_on
from .clock import now
from .held import Held
from .plans import renew_all

log = logging.getLogger("pgeverything.locks")

_LINGER = 10.0  # seconds for which a thread stays that has nothing to do: `hold` in a loop needs it again at once
_LONGEST = 1.0  # seconds of sleep: waits stand still while the machine sleeps, the clock of a lease does not
_TOGETHER = 1 / 6  # of its length: how much earlier than due a lease is renewed when another one is due
_PATIENCE = 5.0  # seconds that closing waits for a renewal under way
_BUSY_PAUSE = 0.02  # seconds until a lease is tried again on whose row somebody was busy


class _Renewals:
    """Which leases to renew when."""

    def __init__(self) -> None:
        # Weak, because an answer may come when a lease was given back already, and who lost one need not give it back.
        self._retry: weakref.WeakKeyDictionary[Held, float] = weakref.WeakKeyDictionary()

    def due(self, lease: Held) -> float:
        return max(lease.due, self._retry.get(lease, 0.0))

    def chosen(self, leases: Collection[Held]) -> list[Held]:
        """Return those that are due, and those that soon are. What is lost is left alone: the other round tells."""
        early = now()
        return [
            lease
            for lease in leases
            if not lease.lost and lease.due <= early + lease.ttl * _TOGETHER and self._retry.get(lease, 0.0) <= early
        ]

    def answered(self, leases: Collection[Held], undecided: Collection[Held]) -> None:
        for lease in leases:
            self._retry.pop(lease, None)
        self._retry |= dict.fromkeys(undecided, now() + _BUSY_PAUSE)

    def failed(self, leases: Collection[Held], error: Exception) -> None:
        log.warning("could not renew %s lease(s), trying again: %s", len(leases), error)
        for lease in leases:
            self._retry[lease] = now() + min(lease.ttl / 20, 1.0)

    def forget(self, lease: Held) -> None:
        self._retry.pop(lease, None)


class _Round:
    """A thread that waits for the earliest due time of its leases, acts, and waits again. It ends when it has none."""

    def __init__(self, name: str, due: Callable[[Held], float], act: Callable[[list[Held]], None]) -> None:
        self._name, self._due, self._act = name, due, act
        self._begin()

    def _begin(self) -> None:
        self._changed, self._acting = threading.Condition(), threading.Lock()
        self._leases: set[Held] = set()
        self._next = float("inf")
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def add(self, lease: Held) -> None:
        if self._pid != os.getpid():  # a fork has our memory and not our threads; its parent's leases are its parent's
            self._begin()
        with self._changed:
            self._leases.add(lease)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            elif self._due(lease) < self._next:
                self._changed.notify()

    def discard(self, lease: Held) -> None:
        with self._changed:
            self._leases.discard(lease)

    def close(self) -> None:
        """Leave all leases alone from now on."""
        if self._pid != os.getpid():
            return
        with self._changed:
            self._leases.clear()
        if self._acting.acquire(timeout=_PATIENCE):
            self._acting.release()

    def _run(self) -> None:
        while leases := self._wait():
            with self._acting:
                self._act([lease for lease in leases if lease in self._leases])

    def _wait(self) -> list[Held]:
        """Return all leases when one of them is due; none when there were none for a while."""
        idle_since = now()
        with self._changed:
            while True:
                self._next = min(map(self._due, self._leases), default=float("inf"))
                if self._leases:
                    idle_since = now()
                elif now() - idle_since > _LINGER:
                    self._thread = None
                    return []
                if self._next <= now():
                    return list(self._leases)
                self._changed.wait(min(self._next - now(), _LONGEST))


class Keeper:
    """Keeps the leases of blocking code."""

    def __init__(self, carrier: Callable[[], Carrier]) -> None:
        self._carrier, self._renewals = carrier, _Renewals()
        self._renewing = _Round("pgeverything leases", self._renewals.due, self._renew)
        self._watching = _Round("pgeverything lease clock", lambda lease: lease.ends, self._watch)

    def keep(self, lease: Held, *, renew: bool) -> None:
        """Renew the lease until it is dropped, if asked; and call its `on_lost` when it is lost."""
        if lease.tells:
            self._watching.add(lease)
        if renew:
            self._renewing.add(lease)

    def drop(self, lease: Held) -> None:
        """Leave the lease alone from now on."""
        self._renewing.discard(lease)
        self._watching.discard(lease)
        self._renewals.forget(lease)

    def close(self) -> None:
        """Renew nothing any more: what is held runs out, and its `on_lost` is called."""
        self._renewing.close()

    def _renew(self, leases: list[Held]) -> None:
        for lease in leases:
            if lease.lost:
                self._renewing.discard(lease)
        if chosen := self._renewals.chosen(leases):
            try:
                undecided = drive_on(self._carrier, renew_all(chosen))
            except Exception as error:
                self._renewals.failed(chosen, error)
            else:
                self._renewals.answered(chosen, undecided)

    def _watch(self, leases: list[Held]) -> None:
        for lease in leases:
            if lease.lost:  # which tells it
                self._watching.discard(lease)


class _AsyncRound:
    """The same as a task; it ends with its last lease."""

    def __init__(self, due: Callable[[Held], float], act: Callable[[list[Held]], Awaitable[None]]) -> None:
        self._due, self._act = due, act
        self._leases: set[Held] = set()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, lease: Held) -> None:
        self._leases.add(lease)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        self._changed.set()

    def discard(self, lease: Held) -> None:
        self._leases.discard(lease)
        self._changed.set()

    async def close(self) -> None:
        self._leases.clear()
        if self._task is not None and self._task.get_loop() is asyncio.get_running_loop():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self._leases:
            self._changed.clear()
            wait = min(map(self._due, self._leases)) - now()
            if wait > 0:
                try:
                    async with asyncio.timeout(min(wait, _LONGEST)):
                        await self._changed.wait()
                except TimeoutError:
                    pass
            else:
                await self._act(list(self._leases))


class AsyncKeeper:
    """Keeps the leases of one event loop."""

    def __init__(self, carrier: Callable[[], Awaitable[AsyncCarrier]]) -> None:
        self._carrier, self._renewals = carrier, _Renewals()
        self._renewing = _AsyncRound(self._renewals.due, self._renew)
        self._watching = _AsyncRound(lambda lease: lease.ends, self._watch)
        self.loop = asyncio.get_running_loop()

    def keep(self, lease: Held, *, renew: bool) -> None:
        """Renew the lease until it is dropped, if asked; and call its `on_lost` when it is lost."""
        if lease.tells:
            self._watching.add(lease)
        if renew:
            self._renewing.add(lease)

    def drop(self, lease: Held) -> None:
        """Leave the lease alone from now on."""
        self._renewing.discard(lease)
        self._watching.discard(lease)
        self._renewals.forget(lease)

    async def close(self) -> None:
        """Renew nothing any more: what is held runs out, and its `on_lost` is called."""
        await self._renewing.close()

    async def _renew(self, leases: list[Held]) -> None:
        for lease in leases:
            if lease.lost:
                self._renewing.discard(lease)
        if chosen := self._renewals.chosen(leases):
            try:
                # Not for longer than any of them is ours: a connection that hangs is given up then.
                async with asyncio.timeout(max(min(lease.ends for lease in chosen) - now(), 0.1)):
                    undecided = await adrive_on(self._carrier, renew_all(chosen))
            except Exception as error:
                self._renewals.failed(chosen, error)
            else:
                self._renewals.answered(chosen, undecided)

    async def _watch(self, leases: list[Held]) -> None:
        for lease in leases:
            if lease.lost:  # which tells it
                self._watching.discard(lease)
