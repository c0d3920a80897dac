"""Checked by mypy, never run: what the cache promises. An unused ignore is an error, so each one is a test."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, assert_type

from pgeverything import AsyncCache, AsyncPgEverything, Cache, PgEverything
from pgeverything.cache import AsyncNearCache, CacheStats, NearCache
from pgeverything.cache.cached import AsyncCached, Cached

pg, apg = PgEverything(), AsyncPgEverything()


@pg.cached(key="rate:{currency}", ttl="1h", tags=["rates", "rate:{currency}"], stale="1m", early=1.0)
def rate(currency: str, day: int = 1) -> float:
    return 1.0


@apg.cached(key=lambda user: f"user:{user}", tags=lambda user: [f"user:{user}"], near="2s")
async def load(user: int) -> list[str]:
    return []


@apg.cached(key="plain")
def plain() -> bytes:
    return b""


def decorated() -> None:
    """A cached function has its own parameters and result, awaited where it is asynchronous."""
    assert_type(rate, Cached[[str, int], float])  # type: ignore[assert-type]  # mypy keeps names and defaults
    assert_type(rate("EUR", day=2), float)
    assert_type(rate.key("EUR"), str)
    rate.invalidate("EUR", day=2)
    _ = assert_type(load(7), Coroutine[Any, Any, list[str]])
    assert_type(plain, AsyncCached[[], bytes])
    _ = assert_type(plain(), Coroutine[Any, Any, bytes])
    rate(7)  # type: ignore[arg-type]
    rate.key()  # type: ignore[call-arg]
    pg.cached(ttl="1h")  # type: ignore[call-arg]
    pg.cached(key=7)  # type: ignore[arg-type]


def blocking(pg: PgEverything) -> None:
    assert_type(pg.cache, Cache)
    pg.cache.set("k", {"a": [1]}, ttl=timedelta(minutes=5), tags=["t"])
    pg.cache.set("k", b"", None)
    assert_type(pg.cache.get_many(["k"]), dict[str, Any])
    pg.cache.set_many({"k": 1}, "1h", ("t",))
    assert_type(pg.cache.add("k", 1, ttl=60), bool)
    assert_type(pg.cache.increment("k", by=-1), int)
    assert_type(pg.cache.touch("k", "1h"), bool)
    assert_type(pg.cache.delete("k", "j"), int)
    pg.cache.get_or_set("k", lambda: 1, "1h", stale="5m", tags=["t"], lease="1m", errors="10s")
    pg.cache.invalidate("k", "j", tags=["t"])
    assert_type(pg.cache.clear(), int)
    assert_type(pg.cache.stats(), CacheStats)
    pg.cache.configure(max_entries=1000, max_bytes=None, logged=False)
    near = assert_type(pg.cache.near("1s", entries=10), NearCache)
    assert_type(near.get_many(["k"]), dict[str, Any])

    pg.cache.set(7, 1)  # type: ignore[arg-type]
    pg.cache.set("k")  # type: ignore[call-arg]
    pg.cache.increment("k", "1")  # type: ignore[arg-type]
    pg.cache.configure(max_entries="many")  # type: ignore[arg-type]


def awaited(pg: AsyncPgEverything) -> None:
    assert_type(pg.cache, AsyncCache)
    _ = assert_type(pg.cache.add("k", 1), Coroutine[Any, Any, bool])
    _ = assert_type(pg.cache.get_or_set("k", lambda: load(7)), Coroutine[Any, Any, Any])
    _ = assert_type(pg.cache.stats(), Coroutine[Any, Any, CacheStats])
    near = assert_type(pg.cache.near(), AsyncNearCache)
    _ = assert_type(near.get_many(["k"]), Coroutine[Any, Any, dict[str, Any]])


async def bound(pg: PgEverything, apg: AsyncPgEverything) -> None:
    with pg.transaction() as tx:
        tx.cache.invalidate("k", tags=["t"])
        assert_type(tx.cache.increment("k"), int)
        tx.cache.clear()  # type: ignore[attr-defined]
    async with apg.transaction() as atx:
        await atx.cache.invalidate("k", tags=["t"])
        assert_type(await atx.cache.touch("k"), bool)
