"""Broadcast and durable subscriptions, blocking and awaited, on every carrier that is not a caller's transaction."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any

import psycopg
import pytest

from pgeverything import Event, InvalidArgument, PgEverything, PubSub, SubscriptionError
from tests.waiting import PATIENCE

from .carriers import Face
from .consuming import QUIET, consume, data

# Publish ------------------------------------------------------------------------------------------------------------


def test_what_is_published_is_an_event_of_the_log(on: Face) -> None:
    event = on.pubsub.publish("orders.eu", {"n": 1}, type="placed", key="42", headers={"a": "b"})
    on.commit()

    assert list(on.events.read()) == [event]
    assert (event.key, event.version, event.type, event.headers) == ("42", 1, "placed", {"a": "b"})


def test_a_transaction_does_not_subscribe(tx: Face) -> None:
    with pytest.raises(SubscriptionError, match="outside"):
        tx.pubsub.subscribe("t")


# Broadcast ----------------------------------------------------------------------------------------------------------


def test_a_broadcast_begins_now_and_sees_everything_in_order(apart: Face, pg: PgEverything) -> None:
    pg.pubsub.publish("orders.eu", "before")
    published: list[Event] = []

    def publish() -> None:
        published.extend(pg.pubsub.publish(f"orders.{n % 3}", n, key=str(n % 2)) for n in range(50))
        pg.pubsub.publish("others", 1)
        pg.pubsub.publish("orders.eu", "last")

    def handle(message: Any) -> str | None:
        if message.data == "first":
            publisher.start()
        return "enough" if message.data == "last" else None

    def begin() -> None:
        pg.pubsub.publish("orders.eu", "first")

    publisher, beginner = threading.Thread(target=publish), threading.Timer(0.2, begin)
    beginner.start()
    messages = consume(apart, "orders.*", handle, timeout=PATIENCE)
    publisher.join()

    assert data(messages) == ["first", *range(50), "last"]
    assert [message.position for message in messages[1:-1]] == [event.position for event in published]
    assert {message.delivery for message in messages} == {1}


def test_every_subscriber_sees_everything(pg: PgEverything) -> None:
    subscribers = [pg.pubsub.subscribe(pattern, timeout=QUIET) for pattern in (">", "a.*", "a.b", "c")]
    for topic in ("a.b", "a.c", "c"):
        pg.pubsub.publish(topic, topic)

    assert [data(list(each)) for each in subscribers] == [["a.b", "a.c", "c"], ["a.b", "a.c"], ["a.b"], ["c"]]


def test_a_broadcast_has_nothing_to_acknowledge(pg: PgEverything) -> None:
    subscriber = pg.pubsub.subscribe("t")
    pg.pubsub.publish("t", 1)
    message = next(subscriber)

    message.ack()
    with pytest.raises(SubscriptionError, match="durable"):
        message.nack()
    with pytest.raises(SubscriptionError, match="durable"), pg.transaction() as tx:
        tx.pubsub.ack(message)


def test_a_closed_subscriber_ends(pg: PgEverything) -> None:
    with pg.pubsub.subscribe("t") as subscriber:
        pass
    assert list(subscriber) == []
    with pg.pubsub.subscribe("t", name="s") as subscriber:
        pass
    assert list(subscriber) == []


@pytest.mark.parametrize("name", [None, "s"])
@pytest.mark.parametrize("how", ["subscriber", "application"])
def test_one_that_waits_ends_when_it_is_closed(
    url: str, db: psycopg.Connection[Any], name: str | None, how: str
) -> None:
    pg = PgEverything(url)
    subscriber = pg.pubsub.subscribe("t", name=name)
    began, ended = threading.Event(), threading.Event()

    def wait() -> None:
        for message in subscriber:
            message.ack()
            began.set()
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    while not began.wait(0.1):
        pg.pubsub.publish("t", 1)
    (subscriber if how == "subscriber" else pg).close()
    assert ended.wait(PATIENCE)
    thread.join()
    pg.close()
    assert db.execute("select from pgeverything.members").fetchall() == []


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"pattern": "a..b"},
        {"pattern": 1},
        {"name": ""},
        {"name": "s", "start": "tomorrow"},
        {"name": "s", "start": -1},
        {"name": "s", "start": True},
        {"name": "s", "start": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"name": "s", "ordered": 1},
        {"name": "s", "max_deliveries": 0},
        {"name": "s", "on_dead": "explode"},
        {"name": "s", "on_dead": "hold", "ordered": False},
        {"name": "s", "max_in_flight": 0},
        {"name": "s", "lease": "1s"},
        {"name": "s", "retry": 5},
        {"name": "s", "timeout": -1},
        {"start": "earliest"},
        {"max_deliveries": 3},
    ],
)
def test_bad_input_is_refused_before_any_sql(options: dict[str, Any]) -> None:
    nowhere = PubSub("postgresql://nobody@127.0.0.1:1/none")

    with pytest.raises(InvalidArgument):
        nowhere.subscribe(**{"pattern": "t"} | options)


def test_a_bad_delay_is_refused(pg: PgEverything) -> None:
    pg.pubsub.publish("t", 1)
    message = next(pg.pubsub.subscribe("t", name="s", start="earliest"))

    with pytest.raises(InvalidArgument, match="delay"):
        message.nack("soon")
    message.ack()


def test_the_module_alone(url: str, db: psycopg.Connection[Any]) -> None:
    pubsub = PubSub(url)
    subscriber = pubsub.subscribe("t", timeout=QUIET)
    event = pubsub.publish("t", 1)

    [message] = subscriber
    assert (message.position, message.data, message.delivery) == (event.position, 1, 1)
    assert isinstance(message, Event)
    pubsub._database.close()
