"""Blocks that hold locks: several at once, waiting in line, and what ends up in the database."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgeverything import LeaseLost, LockError, LockNotAcquired, Locks, PgEverything
from tests.waiting import PATIENCE

from .leases import run_out

if TYPE_CHECKING:
    Database = psycopg.Connection[Any]

LONG = "60s"


# Blocks -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def locks(url: str, db: Database) -> Iterator[Locks]:
    """The locks alone."""
    found = Locks(url)
    yield found
    found._database.close()


def test_a_block_holds_the_lock(locks: Locks) -> None:
    with locks.hold("a") as lease:
        assert locks.acquire("a") is None
        assert not lease.released
    assert lease.released
    with pytest.raises(ZeroDivisionError), locks.hold("a"):
        raise ZeroDivisionError
    again = locks.acquire("a")
    assert again is not None
    with again:
        assert locks.acquire("a") is None
    assert again.released


def test_a_block_that_does_not_get_it_says_who_has_it(locks: Locks) -> None:
    with locks.hold("a", note="nightly"):
        with pytest.raises(
            LockNotAcquired, match=r"lock 'a' was not to be had: \S+:\d+ \(nightly\) has it, for at most"
        ):
            locks.hold("a").__enter__()
        with pytest.raises(LockNotAcquired, match=r"within 0.05 s: "), locks.hold("a", wait=0.05):
            pass


def test_a_lock_is_not_re_entrant(locks: Locks) -> None:
    block = locks.hold("a", slots=2)
    with block as lease:
        with pytest.raises(LockError, match="not re-entrant"), block:
            pass
        with pytest.raises(LockError, match="cannot be entered twice"), lease:
            pass
        assert not lease.released
    with block as another:
        assert another.token > lease.token
    with pytest.raises(LockError, match="released"), lease:
        pass


def test_a_block_whose_lease_was_lost_says_so(locks: Locks, db: Database, caplog: pytest.LogCaptureFixture) -> None:
    with locks.hold("a"):
        locks.break_lock("a")
    assert "was lost before its block ended" in caplog.text


def test_a_lease_stays_in_its_process(locks: Locks) -> None:
    lease = locks.acquire("a")
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(lease)
    assert "'a'" in repr(lease)


def test_it_may_be_released_by_another_thread(locks: Locks) -> None:
    lease = locks.acquire("a")
    assert lease is not None
    thread = threading.Thread(target=lease.release)
    thread.start()
    thread.join()
    assert lease.released
    assert locks.acquire("a") is not None


# Several at once ----------------------------------------------------------------------------------------------------


def test_a_semaphore_has_so_many(locks: Locks) -> None:
    leases = [locks.acquire("a", slots=3) for _ in range(4)]
    tokens = [lease.token for lease in leases[:3] if lease]
    assert len(set(tokens)) == 3
    assert tokens == sorted(tokens)
    assert leases[3] is None

    assert leases[1] is not None
    leases[1].release()
    again = locks.acquire("a", slots=3)
    assert again is not None
    assert again.token > max(tokens)
    assert locks.acquire("a", slots=3) is None


def test_of_two_numbers_of_slots_the_smaller_counts(locks: Locks) -> None:
    of_five = locks.acquire("a", slots=5)
    assert locks.acquire("a") is None  # alone means alone
    assert locks.acquire("a", slots=2) is not None
    assert locks.acquire("a", slots=5) is None  # one of the holders bears only two
    assert of_five is not None
    of_five.release()
    assert locks.acquire("a", slots=5) is not None

    alone = locks.acquire("b")
    assert locks.acquire("b", slots=5) is None
    assert alone is not None
    alone.release()
    assert locks.acquire("b", slots=5) is not None


def test_readers_share_and_writers_do_not(locks: Locks) -> None:
    readers = [locks.acquire("a", shared=True) for _ in range(3)]
    assert all(readers)
    assert locks.acquire("a") is None
    assert locks.acquire("a", slots=5) is None
    for reader in readers:
        assert reader is not None
        assert reader.release()
    writer = locks.acquire("a")
    assert writer is not None
    assert writer.token > max(reader.token for reader in readers if reader)
    assert locks.acquire("a", shared=True) is None


def test_a_released_lock_is_kept_for_its_min_hold(locks: Locks, db: Database) -> None:
    lease = locks.acquire("a", min_hold="20s")
    assert lease is not None
    assert lease.release()
    assert locks.acquire("a") is None
    (lock,) = locks.list()
    assert lock.holders[0].released
    assert lock.holders[0].expires_at <= lease.expires_at
    run_out(db, "a")
    assert locks.acquire("a") is not None


# Waiting ------------------------------------------------------------------------------------------------------------


def waiting(db: Database, count: int) -> None:
    """Return when so many stand in line."""
    deadline = time.monotonic() + 30
    while len(found := db.execute("select * from pgeverything.lock_waiters").fetchall()) != count:
        assert time.monotonic() < deadline, found
        time.sleep(0.005)


def in_line(locks: Locks, db: Database, pool: ThreadPoolExecutor, *options: dict[str, Any]) -> list[Any]:
    """Let one after the other wait for the lock "a", in that order."""
    futures = []
    for count, each in enumerate(options, 1):
        futures.append(pool.submit(locks.acquire, "a", wait=LONG, **each))
        waiting(db, count)
    return futures


@pytest.mark.parametrize("fair", [True, False])
def test_who_waits_is_served_in_the_order_of_arrival(locks: Locks, db: Database, fair: bool) -> None:
    first = locks.acquire("a")
    with ThreadPoolExecutor(4) as pool:
        futures = in_line(locks, db, pool, *[{"fair": fair}] * 4)
        assert locks.list()[0].waiting == 4
        lease, tokens = first, []
        for future in futures:
            assert lease is not None
            tokens.append(lease.token)
            assert lease.release()
            lease = future.result(PATIENCE)
        assert tokens == sorted(tokens)
    assert db.execute("select count(*) from pgeverything.lock_waiters").fetchone() == (0,)
    assert db.execute("select line from pgeverything.locks").fetchone() == (False,)


def test_nobody_overtakes_who_waits(locks: Locks, db: Database) -> None:
    first = locks.acquire("a")
    assert first is not None
    db.execute(
        "insert into pgeverything.lock_waiters (name, ticket, waiter, shared, slots, since, seen_at)"
        " values ('a', -1, 1, false, 1, now() - interval '1 second', now() + interval '1 hour')"
    )
    db.execute("update pgeverything.locks set line = true")
    first.release()
    assert locks.acquire("a") is None
    assert locks.acquire("a", fair=True) is None
    # Nobody can be sure that it lives: when its turn has passed, the next one has it.
    assert locks.acquire("a", wait=LONG) is not None
    assert db.execute("select count(*) from pgeverything.lock_waiters").fetchone() == (0,)


def test_a_writer_is_not_starved_by_readers(locks: Locks, db: Database) -> None:
    reader = locks.acquire("a", shared=True)
    assert reader is not None
    with ThreadPoolExecutor(3) as pool:
        (writer,) = in_line(locks, db, pool, {})
        db.execute("update pgeverything.lock_waiters set since = now() - interval '1 second'")
        assert locks.acquire("a", shared=True) is None
        late = [pool.submit(locks.acquire, "a", wait=LONG, shared=True) for _ in range(2)]
        waiting(db, 3)
        reader.release()
        written = writer.result(PATIENCE)
        assert not any(future.done() for future in late)
        written.release()
        assert all(future.result(PATIENCE).token > written.token for future in late)  # both at once


def test_semaphores_are_waited_for(locks: Locks, db: Database) -> None:
    held = [locks.acquire("a", slots=2) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        futures = in_line(locks, db, pool, {"slots": 2}, {"slots": 2})
        for lease in held:
            assert lease is not None
            lease.release()
        assert all(future.result(PATIENCE) for future in futures)


def test_who_waited_in_vain_leaves_the_line(locks: Locks, db: Database) -> None:
    held = locks.acquire("a")
    assert held is not None
    assert locks.acquire("a", wait="50ms") is None
    assert db.execute("select count(*) from pgeverything.lock_waiters").fetchone() == (0,)
    held.release()
    assert locks.acquire("a") is not None


def test_the_end_of_a_lease_is_waited_for(locks: Locks) -> None:
    dead = locks.acquire("a", ttl="300ms")
    assert dead is not None
    lease = locks.acquire("a", wait=LONG)
    assert lease is not None
    assert dead.lost


def test_a_thousand_leases_are_renewed_in_one_statement(locks: Locks, db: Database) -> None:
    from pgeverything.engine.plan import drive
    from pgeverything.locks.plans import renew_all

    leases = [locks.acquire(f"n{number}") for number in range(50)]
    locks.break_lock("n7")
    ours = [lease for lease in leases if lease is not None]
    assert drive(locks._carrier(), renew_all(ours)) == []
    assert [lease.name for lease in ours if lease.lost] == ["n7"]


# Things that end up in the database ----------------------------------------------------------------------------------


def test_names_of_any_kind(locks: Locks) -> None:
    for name in ("ü" * 512, "a'b\"c%s %(x)s", "\t\n", "a" * 1024):
        with locks.hold(name):
            assert locks.get(name) is not None


def test_old_rows_are_swept_and_their_tokens_never_come_again(locks: Locks, db: Database) -> None:
    tokens = {}
    for name in ("old", "held", "semaphore", "young"):
        lease = locks.acquire(name)
        assert lease is not None
        tokens[name] = lease.token
        if name != "held":
            lease.release()
    for _ in range(2):
        locks.acquire("semaphore", slots=2)
    ago = "clock_timestamp() - interval '2 days'"
    age = f"token = token - 172800000000, acquired_at = {ago}, expires_at = {ago}"
    db.execute(f"update pgeverything.locks set {age} where name in ('old', 'semaphore')")  # type: ignore[arg-type]
    db.execute(
        "update pgeverything.locks l set expires_at = clock_timestamp() + interval '1 h'"
        " where name = 'semaphore' and slot = 2"
    )

    swept = db.execute("select pgeverything.lock_sweep('1 day', 1000)").fetchone()
    assert swept == (1,)
    names = db.execute("select name, slot from pgeverything.locks order by 1, 2").fetchall()
    assert names == [("held", 1), ("semaphore", 1), ("semaphore", 2), ("young", 1)]
    again = locks.acquire("old")
    assert again is not None
    assert again.token > tokens["old"]


def test_a_role_of_another_isolation_is_told(direct_url: str, db: Database) -> None:
    from psycopg.conninfo import make_conninfo

    from pgeverything import ConfigurationError

    strict = make_conninfo(direct_url, options="-c default_transaction_isolation=serializable")
    with PgEverything(strict) as pg, pytest.raises(ConfigurationError, match="READ COMMITTED"):
        pg.locks.acquire("a")


def test_read_uncommitted_is_another_name_of_read_committed(direct_url: str) -> None:
    from psycopg.conninfo import make_conninfo

    lax = make_conninfo(direct_url, options="-c default_transaction_isolation=read\\ uncommitted")
    with PgEverything(lax) as pg:
        lease = pg.locks.acquire("a")
        assert lease is not None
        pg.locks.break_lock("a")
        with pg.transaction() as tx, pytest.raises(LeaseLost, match="is lost: roll back"):
            tx.locks.guard(lease)
        assert lease.lost


@pytest.mark.parametrize(("said", "acquired"), [("off", "local"), ("on", "on"), ("local", "local")])
def test_what_a_holder_trusts_is_always_durable(url: str, db: Database, said: str, acquired: str) -> None:
    """What the commit of each statement will do is what its transaction says last."""
    call = "select token from pgeverything.lock_acquire('a', 1, 30, 1, false, 'o', null, null, 0, 'none', null, null)"
    db.execute("select set_config('synchronous_commit', %s, false)", [said])
    with db.transaction():
        (token,) = db.execute(call).fetchone() or (None,)
        assert db.execute("show synchronous_commit").fetchone() == (acquired,)
    with db.transaction():
        renew = "select ours from pgeverything.lock_renew('{a}', '{1}', array[%s::bigint], '{30}')"
        assert db.execute(renew, [token]).fetchone() == (True,)
        assert db.execute("show synchronous_commit").fetchone() == (acquired,)
    with db.transaction():
        assert db.execute("select pgeverything.lock_release('a', 1, %s)", [token]).fetchone() == (True,)
        assert db.execute("show synchronous_commit").fetchone() == ("off",)
    assert db.execute("show synchronous_commit").fetchone() == (said,)
    db.execute("reset synchronous_commit")
