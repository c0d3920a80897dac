"""Values that are computed where there is none: once, by whoever comes first, or by the next if that one fails."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from pgeverything import AsyncCache, AsyncPgEverything, ComputeFailed, InvalidArgument, PgEverything
from pgeverything.cache import compute as computing
from tests.waiting import PATIENCE, eventually

from . import carriers

if TYPE_CHECKING:
    import psycopg

    from .carriers import Face

    Database = psycopg.Connection[Any]


@pytest.fixture(scope="module", params=[name for name in carriers.CARRIERS if name not in carriers.JOINED])
def _alone(request: pytest.FixtureRequest, url: str) -> Iterator[Face]:
    with carriers.opened(request.param, url) as face:
        yield face


@pytest.fixture
def alone(_alone: Face, db: Database) -> Face:
    """Each carrier of our own, in turn."""
    return _alone


def counter(start: int = 1) -> Callable[[], int]:
    """Return a function that returns 1, 2, 3 ..."""
    return itertools.count(start).__next__


def take_lease(db: Database, key: str, seconds: float) -> None:
    """Take the lease of a key, as a process does that dies before it has computed."""
    row = db.execute("select (pgeverything.cache_lease(%s, 1, %s, 0, true, null)).state", [key, seconds]).fetchone()
    assert row == ("taken",)


def test_it_is_computed_where_there_is_none(alone: Face, db: Database) -> None:
    count = counter()
    assert alone.cache.get_or_set("k", count) == 1
    assert alone.cache.get_or_set("k", count) == 1
    assert alone.cache.get("k") == 1
    alone.cache.invalidate("k")
    assert alone.cache.get_or_set("k", count) == 2
    db.execute("update pgeverything.cache set expires_at = now()")
    assert alone.cache.get_or_set("k", count) == 3


@pytest.mark.parametrize(
    ("value", "read"), [(None, None), (b"\0", b"\0"), ((1, (2,)), [1, [2]]), ({1: 2}, {"1": 2})], ids=repr
)
def test_everybody_gets_it_as_it_is_read(alone: Face, value: Any, read: Any) -> None:
    assert alone.cache.get_or_set("k", lambda: value) == read
    assert alone.cache.get_or_set("k", pytest.fail) == read


def test_its_tags_are_those_from_before_it_was_computed(alone: Face) -> None:
    count = counter()
    for expected in (1, 1):
        assert alone.cache.get_or_set("k", count, tags=["t", "u"]) == expected
    alone.cache.invalidate(tags=["u"])
    assert alone.cache.get("k") is None
    assert alone.cache.get_or_set("k", count, tags=["t", "u"]) == 2
    alone.cache.invalidate(tags=["t"])
    assert alone.cache.get_or_set("k", count) == 3
    alone.cache.invalidate(tags=["t", "u"])
    assert alone.cache.get_or_set("k", count) == 3


def test_a_coroutine_is_awaited_by_asyncio_only(alone: Face) -> None:
    async def compute() -> int:
        await asyncio.sleep(0)
        return 7

    if isinstance(alone.pg, AsyncPgEverything):
        assert alone.cache.get_or_set("k", compute) == 7
    else:
        with pytest.raises(InvalidArgument, match="compute for 'k' is asynchronous: use AsyncPgEverything"):
            alone.cache.get_or_set("k", compute)
        assert alone.cache.get_or_set("k", lambda: 8) == 8


def test_what_is_invalidated_while_it_is_computed_is_not_stored(alone: Face, pg: PgEverything) -> None:
    def compute(*keys: str, **tags: Any) -> Any:
        def computed() -> str:
            pg.cache.invalidate(*keys, **tags)
            return "old"

        return computed

    assert alone.cache.get_or_set("k", compute("k")) == "old"
    assert alone.cache.get("k") is None
    assert alone.cache.get_or_set("k", compute(tags=["t"]), tags=["t"]) == "old"
    assert alone.cache.get("k") is None


def test_what_is_set_while_it_is_computed_stays(alone: Face, pg: PgEverything) -> None:
    def compute() -> str:
        pg.cache.set("k", "set")
        return "computed"

    assert alone.cache.get_or_set("k", compute) == "computed"
    assert alone.cache.get("k") == "set"


# Several at once -----------------------------------------------------------------------------------------------------


def test_of_many_threads_one_computes(pg: PgEverything) -> None:
    count, gate = counter(), threading.Event()

    def compute() -> int:
        gate.wait(PATIENCE)
        return count()

    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(pg.cache.get_or_set, "k", compute) for _ in range(8)]
        eventually(lambda: pg.cache.stats().waits == 7, "the others to wait")
        gate.set()
        assert [call.result(PATIENCE) for call in calls] == [1] * 8
    stats = pg.cache.stats()
    assert (stats.fills, stats.misses) == (1, 8)


def test_of_many_tasks_one_computes(url: str, db: Database) -> None:
    count = counter()

    async def main() -> list[int]:
        async with AsyncPgEverything(url) as apg:
            gate = asyncio.Event()

            async def compute() -> int:
                await gate.wait()
                return count()

            calls = [asyncio.create_task(apg.cache.get_or_set("k", compute)) for _ in range(20)]
            while (await apg.cache.stats()).waits < 19:
                pass
            gate.set()
            return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [1] * 20


def test_who_waits_is_woken(direct_url: str, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computing, "_FIRST_PAUSE", 60.0)
    monkeypatch.setattr(computing, "_LONGEST_PAUSE", 60.0)
    gate = threading.Event()

    def compute() -> int:
        gate.wait(PATIENCE)
        return 1

    with PgEverything(direct_url) as pg, ThreadPoolExecutor(2) as threads:
        first = threads.submit(pg.cache.get_or_set, "k", compute, lease="10 m")
        eventually(lambda: db.execute("select from pgeverything.cache").fetchone() is not None, "the lease to be taken")
        second = threads.submit(pg.cache.get_or_set, "k", pytest.fail, lease="10 m")
        eventually(
            lambda: db.execute("select from pgeverything.cache where awaited").fetchone() is not None, "a waiter"
        )
        eventually(
            lambda: db.execute("select from pg_stat_activity where application_name = 'pgeverything listen'"
                               " and datname = current_database() and state = 'idle'").fetchone() is not None,
            "it to listen",
        )  # fmt: skip
        gate.set()
        assert first.result(PATIENCE) == second.result(PATIENCE) == 1


def test_nobody_is_told_where_nobody_waits(pg: PgEverything, direct_url: str) -> None:
    import psycopg

    with psycopg.connect(direct_url, autocommit=True) as listener:
        listener.execute("listen pgeverything")
        pg.cache.get_or_set("k", lambda: 1)
        pg.cache.invalidate("k", tags=["t"])
        listener.execute("notify pgeverything, 'end'")
        assert [notification.payload for notification in listener.notifies(stop_after=1)] == ["end"]


def test_a_computer_that_dies_holds_up_nobody_for_longer_than_its_lease(alone: Face, db: Database) -> None:
    take_lease(db, "k", 0.3)
    assert alone.cache.get_or_set("k", lambda: 1) == 1
    assert alone.cache.get("k") == 1


def test_a_computer_that_is_too_slow_stores_nothing(pg: PgEverything, db: Database) -> None:
    gate = threading.Event()

    def slow() -> str:
        gate.wait(PATIENCE)
        return "slow"

    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(pg.cache.get_or_set, "k", slow, lease="200ms")
        eventually(lambda: db.execute("select from pgeverything.cache").fetchone() is not None, "the lease to be taken")
        assert pg.cache.get_or_set("k", lambda: "fast") == "fast"
        gate.set()
        assert first.result(PATIENCE) == "slow"
    assert pg.cache.get("k") == "fast"


def test_nobody_waits_longer_than_a_lease(pg: PgEverything, db: Database) -> None:
    """Not for one computer after the other, either: then the value is computed and not stored."""
    take_lease(db, "k", 3600)
    assert pg.cache.get_or_set("k", lambda: 1, lease="300ms") == 1
    assert pg.cache.get("k") is None


# Errors --------------------------------------------------------------------------------------------------------------


def test_an_error_is_raised_and_the_next_one_tries(alone: Face) -> None:
    def fail() -> None:
        raise OSError("no answer")

    for _ in range(2):
        with pytest.raises(OSError, match="no answer"):
            alone.cache.get_or_set("k", fail)
    assert alone.cache.get_or_set("k", lambda: 1) == 1


def test_a_waiting_caller_tries_after_anothers_error(pg: PgEverything) -> None:
    gate = threading.Event()

    def fail() -> None:
        gate.wait(PATIENCE)
        raise OSError

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(pg.cache.get_or_set, "k", fail)
        eventually(lambda: pg.cache.stats().misses == 1, "the first to compute")
        second = threads.submit(pg.cache.get_or_set, "k", lambda: 2)
        eventually(lambda: pg.cache.stats().waits == 1, "the second to wait")
        gate.set()
        assert second.result(PATIENCE) == 2
        with pytest.raises(OSError):
            first.result(PATIENCE)


def test_an_error_is_remembered_where_that_is_asked_for(alone: Face, db: Database) -> None:
    def fail() -> None:
        raise OSError("no answer \0\ud800")

    with pytest.raises(OSError):
        alone.cache.get_or_set("k", fail, errors="1h")
    for _ in range(2):
        with pytest.raises(ComputeFailed, match=r"computing 'k' failed a moment ago: OSError: no answer \ufffd\?"):
            alone.cache.get_or_set("k", lambda: 1)
    assert alone.cache.get("k") is None
    db.execute("update pgeverything.cache set error_until = clock_timestamp()")
    assert alone.cache.get_or_set("k", lambda: 1) == 1


@pytest.mark.parametrize("end", ["invalidate", "set", "add"])
def test_what_ends_a_remembered_error(pg: PgEverything, end: str) -> None:
    with pytest.raises(ZeroDivisionError):
        pg.cache.get_or_set("k", lambda: 1 / 0, errors="1h")
    getattr(pg.cache, end)("k", *([] if end == "invalidate" else [1]))
    assert pg.cache.get_or_set("k", lambda: 1) == 1


def test_what_cannot_be_stored_is_an_error(alone: Face) -> None:
    with pytest.raises(InvalidArgument, match="value cannot be JSON"):
        alone.cache.get_or_set("k", object)
    assert alone.cache.get_or_set("k", lambda: 1) == 1


def test_ctrl_c_gives_the_lease_back(alone: Face) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    if isinstance(alone.pg, AsyncPgEverything):
        return  # it ends the event loop
    with pytest.raises(KeyboardInterrupt):
        alone.cache.get_or_set("k", interrupt, errors="1h")
    assert alone.cache.get_or_set("k", lambda: 1) == 1


async def test_a_cancelled_task_gives_the_lease_back(url: str, db: Database) -> None:
    async with AsyncPgEverything(url) as apg:
        started = asyncio.Event()

        async def compute() -> None:
            started.set()
            await asyncio.sleep(60)

        task = asyncio.create_task(apg.cache.get_or_set("k", compute))
        await started.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert await apg.cache.get_or_set("k", lambda: 1) == 1


class Interrupted:
    """Runs statements, and is interrupted once: as a lease has been taken, or as a value is about to be stored."""

    hints = None

    def __init__(self, carrier: Any, statement: str, error: BaseException) -> None:
        self._carrier, self._statement, self._error = carrier, computing.SQL[statement], error
        self._before, self._over = statement == "settle", False

    def run(self, query: Any) -> Any:
        if query.statement is not self._statement or self._over:
            return self._carrier.execute(query)
        self._over = True
        if not self._before:
            self._carrier.execute(query)
        raise self._error

    execute = run


class AsyncInterrupted(Interrupted):
    async def execute(self, query: Any) -> Any:
        return self.run(query)


@pytest.mark.parametrize("statement", ["lease", "settle"])
def test_ctrl_c_around_the_computation_leaves_no_lease(
    pg: PgEverything, db: Database, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    carrier = Interrupted(pg.cache._carrier(), statement, KeyboardInterrupt())
    monkeypatch.setattr(pg.cache, "_carrier", lambda: carrier)
    with pytest.raises(KeyboardInterrupt):
        pg.cache.get_or_set("k", lambda: 1)
    assert db.execute("select lease from pgeverything.cache").fetchall() == [(None,)]


@pytest.mark.parametrize("statement", ["lease", "settle"])
async def test_a_task_that_is_cancelled_around_the_computation_leaves_no_lease(
    pg: PgEverything, url: str, db: Database, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = AsyncInterrupted(pg.cache._carrier(), statement, asyncio.CancelledError())
    cache = AsyncCache(url)

    async def carrier() -> Any:
        return interrupted

    monkeypatch.setattr(cache, "_carrier", carrier)
    with pytest.raises(asyncio.CancelledError):
        await cache.get_or_set("k", lambda: 1)
    assert db.execute("select lease from pgeverything.cache").fetchall() == [(None,)]


# Stale and early -----------------------------------------------------------------------------------------------------


def age(db: Database, seconds: float) -> None:
    """Let all entries have expired so many seconds ago."""
    db.execute(
        "update pgeverything.cache set kept_until = kept_until - (expires_at - at), expires_at = at"
        " from (select clock_timestamp() - make_interval(secs => %s) as at) n",
        [seconds],
    )


def test_a_stale_value_is_for_those_who_would_wait(alone: Face, db: Database) -> None:
    assert alone.cache.get_or_set("k", lambda: "old", stale="1m") == "old"
    age(db, 30)
    assert alone.cache.get("k") is None
    take_lease(db, "k", 3600)
    assert alone.cache.get_or_set("k", pytest.fail, stale="1m") == "old"
    assert alone.cache.get_or_set("k", lambda: "new", stale="20s", lease="10ms") == "new"
    db.execute("update pgeverything.cache set lease_until = now()")
    assert alone.cache.get_or_set("k", lambda: "new", stale="1m") == "new"
    assert alone.cache.get("k") == "new"


def test_an_invalidated_value_is_not_given_out_stale(alone: Face, db: Database) -> None:
    for what in ({"keys": ["k"]}, {"tags": ["t"]}):
        alone.cache.get_or_set("k", lambda: "old", stale="1m", tags=["t"])
        age(db, 30)
        alone.cache.invalidate(*what.get("keys", ()), tags=what.get("tags", ()))
        assert alone.cache.get_or_set("k", lambda: "new", stale="1m", tags=["t"]) == "new"
        alone.cache.clear()


def test_early_is_by_chance_and_by_how_long_it_takes(
    alone: Face, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = counter()
    alone.cache.get_or_set("k", count)
    db.execute("update pgeverything.cache set took = 10, expires_at = clock_timestamp() + interval '20 s'")
    monkeypatch.setattr("random.random", lambda: 0.0)
    assert alone.cache.get_or_set("k", count, early=1.0) == 1
    monkeypatch.setattr("random.random", lambda: 0.8)  # 10 s * 1.6
    assert alone.cache.get_or_set("k", count, early=1.0) == 1
    assert alone.cache.get_or_set("k", count) == 1
    assert alone.cache.get_or_set("k", count, early=2.0) == 2
    assert alone.cache.get("k") == 2


def test_an_early_value_is_computed_by_one(alone: Face, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    alone.cache.get_or_set("k", lambda: 1)
    db.execute("update pgeverything.cache set took = 1e6")
    take_lease(db, "k", 3600)
    monkeypatch.setattr("random.random", lambda: 0.5)
    assert alone.cache.get_or_set("k", pytest.fail, early=1.0) == 1
    alone.cache.set("k", 2)
    assert alone.cache.get_or_set("k", pytest.fail, early=1.0) == 2  # nobody measured how long that took


# A transaction that has not ended ------------------------------------------------------------------------------------


def test_it_is_computed_and_not_stored_while_a_transaction_holds_the_key(alone: Face, pg: PgEverything) -> None:
    count = counter()
    with pg.transaction() as tx:
        tx.cache.invalidate("k", tags=["new"])
        assert alone.cache.get_or_set("k", count) == 1
        assert alone.cache.get_or_set("k", count) == 2
        assert alone.cache.get_or_set("j", count, tags=["new"]) == 3
    assert alone.cache.get("k") is None
    assert alone.cache.get("j") is None
    assert alone.cache.get_or_set("k", count, tags=["new"]) == 4
    with pg.transaction() as tx:
        tx.cache.invalidate("k", tags=["new"])
        assert alone.cache.get_or_set("k", count) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ttl": 0}, "ttl=0"),
        ({"stale": "long"}, "stale='long'"),
        ({"early": 0}, "early=0 must be a number above 0"),
        ({"early": True}, "early=True"),
        ({"early": float("inf")}, "early=inf"),
        ({"lease": 0}, "lease=0"),
        ({"errors": 0}, "errors=0"),
        ({"tags": "t"}, "tags='t'"),
        ({"tags": [""]}, "tags=''"),
    ],
)
def test_arguments_that_are_refused(alone: Face, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        alone.cache.get_or_set("k", pytest.fail, **options)
    with pytest.raises(InvalidArgument, match="key=''"):
        alone.cache.get_or_set("", pytest.fail)
    with pytest.raises(InvalidArgument, match="compute=7 must be a function"):
        alone.cache.get_or_set("k", 7)
