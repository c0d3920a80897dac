"""The cache counts, sweeps what has expired, and keeps to its bounds."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pgeverything import InvalidArgument, PgEverything
from pgeverything.cache import upkeep

from .entries import expire

if TYPE_CHECKING:
    import psycopg

    from .carriers import Face

    Database = psycopg.Connection[Any]


# Counting, sweeping, bounds ------------------------------------------------------------------------------------------


def rows(db: Database) -> int:
    row = db.execute("select count(*) from pgeverything.cache").fetchone()
    assert row is not None
    return int(row[0])


def sweep(pg: PgEverything, times: int = 2) -> None:
    """Sweep the whole table so many times."""
    for _ in range(times):
        pg.cache.stats()


def test_stats_of_a_small_cache_are_of_now(pg: PgEverything, db: Database) -> None:
    assert (pg.cache.stats().entries, pg.cache.stats().bytes) == (0, 0)
    pg.cache.set_many({"a": "x" * 98, "b": b"x" * 100})
    pg.cache.set("expired", 1)
    pg.cache.delete("deleted")
    expire(db, "expired")
    found = pg.cache.stats()
    assert found.entries == 2
    assert 200 <= found.bytes <= 220
    assert found.disk_bytes > found.bytes
    assert (found.max_entries, found.max_bytes, found.logged) == (None, None, False)


def test_stats_count_what_was_asked_for(pg: PgEverything, url: str) -> None:
    pg.cache.set_many({"a": 1, "b": 2})
    pg.cache.get("a")
    pg.cache.get("c")
    pg.cache.get_many(["a", "b", "c"])
    pg.cache.get_or_set("d", lambda: 1)
    pg.cache.get_or_set("d", lambda: 1)
    with PgEverything(url) as other:
        other.cache.get("a")
        other.cache.stats()
    found = pg.cache.stats()
    assert (found.hits, found.misses, found.fills, found.waits) == (5, 3, 1, 0)
    assert pg.cache.stats() == found


def test_counts_are_handed_in_now_and_then(pg: PgEverything, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    pg.cache.get("a")
    assert db.execute("select * from pgeverything.cache_counts").fetchall() == []
    monkeypatch.setattr(upkeep, "COUNT_EVERY", 0.0)
    pg.cache.get("a")
    assert db.execute("select hits, misses from pgeverything.cache_counts").fetchall() == [(0, 2)]


def test_upkeep_fails_nobody(pg: PgEverything, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "COUNT_EVERY", 0.0)
    monkeypatch.setattr(upkeep, "SWEEP_EVERY", 1)
    db.execute("alter table pgeverything.cache_counts rename to elsewhere")
    db.execute("alter table pgeverything.cache_sweeps rename to elsewhere_too")
    try:
        pg.cache.set("a", 1)
        assert pg.cache.get("a") == 1
    finally:
        db.execute("alter table pgeverything.elsewhere rename to cache_counts")
        db.execute("alter table pgeverything.elsewhere_too rename to cache_sweeps")


def test_writers_sweep_what_has_expired(pg: PgEverything, db: Database) -> None:
    pg.cache.set_many({f"old{n}": n for n in range(1000)})
    expire(db, *(f"old{n}" for n in range(1000)))
    for n in range(10_000):
        pg.cache.set(f"new{n % 10}", n)
        if n % 100 == 0 and rows(db) == 10:
            return
    raise AssertionError(f"{rows(db)} entries are left")


def test_a_worker_sweeps_where_nobody_writes(pg: PgEverything, db: Database) -> None:
    pg.cache.set_many({f"old{n}": n for n in range(1000)})
    expire(db, *(f"old{n}" for n in range(1000)))
    db.execute("delete from pgeverything.sweeps")

    @pg.task()
    def nothing() -> None: ...

    nothing.enqueue()
    worker = pg.worker()
    import threading

    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while rows(db) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        worker.stop()
        thread.join()
    assert rows(db) == 0


def test_a_sweep_spares_what_is_still_of_use(pg: PgEverything, db: Database) -> None:
    pg.cache.set("live", 1)
    pg.cache.get_or_set("stale", lambda: 1, "1h", stale="1h")
    with pytest.raises(ZeroDivisionError):
        pg.cache.get_or_set("failed", lambda: 1 / 0, errors="1h")
    expire(db, "stale")
    seen: list[int] = []

    def compute() -> int:
        sweep(pg)
        seen.append(rows(db))
        return 1

    pg.cache.get_or_set("computing", compute)
    assert seen == [4]


def test_a_sweep_passes_by_what_is_locked(pg: PgEverything, db: Database) -> None:
    pg.cache.set_many({"a": 1, "b": 1})
    expire(db, "a", "b")
    with pg.transaction() as tx:
        tx.cache.touch("a")
        tx.connection.execute("select from pgeverything.cache where key = 'a' for update")
        sweep(pg)
        assert rows(db) == 1
    sweep(pg)
    assert rows(db) == 0


def test_two_do_not_sweep_at_once(pg: PgEverything, db: Database) -> None:
    sweep(pg)
    pg.cache.set("a", 1)
    expire(db, "a")
    with pg.transaction() as tx:
        tx.connection.execute("select from pgeverything.cache_sweeps for update")
        sweep(pg)
        assert rows(db) == 1
    sweep(pg)
    assert rows(db) == 0


@pytest.mark.parametrize("bound", [{"max_entries": 700}, {"max_bytes": 700 * 107}])
def test_bounds_evict_the_oldest(pg: PgEverything, db: Database, bound: dict[str, int]) -> None:
    pg.cache.configure(**bound)
    for batch in range(20):
        pg.cache.set_many({f"{batch:02}{n:03}": "x" * 100 for n in range(100)})
    sweep(pg, 4)
    left = sorted(key for (key,) in db.execute("select key from pgeverything.cache").fetchall())
    assert 600 <= len(left) <= 700
    assert left[0] >= "13000"
    assert left[-1] == "19099"
    for n in range(3000):
        pg.cache.set(f"more{n}", "x" * 96)
        if n % 50 == 0:
            assert rows(db) <= 1400
    sweep(pg, 4)
    assert rows(db) <= 700


def test_what_alone_is_above_the_bound_goes_and_evicts_nobody(pg: PgEverything, db: Database) -> None:
    large, small = os.urandom(20_000), {f"k{n}": "x" * 100 for n in range(50)}
    pg.cache.configure(max_bytes=10_000)
    pg.cache.set_many(small)
    for write in (
        lambda: pg.cache.set("large", large),
        lambda: pg.cache.set_many({"large": large}, tags=["t"]),
        lambda: pg.cache.get_or_set("large", lambda: large, stale="1h"),
        lambda: pg.cache.add("large", large.hex()),
    ):
        write()
        sweep(pg, 4)
        assert pg.cache.get("large") is None
        assert pg.cache.get_many(small) == small
        assert pg.cache.stats().entries == 50
    assert pg.cache.get_or_set("large", lambda: large) == large
    pg.cache.configure(max_bytes=30_000)
    sweep(pg, 4)
    assert pg.cache.get("large") == large


def test_bounds_can_be_changed_and_taken_away(pg: PgEverything) -> None:
    pg.cache.configure(max_entries=10, max_bytes=1000)
    pg.cache.configure(max_bytes=None)
    stats = pg.cache.stats()
    assert (stats.max_entries, stats.max_bytes) == (10, None)
    pg.cache.configure(max_entries=None)
    assert pg.cache.stats().max_entries is None
    for wrong in (0, -1, 1.5, "10", True):
        with pytest.raises(InvalidArgument, match="max_entries"):
            pg.cache.configure(max_entries=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="logged"):
        pg.cache.configure(logged=1)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="needs one of"):
        pg.cache.configure()


def test_a_table_of_many_windows_is_swept_to_its_end(pg: PgEverything, db: Database) -> None:
    db.execute(
        "insert into pgeverything.cache (key, stored_at, expires_at, value)"
        " select 'k' || i, now(), case when i % 2 = 0 then now() - interval '1 s' else 'infinity' end,"
        " repeat('x', 1000) from generate_series(1, 20000) i"
    )
    sweep(pg, 1)
    assert 10_000 < rows(db) < 20_000
    sweep(pg, 3)
    assert rows(db) == 10_000
    assert pg.cache.stats().entries == 10_000


def test_clear_leaves_nothing(on: Face, db: Database) -> None:
    if on.joined:
        return  # it is not for the caller's transaction
    on.cache.set_many({f"k{n}": n for n in range(2500)}, tags=["t"])
    expire(db, "k1", "k2")
    assert on.cache.clear() == 2498
    assert on.cache.clear() == 0
    assert rows(db) == 0


def test_tags_that_nobody_invalidates_are_forgotten_after_a_month(pg: PgEverything, db: Database) -> None:
    pg.cache.set("old", 1, tags=["old"])
    pg.cache.set("new", 1, tags=["new"])
    db.execute("update pgeverything.cache_tags set changed_at = now() - interval '31 days' where name = 'old'")
    sweep(pg)
    assert db.execute("select name from pgeverything.cache_tags").fetchall() == [("new",)]
    assert pg.cache.get_many(["old", "new"]) == {"new": 1}


@pytest.fixture
def logged(pg: PgEverything) -> Iterator[PgEverything]:
    pg.cache.configure(logged=True)
    yield pg
    pg.cache.configure(logged=False)


def test_it_can_be_logged(logged: PgEverything, db: Database) -> None:
    assert logged.cache.stats().logged
    logged.cache.set("a", 1, tags=["t"])
    logged.cache.configure(logged=True)
    assert logged.cache.get("a") == 1
    persistence = (
        "select distinct relpersistence::text from pg_class"
        " where oid in ('pgeverything.cache'::regclass, 'pgeverything.cache_tags'::regclass)"
    )
    assert db.execute(persistence).fetchall() == [("p",)]
    logged.cache.configure(logged=False)
    assert not logged.cache.stats().logged
    assert logged.cache.get("a") == 1
    assert db.execute(persistence).fetchall() == [("u",)]
