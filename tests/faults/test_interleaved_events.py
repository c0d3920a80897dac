"""Publishers and readers in chosen orders: each way in which a log loses, doubles or reorders events.

Nothing sleeps; the server says who waits for whom.
"""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgeverything import PgEverything
from pgeverything.engine.plan import drive
from pgeverything.events.patterns import compile_pattern
from pgeverything.events.read import batch, horizon
from tests import server

from .accounts import fetch
from .sessions import Sessions, append

EVERYTHING = compile_pattern(None)


class Reader:
    """A subscriber in short: remembers the last position up to which it may read and forget."""

    def __init__(self, pg: PgEverything) -> None:
        self._carrier = pg._database.carrier()
        self.position = 0

    def poll(self) -> list[Any]:
        """Return the data of what is new."""
        upto = drive(self._carrier, horizon(self.position))
        assert upto >= self.position
        events = drive(self._carrier, batch(EVERYTHING, after=self.position, upto=upto, limit=100_000))
        self.position = upto
        return [event.data for event in events]


@pytest.fixture
def reader(pg: PgEverything) -> Reader:
    return Reader(pg)


# The order of commits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_early_position_that_is_committed_late_is_not_passed_by(
    sessions: Sessions, reader: Reader, end: str
) -> None:
    """What `position > last` loses: 717 of 6,404 events when it was measured."""
    slow, fast, _ = sessions.three()
    slow.begin()
    append(slow, "early")
    append(fast, "late")
    assert reader.poll() == []
    getattr(slow, end)()
    assert reader.poll() == (["early", "late"] if end == "commit" else ["late"])
    assert reader.poll() == []


def test_what_was_committed_before_an_open_publisher_began_is_read(sessions: Sessions, reader: Reader) -> None:
    slow, fast, _ = sessions.three()
    append(fast, 1)
    slow.begin()
    append(slow, 3)
    assert reader.poll() == [1]
    append(fast, 4)
    assert reader.poll() == []


def test_several_open_publishers_are_passed_one_by_one(sessions: Sessions, reader: Reader) -> None:
    first, second, third = sessions.three()
    for number, session in enumerate((first, second, third)):
        session.begin()
        append(session, number)
    second.commit()
    assert reader.poll() == []
    first.commit()
    assert reader.poll() == [0, 1]
    third.commit()
    assert reader.poll() == [2]


@pytest.mark.parametrize("database", ["ours", "another"])
def test_transactions_that_publish_nothing_hold_nobody_up(
    server_url: str, url: str, sessions: Sessions, reader: Reader, database: str
) -> None:
    """What `xid < xmin` stalls behind: a forgotten transaction anywhere in the cluster that wrote anything."""
    publisher, bystander, locker = sessions.three()
    other = server.create_database(server_url) if database == "another" else url
    try:
        with psycopg.connect(other) as stranger:
            stranger.execute("create table anything (n integer)")
            stranger.execute("insert into anything values (1)")
            bystander.begin()
            bystander.sql("insert into effects (number) values (1)")
            bystander.tx.jobs.enqueue("t")
            locker.begin()
            locker.sql("select pg_advisory_xact_lock_shared(1), pg_advisory_xact_lock_shared(1, 1)")
            append(publisher, 1)
            assert reader.poll() == [1]
            assert publisher.tx.events.stalled_by() == []
            stranger.rollback()
    finally:
        if database == "another":
            server.drop_database(other)


def test_logs_in_one_database_do_not_hold_each_other_up(url: str, sessions: Sessions, reader: Reader) -> None:
    with PgEverything(url, schema="Second log") as second:
        second.migrate()
        publisher, other, _ = sessions.three()
        with second.transaction() as tx:
            mine = tx.events.append("t", "in the second")
            append(publisher, 1)
            assert reader.poll() == [1]
            assert publisher.tx.events.stalled_by() == []
            assert [open_.position for open_ in second.events.stalled_by()] == [mine.position - 1]
        other.begin()
        append(other, 2)
        with second.transaction() as tx:  # both in one transaction
            tx.events.append("t", "more")
            assert [event.data for event in second.events.read()] == ["in the second"]
        assert [event.data for event in second.events.read()] == ["in the second", "more"]
        other.commit()
        assert reader.poll() == [2]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_publishers_of_one_key_go_one_after_the_other(sessions: Sessions, reader: Reader, end: str) -> None:
    first, second, other = sessions.three()
    first.begin()
    append(first, 1, key="k")
    late = second.waiting(append, second, 2, key="k")
    append(other, 3, key="l")
    assert [holder.pid for holder in other.tx.events.stalled_by()] == [first.pid]  # who waits holds no reader up
    getattr(first, end)()
    event = late.result()
    assert event.version == (2 if end == "commit" else 1)
    assert reader.poll() == ([1, 3, 2] if end == "commit" else [3, 2])


# The fence, step by step ---------------------------------------------------------------------------------------------

# As fence() does.
RAISE = "select pg_advisory_xact_lock_shared(('pgeverything.event_seq'::regclass::oid::bigint << 40) | %s)"


def test_a_publisher_that_pauses_before_its_fence_gets_a_position_that_nobody_has_passed(
    sessions: Sessions, reader: Reader
) -> None:
    """It has read the sequence, and the fence is not up yet: a reader goes by. The position is taken after that."""
    slow, fast, _ = sessions.three()
    append(fast, 1)
    slow.begin()
    seen = slow.sql("select last_value from pgeverything.event_seq")[0][0]
    append(fast, 2)
    assert reader.poll() == [1, 2]
    slow.sql(RAISE, seen)
    append(fast, 3)
    assert reader.poll() == []  # an old fence holds it back longer than it must, which is safe
    append(slow, 4)
    slow.commit()
    assert reader.poll() == [3, 4]


