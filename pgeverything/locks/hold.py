"""`hold`: a lock for the length of a block."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

from ..errors import LeaseLost, LockError, LockNotAcquired
from .lease import AsyncLease, Lease
from .values import Busy, Request

OnLost: TypeAlias = Callable[[Lease], object]
AsyncOnLost: TypeAlias = Callable[[AsyncLease], object]
L = TypeVar("L", Lease, AsyncLease)


class Hold:
    """A block under a lock: `with` acquires, and releases at the end. It can be used again, one block at a time."""

    def __init__(self, request: Request, acquire: Callable[[], Lease | Busy]) -> None:
        self._request, self._acquire = request, acquire
        self._in_use = threading.Lock()
        self._lease: Lease | None = None

    def __enter__(self) -> Lease:
        _refuse_second(self._request, self._in_use)
        try:
            found = _had(self._request, self._acquire())
            found.enter()
        except BaseException:
            self._in_use.release()
            raise
        self._lease = found
        return found

    def __exit__(self, *error: object) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                lease.leave()
            finally:
                self._in_use.release()


class AsyncHold:
    """The same for asyncio: `async with`."""

    def __init__(
        self,
        request: Request,
        acquire: Callable[[AsyncOnLost | None], Awaitable[AsyncLease | Busy]],
        on_lost: AsyncOnLost | None,
        *,
        cancel: bool,
    ) -> None:
        self._request, self._acquire = request, acquire
        self._on_lost, self._cancel = on_lost, cancel
        self._in_use = threading.Lock()
        self._lease: AsyncLease | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelled = False
        self._cancelling = 0  # how often the task was cancelled before the block

    async def __aenter__(self) -> AsyncLease:
        _refuse_second(self._request, self._in_use)
        try:
            found = _had(self._request, await self._acquire(self._stop if self._cancel else self._on_lost))
            found.enter()
        except BaseException:
            self._in_use.release()
            raise
        self._lease, self._task, self._cancelled = found, asyncio.current_task(), False
        self._cancelling = self._task.cancelling() if self._task is not None else 0
        return found

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                await self._leave(lease, kind, error)
            finally:
                self._in_use.release()

    async def _leave(self, lease: AsyncLease, kind: type[BaseException] | None, error: BaseException | None) -> None:
        if not self._cancelled or self._task is None:
            await lease.leave()
            return
        if kind is None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)  # the block had ended before the cancellation reached it
        # As in asyncio.timeout: a cancellation by somebody else stays one.
        if self._task.uncancel() <= self._cancelling and (kind is None or kind is asyncio.CancelledError):
            raise LeaseLost(f"the lease on {lease.name!r} was lost, so its block was cancelled") from error

    def _stop(self, lease: AsyncLease) -> None:
        if self._lease is lease and self._task is not None:
            self._cancelled = True
            self._task.cancel()
        if self._on_lost is not None:  # second, because it may fail
            self._on_lost(lease)


def _refuse_second(request: Request, in_use: threading.Lock) -> None:
    """Refuse a block that is entered already, also by another thread or task, which may still wait for the lock."""
    if not in_use.acquire(blocking=False):
        raise LockError(
            f"this block already holds {request.name!r}, or waits for it, and a lock is not re-entrant: leave out the "
            "inner block, pass the lease to what needs it, or give each thread and task a hold() of its own"
        )


def _had(request: Request, found: L | Busy) -> L:
    """Return the lease that was had, or say who has it."""
    if not isinstance(found, Busy):
        return found
    waited = f" within {request.wait:g} s" if request.wait else ""
    if found.owner is None:
        raise LockNotAcquired(
            f"lock {request.name!r} was not to be had{waited}: others were before us, or it just changed hands"
        )
    note = f" ({found.note})" if found.note else ""
    left = f", for at most {found.left:.1f} s more unless renewed" if found.left is not None else ""
    raise LockNotAcquired(f"lock {request.name!r} was not to be had{waited}: {found.owner}{note} has it{left}")
