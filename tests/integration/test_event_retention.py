"""Partitions of the event log ahead and behind, what a worker does for it, and what is counted on the way."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgeverything import PgEverything, RetentionGap
from pgeverything.engine.plan import drive
from pgeverything.events import retention
from pgeverything.events.values import PARTITION
from pgeverything.maintenance import CHORES
from tests import server

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def url(server_url: str, template: str) -> Iterator[str]:
    """A database of the test's own: these move the log on by millions."""
    url = server.create_database(server_url, template)
    yield url
    server.drop_database(url)


@pytest.fixture
def pg(url: str) -> Iterator[PgEverything]:
    with PgEverything(url) as pg:
        yield pg


@pytest.fixture
def db(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def one(db: psycopg.Connection[Any], query: str, *params: object) -> Any:
    row = db.execute(query.encode(), params).fetchone()
    return row and row[0]


def partitions(db: psycopg.Connection[Any]) -> list[int]:
    return [
        int(name.removeprefix("events_"))
        for (name,) in db.execute(
            "select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid"
            " where i.inhparent = 'pgeverything.events'::regclass and c.relname <> 'events_default' order by 1"
        )
    ]


@pytest.fixture
def log(pg: PgEverything, db: psycopg.Connection[Any]) -> list[int]:
    """Positions of a log of four partitions, a day apart, with three events in each but the third, which is empty."""
    positions = []
    for number in (0, 1, 3):
        db.execute("select setval('pgeverything.event_seq', %s)", [number * PARTITION + 10])
        events = pg.events.append_many("t", range(3)) if number else [pg.events.append("t", n) for n in range(3)]
        db.execute(
            "update pgeverything.events set recorded_at = %s where position > %s",
            [START + timedelta(days=number), number * PARTITION],
        )
        positions += [event.position for event in events]
    return positions


def tend(pg: PgEverything) -> None:
    drive(pg._database.carrier(), retention.tend())


def test_a_worker_looks_after_the_log() -> None:
    assert [chore.plan for chore in CHORES if chore.name == "events"] == [retention.tend]


def test_partitions_are_there_from_the_beginning_and_are_created_ahead(
    pg: PgEverything, db: psycopg.Connection[Any]
) -> None:
    assert partitions(db) == list(range(9))
    db.execute("select setval('pgeverything.event_seq', %s)", [3 * PARTITION])
    tend(pg)
    tend(pg)

    assert partitions(db) == list(range(12))


def test_programs_create_partitions_where_no_worker_does(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    db.execute("select setval('pgeverything.event_seq', %s)", [4 * PARTITION - 10])
    pg.events.append_many("t", range(20))

    assert partitions(db) == list(range(13))


def test_nothing_is_dropped_unless_it_is_said(pg: PgEverything, log: list[int]) -> None:
    tend(pg)

    assert [event.position for event in pg.events.read()] == log


def test_what_is_older_is_dropped_by_whole_partitions(
    pg: PgEverything, db: psycopg.Connection[Any], log: list[int]
) -> None:
    age = datetime.now(UTC) - START
    pg.events.retain(age - timedelta(hours=1))  # the first day only
    tend(pg)
    assert [event.position for event in pg.events.read()] == log[3:]
    assert partitions(db)[0] == 1

    pg.events.retain(age - timedelta(days=2))
    tend(pg)
    assert [event.position for event in pg.events.read()] == log[6:]
    assert partitions(db)[0] in {2, 3}
    with pytest.raises(RetentionGap) as caught:
        next(pg.events.read(after=log[4]))
    assert caught.value.lost_from == log[4] + 1

    pg.events.retain("1s")  # everything is older, and the partition that is being written to stays
    tend(pg)
    assert [event.position for event in pg.events.read()] == log[6:]
    pg.events.retain(None)
    tend(pg)
    assert [event.position for event in pg.events.read()] == log[6:]


@pytest.mark.parametrize(
    ("before", "left", "dropped"),
    [
        (0, 9, 0),
        (PARTITION - 1, 9, 0),
        (PARTITION, 6, 1),
        (2 * PARTITION + 1, 3, 2),
        (10**9, 3, 3),
        (START - timedelta(days=1), 9, 0),
        (START, 9, 0),
        (START + timedelta(hours=1), 6, 1),
        (START + timedelta(days=1), 6, 1),
        (START + timedelta(days=1, hours=1), 3, 3),
        (START + timedelta(days=400), 3, 3),
    ],
)
def test_dropping_by_hand(pg: PgEverything, log: list[int], before: int | datetime, left: int, dropped: int) -> None:
    last = dropped * PARTITION - 1 if dropped else 0
    assert pg.events.drop_before(before) == last
    assert [event.position for event in pg.events.read()] == log[9 - left :]
    assert pg.events.drop_before(0) == last
    assert [event.position for event in pg.events.read(after=last)] == log[9 - left :]


def test_topics_are_counted_once_a_partition_is_complete(
    pg: PgEverything, db: psycopg.Connection[Any], log: list[int]
) -> None:
    expected = [(topic.name, topic.events, topic.bytes, topic.last_position) for topic in pg.events.topics()]
    assert [(name, events, last) for name, events, _, last in expected] == [("t", 9, log[-1])]
    for counted in (1, 2, 3, 3):
        tend(pg)
        assert one(db, "select count(*) from pgeverything.event_totals where topic_id = 0") == counted
        found = [(topic.name, topic.events, topic.bytes, topic.last_position) for topic in pg.events.topics()]
        assert found == expected
    pg.events.drop_before(PARTITION)
    assert [(topic.name, topic.events) for topic in pg.events.topics()] == [("t", 6)]
    assert one(db, "select min(first) from pgeverything.event_totals") == PARTITION


def test_a_partition_is_not_counted_before_its_last_publisher_has_ended(
    url: str, pg: PgEverything, db: psycopg.Connection[Any]
) -> None:
    with psycopg.connect(url) as slow:
        pg.on(slow).events.append("t", 1)
        db.execute("select setval('pgeverything.event_seq', %s)", [PARTITION])
        pg.events.append("t", 2)
        tend(pg)
        assert one(db, "select count(*) from pgeverything.event_totals") == 0
        slow.commit()
    tend(pg)
    assert one(db, "select sum(events) from pgeverything.event_totals") == 1
    assert [topic.events for topic in pg.events.topics()] == [2]


def test_idempotency_keys_are_remembered_for_a_week(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    first = pg.events.append("t", 1, idempotency_key="i")
    for age, again in (("6 days", False), ("8 days", True)):
        db.execute("update pgeverything.event_receipts set recorded_at = now() - %s::interval", [age])
        tend(pg)
        assert (pg.events.append("t", 2, idempotency_key="i") != first) is again


def test_an_idempotency_key_whose_event_was_dropped(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    pg.events.append("t", 1, idempotency_key="i")
    db.execute("select setval('pgeverything.event_seq', %s)", [PARTITION])
    pg.events.append("t", 2)
    pg.events.drop_before(PARTITION)

    with pytest.raises(RetentionGap, match="idempotency_key='i'"):
        pg.events.append("t", 1, idempotency_key="i")


def test_versions_go_on_when_events_are_dropped(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    pg.events.append_many("t", range(3), key="k")
    db.execute("select setval('pgeverything.event_seq', %s)", [PARTITION])
    pg.events.append("t", 2)
    pg.events.drop_before(PARTITION)

    assert pg.events.append("t", 4, key="k", expected_version=3).version == 4


def test_sleepers_that_never_woke_are_forgotten(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    db.execute("insert into pgeverything.event_sleepers values (1, now() - interval '2 hours'), (2, now())")
    tend(pg)

    assert db.execute("select id from pgeverything.event_sleepers").fetchall() == [(2,)]
