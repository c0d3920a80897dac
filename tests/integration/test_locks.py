"""Locks on every carrier: leases, tokens and the guard."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from pgeverything import AsyncPgEverything, InvalidArgument, LeaseLost, LockError, PgEverything

from .leases import run_out

if TYPE_CHECKING:
    from .carriers import Face

    Database = psycopg.Connection[Any]


class Outside:
    """The locks of a face's application: never inside the transaction that the face may hold."""

    def __init__(self, face: Face) -> None:
        self._face = face
        self._locks: Any = face.pg.locks

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **options: self._face.run(getattr(self._locks, name)(*args, **options))

    def release(self, lease: Any) -> bool:
        return bool(self._face.run(lease.release()))

    def renew(self, lease: Any) -> None:
        self._face.run(lease.renew())


@pytest.fixture
def outside(on: Face) -> Outside:
    return Outside(on)


# Leases -------------------------------------------------------------------------------------------------------------


def test_one_has_it_at_a_time(outside: Outside) -> None:
    first = outside.acquire("a")
    assert outside.acquire("a") is None
    other = outside.acquire("b")

    assert outside.release(first)
    second = outside.acquire("a", ttl="5s")
    assert second.token > first.token
    assert (second.name, second.ttl, second.lost, second.released) == ("a", 5.0, False, False)
    assert 0 < second.remaining <= 5
    assert (first.released, first.lost, first.remaining) == (True, False, 0.0)
    assert outside.release(first)  # does no harm
    assert outside.acquire("a") is None
    assert outside.release(second)
    assert outside.release(other)


def test_a_lease_that_ran_out_is_somebody_elses_to_have(outside: Outside, db: Database) -> None:
    first = outside.acquire("a")
    run_out(db, "a")
    second = outside.acquire("a")

    assert second.token > first.token
    assert not outside.release(first)
    with pytest.raises(LeaseLost, match="was released"):
        outside.renew(first)
    assert outside.acquire("a") is None  # the late release has released nothing
    assert outside.release(second)


def test_it_is_renewed(outside: Outside, db: Database) -> None:
    lease = outside.acquire("a", ttl="20s")
    before = lease.expires_at
    outside.renew(lease)

    assert lease.expires_at > before
    assert db.execute("select expires_at from pgeverything.locks").fetchone() == (lease.expires_at,)
    run_out(db, "a")
    with pytest.raises(LeaseLost, match="token"):
        outside.renew(lease)
    assert lease.lost
    assert lease.remaining == 0
    assert not outside.release(lease)


def test_breaking_a_lock_takes_it_from_its_holder(outside: Outside) -> None:
    first = outside.acquire("a", min_hold="20s")
    assert outside.break_lock("a") == 1
    assert outside.break_lock("a") == 0
    assert outside.break_lock("unknown") == 0

    second = outside.acquire("a")
    assert second.token > first.token + 1
    with pytest.raises(LeaseLost):
        outside.renew(first)
    assert not outside.release(first)
    assert outside.release(second)


def test_they_are_listed(outside: Outside) -> None:
    assert outside.get("a1") is None
    leases = [outside.acquire("a1", note="nightly")] + [outside.acquire("a2", slots=2) for _ in range(2)]
    outside.release(outside.acquire("a3"))
    outside.acquire("b")

    first, second = outside.list("a")
    assert (first.name, second.name) == ("a1", "a2")
    (holder,) = first.holders
    assert (holder.token, holder.note, holder.slots, holder.shared) == (leases[0].token, "nightly", 1, False)
    assert holder.owner.rpartition(":")[2].isdigit()
    assert (holder.expires_at, holder.released) == (leases[0].expires_at, False)
    assert [each.token for each in second.holders] == [leases[1].token, leases[2].token]
    assert [lock.name for lock in outside.list()] == ["a1", "a2", "b"]
    assert outside.list("a", limit=1) == [first]
    assert outside.get("a1") == first
    assert first.waiting == 0


# The guard ----------------------------------------------------------------------------------------------------------


def test_a_guard_lets_the_holder_commit(tx: Face, db: Database) -> None:
    outside = Outside(tx)
    lease = outside.acquire("a")
    tx.jobs.enqueue("t")
    tx.locks.guard(lease)
    tx.commit()

    assert db.execute("select count(*) from pgeverything.jobs").fetchone() == (1,)
    outside.release(lease)


@pytest.mark.parametrize("how", ["taken over", "run out", "broken", "released"])
def test_a_guard_stops_who_lost_the_lease(tx: Face, db: Database, how: str) -> None:
    outside = Outside(tx)
    lease = outside.acquire("a")
    if how == "broken":
        outside.break_lock("a")
    elif how == "released":
        outside.release(lease)
    else:
        run_out(db, "a")
        if how == "taken over":
            outside.acquire("a")
    with pytest.raises(LeaseLost):
        tx.locks.guard(lease)

    assert lease.lost is (how != "released")
    tx.execute("select 1")  # the transaction is the caller's to roll back
    tx.rollback()


def test_semaphores_and_shared_leases_are_guarded_one_by_one(tx: Face, db: Database) -> None:
    outside = Outside(tx)
    for options in ({"slots": 2}, {"shared": True}):
        name = str(options)
        first, second = (outside.acquire(name, **options) for _ in range(2))
        db.execute("update pgeverything.locks set expires_at = clock_timestamp() where token = %s", [first.token])
        tx.locks.guard(second)
        with pytest.raises(LeaseLost):
            tx.locks.guard(first)
        tx.rollback()


def test_a_transaction_offers_no_lock(tx: Face) -> None:
    for call in (tx.locks.acquire, tx.locks.hold, tx.locks.break_lock):
        with pytest.raises(LockError, match="not taken inside a transaction"):
            call("a")
    assert tx.locks.list() == []
    assert tx.locks.get("a") is None
    with pytest.raises(InvalidArgument, match="takes the lease"):
        tx.locks.guard("a")


def test_a_guard_that_would_end_with_its_own_statement_is_refused(url: str, pg: PgEverything) -> None:
    lease = pg.locks.acquire("a")
    alone = create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1), isolation_level="AUTOCOMMIT")
    with psycopg.connect(url, autocommit=True) as connection, Session(alone) as session, alone.connect() as other:
        for held in (connection, session, other):
            with pytest.raises(InvalidArgument, match=r"locks.guard .* this connection is in autocommit"):
                pg.on(held).locks.guard(lease)
        with connection.transaction():
            pg.on(connection).locks.guard(lease)
    alone.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_the_same_for_asyncio(url: str, pg: PgEverything, driver: str) -> None:
    lease = pg.locks.acquire("a")
    alone = create_async_engine(url.replace("postgresql", f"postgresql+{driver}", 1), isolation_level="AUTOCOMMIT")
    async with (
        AsyncPgEverything(url) as apg,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as connection,
        alone.connect() as other,
    ):
        for held in (connection, other):
            with pytest.raises(InvalidArgument, match=r"locks.guard .* this connection is in autocommit"):
                await apg.on(held).locks.guard(lease)
        async with connection.transaction():
            await apg.on(connection).locks.guard(lease)
    await alone.dispose()
