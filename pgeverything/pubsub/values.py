"""What a message is, and what is known of a subscription."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

from ..durations import Duration
from ..errors import InvalidArgument
from ..events.values import Event
from ..jobs.values import MOST_BIGINT, check_whole

OnDead: TypeAlias = Literal["skip", "hold", "stop"]
ON_DEAD = ("skip", "hold", "stop")
MOST_DELIVERIES = 1_000_000

Start: TypeAlias = "Literal['latest', 'earliest'] | int | datetime"


class Held:
    """A delivery in the hands of a member. Plain and slotted: one for every message.

    `settled` when it was acknowledged or put back; `lost` when it is not ours any more. `hand` is what holds it, by
    position. `tried` when it was acknowledged in a transaction that may not have been committed; `ends_itself` when the
    transaction of its handler acknowledges it.
    """

    __slots__ = (
        "delivery", "ends_itself", "event", "hand", "lane", "lost", "position", "settled", "subscription", "token",
        "tried",
    )  # fmt: skip

    def __init__(
        self, subscription: int, position: int, token: int, lane: int | None, delivery: int, event: Event
    ) -> None:
        self.subscription, self.position, self.token, self.lane = subscription, position, token, lane
        self.delivery, self.event = delivery, event
        self.settled = self.lost = self.tried = self.ends_itself = False
        self.hand: dict[int, Held] = {}

    def follows(self, other: Held) -> bool:
        """Whether it comes after another one in its lane."""
        same = self.subscription == other.subscription and self.lane is not None and self.lane == other.lane
        return same and self.position > other.position

    def let_go(self) -> None:
        """Hold it no longer."""
        if self.hand.get(self.position) is self:
            del self.hand[self.position]


@dataclass(frozen=True, slots=True)
class Message(Event):
    """An event as a subscription delivers it.

    `delivery` counts how often it has been handed out, from 1.
    """

    delivery: int
    _held: Held | None = field(repr=False, compare=False)
    _settle: Callable[[bool, Duration | None], None] = field(repr=False, compare=False)

    def ack(self) -> None:
        """Say that it is done: it is never delivered again to this subscription. It is on disk when this returns.

        In a handler of a worker it is done when the handler returns; a broadcast has nothing to be done with.

        Raises:
            MessageLost: this member does not hold the message any more, so somebody else may have it by now.
        """
        self._settle(True, None)

    def nack(self, delay: Duration | None = None) -> None:
        """Say that it failed: it is delivered again after `delay`, or is dead when it has failed too often.

        Args:
            delay: how long from now; by default a second at first, and longer with each failure.

        Raises:
            MessageLost: this member does not hold the message any more.
        """
        self._settle(False, delay)


@dataclass(frozen=True, slots=True)
class AsyncMessage(Event):
    """The same for asyncio."""

    delivery: int
    _held: Held | None = field(repr=False, compare=False)
    _settle: Callable[[bool, Duration | None], Awaitable[None]] = field(repr=False, compare=False)

    async def ack(self) -> None:
        """Say that it is done; see :meth:`Message.ack`."""
        await self._settle(True, None)

    async def nack(self, delay: Duration | None = None) -> None:
        """Say that it failed; see :meth:`Message.nack`."""
        await self._settle(False, delay)


@dataclass(frozen=True, slots=True)
class Subscription:
    """A durable subscription, as it is in the database.

    Every event at or below `position` is done, or is one of these: `in_flight` are in the hands of members, `retrying`
    wait for the time of their next delivery, `waiting` are behind an earlier event of their key, `dead` have failed for
    good. `stopped` says why `on_dead="stop"` has stopped it. `gap` is whether retention has dropped events that it has
    not delivered: it stands still until somebody seeks.
    """

    name: str
    pattern: str
    position: int
    ordered: bool
    max_deliveries: int
    on_dead: OnDead
    paused: bool
    stopped: str | None
    created_at: datetime
    in_flight: int
    retrying: int
    waiting: int
    dead: int
    members: int
    gap: bool


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a subscription is behind.

    `events` are published and not done, dead ones not counted; `seconds` is the age of the oldest of them, 0.0 without
    any. An event that was published by a transaction that is still open is not counted yet.
    """

    events: int
    seconds: float


def check_settings(ordered: bool | None, max_deliveries: int | None, on_dead: str | None) -> dict[str, Any]:
    """Return the settings of a subscription as parameters; None leaves one as it is."""
    if ordered is not None and not isinstance(ordered, bool):
        raise InvalidArgument(f"ordered={ordered!r} must be True or False")
    if max_deliveries is not None:
        check_whole(max_deliveries, "max_deliveries", 1, MOST_DELIVERIES)
    if on_dead is not None and on_dead not in ON_DEAD:
        raise InvalidArgument(f'on_dead={on_dead!r} must be "skip", "hold" or "stop"')
    if on_dead == "hold" and ordered is False:
        raise InvalidArgument('on_dead="hold" holds what comes after a dead message of its key: it needs ordered=True')
    return {"ordered": ordered, "max_deliveries": max_deliveries, "on_dead": on_dead}


def check_place(value: object, name: str) -> dict[str, Any]:
    """Return where to begin as parameters: "latest", "earliest", a position to go on after, or a time."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InvalidArgument(f"{name} must be a datetime with a time zone, for example datetime.now(UTC)")
        return {"start": None, "at": value}
    if isinstance(value, str) and value in ("latest", "earliest"):
        return {"start": value, "at": None}
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(f'{name}={value!r} must be "latest", "earliest", a position or a datetime')
    check_whole(value, name, 0, MOST_BIGINT)
    return {"start": str(value), "at": None}