def test_a_publisher_that_pauses_between_fence_and_position_is_waited_for(sessions: Sessions, reader: Reader) -> None:
    slow, fast, _ = sessions.three()
    slow.begin()
    slow.sql("select pgeverything.fence()")
    append(fast, 2)
    assert reader.poll() == []
    append(slow, 3)
    assert reader.poll() == []
    slow.commit()
    assert reader.poll() == [2, 3]


def test_a_reader_that_pauses_between_its_steps_passes_nothing_by(
    sessions: Sessions, pg: PgEverything, reader: Reader
) -> None:
    """It has its horizon, and then things are committed; what comes out is what was there up to it, whole."""
    slow, fast, _ = sessions.three()
    append(fast, 1)
    slow.begin()
    append(slow, 2)
    upto = drive(pg._database.carrier(), horizon())
    append(fast, 3)
    slow.commit()
    events = drive(pg._database.carrier(), batch(EVERYTHING, after=0, upto=upto, limit=9))
    assert [event.data for event in events] == [1]
    reader.position = upto
    assert reader.poll() == [2, 3]


def test_a_rollback_to_a_savepoint_lowers_the_fence_and_the_next_append_raises_it_again(
    sessions: Sessions, reader: Reader
) -> None:
    slow, fast, _ = sessions.three()
    slow.begin()
    slow.sql("savepoint s")
    append(slow, "gone")
    append(slow, "gone too")
    append(fast, 1)
    assert reader.poll() == []
    slow.sql("rollback to s")
    assert reader.poll() == [1]
    append(slow, 2)
    append(fast, 3)
    assert reader.poll() == []
    slow.commit()
    assert reader.poll() == [2, 3]


def test_a_fence_from_before_a_savepoint_outlives_it(sessions: Sessions, reader: Reader) -> None:
    slow, fast, _ = sessions.three()
    slow.begin()
    append(slow, 1)
    slow.sql("savepoint s")
    append(slow, "gone")
    slow.sql("rollback to s")
    append(fast, 2)
    assert reader.poll() == []
    slow.sql("savepoint s")
    append(slow, 3)
    slow.sql("release s")
    append(fast, 4)
    assert reader.poll() == []
    slow.commit()
    assert reader.poll() == [1, 2, 3, 4]


def test_a_fence_raised_inside_a_released_savepoint_stays_up(sessions: Sessions, reader: Reader) -> None:
    slow, fast, _ = sessions.three()
    slow.begin()
    slow.sql("savepoint outside")
    slow.sql("savepoint inside")
    append(slow, 1)
    slow.sql("release inside")
    append(fast, 2)
    assert reader.poll() == []
    append(slow, 3)
    slow.commit()
    assert reader.poll() == [1, 2, 3]


def test_a_note_of_an_earlier_transaction_is_not_mistaken_for_a_fence(sessions: Sessions, reader: Reader) -> None:
    """Sessions are shared, by a pool or a pooler: what one transaction left says nothing to the next."""
    slow, fast, _ = sessions.three()
    for number in range(3):
        slow.begin()
        slow.sql("insert into effects (number) values (1)")  # so that the fence is noted
        append(slow, (number, 0))
        append(fast, (number, 1))
        assert reader.poll() == []
        slow.commit()
        assert reader.poll() == [[number, 0], [number, 1]]


def test_many_appends_raise_few_fences(sessions: Sessions) -> None:
    """Each lock takes room in the server's table of locks: a few of a transaction, however much it appends."""
    publisher, _, _ = sessions.three()
    publisher.begin()
    for number in range(200):
        append(publisher, number)
        publisher.tx.events.append_many("t", [1, 2])
    assert publisher.sql("select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()") == [
        (2,)
    ]


def test_a_position_whose_publisher_rolled_back_is_not_passed_before_an_event_above_it(
    sessions: Sessions, reader: Reader
) -> None:
    """It may not have reached the disk: after a crash the sequence would give it out again."""
    publisher, _, _ = sessions.three()
    position = append(publisher, 1).position
    publisher.begin()
    append(publisher, "gone")
    publisher.rollback()
    assert reader.poll() == [1]
    assert reader.position == position
    append(publisher, 3)
    assert reader.poll() == [3]
    assert reader.position == position + 2


def test_who_holds_readers_back_is_named(url: str, sessions: Sessions, pg: PgEverything, reader: Reader) -> None:
    first, second, fast = sessions.three()
    before = append(fast, 0).position
    for session in (first, second):
        session.begin()
        session.sql("set local application_name = 'forgetful'")
        append(session, 1)
    first.sql("select 'the last thing it did'")
    append(fast, 2)
    assert reader.poll() == [0]

    one, two = pg.events.stalled_by()
    assert (one.position, two.position) == (before, before + 1)
    assert (one.pid, two.pid) == (first.pid, second.pid)
    assert (one.application, one.state, one.prepared) == ("forgetful", "idle in transaction", None)
    assert one.query == "select 'the last thing it did'"
    assert one.age >= two.age > 0

    fetch(url, "select pg_terminate_backend(%s)", one.pid)
    second.commit()
    sessions.settled(one.pid)
    assert reader.poll() == [1, 2]
    assert pg.events.stalled_by() == []
