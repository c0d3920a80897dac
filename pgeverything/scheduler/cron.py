"""A cron expression over the wall clock: which local times it names, without zones and without clock changes.

croniter finds the days, which is where the calendar is: months, leap years, the last Friday. It is asked for one day
at a time, with an expression of plain values, and for nothing else; the times of a day are three lists, and time zones
are :mod:`.recurrence`'s business. That is the part of croniter 7 that agrees with other implementations, and the rest
is not (`docs/decisions/0015`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise

from croniter import CroniterBadDateError, croniter

from ..errors import InvalidArgument
from .fields import Fields, parse

_DAY = timedelta(days=1)
_MINUTE = timedelta(minutes=1)
_ENOUGH_DAYS = 100  # to have seen how near they get
_LEAP_YEAR = date(2000, 1, 1)  # a year in which every date exists: what is not found from here is found nowhere


@dataclass(frozen=True, slots=True)
class Cron:
    """The wall-clock times of a cron expression. Times have no zone and no fraction of a second.

    Args:
        text: the expression.
        seconds: whether its first field is the second.

    Raises:
        InvalidArgument: it cannot be read, names a date that never comes, or is surprising; the message says why.
    """

    text: str
    seconds: bool = False
    fields: Fields = field(init=False, repr=False, compare=False)
    _days: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        fields = parse(self.text, self.seconds)
        object.__setattr__(self, "fields", fields)
        object.__setattr__(self, "_days", _days(fields))
        if self._day_from(_LEAP_YEAR) is None:
            raise InvalidArgument(f"cron={self.text!r}: there is no such date in any year")

    @property
    def wild(self) -> bool:
        """Whether Debian's cron counts it among the jobs with a wildcard, which follow real time."""
        return self.fields.wild

    def first(self, at: datetime) -> datetime | None:
        """Return the first time not before `at`, or None when the calendar ends before."""
        day = self._day_from(at.date())
        if day == at.date():
            if (moment := self._time_from(at.time())) is not None:
                return datetime.combine(day, moment)
            day = self._day_from(day + _DAY)
        return None if day is None else datetime.combine(day, self._moment(0, 0, 0))

    def last(self, before: datetime) -> datetime | None:
        """Return the last time before `before`, or None when there is none."""
        day = self._day_until(before.date())
        if day == before.date():
            if (moment := self._time_until(before.time())) is not None:
                return datetime.combine(day, moment)
            day = self._day_until(day - _DAY)
        return None if day is None else datetime.combine(day, self._moment(-1, -1, -1))

    def count(self, start: datetime, end: datetime) -> int:
        """Return how many times there are from `start` on and before `end`."""
        if end <= start:
            return 0
        per_day = len(self.fields.hours) * len(self.fields.minutes) * len(self.fields.seconds)
        total = per_day * self._count_days(start.date(), end.date())
        if self._is_day(start.date()):
            total -= self._rank(start.time())
        if self._is_day(end.date()):
            total += self._rank(end.time())
        return total

    def shortest(self) -> timedelta:
        """Return the shortest time between two of its times."""
        hours, minutes, seconds = self.fields.hours, self.fields.minutes, self.fields.seconds
        gaps = [b - a for a, b in pairwise(seconds)]
        turn = seconds[0] - seconds[-1]  # from the last to the first of the next one, less that one's distance
        gaps += [60 * (b - a) + turn for a, b in pairwise(minutes)]
        turn += 60 * (minutes[0] - minutes[-1])
        gaps += [3600 * (b - a) + turn for a, b in pairwise(hours)]
        turn += 3600 * (hours[0] - hours[-1])
        gaps.append(86400 * self._nearest_days() + turn)
        return timedelta(seconds=min(gaps))

    # Days ------------------------------------------------------------------------------------------------------------

    def _day_from(self, day: date) -> date | None:
        return day if self.fields.every_day else _next_day(self._days, day)

    def _day_until(self, day: date) -> date | None:
        return day if self.fields.every_day else _previous_day(self._days, day)

    def _nearest_days(self) -> int:
        """Return how near two of its days are, of which a few years are looked at."""
        days: list[date] = []
        day = self._day_from(_LEAP_YEAR)
        while day is not None and len(days) < _ENOUGH_DAYS:
            days.append(day)
            day = self._day_from(day + _DAY)
        return min(((b - a).days for a, b in pairwise(days)), default=1)

    def _is_day(self, day: date) -> bool:
        return self._day_from(day) == day

    def _count_days(self, start: date, end: date) -> int:
        """Count the days from `start` on and before `end`."""
        if self.fields.every_day:
            return (end - start).days
        total = 0
        day = self._day_from(start)
        while day is not None and day < end:
            total += 1
            day = self._day_from(day + _DAY)
        return total

    # Times of a day --------------------------------------------------------------------------------------------------

    def _moment(self, hour: int, minute: int, second: int) -> time:
        """Return a time by the places of its parts in their lists."""
        return time(self.fields.hours[hour], self.fields.minutes[minute], self.fields.seconds[second])

    def _time_from(self, at: time) -> time | None:
        hours, minutes, seconds = self.fields.hours, self.fields.minutes, self.fields.seconds
        hour = bisect_left(hours, at.hour)
        if hour < len(hours) and hours[hour] == at.hour:
            minute = bisect_left(minutes, at.minute)
            if minute < len(minutes) and minutes[minute] == at.minute:
                second = bisect_left(seconds, at.second + (at.microsecond > 0))
                if second < len(seconds):
                    return self._moment(hour, minute, second)
                minute += 1
            if minute < len(minutes):
                return self._moment(hour, minute, 0)
            hour += 1
        return self._moment(hour, 0, 0) if hour < len(hours) else None

    def _time_until(self, before: time) -> time | None:
        hours, minutes, seconds = self.fields.hours, self.fields.minutes, self.fields.seconds
        hour = bisect_right(hours, before.hour) - 1
        if hour >= 0 and hours[hour] == before.hour:
            minute = bisect_right(minutes, before.minute) - 1
            if minute >= 0 and minutes[minute] == before.minute:
                second = bisect_left(seconds, before.second + (before.microsecond > 0)) - 1
                if second >= 0:
                    return self._moment(hour, minute, second)
                minute -= 1
            if minute >= 0:
                return self._moment(hour, minute, -1)
            hour -= 1
        return self._moment(hour, -1, -1) if hour >= 0 else None

    def _rank(self, at: time) -> int:
        """Return how many times of a day are before `at`."""
        hours, minutes, seconds = self.fields.hours, self.fields.minutes, self.fields.seconds
        rank = bisect_left(hours, at.hour) * len(minutes) * len(seconds)
        if at.hour in hours:
            rank += bisect_left(minutes, at.minute) * len(seconds)
            if at.minute in minutes:
                rank += bisect_left(seconds, at.second + (at.microsecond > 0))
        return rank


