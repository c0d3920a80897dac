"""Checked by mypy, never run: what the locks promise. An unused ignore is an error, so each one is a test."""

from __future__ import annotations

from datetime import datetime
from typing import assert_type

from pgeverything import AsyncLease, AsyncLocks, AsyncPgEverything, Lease, Locks, PgEverything
from pgeverything.locks import Holder, Lock


def blocking(pg: PgEverything) -> None:
    assert_type(pg.locks, Locks)
    lease = pg.locks.acquire(
        "a", ttl="30s", wait=5, slots=2, note="n", min_hold="1s", on_lost=lambda lease: lease.token
    )
    assert_type(lease, Lease | None)
    with pg.locks.hold("a", shared=True, fair=True, renew=True) as held:
        assert_type(held, Lease)
        assert_type((held.token, held.lost, held.remaining, held.expires_at), tuple[int, bool, float, datetime])
        assert_type(held.release(), bool)
        held.renew()
        with pg.transaction() as tx:
            tx.locks.guard(held)
            assert_type(tx.locks.get("a"), Lock | None)
    assert_type(pg.locks.list("a", limit=5), list[Lock])
    assert_type(pg.locks.list()[0].holders, tuple[Holder, ...])
    assert_type(pg.locks.break_lock("a"), int)

    pg.locks.acquire(7)  # type: ignore[arg-type]
    pg.locks.acquire("a", "30s")  # type: ignore[call-arg]
    pg.locks.hold("a", cancel=True)  # type: ignore[call-arg]
    pg.locks.guard(held)  # type: ignore[attr-defined]


async def awaited(pg: AsyncPgEverything) -> None:
    assert_type(pg.locks, AsyncLocks)
    assert_type(await pg.locks.acquire("a", wait="5s"), AsyncLease | None)
    async with pg.locks.hold("a", renew=True, cancel=True) as held:
        assert_type(held, AsyncLease)
        assert_type(await held.release(), bool)
        await held.renew()
        async with pg.transaction() as tx:
            await tx.locks.guard(held)
    assert_type(await pg.locks.list(), list[Lock])
    assert_type(await pg.locks.break_lock("a"), int)
