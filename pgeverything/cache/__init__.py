"""The cache: values with a time to live, computed once, and invalidated by the transaction that changes their data."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NoReturn

from ..durations import Duration
from ..engine.modules import AsyncModule, Module
from ..engine.plan import Async, Sync, adrive_on, drive_on, method, op
from ..engine.pool import AsyncDatabase, AsyncTarget, Database, Target
from ..errors import CacheError, InvalidArgument
from . import entries, upkeep
from .compute import (
    Found,
    Lease,
    Misfit,
    Recipe,
    acquire,
    check_compute,
    computing,
    give_up,
    new_token,
    refuse_own,
    settle,
)
from .near import AsyncNearCache, NearCache
from .values import CacheStats, Tally, dump

__all__ = ["AsyncBoundCache", "AsyncCache", "AsyncNearCache", "BoundCache", "Cache", "CacheStats", "NearCache"]

log = logging.getLogger("pgeverything.cache")


class _InTransaction:
    """What makes sense inside the caller's transaction."""

    tally: Tally | None = None

    get = method(entries.get)
    get_many = method(entries.get_many)
    set = method(entries.set_)
    set_many = method(entries.set_many)
    add = method(entries.add)
    increment = method(entries.increment)
    touch = method(entries.touch)
    delete = method(entries.delete)
    invalidate = method(entries.invalidate)


class _Anywhere(_InTransaction):
    stats = method(upkeep.stats)
    clear = op(upkeep.clear)
    configure = op(upkeep.configure)


class Cache(Module, _Anywhere):
    """The cache, blocking."""

    def __init__(self, target: Target | Database = None, *, schema: str = "pgeverything") -> None:
        super().__init__(target, schema=schema)
        self.tally = Tally()

    def get_or_set(
        self,
        key: str,
        compute: Callable[[], Any],
        ttl: Duration | None = "5m",
        stale: Duration | None = None,
        tags: Iterable[str] = (),
        *,
        early: float | None = None,
        lease: Duration = "30s",
        errors: Duration | None = None,
    ) -> Any:
        """Return the value of a key; where there is none, compute and store it.

        In the whole fleet one caller computes, and the others wait for it. What was invalidated while it was computed
        is returned to the caller that computed it, and not stored.

        Args:
            key: text of up to 1 KiB.
            compute: called without arguments. It must read the database in a transaction that it begins itself.
            ttl: how long the value lives; None for until it is evicted.
            stale: how long after it has expired the others get the old value instead of waiting. Never one that was
                invalidated.
            tags: names by which many entries are invalidated together.
            early: compute it anew before it expires, by chance, the sooner the longer it takes; 1.0 is the usual
                factor. One caller computes, the others get the present value. None for never.
            lease: after how long the others no longer wait for a caller that computes, because it may have died. One of
                them computes then; and nobody waits longer than this.
            errors: how long to remember that computing failed, during which everybody gets `ComputeFailed`; None for
                not at all: then the next one tries.

        Returns:
            The value as it is read from the cache: JSON's types, or bytes.

        Raises:
            CacheError: this is called by the very computation of that key, or by a task or thread in its context, which
                would wait for itself.
            ComputeFailed: it failed a moment ago, where `errors` says to remember that.
            InvalidArgument: an argument is refused, or what was computed is neither JSON nor bytes.
        """
        check_compute(compute)
        return self._obtain(Recipe.of(key, ttl, stale, tags, early, lease, errors), compute).value

    def near(self, ttl: Duration = "2s", entries: int = 10_000) -> NearCache:
        """Return the cache through this process's own memory, for reading what is asked for all the time.

        Args:
            ttl: how old what it returns may be: the most by which it can be behind the cache. Where LISTEN works, it
                hears of invalidations earlier; then transactions that invalidate take the lock that a NOTIFY takes.
            entries: how many to keep.
        """
        return NearCache(self, ttl, entries)

    def _obtain(self, recipe: Recipe, compute: Callable[[], Any]) -> Found:
        here = (self._database.target, self._database.schema)
        refuse_own(here, recipe.key)
        token = new_token()
        try:
            answer = drive_on(self._carrier, acquire(self, recipe, token))
            if isinstance(answer, Found):
                return answer
            began = time.monotonic()
            try:
                with computing(here, recipe.key):
                    value = compute()
                found = _computed(recipe, value)
            except Exception as error:
                self._give_up(recipe, answer, error)
                raise
            drive_on(self._carrier, settle(self, recipe, answer, found.stored, time.monotonic() - began))
        except Exception:
            raise
        except BaseException as error:  # interrupted: nobody knows whether a lease is there
            self._give_up(recipe, Lease(token), error)
            raise
        return found

    def _give_up(self, recipe: Recipe, lease: Lease, error: BaseException) -> None:
        try:
            drive_on(self._carrier, give_up(recipe, lease, error))
        except Exception as another:  # the caller is to see the first one
            log.warning("others wait for %r until its lease ends: %s", recipe.key, another)


