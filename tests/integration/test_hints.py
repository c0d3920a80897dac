"""A hint from another process cuts a wait short, in blocking and in asyncio code."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgeverything.engine.modules import async_database, database
from pgeverything.engine.plan import Plan, Watch, adrive_on, drive_on
from pgeverything.engine.pool import Database
from tests import pgbouncer

pytestmark = pgbouncer.needs_hints

LONG = 60.0


def heard(*ready: Any) -> Plan[bool]:
    """Wait for one hint; says through `ready` that it watches."""
    with (yield from Watch("locks:x")) as watching:
        while not (yield from watching.wait(0.05)):  # wakes once when the connection listens
            pass
        for event in ready:
            event.set()
        return (yield from watching.wait(LONG))


@pytest.fixture
def shared(url: str, db: psycopg.Connection[Any]) -> Iterator[Database]:
    found = database(url, "pgeverything")
    yield found
    found.close()


def listeners(db: psycopg.Connection[Any]) -> int:
    row = db.execute("select count(*) from pg_stat_activity where application_name = 'pgeverything listen'").fetchone()
    assert row is not None
    return int(row[0])


def test_a_hint_wakes_who_blocks(shared: Database, db: psycopg.Connection[Any]) -> None:
    ready, answers = threading.Event(), []
    thread = threading.Thread(target=lambda: answers.append(drive_on(shared.carrier, heard(ready))))
    thread.start()
    assert ready.wait(LONG)
    db.execute("select pg_notify('pgeverything', 'default'), pg_notify('pgeverything', E'\\tlocks:y')")  # not for us
    assert thread.is_alive()
    db.execute("select pg_notify('pgeverything', E'\\tlocks:x')")
    thread.join(LONG)

    assert answers == [True]


async def test_a_hint_wakes_who_awaits(url: str, db: psycopg.Connection[Any]) -> None:
    shared, ready = async_database(url, "pgeverything"), asyncio.Event()
    waiting = [asyncio.create_task(adrive_on(shared.carrier, heard(ready))) for _ in range(3)]
    await ready.wait()
    await asyncio.sleep(0)
    while not all(task.done() for task in waiting):  # the others may just be about to wait
        db.execute("select pg_notify('pgeverything', E'\\tlocks:x')")
        await asyncio.wait(waiting, timeout=0.05)

    assert [task.result() for task in waiting] == [True] * 3
    assert listeners(db) == 1  # one connection for all of them
    await shared.close()
    while listeners(db):  # noqa: ASYNC110 - the database says when
        await asyncio.sleep(0.01)


def test_a_wait_without_a_hint_ends_by_itself(shared: Database) -> None:
    def alone() -> Plan[bool]:
        with (yield from Watch("locks:nobody")) as watching:
            yield from watching.wait(0.01)
            return (yield from watching.wait(0.0))

    assert drive_on(shared.carrier, alone()) is False


def test_inside_a_transaction_nobody_listens(url: str, db: psycopg.Connection[Any], shared: Database) -> None:
    def look() -> Plan[bool]:
        with (yield from Watch("locks:x")) as watching:
            return (yield from watching.wait(0.01))

    with shared.carrier().atomic() as carrier:
        assert drive_on(lambda: carrier, look()) is False
    assert listeners(db) == 0


def test_a_lost_connection_is_opened_again(shared: Database, db: psycopg.Connection[Any]) -> None:
    woken = threading.Event()
    stop = shared.carrier().hints.watch("locks:x", woken.set)  # type: ignore[union-attr]
    assert woken.wait(LONG)
    woken.clear()
    db.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgeverything listen'")

    assert woken.wait(LONG)  # listening again: something may have been missed
    stop()


def test_a_fork_listens_for_itself(shared: Database, db: psycopg.Connection[Any]) -> None:
    woken = threading.Event()
    stop = shared.carrier().hints.watch("locks:x", woken.set)  # type: ignore[union-attr]
    assert woken.wait(LONG)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork() beside threads, which is the case in point
        child = os.fork()
    if child == 0:
        again = threading.Event()
        shared.carrier().hints.watch("locks:x", again.set)  # type: ignore[union-attr]
        os._exit(0 if again.wait(LONG) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    stop()
