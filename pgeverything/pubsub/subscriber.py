"""An open subscription: an iterator of messages, which is also a context manager."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import logging
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Self, TypeVar

from ..durations import Duration
from ..engine.plan import AsyncCarrier, Carrier, Plan, adrive_on, drive_on
from ..events.values import Event
from .sources import Broadcast, Durable
from .values import AsyncMessage, Held, Message

log = logging.getLogger("pgeverything.pubsub")

T = TypeVar("T")

_LOOK = 0.5  # seconds between looks whether somebody still holds an async subscriber
_LAST = 2.0  # seconds to give back what is held when the program or the event loop ends


def fields(
    event: Event,
) -> tuple[int, str, str | None, int | None, str, Any, Mapping[str, str], datetime]:
    """Return the fields of an event, for a message."""
    return (
        event.position, event.topic, event.key, event.version, event.type, event.data, event.headers, event.recorded_at,
    )  # fmt: skip


class Open:
    """Lives while a subscriber or a message that is not settled does: so long its member is one."""

    def __init__(self) -> None:
        self.close: Callable[[], Any] = lambda: None


class _Background(threading.Thread):
    """Renews the lease of a member, and gives back what it holds when nobody wants it any more.

    What is dropped only says so here: a destructor may run anywhere, also where the pool's lock is held.
    """

    def __init__(self, carrier: Callable[[], Carrier], source: Durable) -> None:
        super().__init__(name="pgeverything member", daemon=True)
        self._carrier, self._source = carrier, source
        self._changed = threading.Event()
        self._dropped = self._over = False

    def drop(self) -> None:
        """Nobody iterates any more."""
        self._dropped = True
        self._changed.set()

    def end(self) -> None:
        """Nobody holds a message any more either."""
        self._over = True
        self._changed.set()

    def close(self) -> None:
        """End, and wait until what was held is put back."""
        self.end()
        self.join()

    def run(self) -> None:
        """Renew the lease until ended."""
        member = self._source.member
        assert member is not None  # noqa: S101
        rest = member.next_beat
        while not self._over:
            if self._changed.wait(rest):
                self._changed.clear()
                if self._dropped and not self._over:
                    self._dropped = False
                    self._try(self._source.put_back_ahead())
                continue
            beaten = self._try(self._source.beat())
            rest = member.next_beat if beaten is not None else min(1.0, member.heartbeat)
            if beaten is False:
                log.error("member %s was declared dead: letting go of its messages", member.id)
                self._source.lose()
        self._try(self._source.end())

    def _try(self, plan: Plan[T]) -> T | None:
        try:
            return drive_on(self._carrier, plan)
        except Exception as error:
            log.warning("could not reach the database for a member: %s", error)
            return None


_backgrounds: weakref.WeakSet[_Background] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Give back what is held when the program ends."""
    for background in list(_backgrounds):
        background.end()
    for background in list(_backgrounds):
        background.join(_LAST)


class Subscriber:
    """Messages, one after the other, as long as it is open: `for message in subscriber`.

    Iterate it in one thread; messages may be acknowledged in any. Close it, or use it as a context manager, to put back
    what was taken and not acknowledged. One that is dropped puts back what it has not handed out, and is closed when
    the messages that it has are settled or dropped too.
    """

    def __init__(self, carrier: Callable[[], Carrier], source: Broadcast | Durable) -> None:
        self._carrier, self._source = carrier, source
        self._events: deque[Event] = deque()
        drive_on(carrier, source.begin())
        self.open = Open()
        if isinstance(source, Durable):
            background = _Background(carrier, source)
            _backgrounds.add(background)
            weakref.finalize(self, background.drop).atexit = False
            weakref.finalize(self.open, background.end).atexit = False
            self.open.close = functools.partial(_close, source, background.close)
            background.start()
        else:
            self.open.close = functools.partial(_close, source, lambda: drive_on(carrier, source.end()))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        source = self._source
        if source.closed:
            raise StopIteration
        if isinstance(source, Durable):
            while (held := source.next()) is None:
                if not drive_on(self._carrier, source.more()):
                    raise StopIteration
            return Message(*fields(held.event), held.delivery, held, _settler(self._carrier, source, held, self.open))
        if not self._events:
            self._events.extend(drive_on(self._carrier, source.more()))
            if not self._events:
                raise StopIteration
        return Message(*fields(self._events.popleft()), 1, None, source.settle)

    def close(self) -> None:
        """Put back what was taken and not acknowledged, and end the iteration."""
        self.open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _close(source: Broadcast | Durable, end: Callable[[], object]) -> None:
    if not source.closed:
        source.close()
        with contextlib.suppress(Exception):  # a member that cannot say so is missed after its lease
            end()


