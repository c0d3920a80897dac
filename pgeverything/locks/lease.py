"""A lease in the hands of its holder."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Self

from ..engine.plan import AsyncCarrier, Carrier, adrive_on, drive_on
from . import plans
from .held import Held
from .keeper import AsyncKeeper, Keeper
from .values import Grant, Request

log = logging.getLogger("pgeverything.locks")


class Lease(Held):
    """A lease on a lock: until `release()`, or until `ttl` has passed without a renewal.

    In a `with` block it is released at the end.
    """

    def __init__(
        self,
        request: Request,
        grant: Grant,
        on_lost: Callable[[Lease], object] | None,
        carrier: Callable[[], Carrier],
        keeper: Keeper,
        *,
        renew: bool,
    ) -> None:
        super().__init__(request, grant, on_lost)
        self._carrier, self._keeper = carrier, keeper
        keeper.keep(self, renew=renew)

    def renew(self) -> None:
        """Make it last for its `ttl` from now.

        Raises:
            LeaseLost: it is not ours any more.
        """
        drive_on(self._carrier, plans.renew(self))

    def release(self) -> bool:
        """Give it back, so that the next one gets the lock at once. Doing it twice does no harm.

        Returns:
            Whether it was ours until now. False means that it had been lost: what was done under it since then was
            not protected, except what a guard has.
        """
        if self.forked:
            return False
        first = self.give_up()
        self._keeper.drop(self)
        if first:
            try:
                self._give_back()
            except Exception:
                raise
            except BaseException:  # interrupted: nobody knows whether it was done, and nobody would do it later
                with contextlib.suppress(Exception):
                    self._give_back()
                raise
        return self._ours

    def _give_back(self) -> None:
        self._ours = drive_on(self._carrier, plans.release(self)) and not self._lost

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Release at the end of a block: say what went wrong, and let what the block raises pass."""
        try:
            if not self.release() and not self.forked:
                log.warning(_LOST, self.name, self.token)
        except Exception as error:
            log.warning(_NOT_RELEASED, self.name, self.ttl, error)

    def _tell(self, on_lost: Callable[[Any], object]) -> None:
        threading.Thread(target=on_lost, args=(self,), name=f"pgeverything lost {self.name}", daemon=True).start()


class AsyncLease(Held):
    """The same for asyncio: `renew()` and `release()` are awaited, and `async with` releases it."""

    def __init__(
        self,
        request: Request,
        grant: Grant,
        on_lost: Callable[[AsyncLease], object] | None,
        carrier: Callable[[], Awaitable[AsyncCarrier]],
        keeper: AsyncKeeper,
        *,
        renew: bool,
    ) -> None:
        super().__init__(request, grant, on_lost)
        self._carrier, self._keeper = carrier, keeper
        keeper.keep(self, renew=renew)

    async def renew(self) -> None:
        """Make it last for its `ttl` from now.

        Raises:
            LeaseLost: it is not ours any more.
        """
        await adrive_on(self._carrier, plans.renew(self))

    async def release(self) -> bool:
        """Give it back, so that the next one gets the lock at once. Doing it twice does no harm.

        Returns:
            Whether it was ours until now. False means that it had been lost: what was done under it since then was
            not protected, except what a guard has.
        """
        if self.forked:
            return False
        first = self.give_up()
        self._keeper.drop(self)
        if first:
            try:
                await self._give_back()
            except asyncio.CancelledError:  # nobody knows whether it was done, and nobody would do it later
                with contextlib.suppress(Exception):
                    await asyncio.shield(self._give_back())
                raise
        return self._ours

    async def _give_back(self) -> None:
        self._ours = await adrive_on(self._carrier, plans.release(self)) and not self._lost

    async def __aenter__(self) -> Self:
        self.enter()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.leave()

    async def leave(self) -> None:
        """Release at the end of a block: say what went wrong, and let what the block raises pass."""
        try:
            if not await self.release() and not self.forked:
                log.warning(_LOST, self.name, self.token)
        except Exception as error:
            log.warning(_NOT_RELEASED, self.name, self.ttl, error)

    def _tell(self, on_lost: Callable[[Any], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: there is nobody to tell
            self._keeper.loop.call_soon_threadsafe(on_lost, self)


_LOST = "the lease on %r (token %s) was lost before its block ended: what the block did since then was not protected"
_NOT_RELEASED = "could not release the lease on %r, which ends by itself after at most %g s: %s"
