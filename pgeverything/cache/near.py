"""The cache through a process's own memory, blocking and awaited."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..durations import Duration, seconds
from ..engine.plan import Plan, Query, adrive_on, drive_on, nothing, same
from ..engine.statements import statements
from ..jobs.values import check_whole
from .compute import Found, Misfit, Recipe, check_compute
from .memory import LISTEN_FOR, Draft, Memory
from .upkeep import Caching, aside, asked
from .values import Stored, check_key, check_keys, load

if TYPE_CHECKING:
    from . import AsyncCache, Cache

SQL = statements("cache")


class _Near:
    """What both kinds share."""

    def __init__(self, ttl: Duration, entries: int) -> None:
        check_whole(entries, "entries", 1, 10_000_000)
        self.memory = Memory(seconds(ttl, "ttl", zero=False), entries)

    def forget(self) -> None:
        """Forget everything that this process keeps; the cache itself stays as it is."""
        self.memory.clear()

    def _kept(self, cache: Caching, recipe: Recipe) -> Found | None:
        if (stored := self.memory.live(recipe.key)) is not None:
            with contextlib.suppress(Misfit):
                found = Found(recipe.load(*stored), stored)
                if cache.tally is not None:
                    cache.tally.hits += 1
                return found
        return None


def read(cache: Caching, memory: Memory, keys: list[str]) -> Plan[dict[str, Stored]]:
    """Read entries as they are stored, to be kept in memory."""
    yield from say(memory)
    rows = yield from Query(SQL["get_many"], {"keys": keys}, same)
    yield from asked(cache, len(rows), len(keys) - len(rows))
    return {key: (text, data) for key, text, data in rows}


class NearCache(_Near):
    """The cache through this process's memory, blocking: `pg.cache.near()` makes one.

    What it returns was in the cache at some moment within its `ttl`. It is usually newer: invalidations reach it within
    milliseconds where LISTEN works; a plain `set` elsewhere does not, and is seen after `ttl` at the latest.
    """

    def __init__(self, cache: Cache, ttl: Duration, entries: int) -> None:
        super().__init__(ttl, entries)
        self._cache = cache

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, from memory where it is kept; see :meth:`Cache.get`."""
        if (stored := self.memory.live(key)) is not None:
            if (tally := self._cache.tally) is not None:
                tally.hits += 1
            return load(*stored)
        check_key(key)
        found = self._read([key])
        return load(*found[key]) if key in found else default

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of those of these keys that have one; those that are not kept come in one round trip."""
        wanted = check_keys(keys)
        found = {key: stored for key in wanted if (stored := self.memory.live(key)) is not None}
        if len(found) < len(wanted):
            found |= self._read([key for key in wanted if key not in found])
        return {key: load(*found[key]) for key in wanted if key in found}

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
        """Return the value of a key, from memory where it is kept; see :meth:`Cache.get_or_set`."""
        check_compute(compute)
        return self._obtain(Recipe.of(key, ttl, stale, tags, early, lease, errors), compute).value

    def invalidate(self, *keys: str, tags: Iterable[str] = ()) -> None:
        """Invalidate entries of the cache, and forget everything here; see :meth:`Cache.invalidate`."""
        self._cache.invalidate(*keys, tags=tags)
        self.forget()

    def _read(self, keys: list[str]) -> dict[str, Stored]:
        carrier = self._cache._carrier
        with contextlib.ExitStack() as stack:
            hints = carrier().hints
            drafts = [stack.enter_context(Draft(self.memory, key, hints)) for key in keys]
            found = drive_on(carrier, read(self._cache, self.memory, keys))
            for draft in drafts:
                draft.stored = found.get(draft.key)
        return found

    def _obtain(self, recipe: Recipe, compute: Callable[[], Any]) -> Found:
        if (kept := self._kept(self._cache, recipe)) is not None:
            return kept
        carrier = self._cache._carrier
        with Draft(self.memory, recipe.key, carrier().hints) as draft:
            drive_on(carrier, say(self.memory))
            found = self._cache._obtain(recipe, compute)
            draft.stored = found.stored
        return found


class AsyncNearCache(_Near):
    """The same for asyncio. It belongs to the event loop in which it is used."""

    def __init__(self, cache: AsyncCache, ttl: Duration, entries: int) -> None:
        super().__init__(ttl, entries)
        self._cache = cache

    async def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, from memory where it is kept; see :meth:`Cache.get`."""
        if (stored := self.memory.live(key)) is not None:
            if (tally := self._cache.tally) is not None:
                tally.hits += 1
            return load(*stored)
        check_key(key)
        found = await self._read([key])
        return load(*found[key]) if key in found else default

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of those of these keys that have one; those that are not kept come in one round trip."""
        wanted = check_keys(keys)
        found = {key: stored for key in wanted if (stored := self.memory.live(key)) is not None}
        if len(found) < len(wanted):
            found |= await self._read([key for key in wanted if key not in found])
        return {key: load(*found[key]) for key in wanted if key in found}

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
        """Return the value of a key, from memory where it is kept; see :meth:`AsyncCache.get_or_set`."""
        check_compute(compute)
        return (await self._obtain(Recipe.of(key, ttl, stale, tags, early, lease, errors), compute)).value

    async def invalidate(self, *keys: str, tags: Iterable[str] = ()) -> None:
        """Invalidate entries of the cache, and forget everything here; see :meth:`Cache.invalidate`."""
        await self._cache.invalidate(*keys, tags=tags)
        self.forget()

    async def _read(self, keys: list[str]) -> dict[str, Stored]:
        carrier = self._cache._carrier
        with contextlib.ExitStack() as stack:
            hints = (await carrier()).hints
            drafts = [stack.enter_context(Draft(self.memory, key, hints)) for key in keys]
            found = await adrive_on(carrier, read(self._cache, self.memory, keys))
            for draft in drafts:
                draft.stored = found.get(draft.key)
        return found

    async def _obtain(self, recipe: Recipe, compute: Callable[[], Any]) -> Found:
        if (kept := self._kept(self._cache, recipe)) is not None:
            return kept
        carrier = self._cache._carrier
        with Draft(self.memory, recipe.key, (await carrier()).hints) as draft:
            await adrive_on(carrier, say(self.memory))
            found = await self._cache._obtain(recipe, compute)
            draft.stored = found.stored
        return found


def say(memory: Memory) -> Plan[None]:
    """Say that this process wants to hear of invalidations, now and then."""
    if memory.must_say():
        yield from aside(_listen())


def _listen() -> Plan[None]:
    yield from Query(SQL["listen"], {"seconds": LISTEN_FOR}, nothing)
