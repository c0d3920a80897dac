"""The event log on every carrier: append, versions, idempotency, reading."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgeverything import Event, EventLog, PgEverything, UnsafeRead, WrongVersion

from .carriers import Face


def positions(events: Any) -> list[int]:
    return [event.position for event in events]


def data(events: Any) -> list[Any]:
    return [event.data for event in events]


def test_what_is_appended_is_read(on: Face) -> None:
    before = datetime.now(UTC) - timedelta(minutes=1)
    bare = on.events.append("orders.eu", {"total": 990})
    full = on.events.append("orders.us", [1, None, "é"], type="placed", key="42", headers={"trace": "a"})
    on.commit()

    assert list(on.events.read()) == [bare, full]
    assert bare == Event(bare.position, "orders.eu", None, None, "", {"total": 990}, {}, bare.recorded_at)
    assert (full.key, full.version, full.type, full.headers) == ("42", 1, "placed", {"trace": "a"})
    assert full.position > bare.position > 0
    assert before < bare.recorded_at <= full.recorded_at


def test_many_are_appended_in_order(on: Face) -> None:
    on.events.append("t", 0, key="a")
    events = on.events.append_many("t", range(1, 6), key=["a", "b", None, "a", "b"], type=["x", "y", "x", "y", "x"])
    more = on.events.append_many("t", [6, 7], key="b", type="z", headers={"h": "1"})
    assert on.events.append_many("t", []) == []
    assert on.events.append_many("t", [], key=[], type=[]) == []
    on.commit()

    assert list(on.events.read())[1:] == [*events, *more]
    assert positions(events + more) == sorted(positions(events + more))
    assert [(event.key, event.version) for event in events] == [("a", 2), ("b", 1), (None, None), ("a", 3), ("b", 2)]
    assert [event.type for event in events] == ["x", "y", "x", "y", "x"]
    assert [(event.key, event.version, event.type) for event in more] == [("b", 3, "z"), ("b", 4, "z")]
    assert more[1].headers == {"h": "1"}


def test_more_than_a_round_trip_carries(pg: PgEverything) -> None:
    events = pg.events.append_many("t", range(25_000), key="k", expected_version=0)

    assert [event.version for event in events] == list(range(1, 25_001))
    assert list(pg.events.read()) == events
    with pytest.raises(WrongVersion):
        pg.events.append_many("t", range(25_000), key="k", expected_version=24_999)
    assert pg.events.version("t", "k") == 25_000


def test_a_version_is_expected(on: Face) -> None:
    events = on.events
    events.append("t", 1, key="k", expected_version=0)
    on.commit()
    for wrong in (0, 2, 17):
        with pytest.raises(WrongVersion, match="key 'k' is at version 1") as caught:
            events.append("t", 2, key="k", expected_version=wrong)
        assert (caught.value.expected, caught.value.actual) == (wrong, 1)
        with pytest.raises(WrongVersion) as caught:
            events.append_many("t", [2, 3], key="k", expected_version=wrong)
        assert (caught.value.expected, caught.value.actual) == (wrong, 1)
    with pytest.raises(WrongVersion) as caught:
        events.append("t", 2, key="other", expected_version=1)
    assert caught.value.actual == 0

    # The caller's transaction is still good.
    assert events.append("t", 2, key="k", expected_version=1).version == 2
    assert [event.version for event in events.append_many("t", [3, 4], key="k", expected_version=2)] == [3, 4]
    assert [event.version for event in events.append_many("t", [1, 2], key="new", expected_version=0)] == [1, 2]
    assert events.append("other topic".replace(" ", "."), 1, key="k", expected_version=0).version == 1
    on.commit()
    assert events.version("t", "k") == 4
    assert events.version("t", "unknown") == 0
    assert [(event.key, event.version) for event in events.read("t", key="k")] == [("k", n) for n in (1, 2, 3, 4)]


def test_a_second_append_under_an_idempotency_key_returns_the_first_event(on: Face) -> None:
    events = on.events
    first = events.append("t", {"n": 1}, key="k", type="x", headers={"h": "1"}, idempotency_key="i")
    assert events.append("t", {"n": 2}, key="other", idempotency_key="i") == first
    on.commit()
    assert events.append("t", {"n": 2}, key="k", expected_version=0, idempotency_key="i") == first
    elsewhere = events.append("u", 3, idempotency_key="i")
    many = events.append_many("t", [4, 5], idempotency_key="j")
    assert events.append_many("t", [6, 7, 8], idempotency_key="j") == many
    assert events.append("t", 9, idempotency_key="j") == many[0]
    assert events.append_many("t", [10, 11], idempotency_key="i") == [first]
    on.commit()

    assert list(events.read()) == [first, elsewhere, *many]
    assert events.version("t", "k") == 1


def test_a_wrong_version_does_not_use_up_the_idempotency_key(on: Face) -> None:
    events = on.events
    for append, value in ((events.append, 1), (events.append_many, [1])):
        with pytest.raises(WrongVersion):
            append("t", value, key="k", expected_version=7, idempotency_key="i")
    on.commit()

    assert events.append("t", 2, key="k", expected_version=0, idempotency_key="i").data == 2


def test_nothing_is_there_before_the_commit_nor_after_a_rollback(tx: Face, pg: PgEverything) -> None:
    tx.events.append("t", 1, key="k", idempotency_key="i")
    tx.events.append_many("t", [2, 3])
    assert list(pg.events.read()) == []
    assert list(tx.events.read()) == []
    tx.rollback()

    assert pg.events.version("t", "k") == 0
    tx.events.append("t", 4, idempotency_key="i")
    tx.commit()
    assert data(pg.events.read()) == [4]


def test_own_uncommitted_events_are_read_when_asked_for(tx: Face, pg: PgEverything) -> None:
    pg.events.append("a.b", 1)
    tx.events.append("a.b", 2)
    pg.events.append("a.b", 3)
    tx.events.append("a.c", 4, key="k", type="x")
    tx.events.append("d", 5)
    read = tx.events.read

    assert data(read()) == [1]  # up to our own fence
    assert data(read(include_own=True)) == [1, 2, 3, 4, 5]
    assert data(read("a.*", include_own=True)) == [1, 2, 3, 4]
    assert data(read("a.c", include_own=True)) == [4]
    assert data(read(key="k", include_own=True)) == data(read(type="x", include_own=True)) == [4]
    assert data(read(include_own=True, limit=4)) == [1, 2, 3, 4]
    last = max(positions(read(include_own=True)))
    assert data(read(include_own=True, until=last - 1)) == [1, 2, 3, 4]
    assert data(read(include_own=True, after=last - 1)) == [5]
    tx.commit()
    assert data(pg.events.read()) == [1, 2, 3, 4, 5]


def test_own_events_come_after_those_that_may_still_be_preceded(
    url: str, db: psycopg.Connection[Any], pg: PgEverything
) -> None:
    with psycopg.connect(url) as stranger, pg.transaction() as tx:
        pg.events.append("t", 1)
        tx.events.append("t", 2)
        pg.on(stranger).events.append("t", 3)
        pg.events.append("t", 4)
        tx.events.append("t", 5)

        assert data(tx.events.read(include_own=True)) == [1, 2, 5]


def test_a_reading_ends_where_the_log_ended_when_it_began(pg: PgEverything) -> None:
    pg.events.append_many("t", range(1000))
    reading = pg.events.read()
    first = next(reading)
    pg.events.append("t", "new")

    assert [first.data, *data(reading)] == list(range(1000))


def test_a_reading_goes_on_after_a_position(on: Face) -> None:
    events = on.events.append_many("t", range(10))
    on.commit()
    read, at = on.events.read, positions(events)

    assert data(read(after=at[3])) == [4, 5, 6, 7, 8, 9]
    assert data(read(after=at[3], until=at[6])) == [4, 5, 6]
    assert data(read(after=at[3], until=at[6], limit=2)) == [4, 5]
    assert data(read(after=at[9])) == data(read(until=0)) == data(read(after=2**62)) == []


def test_a_reading_by_time(on: Face, db: psycopg.Connection[Any]) -> None:
    events = on.events.append_many("t", range(10))
    on.commit()
    start = datetime(2026, 1, 1, tzinfo=UTC)
    db.execute(
        "update pgeverything.events set recorded_at = %s + (position - %s) * interval '1 minute'",
        [start, events[0].position],
    )
    read = on.events.read

    assert data(read(after=start + timedelta(minutes=3))) == [4, 5, 6, 7, 8, 9]
    assert data(read(after=start - timedelta(minutes=3))) == list(range(10))
    assert data(read(until=start + timedelta(minutes=3))) == [0, 1, 2, 3]
    assert data(read(after=start + timedelta(seconds=90), until=start + timedelta(minutes=5, seconds=1))) == [
        2,
        3,
        4,
        5,
    ]
    assert data(read(after=start + timedelta(minutes=9))) == data(read(until=start - timedelta(seconds=1))) == []


def test_times_that_do_not_follow_positions_are_read_right(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    """Publishers of the same moment: positions are taken in one order and clocks are read in another."""
    events = pg.events.append_many("t", range(200))
    start = datetime(2026, 1, 1, tzinfo=UTC)
    minutes = [(n * 7 + 3) % 20 + n // 20 * 20 for n in range(200)]  # mixed up by twenty
    for event, minute in zip(events, minutes, strict=True):
        db.execute(
            "update pgeverything.events set recorded_at = %s where position = %s",
            [start + timedelta(minutes=minute), event.position],
        )

    for minute in (0, 19, 20, 57, 123, 199):
        at = start + timedelta(minutes=minute)
        assert data(pg.events.read(after=at)) == [n for n in range(200) if minutes[n] > minute]
        assert data(pg.events.read(until=at)) == [n for n in range(200) if minutes[n] <= minute]


def test_large_batches_of_the_same_moment_are_read_right(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    """Two publishers that take tens of thousands of positions in turns, each at one time of its clock."""
    first, *_ = [pg.events.append_many("t", [0] * 10_000)[0].position for _ in range(3)]
    start = datetime(2026, 1, 1, tzinfo=UTC)
    db.execute(
        """update pgeverything.events set recorded_at = %s + (position - %s) %% 2 * interval '1 ms',
                                          data = to_jsonb((position - %s) %% 2)""",
        [start, first, first],
    )
    between = start + timedelta(microseconds=500)

    assert data(pg.events.read(after=between)) == [1] * 15_000
    assert data(pg.events.read(until=between)) == [0] * 15_000


def test_large_events_are_read_few_at_a_time(pg: PgEverything) -> None:
    pg.events.append_many("t", ["x" * 500_000 for _ in range(12)])

    assert [len(event.data) for event in pg.events.read()] == [500_000] * 12


def test_the_head_is_the_last_event_that_can_be_read(on: Face) -> None:
    before = on.events.head()
    assert on.events.append_many("t", [1, 2])[-1].position > before
    on.commit()

    assert on.events.head() == positions(on.events.read())[-1]


def test_topics_are_counted(on: Face) -> None:
    on.events.append_many("orders.eu", range(5))
    last = on.events.append("orders.us", "x" * 1000)
    on.commit()
    eu, us = on.events.topics("orders.*")

    assert (eu.name, eu.events, us.name, us.events, us.last_position) == ("orders.eu", 5, "orders.us", 1, last.position)
    assert us.bytes > eu.bytes > 0
    assert [topic.name for topic in on.events.topics()] == ["orders.eu", "orders.us"]
    assert [topic.name for topic in on.events.topics("*.us")] == ["orders.us"]


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_an_older_snapshot_is_refused(url: str, db: psycopg.Connection[Any], pg: PgEverything, isolation: str) -> None:
    pg.events.append("t", 1)
    with psycopg.connect(url) as connection:
        connection.execute(f"set transaction isolation level {isolation}".encode())
        events = pg.on(connection).events
        events.append("t", 2, key="k")
        for read in (events.head, lambda: list(events.read()), lambda: list(events.read(include_own=True))):
            with pytest.raises(UnsafeRead, match=isolation.upper()):
                read()
        with pytest.raises(psycopg.Error, match="READ COMMITTED") as caught:
            connection.execute("select pgeverything.horizon()")
        assert caught.value.sqlstate == "PGE11"


def test_strangers_publish(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    row = db.execute("select pgeverything.publish('orders', '{\"total\": 990}', key => '42')").fetchone()
    assert row is not None
    [event] = pg.events.read()

    assert (event.position, event.topic, event.key, event.version) == (row[0], "orders", "42", 1)
    assert (event.data, event.type, event.headers) == ({"total": 990}, "", {})
    again = "select pgeverything.publish('orders', '1', key => '42', expected_version => 1, idempotency_key => 'i')"
    assert db.execute(again.encode()).fetchone() == db.execute(again.encode()).fetchone()


@pytest.mark.parametrize(
    ("call", "state"),
    [
        ("publish('orders', '1', key => '42', expected_version => 9)", "PGE10"),
        ("publish('orders', '1', expected_version => 9)", "22023"),
        ("publish('orders.*', '1')", "23514"),
        ("publish('', '1')", "23514"),
        ("publish('a b', '1')", "23514"),
        ("publish('a..b', '1')", "23514"),
        ("publish('orders', null)", "23502"),
    ],
)
def test_what_strangers_get_wrong_is_refused(db: psycopg.Connection[Any], call: str, state: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        db.execute(f"select pgeverything.{call}".encode())

    assert caught.value.sqlstate == state


def test_the_module_alone(url: str, db: psycopg.Connection[Any]) -> None:
    log = EventLog(url)
    event = log.append("t", 1)

    assert list(log.read()) == [event]


def test_data_of_any_kind_comes_back(pg: PgEverything) -> None:
    values = [None, True, 0, -1, 1.5, "", "a\nb\tc\\", [], {}, [[{"a": [None]}]], {"ключ": "значение"}, 2**70]
    for value in values:
        pg.events.append("t", value)
    pg.events.append_many("t", values)

    assert data(pg.events.read()) == values * 2
    assert json.loads(json.dumps(values)) == values