def _days(fields: Fields) -> str:
    """Return the days as croniter reads them: plain lists, in which nothing is left to interpret."""
    days = [*map(str, fields.days), *(["L"] if fields.last_day else [])]
    nth = [f"L{day}" if which == 0 else f"{day}#{which}" for day, which in fields.nth_weekdays]
    return " ".join(
        (
            "*" if len(fields.days) == 31 else ",".join(days),
            "*" if len(fields.months) == 12 else ",".join(map(str, fields.months)),
            "*" if len(fields.weekdays) == 7 else ",".join(nth or map(str, fields.weekdays)),
        )
    )


@lru_cache(maxsize=4096)
def _next_day(days: str, day: date) -> date | None:
    """Return the first of the days that is not before `day`."""
    try:
        # A croniter of our own each time: it changes with every question, and threads share what is cached.
        return croniter(f"0 0 {days}", datetime.combine(day, time()) - _MINUTE).get_next(datetime).date()
    except (CroniterBadDateError, OverflowError):  # OverflowError: the year 10000
        return None


@lru_cache(maxsize=4096)
def _previous_day(days: str, day: date) -> date | None:
    """Return the last of the days that is not after `day`."""
    try:
        return croniter(f"0 0 {days}", datetime.combine(day, time()) + _MINUTE).get_prev(datetime).date()
    except (CroniterBadDateError, OverflowError):
        return None
