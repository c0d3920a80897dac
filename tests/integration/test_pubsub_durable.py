"""Durable subscriptions: where they begin, acknowledging and giving back, and what happens to dead messages."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgeverything import AsyncPgEverything, MessageLost, PgEverything, SubscriptionError

from .carriers import Face
from .consuming import QUIET, consume, data, one

# Where a durable subscription begins --------------------------------------------------------------------------------


def test_a_durable_subscription_stays_and_keeps_its_place(apart: Face, pg: PgEverything) -> None:
    pg.pubsub.publish("t", "before")
    assert consume(apart, "t", name="s", timeout=0) == []
    pg.pubsub.publish("t", 1)
    pg.pubsub.publish("other", 1)
    assert data(consume(apart, "t", name="s")) == [1]
    pg.pubsub.publish("t", 2)

    assert data(consume(apart, "t", name="s", start="earliest")) == [2]
    assert consume(apart, "t", name="s") == []


@pytest.mark.parametrize("start", ["latest", "earliest", "position", "time", "now", "long ago"])
def test_it_begins_where_it_is_told(pg: PgEverything, db: psycopg.Connection[Any], start: str) -> None:
    events = [pg.pubsub.publish("t", n) for n in range(10)]
    at = datetime(2026, 1, 1, tzinfo=UTC)
    db.execute(
        "update pgeverything.events set recorded_at = %s + (position - %s) * interval '1 minute'",
        [at, events[0].position],
    )
    starts: dict[str, tuple[Any, list[int]]] = {
        "latest": ("latest", []),
        "earliest": ("earliest", list(range(10))),
        "position": (events[3].position, list(range(4, 10))),
        "time": (at + timedelta(minutes=7), [7, 8, 9]),
        "now": (datetime.now(UTC), []),
        "long ago": (at - timedelta(days=1), list(range(10))),
    }
    place, expected = starts[start]
    subscriber = pg.pubsub.subscribe("t", name="s", start=place, timeout=QUIET)
    pg.pubsub.publish("t", 10)

    assert data(list(subscriber)) == [*expected, 10]


def test_its_start_is_fixed_when_it_is_created(url: str, db: psycopg.Connection[Any], pg: PgEverything) -> None:
    """What was published before and is committed after it belongs to what comes after it."""
    with psycopg.connect(url) as connection:
        pg.on(connection).pubsub.publish("t", "open")
        pg.pubsub.publish("t", "behind the open one")
        subscriber = pg.pubsub.subscribe("t", name="s", timeout=QUIET)
        connection.commit()

    assert data(list(subscriber)) == ["open", "behind the open one"]


def test_one_name_has_one_pattern(pg: PgEverything) -> None:
    pg.pubsub.subscribe("t.>", name="s").close()

    with pytest.raises(SubscriptionError, match=r"'t\.>'"):
        pg.pubsub.subscribe("t.*", name="s")


def test_settings_are_the_subscriptions(pg: PgEverything) -> None:
    pg.pubsub.subscribe("t", name="s").close()
    assert (one(pg).ordered, one(pg).max_deliveries, one(pg).on_dead) == (True, 5, "skip")

    pg.pubsub.subscribe("t", name="s", max_deliveries=2, on_dead="stop").close()
    pg.pubsub.subscribe("t", name="s", ordered=False).close()
    assert (one(pg).ordered, one(pg).max_deliveries, one(pg).on_dead) == (False, 2, "stop")


# Acknowledge, give back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "then"), [({"ordered": False}, {"on_dead": "hold"}), ({"on_dead": "hold"}, {"ordered": False})]
)
def test_hold_needs_order_also_one_after_the_other(
    pg: PgEverything, first: dict[str, Any], then: dict[str, Any]
) -> None:
    pg.pubsub.subscribe("t", name="s", **first).close()
    before = (one(pg).ordered, one(pg).on_dead)
    with pytest.raises(SubscriptionError, match="hold"):
        pg.pubsub.subscribe("t", name="s", **then)
    assert (one(pg).ordered, one(pg).on_dead) == before
    pg.pubsub.subscribe("t", name="s", ordered=True, on_dead="hold").close()


def test_members_share_the_messages(pg: PgEverything) -> None:
    first = pg.pubsub.subscribe("t", name="s", timeout=QUIET)
    second = pg.pubsub.subscribe("t", name="s", timeout=QUIET)
    pg.events.append_many("t", range(200))
    seen: dict[str, list[int]] = {"first": [], "second": []}

    def work(name: str, subscriber: Any) -> None:
        for message in subscriber:
            seen[name].append(message.data)
            message.ack()

    threads = [threading.Thread(target=work, args=item) for item in (("first", first), ("second", second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(seen["first"] + seen["second"]) == list(range(200))
    assert one(pg).in_flight == one(pg).retrying == one(pg).waiting == 0


def test_a_member_leaves_with_its_event_loop(url: str, pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    pg.events.append_many("t", range(3))

    async def unclosed() -> None:
        async for message in AsyncPgEverything(url).pubsub.subscribe("t", name="s", start="earliest"):
            if message.data == 1:
                break

    asyncio.run(unclosed())
    assert (one(pg).members, one(pg).in_flight) == (0, 0)


def test_what_was_not_acknowledged_goes_back_when_a_member_leaves(apart: Face, pg: PgEverything) -> None:
    pg.events.append_many("t", range(5), key=["a", "a", "b", None, "a"])
    assert data(consume(apart, "t", lambda _: "enough", name="s", start="earliest")) == [0]
    assert (one(pg).in_flight, one(pg).members) == (0, 0)

    messages = consume(apart, "t", name="s")
    assert sorted(data(messages)) == list(range(5))
    assert [message.data for message in messages if message.key == "a"] == [0, 1, 4]


def test_a_message_that_failed_comes_again(apart: Face, pg: PgEverything) -> None:
    def handle(message: Any) -> Any:
        return message.nack("10ms") if message.delivery < 3 else message.ack()

    pg.pubsub.publish("t", 1, key="k")
    messages = consume(apart, "t", handle, name="s", start="earliest")

    assert [(message.data, message.delivery) for message in messages] == [(1, 1), (1, 2), (1, 3)]
    assert consume(apart, "t", name="s") == []


def test_a_delay_is_kept_in_the_database(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    pg.pubsub.publish("t", 1)
    with pg.pubsub.subscribe("t", name="s", start="earliest") as subscriber:
        next(subscriber).nack("1h")
    assert list(pg.pubsub.subscribe("t", name="s", timeout=QUIET)) == []
    assert one(pg).retrying == 1

    db.execute("update pgeverything.deliveries set due_at = clock_timestamp()")
    assert data(list(pg.pubsub.subscribe("t", name="s", timeout=QUIET))) == [1]


def test_by_default_it_waits_longer_with_each_failure(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    pg.pubsub.publish("t", 1)
    delays = []
    subscriber = pg.pubsub.subscribe("t", name="s", start="earliest", max_deliveries=20)
    for _ in range(12):
        next(subscriber).nack()
        rows = db.execute("select extract(epoch from due_at - now()) from pgeverything.deliveries").fetchone()
        assert rows is not None
        delays.append(float(rows[0]))
        db.execute("update pgeverything.deliveries set due_at = clock_timestamp()")

    assert delays[0] <= 1.0
    assert max(delays[:4]) < 10 < max(delays[8:])
    assert max(delays) < 3600


def test_a_message_that_failed_holds_up_its_key_and_no_other(apart: Face, pg: PgEverything) -> None:
    pg.events.append_many("t", range(8), key=["a", "b"] * 4)

    def handle(message: Any) -> Any:
        return message.nack("50ms") if message.data == 0 and message.delivery < 3 else message.ack()

    messages = consume(apart, "t", handle, name="s", start="earliest")

    assert [m.data for m in messages if m.key == "a"] == [0, 0, 0, 2, 4, 6]
    assert [m.data for m in messages if m.key == "b"] == [1, 3, 5, 7]


def test_without_order_nothing_is_held_up(pg: PgEverything) -> None:
    pg.events.append_many("t", range(4), key="a")
    subscriber = pg.pubsub.subscribe("t", name="s", start="earliest", ordered=False, timeout=QUIET)
    next(subscriber).nack("1h")

    assert data(list(subscriber)) == [1, 2, 3]


def test_acknowledged_twice_is_acknowledged(pg: PgEverything) -> None:
    pg.pubsub.publish("t", 1)
    message = next(pg.pubsub.subscribe("t", name="s", start="earliest"))

    message.ack()
    message.ack()
    message.nack()
    assert one(pg).retrying == 0


def test_what_was_taken_ahead_of_a_failed_one_is_taken_back(pg: PgEverything) -> None:
    pg.events.append_many("t", range(10), key="a")
    subscriber = pg.pubsub.subscribe("t", name="s", start="earliest", timeout=QUIET)
    first = next(subscriber)  # one at first
    first.ack()
    second, third = next(subscriber), next(subscriber)
    assert [second.data, third.data] == [1, 2]

    second.nack(0)
    with pytest.raises(MessageLost, match="message"):
        third.ack()
    messages = []
    for message in subscriber:
        messages.append(message)
        message.ack()
    assert data(messages) == list(range(1, 10))


def test_no_more_is_in_flight_than_may_be(pg: PgEverything) -> None:
    pg.events.append_many("t", range(20))
    subscriber = pg.pubsub.subscribe("t", name="s", start="earliest", max_in_flight=3, timeout=QUIET)
    held = [next(subscriber) for _ in range(3)]
    threading.Timer(0.3, held[1].ack).start()

    assert next(subscriber).data == 3  # waits for the acknowledgement
    assert one(pg).in_flight == 3


def test_a_message_is_done_with_the_callers_transaction(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    db.execute("create table if not exists public.seen (n bigint); delete from public.seen")
    pg.events.append_many("t", range(3))
    subscriber = pg.pubsub.subscribe("t", name="s", start="earliest", timeout=QUIET)

    for message in subscriber:
        try:
            with pg.transaction() as tx:
                tx.connection.execute("insert into public.seen values (%s)", [message.data])
                tx.pubsub.ack(message)
                if message.data == 1 and message.delivery == 1:
                    raise RuntimeError("not this time")  # noqa: TRY301
        except RuntimeError:
            message.nack(0)

    assert [n for (n,) in db.execute("select n from public.seen order by n").fetchall()] == [0, 1, 2]
    assert (one(pg).in_flight, one(pg).retrying) == (0, 0)


def test_who_acknowledges_again_while_the_transaction_is_open_is_told(pg: PgEverything) -> None:
    """And does not wait for itself."""
    pg.pubsub.publish("t", 1)
    with pg.pubsub.subscribe("t", name="s", start="earliest", timeout=0) as subscriber:
        message = next(subscriber)
        with pytest.raises(RuntimeError, match="rolled back"), pg.transaction() as tx:  # noqa: PT012
            tx.pubsub.ack(message)
            for settle in (message.ack, message.nack):
                with pytest.raises(SubscriptionError, match="open"):
                    settle()
            raise RuntimeError("rolled back")
        message.ack()

    assert pg.pubsub.lag("s").events == 0


def test_a_message_is_done_with_any_transaction(tx: Face, pg: PgEverything) -> None:
    pg.events.append_many("t", range(2))
    subscriber = pg.pubsub.subscribe("t", name="s", start="earliest")
    message = next(subscriber)
    tx.pubsub.ack(message)
    tx.rollback()
    assert one(pg).in_flight == 1

    tx.pubsub.ack(message)
    tx.commit()
    assert one(pg).in_flight == 0
    with pytest.raises(MessageLost):
        tx.pubsub.ack(message)


# Dead ---------------------------------------------------------------------------------------------------------------


def kill(pg: PgEverything, on_dead: Any) -> Any:
    """Let the second message of a key die; returns the subscriber."""
    pg.events.append_many("t", range(6), key=["a", "a", "b", "a", "b", "a"])
    subscriber = pg.pubsub.subscribe("t", name="s", start="earliest", max_deliveries=2, on_dead=on_dead, timeout=QUIET)
    seen = []
    for message in subscriber:
        seen.append((message.data, message.delivery))
        message.nack(0) if message.data == 1 else message.ack()
        if seen[-1] == (1, 2):
            break
    return seen


def test_skip_goes_on(pg: PgEverything) -> None:
    kill(pg, "skip")
    assert one(pg).dead == 1
    messages = consume(Face(pg, None, lambda value: value), "t", name="s")

    assert [m.data for m in messages if m.key == "a"] == [3, 5]
    assert one(pg).waiting == one(pg).in_flight == 0


def test_hold_holds_the_key(pg: PgEverything) -> None:
    kill(pg, "hold")
    face = Face(pg, None, lambda value: value)
    assert [m.data for m in consume(face, "t", name="s") if m.key == "a"] == []
    assert (one(pg).dead, one(pg).waiting, one(pg).stopped) == (1, 2, None)
    pg.pubsub.publish("t", 6, key="a")
    pg.pubsub.publish("t", 7, key="b")

    assert data(consume(face, "t", name="s")) == [7]


def test_stop_stops_everything_until_it_is_resumed(pg: PgEverything) -> None:
    kill(pg, "stop")
    face = Face(pg, None, lambda value: value)
    pg.pubsub.publish("t", 6, key="c")
    assert consume(face, "t", name="s") == []
    assert one(pg).stopped.endswith("failed at delivery 2")

    pg.pubsub.resume("s")
    messages = consume(face, "t", name="s")
    assert [m.data for m in messages if m.key == "a"] == [3, 5]
    assert messages[-1].data == 6 or 6 in data(messages)
    assert (one(pg).dead, one(pg).stopped) == (1, None)
