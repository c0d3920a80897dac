"""The connection goes in the middle of a call about a lock, or hangs while a lease has to be renewed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from pgeverything import AsyncLocks, LeaseLost, Locks
from pgeverything.locks import held, plans
from tests.waiting import PATIENCE

from .proxy import Proxy


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[Proxy]:
    async with Proxy(url) as proxy:
        yield proxy


@pytest.fixture
async def alocks(proxy: Proxy) -> AsyncIterator[AsyncLocks]:
    locks = AsyncLocks(proxy.url)
    await locks.get("a")  # connected
    yield locks
    proxy.resume()
    await locks._database.close()


@pytest.fixture
async def locks(proxy: Proxy) -> AsyncIterator[Locks]:
    locks = Locks(proxy.url)
    await asyncio.to_thread(locks.get, "a")
    yield locks
    proxy.resume()
    await asyncio.to_thread(locks._database.close)


def row(url: str) -> Any:
    with psycopg.connect(url) as connection:
        return connection.execute("select token, holder is not null, expires_at from pgeverything.locks").fetchone()


async def test_an_acquire_whose_answer_is_lost_has_its_lease(url: str, proxy: Proxy, alocks: AsyncLocks) -> None:
    proxy.drop_answer_to(b"lock_acquire")
    lease = await alocks.acquire("a")
    assert proxy.dropped.is_set()
    assert lease is not None
    assert row(url) == (lease.token, True, lease.expires_at)


async def test_a_lease_whose_answer_was_lost_late_is_not_trusted_for_too_long(
    url: str, proxy: Proxy, alocks: AsyncLocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer is missed after 20 s, as the kernel may take to give a connection up; then it is asked again."""
    late, clock_now = 0.0, plans.now
    monkeypatch.setattr(plans, "now", lambda: clock_now() + late)
    monkeypatch.setattr(held, "now", lambda: clock_now() + late)
    asked = plans.connection_lost

    def lost(error: Exception) -> bool:
        nonlocal late
        late = 20.0
        with psycopg.connect(url) as connection:
            connection.execute("update pgeverything.locks set expires_at = expires_at - interval '20 seconds'")
        return asked(error)

    monkeypatch.setattr(plans, "connection_lost", lost)
    proxy.drop_answer_to(b"lock_acquire")
    lease = await alocks.acquire("a", ttl="30s")
    assert lease is not None
    with psycopg.connect(url) as connection:
        left = connection.execute(
            "select extract(epoch from expires_at - clock_timestamp())::float8 from pgeverything.locks"
        ).fetchone()
    assert left is not None
    assert lease.remaining < left[0]
    assert row(url) == (lease.token, True, lease.expires_at)


async def test_the_same_in_blocking_code(url: str, proxy: Proxy, locks: Locks) -> None:
    proxy.drop_answer_to(b"lock_acquire")
    lease = await asyncio.to_thread(locks.acquire, "a", slots=2)
    assert proxy.dropped.is_set()
    assert lease is not None
    assert row(url) == (lease.token, True, lease.expires_at)


async def test_a_release_whose_answer_is_lost_has_released(url: str, proxy: Proxy, alocks: AsyncLocks) -> None:
    lease = await alocks.acquire("a")
    assert lease is not None
    proxy.drop_answer_to(b"lock_release")
    assert await lease.release()
    assert proxy.dropped.is_set()
    assert row(url)[1] is False


async def test_a_renewal_whose_answer_is_lost_is_repeated(url: str, proxy: Proxy, alocks: AsyncLocks) -> None:
    lease = await alocks.acquire("a")
    assert lease is not None
    before = lease.expires_at
    proxy.drop_answer_to(b"lock_renew")
    await lease.renew()
    assert proxy.dropped.is_set()
    assert lease.expires_at > before
    assert row(url)[2] == lease.expires_at


async def test_a_lease_that_cannot_be_renewed_is_lost_before_it_is_somebody_elses(
    url: str, proxy: Proxy, alocks: AsyncLocks
) -> None:
    """The network hangs: no answer, no error. The block is stopped while the database still says that it is ours."""
    held: list[bool] = []

    def lost(_: object) -> None:
        with psycopg.connect(url) as connection:
            found = connection.execute("select expires_at > clock_timestamp() from pgeverything.locks").fetchone()
        held.extend(found or ())

    async def body() -> None:
        async with alocks.hold("a", ttl="5s", renew=True, cancel=True, on_lost=lost):
            proxy.hang()
            await asyncio.sleep(60)

    with pytest.raises(LeaseLost):
        await body()
    assert held == [True]


async def test_the_same_for_a_thread(url: str, proxy: Proxy, locks: Locks) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    held: list[bool] = []

    def lost(_: object) -> None:
        with psycopg.connect(url) as connection:
            found = connection.execute("select expires_at > clock_timestamp() from pgeverything.locks").fetchone()
        held.extend(found or ())
        loop.call_soon_threadsafe(told.set)

    lease = await asyncio.to_thread(locks.acquire, "a", ttl="5s", renew=True, on_lost=lost)
    assert lease is not None
    proxy.hang()
    async with asyncio.timeout(PATIENCE):
        await told.wait()
    assert held == [True]
    assert lease.lost
