"""When a schedule ticks: instants in UTC, from cron expressions in a time zone, intervals, and single times.

Every kind answers three questions: the next tick after an instant, the last one until an instant, and how many there
are between two. The third is arithmetic, so that a year of missed every-second ticks is counted in milliseconds.

Clock changes follow the manual page of Debian's cron: an entry with a fixed hour and minute runs once for each time its
clock names, at the first instant after a gap that swallowed it and at the first of two when it comes twice; an entry
whose hour or minute begins with `*` follows real time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from .cron import Cron
from .zones import Stretch, Zone

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_LATEST = 9990  # the year after which nothing is looked for
_EARLIEST = 1900


class Recurrence(Protocol):
    """A sequence of instants."""

    def next(self, after: datetime) -> datetime | None:
        """Return the first tick after an instant."""
        ...

    def previous(self, until: datetime) -> datetime | None:
        """Return the last tick that is not after an instant."""
        ...

    def count(self, after: datetime, until: datetime) -> int:
        """Return how many ticks are after one instant and not after the other."""
        ...


@dataclass(frozen=True, slots=True)
class Zoned:
    """The times of a cron expression on the clock of a zone."""

    cron: Cron
    zone: Zone

    def next(self, after: datetime) -> datetime | None:
        """Return the first tick after an instant."""
        after = after.astimezone(UTC)
        for stretch in self._stretches_from(after):
            start = self._first_of(stretch)
            if stretch.start <= after:
                start = max(start, _next_second(stretch.local(after)))
            local = self.cron.first(start)
            if local is None:
                return None
            if local < stretch.local(stretch.end):
                return max(stretch.instant(local), stretch.start)
        return None

    def previous(self, until: datetime) -> datetime | None:
        """Return the last tick that is not after an instant."""
        until = until.astimezone(UTC)
        for stretch in self._stretches_until(until):
            end = stretch.local(stretch.end)
            if until < stretch.end:
                end = min(end, _next_second(stretch.local(until)))
            local = self.cron.last(end)
            if local is None:
                return None
            if local >= self._first_of(stretch):
                return max(stretch.instant(local), stretch.start)
        return None

    def count(self, after: datetime, until: datetime) -> int:
        """Return how many ticks are after one instant and not after the other."""
        after, until, total = after.astimezone(UTC), until.astimezone(UTC), 0
        for stretch in self._stretches_from(after):
            if stretch.start > until:
                break
            start, end, real = self._first_of(stretch), stretch.local(stretch.end), stretch.local(stretch.start)
            if stretch.start <= after:
                start = max(start, _next_second(stretch.local(after)))
            if until < stretch.end:
                end = min(end, _next_second(stretch.local(until)))
            if start < real:  # all that the gap swallowed is one tick, and the same as one at its end
                total += self.cron.count(start, real) > 0 and self.cron.first(real) != real
                start = real
            total += self.cron.count(start, end)
        return total

    def _first_of(self, stretch: Stretch) -> datetime:
        """Return the first local time that belongs to a stretch.

        A fixed time that a gap swallowed belongs to what comes after it, and one that comes twice to its first time. A
        wildcard belongs wherever the clock shows its time.
        """
        return stretch.local(stretch.start) if self.cron.wild else stretch.follows

    def _stretches_from(self, instant: datetime) -> Iterator[Stretch]:
        for year in range(instant.year, _LATEST):
            yield from (stretch for stretch in self.zone.year(year) if stretch.end > instant)

    def _stretches_until(self, instant: datetime) -> Iterator[Stretch]:
        for year in range(instant.year, _EARLIEST, -1):
            yield from (stretch for stretch in reversed(self.zone.year(year)) if stretch.start <= instant)


@dataclass(frozen=True, slots=True)
class Every:
    """An interval of real time, counted from an anchor, so that it never drifts."""

    interval: timedelta
    anchor: datetime

    def next(self, after: datetime) -> datetime | None:
        """Return the first tick after an instant."""
        return self._tick((after - self.anchor) // self.interval + 1)

    def previous(self, until: datetime) -> datetime | None:
        """Return the last tick that is not after an instant."""
        return self._tick((until - self.anchor) // self.interval)

    def count(self, after: datetime, until: datetime) -> int:
        """Return how many ticks are after one instant and not after the other."""
        return max((until - self.anchor) // self.interval - (after - self.anchor) // self.interval, 0)

    def _tick(self, number: int) -> datetime | None:
        try:
            tick = self.anchor + number * self.interval
        except OverflowError:
            return None
        return tick if tick.year < _LATEST else None


@dataclass(frozen=True, slots=True)
class Once:
    """A single time."""

    at: datetime

    def next(self, after: datetime) -> datetime | None:
        """Return the tick if it is after an instant."""
        return self.at if self.at > after else None

    def previous(self, until: datetime) -> datetime | None:
        """Return the tick if it is not after an instant."""
        return self.at if self.at <= until else None

    def count(self, after: datetime, until: datetime) -> int:
        """Return 1 if the tick is after one instant and not after the other, else 0."""
        return int(after < self.at <= until)


@dataclass(frozen=True, slots=True)
class Within:
    """The ticks of a recurrence from a first to a last instant, both included."""

    recurrence: Recurrence
    start: datetime | None
    end: datetime | None

    def next(self, after: datetime) -> datetime | None:
        """Return the first tick after an instant."""
        tick = self.recurrence.next(self._from(after))
        return tick if tick is not None and (self.end is None or tick <= self.end) else None

    def previous(self, until: datetime) -> datetime | None:
        """Return the last tick that is not after an instant."""
        tick = self.recurrence.previous(self._until(until))
        return tick if tick is not None and (self.start is None or tick >= self.start) else None

    def count(self, after: datetime, until: datetime) -> int:
        """Return how many ticks are after one instant and not after the other."""
        return self.recurrence.count(self._from(after), self._until(until))

    def _from(self, after: datetime) -> datetime:
        return after if self.start is None else max(after, self.start - timedelta.resolution)

    def _until(self, until: datetime) -> datetime:
        return until if self.end is None else min(until, self.end)


def _next_second(at: datetime) -> datetime:
    return at.replace(microsecond=0) + _SECOND
