"""A computation that asks for its own key is told so at once, and does not wait for itself."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from pgeverything import AsyncPgEverything, Cache, CacheError, PgEverything
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    import psycopg

    from .carriers import Face

    Database = psycopg.Connection[Any]

OWN = r"computing 'k' asks for 'k' itself"


def once(compute: Callable[[], Any]) -> Callable[[], Any]:
    """Return the function; called again, it fails instead of waiting for itself once more."""
    calls: list[None] = []

    def called() -> Any:
        calls.append(None)
        assert len(calls) == 1, "it was computed inside of its own computation"
        return compute()

    return called


def test_a_computation_that_asks_for_its_own_key_is_refused(apart: Face) -> None:
    pg = apart.pg
    if isinstance(pg, AsyncPgEverything):

        async def compute() -> Any:
            return await pg.cache.get_or_set("k", inner, lease="5s")
    else:

        def compute() -> Any:
            return pg.cache.get_or_set("k", inner, lease="5s")

    outer = inner = once(compute)
    with pytest.raises(CacheError, match=OWN):
        apart.cache.get_or_set("k", outer, lease="5s")
    assert apart.cache.get_or_set("k", lambda: 1) == 1  # the lease was given back


def test_also_over_another_key(pg: PgEverything) -> None:
    def k() -> Any:
        return pg.cache.get_or_set("j", j, lease="5s")

    def j() -> Any:
        return pg.cache.get_or_set("k", lambda: 1, lease="5s")

    with pytest.raises(CacheError, match=OWN):
        pg.cache.get_or_set("k", k, lease="5s")
    pg.cache.set("k", "old")
    assert pg.cache.get_or_set("j", j) == "old"


def test_also_where_it_would_get_the_last_value(pg: PgEverything, monkeypatch: pytest.MonkeyPatch) -> None:
    pg.cache.get_or_set("k", lambda: 1)
    monkeypatch.setattr("random.random", lambda: 0.5)
    with pytest.raises(CacheError, match=OWN):
        pg.cache.get_or_set("k", lambda: pg.cache.get_or_set("k", lambda: 2), early=1e15)


def test_a_cached_function_that_calls_itself(pg: PgEverything) -> None:
    @pg.cached(key="fib:{n}", near="1m")
    def fib(n: int) -> int:
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    @pg.cached(key="k", lease="5s")
    def forever() -> int:
        return again()

    again = once(lambda: forever())  # noqa: PLW0108 - it is defined above it
    assert fib(10) == 55
    with pytest.raises(CacheError, match=OWN):
        forever()


def test_another_key_and_another_schema_are_none_of_its_own(pg: PgEverything, url: str, db: Database) -> None:
    assert pg.cache.get_or_set("k", lambda: pg.cache.get_or_set("j", lambda: 1)) == 1
    with PgEverything(url, schema="other") as other:
        other.migrate()
        assert pg.cache.get_or_set("l", lambda: other.cache.get_or_set("l", lambda: 2)) == 2
        db.execute("drop schema other cascade")


def test_another_object_for_the_same_cache_is_refused(pg: PgEverything, url: str) -> None:
    with pytest.raises(CacheError, match=OWN):
        pg.cache.get_or_set("k", once(lambda: Cache(url).get_or_set("k", lambda: 1, lease="5s")), lease="5s")


def test_the_value_may_be_read_and_written_meanwhile(pg: PgEverything) -> None:
    def compute() -> Any:
        assert pg.cache.get("k", "none") == "none"
        pg.cache.set("k", 1)
        return 2

    assert pg.cache.get_or_set("k", compute) == 2
    assert pg.cache.get("k") == 1


def test_a_thread_in_the_same_context_is_refused_and_another_one_waits(pg: PgEverything) -> None:
    with ThreadPoolExecutor(2) as threads:

        def same() -> Any:
            context = contextvars.copy_context()
            return threads.submit(context.run, pg.cache.get_or_set, "k", lambda: 1, lease="5s").result(PATIENCE)

        with pytest.raises(CacheError, match=OWN):
            pg.cache.get_or_set("k", same, lease="5s")

        waiting: list[Any] = []

        def another() -> int:
            waiting.append(threads.submit(pg.cache.get_or_set, "k", pytest.fail))
            return 2

        assert pg.cache.get_or_set("k", another) == 2
        assert waiting[0].result(PATIENCE) == 2


async def test_a_task_is_refused_while_the_computation_lasts_and_not_afterwards(url: str, db: Database) -> None:
    async with AsyncPgEverything(url) as apg:
        tasks: list[asyncio.Task[Any]] = []
        ended = asyncio.Event()

        async def ask() -> Any:
            return await apg.cache.get_or_set("k", lambda: 1, lease="5s")

        async def compute() -> Any:
            return await asyncio.create_task(ask())

        with pytest.raises(CacheError, match=OWN):
            await apg.cache.get_or_set("k", compute, lease="5s")

        async def ask_later() -> Any:
            await ended.wait()
            return await ask()

        async def start() -> int:
            tasks.append(asyncio.create_task(ask_later()))
            return 2

        assert await apg.cache.get_or_set("k", start) == 2
        await apg.cache.delete("k")
        ended.set()
        assert await tasks[0] == 1


async def test_tasks_that_ask_side_by_side_are_not_refused(url: str, db: Database) -> None:
    async with AsyncPgEverything(url) as apg:
        count = iter(range(100))

        async def compute() -> int:
            await asyncio.sleep(0.05)
            return next(count)

        assert await asyncio.gather(*(apg.cache.get_or_set("k", compute) for _ in range(5))) == [0] * 5


def test_a_blocking_computation_in_a_thread_of_asyncio(url: str, pg: PgEverything) -> None:
    async def main() -> None:
        async with AsyncPgEverything(url) as apg:

            async def compute() -> Any:
                return await asyncio.to_thread(pg.cache.get_or_set, "k", lambda: 1, lease="5s")

            with pytest.raises(CacheError, match=OWN):
                await apg.cache.get_or_set("k", compute, lease="5s")

    asyncio.run(main())
