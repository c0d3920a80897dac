"""Pub/sub on the event log: broadcast from now on, and durable subscriptions that members share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..durations import Duration, seconds
from ..engine.modules import AsyncModule, Module
from ..engine.plan import Async, Plan, Sync, op
from ..engine.pool import AsyncDatabase, AsyncTarget, Database, Target
from ..errors import InvalidArgument, SubscriptionError
from ..events.append import append, extending
from ..events.patterns import compile_pattern
from ..events.values import Event
from ..jobs.values import check_name, check_whole
from ..retry import Retry
from . import manage
from .member import SHORTEST
from .outlook import Outlook
from .sources import Broadcast, Durable
from .subscriber import AsyncSubscriber, Subscriber
from .transaction import ack
from .values import AsyncMessage, Lag, Message, OnDead, Start, Subscription, check_place, check_settings

__all__ = [
    "AsyncBoundPubSub",
    "AsyncMessage",
    "AsyncPubSub",
    "AsyncSubscriber",
    "BoundPubSub",
    "Lag",
    "Message",
    "PubSub",
    "Subscriber",
    "Subscription",
]

MOST_IN_FLIGHT = 100_000


def publish(
    topic: str,
    data: Any,
    *,
    type: str = "",  # noqa: A002 - the public name of the thing
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Plan[Event]:
    """Publish an event: the same row as `events.append` makes.

    Args:
        topic: what it is about: tokens with dots between them, like "orders.eu".
        data: a JSON value.
        type: what happened, like "placed".
        key: the one it happened to. Events of one topic and key are delivered in their order.
        headers: text for the reader's eyes.

    Returns:
        The event as it is in the log, or will be when its transaction is committed.

    Raises:
        InvalidArgument: an argument is refused, before any SQL.
    """
    return (yield from append(topic, data, type=type, key=key, headers=headers))


def _source(
    outlook: Outlook,
    pattern: str,
    name: str | None,
    start: Start | None,
    settings: dict[str, Any],
    retry: Retry | None,
    max_in_flight: int,
    lease: Duration,
    timeout: Duration | None,
) -> Broadcast | Durable:
    topics = compile_pattern(pattern)
    wait = None if timeout is None else seconds(timeout, "timeout")
    check_whole(max_in_flight, "max_in_flight", 1, MOST_IN_FLIGHT)
    length = seconds(lease, "lease", zero=False)
    if length < SHORTEST:
        raise InvalidArgument(f"lease={lease!r} must be at least {SHORTEST:g} s: a slow commit would lose it")
    if retry is not None and not isinstance(retry, Retry):
        raise InvalidArgument(f'retry={retry!r} must be a Retry, for example Retry(first="5s")')
    if name is None:
        if start is not None or retry is not None or any(value is not None for value in settings.values()):
            raise InvalidArgument(
                "a broadcast begins now and keeps nothing: give a name= to make the subscription durable"
            )
        return Broadcast(topics, wait, outlook)
    check_name(name, "name")
    return Durable(
        pattern, name, check_place("latest" if start is None else start, "start"), check_settings(**settings), outlook,
        retry=retry or Retry(), max_in_flight=max_in_flight, lease=length, timeout=wait,
    )  # fmt: skip


class _Looking:
    subscriptions = op(manage.subscriptions)
    lag = op(manage.lag)


class _Anywhere(_Looking):
    """What makes sense on connections of our own."""

    publish = extending(publish)
    seek = op(manage.seek)
    pause = op(manage.pause)
    resume = op(manage.resume)
    delete = op(manage.delete)


class PubSub(Module, _Anywhere):
    """Pub/sub, blocking."""

    def __init__(self, target: Target | Database = None, *, schema: str = "pgeverything") -> None:
        super().__init__(target, schema=schema)
        self._outlook = Outlook()

    def subscribe(
        self,
        pattern: str = ">",
        *,
        name: str | None = None,
        start: Start | None = None,
        ordered: bool | None = None,
        max_deliveries: int | None = None,
        on_dead: OnDead | None = None,
        retry: Retry | None = None,
        max_in_flight: int = 1000,
        lease: Duration = "30s",
        timeout: Duration | None = None,
    ) -> Subscriber:
        """Subscribe to topics: `for message in pg.pubsub.subscribe("orders.>"): ...`.

        Without a `name` it is a broadcast: every subscriber sees every event that is published from now on, in the
        order of positions, as long as it is open, however often its connection breaks. Its cursor is in memory.

        With a `name` it is a member of a durable subscription, which all members of that name share, in any number of
        processes. Each message is delivered to one of them, and again until one acknowledges it: `message.ack()`. A
        subscription stays until it is deleted, and keeps its place while nobody is there.

        Args:
            pattern: a topic, or a pattern: `*` is one token, `>` the rest.
            name: of the durable subscription, at most 200 bytes. It is created when there is none.
            start: where it begins when it is created: "latest" (the default), everything that is committed from now on;
                "earliest", everything that is kept; a position, after which it begins; or a datetime with a time zone.
            ordered: whether events of one topic and key are delivered one after the other: none while an earlier one of
                its key is with another member, or waits to be delivered again. By default True.
            max_deliveries: after how many failed deliveries a message is dead, by default 5.
            on_dead: what becomes of a dead message's followers: "skip" (the default) goes on, "hold" holds those of its
                key back until it is redriven or discarded, "stop" stops the subscription until `resume`.
            retry: how long `nack()` waits; by default from a second up to an hour, with jitter.
            max_in_flight: how many messages this member holds unacknowledged at most; then the iterator waits.
            lease: how long after its last heartbeat the others take this member's messages, at least 2 s. Heartbeats
                are sent in the background, however long you work on a message.
            timeout: end the iteration when nothing came for so long; by default never.

        `ordered`, `max_deliveries` and `on_dead` are the subscription's: what is given here is set for all its members.

        Returns:
            An iterator of messages and a context manager. The start is fixed when this returns.

        Raises:
            InvalidArgument: an argument is refused, before any SQL.
            SubscriptionError: there is a subscription of that name with another pattern.
            RetentionGap: on iterating, when retention has dropped events that were not delivered.
        """
        settings = {"ordered": ordered, "max_deliveries": max_deliveries, "on_dead": on_dead}
        source = _source(self._outlook, pattern, name, start, settings, retry, max_in_flight, lease, timeout)
        subscriber = Subscriber(self._carrier, source)
        self._database.users.add(subscriber.open)
        return subscriber


class AsyncPubSub(AsyncModule, _Anywhere):
    """Pub/sub, awaited."""

    def __init__(self, target: AsyncTarget | AsyncDatabase = None, *, schema: str = "pgeverything") -> None:
        super().__init__(target, schema=schema)
        self._outlook = Outlook()

    def subscribe(
        self,
        pattern: str = ">",
        *,
        name: str | None = None,
        start: Start | None = None,
        ordered: bool | None = None,
        max_deliveries: int | None = None,
        on_dead: OnDead | None = None,
        retry: Retry | None = None,
        max_in_flight: int = 1000,
        lease: Duration = "30s",
        timeout: Duration | None = None,
    ) -> AsyncSubscriber:
        """Subscribe to topics: `async for message in pg.pubsub.subscribe("orders.>"): await message.ack()`.

        See :meth:`PubSub.subscribe`. The start is fixed on entering `async with pg.pubsub.subscribe(...) as messages`,
        or else when the iteration begins.
        """
        settings = {"ordered": ordered, "max_deliveries": max_deliveries, "on_dead": on_dead}
        source = _source(self._outlook, pattern, name, start, settings, retry, max_in_flight, lease, timeout)
        subscriber = AsyncSubscriber(self._carrier, source)
        self._database.users.add(subscriber.open)
        return subscriber


class _InTransaction(_Looking):
    publish = op(publish)
    ack = op(ack)
    seek = op(manage.seek)


class _Refusing:
    """What must not be done inside a transaction: it would hold the subscription until its end."""

    def subscribe(self, *_args: object, **_options: object) -> None:
        """Raise: subscribe on connections of our own, and `ack` inside the transaction."""
        raise SubscriptionError(
            "a transaction cannot subscribe: call pg.pubsub.subscribe() outside, and tx.pubsub.ack(message) inside"
        )


class BoundPubSub(Sync, _InTransaction, _Refusing):
    """Pub/sub inside the caller's transaction, blocking."""


class AsyncBoundPubSub(Async, _InTransaction, _Refusing):
    """Pub/sub inside the caller's transaction, awaited."""
