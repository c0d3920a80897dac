"""The server crashes: the cache is empty and works, everything else is there; logged, it keeps what was valid."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pgeverything import PgEverything, local
from tests import server

from .accounts import fetch
from .conftest import prepare
from .test_restarted_server import restart

VALUES = {f"k{n}": n for n in range(100)}


@pytest.fixture
def url(home: Path) -> str:
    url = server.create_database(local.ensure(home).url)
    prepare(url)
    return url


def test_a_crash_empties_the_cache_and_nothing_else(home: Path, url: str) -> None:
    with PgEverything(url) as pg:
        job = pg.jobs.enqueue("later", delay="1h")
        pg.cache.configure(max_entries=1000)
        pg.cache.set_many(VALUES, "1h", tags=["t"])
        pg.cache.set("for ever", 1, None)
        assert pg.cache.stats().hits == 0
        before = fetch(url, "select max(generation) from pgeverything.cache_tags")
        restart(home, signal.SIGQUIT)

        assert pg.cache.get_many([*VALUES, "for ever"]) == {}
        stats = pg.cache.stats()
        assert (stats.entries, stats.max_entries) == (0, 1000)
        assert pg.jobs.get(job.id).state == "scheduled"
        pg.cache.set_many(VALUES, "1h", tags=["t"])
        assert pg.cache.get_many(VALUES) == VALUES
        assert fetch(url, "select max(generation) from pgeverything.cache_tags") > before
        restart(home, signal.SIGINT)  # no crash: it was shut down

        assert pg.cache.get_many(VALUES) == VALUES


def test_a_logged_cache_survives_a_crash_and_revives_nothing(home: Path, url: str) -> None:
    with PgEverything(url) as pg:
        pg.cache.configure(logged=True)
        pg.cache.set_many(VALUES, "1h")
        pg.cache.set("valid", 1, "1h", tags=["t"])
        pg.cache.set("invalidated", 1, "1h", tags=["t", "u"])
        pg.cache.invalidate(tags=["u"])
        restart(home, signal.SIGQUIT)

        assert pg.cache.get_many([*VALUES, "valid", "invalidated"]) == VALUES | {"valid": 1}
        for _ in range(100):
            pg.cache.invalidate(tags=["u"])
            assert pg.cache.get("invalidated") is None
        assert pg.cache.stats().logged


def test_a_crash_while_a_value_is_computed(home: Path, url: str) -> None:
    """The lease is gone with the table, so what comes late is returned to its caller and not stored."""
    with PgEverything(url) as pg:

        def compute() -> str:
            restart(home, signal.SIGQUIT)
            return "late"

        assert pg.cache.get_or_set("k", compute) == "late"
        assert pg.cache.get("k") is None
