"""Checked by mypy, never run: what publishing and subscribing promise. An unused ignore is an error."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, assert_type

from pgeverything import (
    AsyncBound,
    AsyncMessage,
    AsyncPgEverything,
    Bound,
    Event,
    Message,
    PgEverything,
    PubSub,
    Subscription,
)
from pgeverything.pubsub import AsyncSubscriber, Lag, Subscriber

pg, apg = PgEverything(), AsyncPgEverything()


def blocking() -> None:
    assert_type(pg.pubsub, PubSub)
    assert_type(pg.pubsub.publish("t", {"a": 1}, type="x", key="k", headers={"a": "b"}), Event)
    assert_type(pg.pubsub.subscribe("t"), Subscriber)
    for message in pg.pubsub.subscribe("t", name="s", start="earliest", on_dead="hold"):
        assert_type(message, Message)
        assert_type(message.delivery, int)
        assert_type(message.data, Any)
        message.ack()
        message.nack("5m")
        with pg.transaction() as tx:
            tx.pubsub.ack(message)
    assert_type(pg.pubsub.subscriptions(), list[Subscription])
    assert_type(pg.pubsub.lag("s"), Lag)
    assert_type(pg.pubsub.seek("s", 5), int)
    assert_type(pg.pubsub.delete("s"), bool)

    pg.pubsub.subscribe("t", name="s", start="tomorrow")  # type: ignore[arg-type]
    pg.pubsub.subscribe("t", name="s", on_dead="explode")  # type: ignore[arg-type]
    pg.pubsub.publish("t")  # type: ignore[call-arg]
    pg.pubsub.seek("s", to=1.5)  # type: ignore[arg-type]


async def awaited() -> None:
    _ = assert_type(apg.pubsub.publish("t", 1), Coroutine[Any, Any, Event])
    subscriber = apg.pubsub.subscribe("t", name="s")
    assert_type(subscriber, AsyncSubscriber)
    async with subscriber as messages:
        async for message in messages:
            assert_type(message, AsyncMessage)
            await message.ack()
            async with apg.transaction() as tx:
                await tx.pubsub.ack(message)
    assert_type(await apg.pubsub.lag("s"), Lag)


@pg.subscriber("t", name="a", max_deliveries=5, on_dead="skip", ordered=True, transactional=False)
def plain(message: Message) -> None: ...


@pg.subscriber("t", transactional=True)
def exact(message: Message, tx: Bound) -> None: ...


@apg.subscriber("t")
async def aplain(message: AsyncMessage) -> None: ...


@pg.subscriber("t", transactional=True)
async def aexact(message: AsyncMessage, tx: AsyncBound) -> int:
    return len(message.topic)


def handlers(message: Message) -> None:
    plain(message)
    plain(1)  # type: ignore[arg-type]


@pg.subscriber("t")  # type: ignore[type-var]
def none() -> None: ...


@pg.subscriber("t")  # type: ignore[type-var]
def of_a_number(number: int) -> None: ...


@pg.subscriber("t", on_dead="never")  # type: ignore[arg-type]
def wrong(message: Message) -> None: ...
