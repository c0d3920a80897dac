"""The server crashes, is a standby, or holds a prepared transaction: what readers passed stays as it was.

The server is the test's own.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgeverything import PgEverything, UnsafeRead, local
from tests import server
from tests.waiting import eventually

from .accounts import fetch
from .conftest import prepare


@pytest.fixture
def home() -> Iterator[Path]:
    home = Path(tempfile.gettempdir()).resolve() / f"pgeverything-crashed-{secrets.token_hex(6)}"
    yield home
    local.stop(home)
    shutil.rmtree(home, ignore_errors=True)


def stop(home: Path, how: signal.Signals) -> None:
    os.kill(local.ensure(home).pid, how)
    eventually(lambda: local.status(home)[0].state == "stopped", "the server to end")


def crash(home: Path) -> None:
    """End the server without a last checkpoint, and start it again."""
    stop(home, signal.SIGQUIT)
    local.ensure(home)


def test_a_position_that_was_rolled_back_and_is_given_out_again_was_not_passed(home: Path) -> None:
    """A sequence logs 32 numbers ahead; a commit flushes that, and nobody does when what was taken is rolled back."""
    maintenance = local.ensure(home).url
    for setting in ("wal_writer_delay = '10s'", "bgwriter_lru_maxpages = 0", "autovacuum = off"):
        fetch(maintenance, f"alter system set {setting}")  # nothing reaches the disk by chance
    crash(home)
    url = server.create_database(maintenance)
    prepare(url)
    again = 0
    for _ in range(3):
        with PgEverything(url) as pg:
            pg.events.append("t", "before")
            with psycopg.connect(url) as connection:
                for _ in range(50):
                    pg.on(connection).events.append("t", "never")
                connection.rollback()
            taken = fetch(url, "select last_value from pgeverything.event_seq")[0][0]
            passed = pg.events.head()
        crash(home)
        with PgEverything(url) as pg:
            after = pg.events.append("t", "after")
            again += after.position <= taken
            assert after.position > passed
            assert [event.data for event in pg.events.read(after=passed)] == ["after"]
    assert again, "no position was given out again: this run has shown nothing"


def test_a_prepared_transaction_keeps_its_fence_through_a_crash(home: Path) -> None:
    maintenance = local.ensure(home).url
    fetch(maintenance, "alter system set max_prepared_transactions = 5")
    crash(home)
    url = server.create_database(maintenance)
    prepare(url)
    with PgEverything(url) as pg, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("begin")
        pg.on(connection).events.append("t", 1, key="k")
        connection.execute("prepare transaction 'forgotten'")
        pg.events.append("t", 2)
        assert list(pg.events.read()) == []
    crash(home)
    with PgEverything(url) as pg:
        pg.events.append("t", 3)
        assert list(pg.events.read()) == []
        [publisher] = pg.events.stalled_by()
        assert (publisher.prepared, publisher.pid, publisher.state) == ("forgotten", None, "prepared")
        assert publisher.position == 0
        assert publisher.age > 0
        fetch(url, "commit prepared 'forgotten'")
        assert [event.data for event in pg.events.read()] == [1, 2, 3]
        assert pg.events.stalled_by() == []


def test_a_subscription_does_not_pass_a_prepared_transaction(home: Path) -> None:
    maintenance = local.ensure(home).url
    fetch(maintenance, "alter system set max_prepared_transactions = 5")
    crash(home)
    url = server.create_database(maintenance)
    prepare(url)
    with (
        PgEverything(url) as pg,
        psycopg.connect(url, autocommit=True) as connection,
        pg.pubsub.subscribe("t", name="s", timeout=0) as subscriber,
    ):
        connection.execute("begin")
        pg.on(connection).events.append("t", 1)
        connection.execute("prepare transaction 'open'")
        pg.events.append("t", 2)
        assert list(subscriber) == []
        with pg.transaction() as tx:
            assert list(tx.events.read(include_own=True)) == []
        fetch(url, "commit prepared 'open'")
        assert [message.data for message in subscriber] == [1, 2]


def test_a_standby_is_refused(home: Path) -> None:
    """It does not know which publishers are open on the primary."""
    url = server.create_database(local.ensure(home).url)
    prepare(url)
    with PgEverything(url) as pg:
        pg.events.append("t", 1)
    stop(home, signal.SIGINT)
    version = min(home.glob("**/PG_VERSION"), key=lambda path: len(path.parts))
    (version.parent / "standby.signal").touch()
    local.ensure(home)
    with PgEverything(url) as pg:
        for read in (pg.events.head, lambda: next(pg.events.read())):
            with pytest.raises(UnsafeRead, match="primary"):
                read()
        with pg.transaction() as tx, pytest.raises(psycopg.Error, match="primary"):
            tx.connection.execute("select pgeverything.horizon()")
        assert pg.events.version("t", "k") == 0