def _settler(
    carrier: Callable[[], Carrier], source: Durable, held: Held, opened: Open
) -> Callable[[bool, Duration | None], None]:
    keeping = [opened]

    def settle(done: bool, delay: Duration | None) -> None:
        drive_on(carrier, source.settle(held, done, delay))
        keeping.clear()

    return settle


class AsyncSubscriber:
    """The same for asyncio: `async for message in subscriber`.

    It begins with the first iteration, or on entering `async with`.
    """

    def __init__(self, carrier: Callable[[], Awaitable[AsyncCarrier]], source: Broadcast | Durable) -> None:
        self._carrier, self._source = carrier, source
        self._events: deque[Event] = deque()
        self.open = Open()
        self.open.close = functools.partial(_aend, carrier, source)
        self._begun = False

    async def _begin(self) -> None:
        if not self._begun:
            await adrive_on(self._carrier, self._source.begin())
            self._begun = True
            if isinstance(self._source, Durable):
                lives = weakref.ref(self), weakref.ref(self.open)
                self._source.beating = asyncio.create_task(_abeat(*lives, self._carrier, self._source))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AsyncMessage:
        source = self._source
        if source.closed:
            raise StopAsyncIteration
        await self._begin()
        if isinstance(source, Durable):
            while (held := source.next()) is None:
                if not await adrive_on(self._carrier, source.more()):
                    raise StopAsyncIteration
            settle = _async_settler(self._carrier, source, held, self.open)
            return AsyncMessage(*fields(held.event), held.delivery, held, settle)
        if not self._events:
            self._events.extend(await adrive_on(self._carrier, source.more()))
            if not self._events:
                raise StopAsyncIteration
        return AsyncMessage(*fields(self._events.popleft()), 1, None, _async_refuser(source))

    async def close(self) -> None:
        """Close it: put back what was taken and not acknowledged."""
        await self.open.close()

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


def _async_settler(
    carrier: Callable[[], Awaitable[AsyncCarrier]], source: Durable, held: Held, opened: Open
) -> Callable[[bool, Duration | None], Awaitable[None]]:
    keeping = [opened]

    async def settle(done: bool, delay: Duration | None) -> None:
        await adrive_on(carrier, source.settle(held, done, delay))
        keeping.clear()

    return settle


def _async_refuser(source: Broadcast) -> Callable[[bool, Duration | None], Awaitable[None]]:
    async def settle(done: bool, delay: Duration | None) -> None:
        source.settle(done, delay)

    return settle


async def _aend(carrier: Callable[[], Awaitable[AsyncCarrier]], source: Broadcast | Durable) -> None:
    if not source.closed:
        source.close()
        if isinstance(source, Durable) and source.beating is not None:
            source.beating.cancel()
        with contextlib.suppress(Exception):
            await adrive_on(carrier, source.end())


async def _abeat(
    subscriber: weakref.ref[AsyncSubscriber],
    opened: weakref.ref[Open],
    carrier: Callable[[], Awaitable[AsyncCarrier]],
    source: Durable,
) -> None:
    """Renew the lease until nobody holds the subscriber or a message of it any more, or the loop ends; leave then."""
    try:
        await _abeat_while_held(subscriber, opened, carrier, source)
    finally:
        if not source.closed:
            source.beating = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST):
                    await _aend(carrier, source)


async def _abeat_while_held(
    subscriber: weakref.ref[AsyncSubscriber],
    opened: weakref.ref[Open],
    carrier: Callable[[], Awaitable[AsyncCarrier]],
    source: Durable,
) -> None:
    member = source.member
    assert member is not None  # noqa: S101
    due, dropped = member.next_beat, False
    while opened() is not None:
        rest = min(due, _LOOK)
        await asyncio.sleep(rest)
        due -= rest
        try:
            if not dropped and subscriber() is None:
                dropped = True
                await adrive_on(carrier, source.put_back_ahead())
            if due > 0:
                continue
            beaten = await adrive_on(carrier, source.beat())
            due = member.next_beat
            if not beaten:
                log.error("member %s was declared dead: letting go of its messages", member.id)
                source.lose()
        except Exception as error:
            log.warning("could not send a heartbeat: %s", error)
            due = min(1.0, member.heartbeat)