class AsyncCache(AsyncModule, _Anywhere):
    """The cache, awaited."""

    def __init__(self, target: AsyncTarget | AsyncDatabase = None, *, schema: str = "pgeverything") -> None:
        super().__init__(target, schema=schema)
        self.tally = Tally()

    async def get_or_set(
        self,
        key: str,
        compute: Callable[[], Any],
        ttl: Duration | None = "5m",
        stale: Duration | None = None,
        tags: Iterable[str] = (),
        *,
        early: float | None = None,
        lease: Duration = "30s",
        errors: Duration | None = None,
    ) -> Any:
        """Return the value of a key; where there is none, compute and store it. See :meth:`Cache.get_or_set`.

        `compute` may be a coroutine function. One that is not runs on the event loop: what blocks belongs in
        ``asyncio.to_thread``. When the caller is cancelled while it computes, somebody else may try at once.
        """
        check_compute(compute)
        return (await self._obtain(Recipe.of(key, ttl, stale, tags, early, lease, errors), compute)).value

    def near(self, ttl: Duration = "2s", entries: int = 10_000) -> AsyncNearCache:
        """Return the cache through this process's own memory; see :meth:`Cache.near`."""
        return AsyncNearCache(self, ttl, entries)

    async def _obtain(self, recipe: Recipe, compute: Callable[[], Any]) -> Found:
        here = (self._database.target, self._database.schema)
        refuse_own(here, recipe.key)
        token = new_token()
        async with self._leaving_none(recipe, token):
            answer = await adrive_on(self._carrier, acquire(self, recipe, token))
        if isinstance(answer, Found):
            return answer
        began = time.monotonic()
        try:
            with computing(here, recipe.key):
                value = compute()
                value = await value if isinstance(value, Awaitable) else value
            found = _computed(recipe, value)
        except BaseException as error:
            # Shielded: whoever cancelled us may do so again.
            await asyncio.shield(self._give_up(recipe, answer, error))
            raise
        async with self._leaving_none(recipe, token):
            await adrive_on(self._carrier, settle(self, recipe, answer, found.stored, time.monotonic() - began))
        return found

    @contextlib.asynccontextmanager
    async def _leaving_none(self, recipe: Recipe, token: int) -> AsyncIterator[None]:
        """Leave no lease behind when what is done here is cancelled: nobody knows then whether it was done."""
        try:
            yield
        except asyncio.CancelledError as error:
            await asyncio.shield(self._give_up(recipe, Lease(token), error))
            raise

    async def _give_up(self, recipe: Recipe, lease: Lease, error: BaseException) -> None:
        try:
            await adrive_on(self._carrier, give_up(recipe, lease, error))
        except Exception as another:
            log.warning("others wait for %r until its lease ends: %s", recipe.key, another)


class _Refusing:
    """What must not be done inside a transaction."""

    def get_or_set(self, *_args: object, **_options: object) -> NoReturn:
        """Raise: what is computed here may rest on changes that are rolled back, and others would wait for its end."""
        raise CacheError(
            "get_or_set() is not for the inside of a transaction: what is computed there may rest on changes that are "
            "rolled back, and others would wait for it until the commit. Call pg.cache.get_or_set() outside, and "
            "tx.cache.invalidate() inside"
        )


class BoundCache(Sync, _InTransaction, _Refusing):
    """The cache inside the caller's transaction, blocking: what is written appears when that commits.

    Until then others read the old value; who writes the same key waits.
    """


class AsyncBoundCache(Async, _InTransaction, _Refusing):
    """The cache inside the caller's transaction, awaited."""


def _computed(recipe: Recipe, value: Any) -> Found:
    """Return what was computed as it will be read, which is not always what it was: JSON has no tuples."""
    if inspect.isawaitable(value):
        value.close() if inspect.iscoroutine(value) else None
        raise InvalidArgument(f"compute for {recipe.key!r} is asynchronous: use AsyncPgEverything or AsyncCache")
    stored = dump(value)
    try:
        return Found(recipe.load(*stored), stored)
    except Misfit as error:
        raise InvalidArgument(f"what was computed for {recipe.key!r} does not fit its annotation: {error}") from error
