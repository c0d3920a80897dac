"""Asks the database what has become of the jobs."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import psycopg

from tests.waiting import eventually

from .fleet import Fleet

_LIVE = ("jobs", "ready", "running", "scheduled", "waiting", "turns", "turn_notes")


def fetch(url: str, text: str, *params: object) -> list[tuple[Any, ...]]:
    """Run a statement on a connection of its own and return its rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(text.encode(), params)
        return cursor.fetchall() if cursor.description else []


def remaining(url: str) -> int:
    """How many jobs have not ended; dead ones have."""
    return int(fetch(url, "select count(*) from pgeverything.jobs where not dead")[0][0])


def wait_until_done(fleet: Fleet, within: float = 150.0) -> None:
    """Wait until no job is left, and fail as soon as a worker ends by itself."""

    def done() -> bool:
        fleet.check()
        return remaining(fleet.url) == 0

    eventually(done, lambda: f"all jobs to end; left: {left_over(fleet.url)}\n{fleet.logs()}", within)


def left_over(url: str) -> dict[str, int]:
    """How many rows each live table still has: none in any of them when every job has ended and none is dead.

    What was noted of an ordering key at the very end is settled by the next `advance()`, which is done here.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("select pgeverything.advance(100000)")
        counts = {}
        for table in _LIVE:
            row = connection.execute(f"select count(*) from pgeverything.{table}".encode()).fetchone()
            if row and row[0]:
                counts[table] = row[0]
    return counts


def rescues(url: str) -> dict[int, list[int]]:
    """The workers from which each job was taken, because they fell silent."""
    taken: dict[int, list[int]] = defaultdict(list)
    rows = fetch(url, "select job, worker from pgeverything.failures where error ->> 'type' = 'WorkerLost' order by at")
    for job, worker in rows:
        taken[job].append(worker)
    return taken
