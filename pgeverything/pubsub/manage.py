"""Subscriptions: create, look at, pause, resume, seek, delete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..engine.plan import Plan, Query, Rows, one, same
from ..engine.refusals import lock_not_available
from ..engine.statements import statements
from ..errors import SubscriptionError, SubscriptionNotFound
from ..events.patterns import compile_pattern
from ..events.read import horizon
from ..jobs.values import check_name
from .values import Lag, Start, Subscription, check_place

SQL = statements("pubsub")

_NO_START: dict[str, Any] = {"start": None, "at": None}


@dataclass(frozen=True, slots=True)
class Known:
    """A subscription as its members know it."""

    id: int
    name: str


def create(name: str, pattern: str, start: dict[str, Any], settings: dict[str, Any]) -> Plan[Known]:
    """Create a subscription, or find it and bring its settings in line with those that are given.

    Raises:
        SubscriptionError: there is one of that name with another pattern, or it would hold back and have no order.
    """
    while (known := (yield from find(name, pattern, settings, start))) is None:
        pass  # it was deleted at the same moment
    return known


def find(name: str, pattern: str, settings: dict[str, Any], start: dict[str, Any] | None = None) -> Plan[Known | None]:
    """Find a subscription and bring its settings in line, as `create` does; None when there is none of that name.

    Raises:
        SubscriptionError: as for `create`.
    """
    topics = compile_pattern(pattern)
    params = topics.params() | (start or _NO_START) | settings | {"name": name, "pattern": topics.pattern}
    rows = yield from Query(SQL["create"], params, same)
    if not rows:
        return None
    id_, there, ordered, on_dead = rows[0]
    if there != topics.pattern:
        raise SubscriptionError(
            f"subscription {name!r} is for {there!r}, not for {topics.pattern!r}: choose another name, or delete it "
            "first"
        )
    if (settings["on_dead"] == "hold" and not ordered) or (settings["ordered"] is False and on_dead == "hold"):
        raise SubscriptionError(
            f'on_dead="hold" needs ordered=True, and subscription {name!r} has ordered={ordered}, on_dead={on_dead!r}: '
            "give both"
        )
    return Known(id_, name)


def subscriptions() -> Plan[list[Subscription]]:
    """Return all durable subscriptions, by name."""
    return [each for _, each in (yield from Query(SQL["list"], {"name": None}, _read))]


def lag(name: str) -> Plan[Lag]:
    """Return how far a subscription is behind: in events, and in seconds.

    It counts the events above the subscription's cursor, so it takes the longer the further behind it is.

    Raises:
        SubscriptionNotFound: there is none of that name.
    """
    check_name(name, "name")
    found = yield from Query(SQL["list"], {"name": name}, _read)
    if not found:
        raise _not_found(name)
    id_, subscription = found[0]
    upto = yield from horizon(subscription.position)
    events, seconds = (yield from Query(SQL["backlog"], {"subscription": id_, "upto": upto}, same))[0]
    events += subscription.in_flight + subscription.retrying + subscription.waiting
    return Lag(events, max(seconds or 0.0, 0.0))


def seek(name: str, to: Start) -> Plan[int]:
    """Move a subscription: backwards to have events delivered again, forwards to skip some.

    What members hold of it is not theirs any more: their acknowledgements are refused. Retries are forgotten, so are
    dead letters that will be delivered again; nothing is held up any more.

    Args:
        name: the subscription.
        to: "earliest", "latest", a position, after which it goes on, or a datetime, from which on it does.

    Returns:
        The position after which it goes on.

    Raises:
        SubscriptionNotFound: there is none of that name.
        SubscriptionError: a transaction that has acknowledged a message was still open after ten seconds.
        UnsafeRead: in a transaction that is REPEATABLE READ or SERIALIZABLE, for anything but a position or "earliest".
    """
    check_name(name, "name")
    position = yield from _alone(Query(SQL["seek"], check_place(to, "to") | {"name": name}, one), name)
    if position is None:
        raise _not_found(name)
    return int(position)


def pause(name: str) -> Plan[None]:
    """Deliver nothing more of a subscription until it is resumed; what is in flight may be acknowledged.

    Raises:
        SubscriptionNotFound: there is none of that name.
    """
    check_name(name, "name")
    if not (yield from Query(SQL["pause"], {"name": name}, same)):
        raise _not_found(name)


def resume(name: str) -> Plan[None]:
    """Let a subscription go on that was paused, or that `on_dead="stop"` has stopped.

    A dead message that it stopped at stays among the dead letters, and no longer holds anything up: redrive it before
    this to keep the order of its key.

    Raises:
        SubscriptionNotFound: there is none of that name.
    """
    check_name(name, "name")
    if not (yield from Query(SQL["resume"], {"name": name}, one)):
        raise _not_found(name)


def delete(name: str) -> Plan[bool]:
    """Delete a subscription with its dead letters; returns whether there was one. The log keeps its events."""
    check_name(name, "name")
    return bool((yield from _alone(Query(SQL["delete"], {"name": name}, one), name)))


def _alone(query: Query[Any], name: str) -> Plan[Any]:
    """Run a statement that waits for whoever holds the subscription or a message of it, but not for ever."""
    try:
        return (yield from query)
    except Exception as error:
        if not lock_not_available(error):
            raise
        raise SubscriptionError(
            f"a transaction that has acknowledged a message of subscription {name!r} stays open: end it and try again"
        ) from error


def _read(rows: Rows) -> list[tuple[int, Subscription]]:
    return [
        (
            id_,
            Subscription(
                name=name, pattern=pattern, position=claimed, ordered=ordered, max_deliveries=most, on_dead=on_dead,
                paused=paused, stopped=stopped, created_at=created_at, in_flight=in_flight, retrying=retrying,
                waiting=waiting, dead=dead, members=members, gap=gap,
            ),
        )
        for id_, name, pattern, claimed, ordered, most, on_dead, paused, stopped, created_at, in_flight, retrying,
            waiting, dead, members, gap in rows
    ]  # fmt: skip


def _not_found(name: str) -> SubscriptionNotFound:
    return SubscriptionNotFound(f"there is no subscription {name!r}")
