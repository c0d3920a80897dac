"""Time zones: the stretches of time between two changes of a zone's clock, and which rules this machine has of it."""

from __future__ import annotations

import difflib
import hashlib
import io
import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo, ZoneInfoNotFoundError, available_timezones

from ..errors import InvalidArgument

_STEP = timedelta(hours=6)  # no zone has ever changed its clock twice within so short a time
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time in which a zone's clock runs on without a change.

    `start` and `end` are instants in UTC, `offset` is what local time is ahead by. `follows` is the local time that the
    clock showed, or would have shown, at the start without a change: earlier than the local time of the start where
    clocks went forward, later where they went back, equal where nothing changed (at the turn of a year).
    """

    start: datetime
    end: datetime
    offset: timedelta
    follows: datetime

    def local(self, instant: datetime) -> datetime:
        """Return what the clock shows, without a zone."""
        return instant.replace(tzinfo=None) + self.offset

    def instant(self, local: datetime) -> datetime:
        """Return when the clock shows it."""
        return (local - self.offset).replace(tzinfo=UTC)


class Zone:
    """A time zone by its IANA name. Made by :func:`zone`.

    Attributes:
        name: the name.
        info: for Python's own conversions.
        rules: names the rules: a hash of the file they are from. Other rules have another name.
    """

    def __init__(self, name: str, data: bytes | None) -> None:
        self.name = name
        self.info = UTC if data is None else ZoneInfo.from_file(io.BytesIO(data), key=name)
        self.rules = "" if data is None else hashlib.sha256(data).hexdigest()[:16]

    def stretch(self, instant: datetime) -> Stretch:
        """Return the stretch that an instant is in."""
        return next(stretch for stretch in self.year(instant.year) if instant < stretch.end)

    @lru_cache(maxsize=1024)  # noqa: B019 - there are few zones, and they live as long as the process
    def year(self, year: int) -> tuple[Stretch, ...]:
        """Return the stretches of a year of UTC: more than one where the clocks change."""
        start = datetime(year, 1, 1, tzinfo=UTC)
        end = datetime(year + 1, 1, 1, tzinfo=UTC)
        before = self._offset(start - _SECOND)
        bounds = [start, *self._changes(start, end), end]
        found = []
        for begin, finish in itertools.pairwise(bounds):
            offset = self._offset(begin)
            found.append(Stretch(begin, finish, offset, begin.replace(tzinfo=None) + before))
            before = offset
        return tuple(found)

    def _changes(self, start: datetime, end: datetime) -> list[datetime]:
        """Return the instants after `start` and before `end` at which the offset changes."""
        if self.info is UTC:
            return []
        found = []
        at, offset = start, self._offset(start)
        while at < end:
            later = min(at + _STEP, end)
            if (changed := self._offset(later)) != offset and (change := self._change(at, later)) < end:
                found.append(change)
            at, offset = later, changed
        return found

    def _change(self, low: datetime, high: datetime) -> datetime:
        """Return the first second with the offset of `high`, where `low` has another."""
        offset = self._offset(low)
        while high - low > _SECOND:
            middle = low + (high - low) // 2
            middle -= timedelta(microseconds=middle.microsecond)
            low, high = (middle, high) if self._offset(middle) == offset else (low, middle)
        return high

    def _offset(self, instant: datetime) -> timedelta:
        return instant.astimezone(self.info).utcoffset() or timedelta(0)


@cache
def zone(name: str) -> Zone:
    """Return the zone of that name, read once in the life of a process.

    Raises:
        InvalidArgument: this machine knows no such zone.
    """
    if name == "UTC":
        return Zone(name, None)
    try:
        ZoneInfo(name)  # refuses names that would leave the directory
        return Zone(name, _read(name))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidArgument(_unknown(name)) from None


def check_zone(name: object) -> Zone:
    """Return the zone that an argument names, or refuse it."""
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f'timezone={name!r} must be an IANA name, for example "Europe/Berlin"')
    return zone(name)


def _read(name: str) -> bytes:
    """Return the file of a zone, from where `zoneinfo` would take it."""
    for directory in TZPATH:
        path = Path(directory, name)
        if path.is_file():
            return path.read_bytes()
    package, _, file = f"zoneinfo/{name}".rpartition("/")
    return resources.files("tzdata").joinpath(*package.split("/"), file).read_bytes()


def _unknown(name: str) -> str:
    known = available_timezones()
    if not known:
        return f"timezone={name!r}: this machine has no time zones; install the package tzdata"
    by_folded = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=3)
    hint = f"; do you mean {' or '.join(by_folded[each] for each in close)}?" if close else ""
    return f'timezone={name!r} is not a time zone that this machine knows, such as "Europe/Berlin"{hint}'
