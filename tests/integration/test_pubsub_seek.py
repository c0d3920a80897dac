"""Durable subscriptions that are paused, sought, measured and deleted, and that retention overtakes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from pgeverything import MessageLost, PgEverything, RetentionGap, SubscriptionError, SubscriptionNotFound, UnsafeRead

from .carriers import Face
from .consuming import QUIET, consume, data, one

# Pause, resume, seek, lag, delete -----------------------------------------------------------------------------------


def test_a_paused_subscription_delivers_nothing(on: Face, pg: PgEverything) -> None:
    pg.pubsub.subscribe("t", name="s").close()
    pg.pubsub.pause("s")
    pg.pubsub.publish("t", 1)
    assert list(pg.pubsub.subscribe("t", name="s", timeout=QUIET)) == []
    assert on.pubsub.subscriptions()[0].paused

    pg.pubsub.resume("s")
    assert data(list(pg.pubsub.subscribe("t", name="s", timeout=QUIET))) == [1]


def test_seek_replays_and_skips(apart: Face, pg: PgEverything) -> None:
    events = pg.events.append_many("t", range(5), key="k")
    assert data(consume(apart, "t", name="s", start="earliest")) == list(range(5))

    for to, expected in (("earliest", [0, 1, 2, 3, 4]), (events[2].position, [3, 4]), ("latest", [])):
        apart.pubsub.seek("s", to)
        assert data(consume(apart, "t", name="s")) == expected
    apart.pubsub.seek("s", events[0].recorded_at)
    assert data(consume(apart, "t", name="s")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("to", ["latest", datetime(2026, 1, 1, tzinfo=UTC)])
def test_a_seek_in_an_older_snapshot_is_refused(pg: PgEverything, url: str, to: Any) -> None:
    pg.pubsub.subscribe("t", name="s").close()
    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with pytest.raises(UnsafeRead, match="READ COMMITTED"):
            pg.on(connection).pubsub.seek("s", to)


def test_what_was_in_flight_at_a_seek_cannot_be_acknowledged(pg: PgEverything) -> None:
    pg.events.append_many("t", range(3), key="k")
    subscriber = pg.pubsub.subscribe("t", name="s", start="earliest", timeout=QUIET)
    message = next(subscriber)
    pg.pubsub.seek("s", "earliest")

    with pytest.raises(MessageLost):
        message.ack()
    assert data(list(subscriber)) == [0, 1, 2]
    with pytest.raises(MessageLost):
        message.nack()


def test_a_seek_does_not_wait_for_ever(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    functions = ("seek(text, text, timestamptz)", "delete_subscription(text)")
    pg.pubsub.publish("t", 1)
    message = next(pg.pubsub.subscribe("t", name="s", start="earliest"))
    for function in functions:
        db.execute(f"alter function pgeverything.{function} set lock_timeout = '50ms'".encode())
    try:
        with pg.transaction() as tx:
            tx.pubsub.ack(message)
            for call in (lambda: pg.pubsub.seek("s", 0), lambda: pg.pubsub.delete("s")):
                with pytest.raises(SubscriptionError, match="stays open"):
                    call()
    finally:
        for function in functions:
            db.execute(f"alter function pgeverything.{function} set lock_timeout = '10s'".encode())


def test_lag_counts_what_is_not_done(on: Face, pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    pg.pubsub.subscribe("t", name="s").close()
    assert (on.pubsub.lag("s").events, on.pubsub.lag("s").seconds) == (0, 0.0)
    pg.events.append_many("t", range(10))
    pg.events.append_many("other", range(10))
    db.execute("update pgeverything.events set recorded_at = recorded_at - interval '1 hour'")
    lag = on.pubsub.lag("s")
    assert lag.events == 10
    assert 3600 <= lag.seconds < 3700

    subscriber = pg.pubsub.subscribe("t", name="s")
    next(subscriber).ack()
    next(subscriber).nack("1h")
    next(subscriber)
    assert on.pubsub.lag("s").events == 9
    assert on.pubsub.lag("s").seconds >= 3600


def test_a_deleted_subscription_is_gone(apart: Face, pg: PgEverything) -> None:
    pg.events.append_many("t", range(3))
    subscriber = pg.pubsub.subscribe("t", name="s", start="earliest")
    message = next(subscriber)
    message.ack()

    assert apart.pubsub.delete("s") is True
    assert apart.pubsub.delete("s") is False
    assert apart.pubsub.subscriptions() == []
    with pytest.raises(SubscriptionNotFound, match="deleted"):
        list(subscriber)
    for call in (lambda: apart.pubsub.lag("s"), lambda: apart.pubsub.seek("s", 0), lambda: apart.pubsub.pause("s")):
        with pytest.raises(SubscriptionNotFound, match="'s'"):
            call()
    with pytest.raises(SubscriptionNotFound):
        apart.pubsub.resume("s")
    assert list(pg.events.read()) != []


def test_what_retention_has_overtaken_says_so_and_seek_mends_it(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    subscriber = pg.pubsub.subscribe("t", name="s", timeout=QUIET)
    pg.pubsub.publish("t", "dropped")
    db.execute("select setval('pgeverything.event_seq', 12000000)")
    last = pg.pubsub.publish("t", "kept")
    try:
        dropped = pg.events.drop_before(last.position)
        with pytest.raises(RetentionGap, match="seek") as caught:
            next(subscriber)
        assert caught.value.lost_to == dropped
        assert one(pg).gap

        assert pg.pubsub.seek("s", "earliest") == dropped
        assert data(list(subscriber)) == ["kept"]
        assert not one(pg).gap
    finally:
        db.execute("select setval('pgeverything.event_seq', 1); update pgeverything.event_retention set dropped = 0")


def test_a_retry_whose_event_was_dropped_is_dead(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    event = pg.pubsub.publish("t", 1)
    with pg.pubsub.subscribe("t", name="s", start="earliest", timeout=0) as subscriber:
        next(subscriber).nack(0)
        db.execute("delete from pgeverything.events where position = %s", [event.position])
        assert list(subscriber) == []

    assert (one(pg).dead, one(pg).retrying, one(pg).in_flight) == (1, 0, 0)


def test_what_follows_a_retry_whose_event_was_dropped_is_held(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    event, _ = (pg.pubsub.publish("t", number, key="k") for number in (1, 2))
    with pg.pubsub.subscribe("t", name="s", start="earliest", on_dead="hold", timeout=0) as subscriber:
        next(subscriber).nack(0)
        db.execute("delete from pgeverything.events where position = %s", [event.position])
        assert list(subscriber) == []

    assert (one(pg).dead, one(pg).waiting, one(pg).in_flight) == (1, 1, 0)
