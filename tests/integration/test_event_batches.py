"""A batch holds exactly the next events that were asked for, however the statements went about it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgeverything import Event, PgEverything
from pgeverything.engine.carriers import PsycopgCarrier
from pgeverything.engine.plan import drive
from pgeverything.events.patterns import compile_pattern
from pgeverything.events.read import batch, horizon
from pgeverything.events.values import PARTITION
from tests.unit.test_topics import naive

PATTERNS = [None, ">", "a.b", "a.>", "*.x", "m.*", "m.7", "rare.>", "no.such", "*.*", "*"]


@pytest.fixture(scope="module")
def log(url: str) -> Iterator[tuple[PsycopgCarrier, list[Event]]]:
    """A log of three partitions: a frequent topic, rare ones, many small ones, gaps, and a topic with two ids."""
    chance = random.Random(7)
    topics = ["a.b"] * 900 + ["a.c"] * 80 + ["rare.x", "rare.y.z"] + [f"m.{n}" for n in range(40)]
    with PgEverything(url) as pg, psycopg.connect(url, autocommit=True) as connection:
        for start in (0, PARTITION - 700, 2 * PARTITION - 500, 2 * PARTITION + 60_000):
            connection.execute("select setval('pgeverything.event_seq', %s)", [start + 1])
            for _ in range(40):
                topic, count = chance.choice(topics), chance.randrange(1, 40)
                keys = [chance.choice([None, "k", "l"]) for _ in range(count)]
                pg.events.append_many(
                    topic, range(count), key=keys, type=[chance.choice(["", "t"]) for _ in range(count)]
                )
                for _ in range(chance.randrange(5)):
                    pg.events.append(chance.choice(topics), 0, key=chance.choice([None, "k"]))
        connection.execute("insert into pgeverything.topics (id, name) select 1000, 'a.c'")
        connection.execute(
            "update pgeverything.events set topic_id = 1000"
            " where topic_id = (select min(id) from pgeverything.topics where name = 'a.c') and position %% 2 = 0",
            [],
        )
        carrier = PsycopgCarrier(connection, "pgeverything")
        everything = list(pg.events.read())
        assert len({event.position // PARTITION for event in everything}) == 3
        yield carrier, everything


# Positions close to where something begins or ends, and far from each other.
places = st.sampled_from([0, PARTITION, 2 * PARTITION, 2 * PARTITION + 60_000]).flatmap(
    lambda start: st.integers(max(0, start - 800), start + 1500)
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pattern=st.sampled_from(PATTERNS),
    key=st.sampled_from([None, None, "k", "nobody"]),
    type_=st.sampled_from([None, None, "t"]),
    after=places,
    upto=places,
    limit=st.sampled_from([1, 2, 7, 50, 500]),
)
def test_a_batch_is_what_a_filter_chooses(
    log: tuple[PsycopgCarrier, list[Event]],
    pattern: str | None,
    key: str | None,
    type_: str | None,
    after: int,
    upto: int,
    limit: int,
) -> None:
    carrier, everything = log
    wanted = [
        event
        for event in everything
        if after < event.position <= upto
        and naive((pattern or ">").split("."), event.topic.split("."))
        and key in (None, event.key)
        and type_ in (None, event.type)
    ]

    found = drive(carrier, batch(compile_pattern(pattern), after=after, upto=upto, limit=limit, key=key, type=type_))

    assert found == wanted[:limit]


def test_the_horizon_of_a_quiet_log_is_its_last_event(log: tuple[PsycopgCarrier, list[Event]]) -> None:
    carrier, everything = log
    last = everything[-1].position

    assert [drive(carrier, horizon(after)) for after in (0, last - 1, last, last + 9)] == [last, last, last, last + 9]


def test_the_partition_is_as_long_as_the_database_says(log: tuple[PsycopgCarrier, Any]) -> None:
    bound = (
        log[0]
        .connection.execute("select pg_get_expr(relpartbound, oid) from pg_class where relname = 'events_000001'")
        .fetchone()
    )

    assert bound == (f"FOR VALUES FROM ('{PARTITION}') TO ('{2 * PARTITION}')",)
