"""Leases that are renewed in the background, lost, waited for and given up, in blocking and in asyncio code."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from pgeverything import AsyncLocks, AsyncPgEverything, LeaseLost, LockError, LockNotAcquired, PgEverything
from pgeverything.engine.plan import drive
from pgeverything.locks.plans import renew_all
from tests.waiting import PATIENCE, eventually

Database = psycopg.Connection[Any]


def count(db: Database, table: str, where: str = "true") -> int:
    row = db.execute(f"select count(*) from pgeverything.{table} where {where}").fetchone()  # type: ignore[arg-type]
    assert row is not None
    return int(row[0])


def renewals(db: Database, name: str) -> Callable[[], int]:
    """Return what counts how often the lease on a name was seen to be renewed."""
    seen: set[Any] = set()

    def look() -> int:
        seen.add(db.execute("select expires_at from pgeverything.locks where name = %s", [name]).fetchone())
        return len(seen) - 1

    return look


# Blocking -----------------------------------------------------------------------------------------------------------


def test_it_outlives_its_ttl_many_times(pg: PgEverything, db: Database) -> None:
    with pg.locks.hold("a", ttl="1500ms", renew=True) as lease:
        seen = renewals(db, "a")
        eventually(lambda: seen() >= 4, "four renewals")
        assert not lease.lost
        assert pg.locks.acquire("a") is None
    assert pg.locks.acquire("a") is not None


def test_who_loses_it_is_told(pg: PgEverything, db: Database) -> None:
    told: list[Any] = []
    lease = pg.locks.acquire("a", ttl="600ms", renew=True, on_lost=told.append)
    assert lease is not None
    pg.locks.break_lock("a")
    eventually(lambda: told, "the holder to be told")
    assert told == [lease]
    assert lease.lost
    with pg.transaction() as tx, pytest.raises(LeaseLost):
        tx.locks.guard(lease)
    assert not lease.release()


@pytest.mark.parametrize("order", [1, -1])
def test_a_lease_is_not_taken_for_the_one_before_it(pg: PgEverything, order: int) -> None:
    """Both are renewed by this process, and the first does not know yet that somebody broke the lock."""
    first = pg.locks.acquire("a")
    pg.locks.break_lock("a")
    second = pg.locks.acquire("a")
    assert first is not None
    assert second is not None
    drive(pg.locks._carrier(), renew_all([first, second][::order]))
    assert (first.lost, second.lost) == (True, False)


def test_it_is_told_before_anybody_else_can_have_it(pg: PgEverything, db: Database) -> None:
    """Nobody renews it: the holder hears of the end while the database still says that it holds it."""
    held: list[bool] = []

    def look(_: object) -> None:
        held.append(count(db, "locks", "name = 'a' and expires_at > clock_timestamp()") == 1)

    lease = pg.locks.acquire("a", ttl="10s", on_lost=look)
    assert lease is not None
    lease._sent -= 9  # nine seconds pass
    pg.locks._keeper.drop(lease)
    pg.locks._keeper.keep(lease, renew=False)
    eventually(lambda: held, "the holder to be told")
    assert held == [True]


def test_an_interrupted_wait_leaves_the_line(pg: PgEverything, db: Database) -> None:
    """Ctrl-C, in the main thread, as a person would."""
    assert pg.locks.acquire("a") is not None

    def interrupt() -> None:
        eventually(lambda: count(db, "lock_waiters"), "somebody to stand in line")
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        pg.locks.acquire("a", wait="60s")
    thread.join()
    assert count(db, "lock_waiters") == 0


def test_threads_share_a_keeper(pg: PgEverything) -> None:
    before = set(threading.enumerate())

    def several() -> None:
        for number in range(5):
            with pg.locks.hold(f"{threading.get_ident()} {number}", ttl="500ms", renew=True):
                pass

    threads = [threading.Thread(target=several) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [thread.name for thread in set(threading.enumerate()) - before].count("pgeverything leases") == 1


# asyncio ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def apg(url: str, db: Database) -> AsyncIterator[AsyncPgEverything]:
    async with AsyncPgEverything(url) as pg:
        yield pg


async def auntil(condition: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - the database has no event to wait for
            await asyncio.sleep(0.01)


async def test_a_task_renews(apg: AsyncPgEverything, db: Database) -> None:
    async with apg.locks.hold("a", ttl="1500ms", renew=True) as lease:
        seen = renewals(db, "a")
        await auntil(lambda: seen() >= 4, "four renewals")
        assert not lease.lost
        assert await apg.locks.acquire("a") is None
        with pytest.raises(LockNotAcquired):
            async with apg.locks.hold("a", wait="20ms"):
                pass
    async with await apg.locks.acquire("a") as again:  # type: ignore[union-attr]
        assert not again.released
    assert again.released


async def test_its_block_is_cancelled_when_it_is_lost(apg: AsyncPgEverything, db: Database) -> None:
    told: list[Any] = []
    went_on = False

    async def body() -> None:
        nonlocal went_on
        async with apg.locks.hold("a", ttl="500ms", renew=True, cancel=True, on_lost=told.append):
            await apg.locks.break_lock("a")
            await asyncio.sleep(60)
            went_on = True

    with pytest.raises(LeaseLost, match="block was cancelled"):
        await body()
    assert (went_on, [lease.lost for lease in told]) == (False, [True])
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # nothing of it is left


async def test_a_block_that_ends_as_its_lease_is_lost_says_so_and_cancels_nothing_else(apg: AsyncPgEverything) -> None:
    async def ends() -> None:
        async with apg.locks.hold("a", cancel=True) as lease:
            lease.lose()
            await asyncio.sleep(0)

    async def fails() -> None:
        async with apg.locks.hold("b", cancel=True) as lease:
            lease.lose()
            try:
                await asyncio.sleep(60)
            finally:
                raise ZeroDivisionError

    for body, error in ((ends, LeaseLost), (fails, ZeroDivisionError)):
        with pytest.raises(error):
            await body()
        await asyncio.sleep(0)  # no cancellation is left over


async def test_it_is_cancelled_although_who_is_told_fails(apg: AsyncPgEverything) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)

    def fail(_: object) -> None:
        raise ZeroDivisionError

    async def body() -> None:
        async with apg.locks.hold("a", cancel=True, on_lost=fail) as lease:
            lease.lose()
            await asyncio.sleep(60)

    with pytest.raises(LeaseLost, match="block was cancelled"):
        await body()


async def test_its_block_is_cancelled_in_a_task_that_cleans_up_after_a_cancellation(apg: AsyncPgEverything) -> None:
    raised: list[type[BaseException]] = []
    begun = asyncio.Event()

    async def body() -> None:
        try:
            begun.set()
            await asyncio.sleep(60)
        finally:
            try:
                async with apg.locks.hold("a", cancel=True) as lease:
                    lease.lose()
                    await asyncio.sleep(60)
            except BaseException as error:
                raised.append(type(error))

    task = asyncio.create_task(body())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert raised == [LeaseLost]


async def test_a_cancellation_by_somebody_else_stays_one(apg: AsyncPgEverything, db: Database) -> None:
    entered = asyncio.Event()

    async def body() -> None:
        async with apg.locks.hold("a", renew=True, cancel=True):
            entered.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(body())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert count(db, "locks", "expires_at > clock_timestamp()") == 0  # it was released


async def test_a_cancelled_wait_leaves_the_line(apg: AsyncPgEverything, db: Database) -> None:
    first = await apg.locks.acquire("a")
    assert first is not None
    waiting = asyncio.create_task(apg.locks.acquire("a", wait="60s"))
    await auntil(lambda: count(db, "lock_waiters"), "somebody to stand in line")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert count(db, "lock_waiters") == 0
    await first.release()
    assert await apg.locks.acquire("a", fair=True) is not None


def test_a_fork_that_leaves_the_block_does_not_release_its_parents_lease(pg: PgEverything) -> None:
    lease = pg.locks.acquire("a")
    assert lease is not None
    with pytest.MonkeyPatch.context() as patch, lease:
        patch.setattr(os, "getpid", lambda: -1)  # in the child
    assert pg.locks.acquire("a") is None
    assert lease.release()


class Interrupted:
    """A carrier on which the first statement is interrupted before it is carried out."""

    hints = None

    def __init__(self, carrier: Any, error: BaseException) -> None:
        self._carrier, self._error = carrier, [error]

    def execute(self, query: Any) -> Any:
        if self._error:
            raise self._error.pop()
        return self._carrier.execute(query)


async def test_a_cancelled_release_releases(apg: AsyncPgEverything, db: Database) -> None:
    lease = await apg.locks.acquire("a")
    assert lease is not None
    interrupted: Any = Interrupted(await apg.locks._carrier(), asyncio.CancelledError())

    async def carrier() -> Any:
        return interrupted

    lease._carrier = carrier
    with pytest.raises(asyncio.CancelledError):
        async with lease:
            pass
    assert count(db, "locks", "expires_at > clock_timestamp()") == 0
    assert await lease.release()


def test_an_interrupted_release_releases(pg: PgEverything, db: Database) -> None:
    lease = pg.locks.acquire("a")
    assert lease is not None
    interrupted: Any = Interrupted(pg.locks._carrier(), KeyboardInterrupt())
    lease._carrier = lambda: interrupted
    with pytest.raises(KeyboardInterrupt), lease:
        pass
    assert count(db, "locks", "expires_at > clock_timestamp()") == 0
    assert lease.release()


async def test_tasks_wait_in_line(apg: AsyncPgEverything) -> None:
    inside = most = 0

    async def section() -> None:
        nonlocal inside, most
        async with apg.locks.hold("a", wait="60s"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1

    await asyncio.gather(*(section() for _ in range(20)))
    assert most == 1


async def test_it_is_not_re_entrant_either(apg: AsyncPgEverything) -> None:
    block = apg.locks.hold("a")
    async with block:
        with pytest.raises(LockError, match="not re-entrant"):
            async with block:
                pass


def test_closing_ends_the_renewals(url: str, db: Database) -> None:
    """They would open the connections again, and keep the lock for as long as the process lives."""
    told: list[Any] = []
    with PgEverything(url) as pg:
        lease = pg.locks.acquire("a", ttl="1s", renew=True, on_lost=told.append)
        seen = renewals(db, "a")
        eventually(lambda: seen() >= 1, "a renewal")
    eventually(lambda: told, "the lease to end")
    assert told == [lease]
    assert pg._database._carrier is None
    lease = pg.locks.acquire("a", wait="60s", ttl="1s", renew=True)  # the next use opens everything again
    assert lease is not None
    seen = renewals(db, "a")
    eventually(lambda: seen() >= 2, "two renewals")
    assert lease.release()
    pg.close()


async def test_closing_ends_the_renewals_of_a_loop(url: str, db: Database) -> None:
    told = asyncio.Event()
    async with AsyncPgEverything(url) as apg:
        lease = await apg.locks.acquire("a", ttl="1s", renew=True, on_lost=lambda _: told.set())
        seen = renewals(db, "a")
        await auntil(lambda: seen() >= 1, "a renewal")
    async with asyncio.timeout(PATIENCE):
        await told.wait()
    assert lease is not None
    assert lease.lost
    assert apg._database._carrier is None
    lease = await apg.locks.acquire("a", wait="60s", ttl="1s", renew=True)
    assert lease is not None
    seen = renewals(db, "a")
    await auntil(lambda: seen() >= 2, "two renewals")
    assert await lease.release()
    await apg.close()


async def test_two_tasks_do_not_share_a_block(apg: AsyncPgEverything, db: Database) -> None:
    """Both asked for it before either had it: each would end with the other's lease, or with none."""
    block = apg.locks.hold("a", slots=2)

    async def use() -> None:
        async with block:
            await asyncio.sleep(0)

    ends = await asyncio.gather(use(), use(), return_exceptions=True)
    assert [type(end) for end in ends] == [type(None), LockError]
    assert count(db, "locks", "expires_at > clock_timestamp()") == 0
    async with block:  # one after the other they may
        pass


