"""The lazy reader: events in batches, until the log's end as it was when the reading began."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..engine.plan import Async, Plan, Query, Sync, adrive_on, drive_on, same, whole
from ..engine.statements import statements
from ..errors import InvalidArgument
from ..jobs.values import MOST_BIGINT, check_name, check_whole
from .patterns import Topics, compile_pattern
from .read import check_kept, horizon, position_at, rows
from .values import Event, read_events

SQL = statements("events")

_FIRST_BATCH = 100
_MOST_BATCH = 2000
_BATCH_CHARACTERS = 4_000_000


@dataclass(slots=True)
class Reader:
    """One reading of the log. `more()` returns the next events; none is the end."""

    topics: Topics
    key: str | None
    type: str | None
    after: int | datetime
    until: int | datetime | None
    left: int
    include_own: bool
    _size: int = _FIRST_BATCH
    _position: int = -1  # -1: the reading has not begun
    _end: int = 0
    _own: bool = False

    def more(self) -> Plan[list[Event]]:
        """Return the next events; an empty list is the end.

        Raises:
            RetentionGap: events of the range have been dropped.
            UnsafeRead: this transaction is REPEATABLE READ or SERIALIZABLE, or the server is a standby.
        """
        if self._position < 0:
            yield from self._begin()
        while self.left > 0 and self._position < self._end:
            limit = min(self._size, self.left)
            found = yield from rows(
                self.topics, after=self._position, upto=self._end, limit=limit, key=self.key, type_=self.type
            )
            self._position = found[-1][0] if len(found) == limit else self._end
            if events := self._taken(found):
                return events
        if self.include_own and not self._own and self.left > 0:
            self._own = True
            params = self.topics.params() | {"key": self.key, "type": self.type, "limit": min(self.left, 2**31 - 1)}
            last = MOST_BIGINT if self.until is None or isinstance(self.until, datetime) else self.until
            found = list((yield from Query(SQL["own"], params | {"after": self._position, "upto": last}, same)))
            return self._taken(found)
        return []

    def _begin(self) -> Plan[None]:
        start = self.after
        if isinstance(start, datetime):
            start = (yield from position_at(start))[0]  # not below what is kept
        elif start == 0:
            start = yield from Query(SQL["dropped"], {}, whole)
        else:
            yield from check_kept(start)
        self._position = start
        self._end = yield from horizon(start, own=self.include_own)
        if isinstance(self.until, datetime):
            _, last = yield from position_at(self.until)
            self._end = min(self._end, last)
        elif self.until is not None:
            self._end = min(self._end, self.until)

    def _taken(self, found: list[tuple[Any, ...]]) -> list[Event]:
        """Make events of rows, and learn from their size how many to ask for next."""
        if found:
            average = sum(len(row[5]) for row in found) // len(found) + 1
            self._size = max(1, min(_MOST_BATCH, self._size * 4, _BATCH_CHARACTERS // average))
        events = read_events(found)
        if isinstance(self.after, datetime):
            events = [event for event in events if event.recorded_at > self.after]
        if isinstance(self.until, datetime):
            events = [event for event in events if event.recorded_at <= self.until]
        events = events[: self.left]
        self.left -= len(events)
        return events


def reader(
    topic: str | None,
    key: str | None,
    type_: str | None,
    after: int | datetime,
    until: int | datetime | None,
    limit: int | None,
    include_own: bool,
) -> Reader:
    """Return a reader.

    Raises:
        InvalidArgument: an argument is refused.
    """
    topics = compile_pattern(topic)
    for name, value in (("key", key), ("type", type_)):
        if value is not None:
            check_name(value, name, 1024)
    for name, bound in (("after", after), ("until", until)):
        if isinstance(bound, datetime):
            if bound.tzinfo is None:
                raise InvalidArgument(f"{name} must be a datetime with a time zone, for example datetime.now(UTC)")
        elif bound is not None or name == "after":
            check_whole(bound, name, 0, MOST_BIGINT)
    if limit is not None:
        check_whole(limit, "limit", 1, MOST_BIGINT)
    return Reader(topics, key, type_, after, until, MOST_BIGINT if limit is None else limit, include_own)


class Reads(Sync):
    """Reading, blocking."""

    def read(
        self,
        topic: str | None = None,
        *,
        key: str | None = None,
        type: str | None = None,  # noqa: A002 - the public name of the thing
        after: int | datetime = 0,
        until: int | datetime | None = None,
        limit: int | None = None,
        include_own: bool = False,
    ) -> Iterator[Event]:
        """Read events in order, lazily, up to the end of the log as it is when the reading begins.

        Nothing is ever added at or below a position that a reading has passed, so the position of the last event is
        where the next reading goes on. Events of a publisher that has not committed, and what was published since, come
        with a later reading.

        Args:
            topic: a topic, or a pattern: `*` is one token, `>` the rest; by default every topic.
            key: only events of this key.
            type: only events of this type.
            after: a position, and only events above it are read; 0 begins with the oldest that is kept. Or a datetime
                with a time zone, and only events recorded later are read.
            until: a position or datetime, and only events up to it are read.
            limit: at most so many.
            include_own: inside a transaction, also what this transaction has appended and not committed yet. Some of it
                comes after events that are still to be added below it, so do not store its positions to go on from.

        Returns:
            An iterator, which reads a batch when it needs one. On a transaction's facade it reads in that transaction.

        Raises:
            InvalidArgument: an argument is refused, at the call.
            RetentionGap: events above `after` have been dropped.
            UnsafeRead: the transaction is REPEATABLE READ or SERIALIZABLE, or the server is a standby.
        """
        return self._read(reader(topic, key, type, after, until, limit, include_own))

    def _read(self, reading: Reader) -> Iterator[Event]:
        while events := drive_on(self._carrier, reading.more()):
            yield from events


class AsyncReads(Async):
    """Reading, awaited."""

    def read(
        self,
        topic: str | None = None,
        *,
        key: str | None = None,
        type: str | None = None,  # noqa: A002
        after: int | datetime = 0,
        until: int | datetime | None = None,
        limit: int | None = None,
        include_own: bool = False,
    ) -> AsyncIterator[Event]:
        """Read events in order, lazily, as the blocking `read` does: `async for event in pg.events.read(...)`."""
        return self._read(reader(topic, key, type, after, until, limit, include_own))

    async def _read(self, reading: Reader) -> AsyncIterator[Event]:
        while events := await adrive_on(self._carrier, reading.more()):
            for event in events:
                yield event
