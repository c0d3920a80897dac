"""Locks: leases on names, with fencing tokens, and a guard that the commit it protects checks itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import NoReturn

from ..durations import Duration
from ..engine.modules import AsyncModule, Module
from ..engine.plan import Async, Sync, adrive_on, drive_on, op
from ..engine.pool import AsyncDatabase, AsyncTarget, Database, Target
from ..errors import LockError
from . import plans
from .hold import AsyncHold, AsyncOnLost, Hold, OnLost
from .keeper import AsyncKeeper, Keeper
from .lease import AsyncLease, Lease
from .values import Busy, Grant, Holder, Lock, Request

__all__ = ["AsyncBoundLocks", "AsyncLease", "AsyncLocks", "BoundLocks", "Holder", "Lease", "Lock", "Locks"]


class _Looking:
    list = op(plans.list_)
    get = op(plans.get)


class Locks(Module, _Looking):
    """Locks, blocking."""

    def __init__(self, target: Target | Database = None, *, schema: str = "pgeverything") -> None:
        super().__init__(target, schema=schema)
        self._keeper = Keeper(self._carrier)
        self._database.users.add(self._keeper)

    break_lock = op(plans.break_lock)

    def acquire(
        self,
        name: str,
        *,
        ttl: Duration = "30s",
        wait: Duration | None = None,
        slots: int = 1,
        shared: bool = False,
        fair: bool = False,
        min_hold: Duration | None = None,
        note: str | None = None,
        renew: bool = False,
        on_lost: OnLost | None = None,
    ) -> Lease | None:
        """Get a lease on a lock, in a short transaction of its own.

        Args:
            name: the lock's name, at most 1,024 bytes; it need not exist.
            ttl: after this long without a renewal it is somebody else's to have; at least 100 ms.
            wait: how long to wait for it; by default not at all. Who waits holds no connection, and is served in the
                order of arrival; one that died is passed over after 0.3 s.
            slots: how many may have it at once. Where callers differ, the least number among the holders and the caller
                counts: with `slots=1` one has it alone, whatever the others say.
            shared: whether others that say so too may have it at the same time. Who comes after one that wants it alone
                waits behind that one.
            fair: whether to keep the order of arrival to the letter. By default who asks may overtake those who have
                waited for less than 3 ms, which spares short sections the time to wake somebody up.
            min_hold: nobody else gets it sooner than this after it was acquired, also when it is released before.
            note: a few words that `list()` and whoever waits in vain are shown.
            renew: whether to renew it in the background, at a third of its `ttl`, until it is released or `pg.close()`
                is called.
            on_lost: called with the lease, in a thread of its own, when it is lost: before anybody else can have it.

        Returns:
            The lease, or None when it was not to be had.

        Raises:
            InvalidArgument: an argument is refused, before any SQL.
        """
        request = Request.checked(name, ttl, wait, slots, shared, fair, min_hold, note, renew=renew, on_lost=on_lost)
        found = self._obtain(request, on_lost, renew=renew)
        return found if isinstance(found, Lease) else None

    def hold(
        self,
        name: str,
        *,
        ttl: Duration = "30s",
        wait: Duration | None = None,
        slots: int = 1,
        shared: bool = False,
        fair: bool = False,
        min_hold: Duration | None = None,
        note: str | None = None,
        renew: bool = False,
        on_lost: OnLost | None = None,
    ) -> Hold:
        """Hold a lock for the length of a `with` block, which yields the lease. The arguments are those of `acquire`.

        The block goes on when the lease is lost: look at `lease.lost` between its steps, guard its transactions.

        Raises:
            InvalidArgument: an argument is refused, before any SQL.
            LockNotAcquired: on entering the block, when the lock was not to be had in time.
        """
        request = Request.checked(name, ttl, wait, slots, shared, fair, min_hold, note, renew=renew, on_lost=on_lost)
        return Hold(request, lambda: self._obtain(request, on_lost, renew=renew))

    def _obtain(self, request: Request, on_lost: OnLost | None, *, renew: bool) -> Lease | Busy:
        holder = _new_holder()
        hints = self._carrier().hints
        try:
            found = drive_on(
                self._carrier, plans.obtain(request, holder, hears=hints is not None and hints.channel is not None)
            )
        except Exception:
            raise
        except BaseException:  # interrupted: nobody waits any more, and what was had is nobody's
            with contextlib.suppress(Exception):
                drive_on(self._carrier, plans.withdraw(request.name, holder))
            raise
        return (
            Lease(request, found, on_lost, self._carrier, self._keeper, renew=renew)
            if isinstance(found, Grant)
            else found
        )


class AsyncLocks(AsyncModule, _Looking):
    """Locks, awaited."""

    def __init__(self, target: AsyncTarget | AsyncDatabase = None, *, schema: str = "pgeverything") -> None:
        super().__init__(target, schema=schema)
        self._keeper: AsyncKeeper | None = None

    break_lock = op(plans.break_lock)

    async def acquire(
        self,
        name: str,
        *,
        ttl: Duration = "30s",
        wait: Duration | None = None,
        slots: int = 1,
        shared: bool = False,
        fair: bool = False,
        min_hold: Duration | None = None,
        note: str | None = None,
        renew: bool = False,
        on_lost: AsyncOnLost | None = None,
    ) -> AsyncLease | None:
        """Get a lease on a lock; see :meth:`Locks.acquire`. `on_lost` is called in the event loop."""
        request = Request.checked(name, ttl, wait, slots, shared, fair, min_hold, note, renew=renew, on_lost=on_lost)
        found = await self._obtain(request, on_lost, renew=renew)
        return found if isinstance(found, AsyncLease) else None

    def hold(
        self,
        name: str,
        *,
        ttl: Duration = "30s",
        wait: Duration | None = None,
        slots: int = 1,
        shared: bool = False,
        fair: bool = False,
        min_hold: Duration | None = None,
        note: str | None = None,
        renew: bool = False,
        on_lost: AsyncOnLost | None = None,
        cancel: bool = False,
    ) -> AsyncHold:
        """Hold a lock for the length of an `async with` block; see :meth:`Locks.hold`.

        With `cancel=True` the block is cancelled when the lease is lost, and raises LeaseLost.
        """
        request = Request.checked(
            name, ttl, wait, slots, shared, fair, min_hold, note, renew=renew, on_lost=on_lost, cancel=cancel
        )

        async def acquire(lost: AsyncOnLost | None) -> AsyncLease | Busy:
            return await self._obtain(request, lost, renew=renew)

        return AsyncHold(request, acquire, on_lost, cancel=cancel)

    async def _obtain(self, request: Request, on_lost: AsyncOnLost | None, *, renew: bool) -> AsyncLease | Busy:
        holder = _new_holder()
        hints = (await self._carrier()).hints
        try:
            found = await adrive_on(
                self._carrier, plans.obtain(request, holder, hears=hints is not None and hints.channel is not None)
            )
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await asyncio.shield(adrive_on(self._carrier, plans.withdraw(request.name, holder)))
            raise
        if isinstance(found, Busy):
            return found
        if self._keeper is None or self._keeper.loop is not asyncio.get_running_loop():
            self._keeper = AsyncKeeper(self._carrier)
            self._database.users.add(self._keeper)
        return AsyncLease(request, found, on_lost, self._carrier, self._keeper, renew=renew)


class _Refusing:
    """What must not be done inside a transaction: until its end, everybody who asks for the lock would wait for it."""

    def acquire(self, *_args: object, **_options: object) -> NoReturn:
        """Raise: acquire before the transaction, with `pg.locks.acquire`, and `guard` inside."""
        raise LockError(
            "a lock is not taken inside a transaction: until its end everybody who asks for it would have to wait. "
            "Call pg.locks.acquire() or pg.locks.hold() before, and tx.locks.guard(lease) inside"
        )

    hold = break_lock = acquire


class BoundLocks(Sync, _Looking, _Refusing):
    """Locks inside the caller's transaction, blocking."""

    guard = op(plans.guard)


class AsyncBoundLocks(Async, _Looking, _Refusing):
    """Locks inside the caller's transaction, awaited."""

    guard = op(plans.guard)


def _new_holder() -> int:
    """Return a number that no other call has: 63 random bits."""
    return int.from_bytes(os.urandom(8)) >> 1