def test_nor_do_two_threads(pg: PgEverything, db: Database) -> None:
    taken = pg.locks.acquire("a")
    assert taken is not None
    block = pg.locks.hold("a", wait="60s")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(block.__enter__)
        eventually(lambda: count(db, "lock_waiters"), "somebody to stand in line")
        with pytest.raises(LockError, match="not re-entrant"):
            block.__enter__()
        taken.release()
        assert not waiting.result(PATIENCE).lost
    block.__exit__()
    assert count(db, "locks", "expires_at > clock_timestamp()") == 0


def test_a_block_that_was_not_entered_can_be_tried_again(pg: PgEverything) -> None:
    block = pg.locks.hold("a")
    with pg.locks.hold("a"):
        for _ in range(2):
            with pytest.raises(LockNotAcquired), block:
                pass
    with block:
        pass


def test_a_lease_can_be_looked_at_when_its_loop_has_ended(url: str, db: Database) -> None:
    locks = AsyncLocks(url)

    async def acquire() -> Any:
        lease = await locks.acquire("a", ttl="60s", on_lost=print)
        await locks._database.close()
        return lease

    lease = asyncio.run(acquire())
    lease._sent -= 60
    assert lease.lost
    assert "lost" in repr(lease)


def test_each_event_loop_has_a_keeper_of_its_own(url: str, db: Database) -> None:
    locks = AsyncLocks(url)

    async def once() -> None:
        async with locks.hold("a", ttl="1s", renew=True):
            seen = renewals(db, "a")
            await auntil(lambda: seen() >= 2, "two renewals")
        await locks._database.close()

    asyncio.run(once())
    asyncio.run(once())
