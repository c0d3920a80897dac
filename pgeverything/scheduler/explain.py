"""A cron expression in words, as it will be carried out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from .cron import Cron
from .fields import MONTHS, WEEKDAYS, Fields

_MOST_TIMES = 6
_WHICH = ("last", "first", "second", "third", "fourth", "fifth")


def explain(cron: str, *, seconds: bool = False) -> str:
    """Say in words what a cron expression means: "at 07:00 on Monday to Friday".

    Args:
        cron: the expression.
        seconds: whether the first of six fields is the second.

    Raises:
        InvalidArgument: it cannot be read, names a date that never comes, or is surprising; the message says why.
    """
    fields = Cron(cron, seconds).fields
    return " ".join(part for part in (_times(fields), _days(fields), _months(fields)) if part)


def _times(fields: Fields) -> str:
    if len(fields.hours) * len(fields.minutes) * len(fields.seconds) <= _MOST_TIMES:
        shown = [
            f"{hour:02}:{minute:02}" + (f":{second:02}" if fields.seconds != (0,) else "")
            for hour in fields.hours
            for minute in fields.minutes
            for second in fields.seconds
        ]
        return f"at {_list(shown)}"
    second = "" if fields.seconds == (0,) else f"{_each(fields.seconds, 60, 'second')} of "
    minute = _each(fields.minutes, 60, "minute")
    hour = "" if len(fields.hours) == 24 else f" of {_each(fields.hours, 24, 'hour')}"
    return f"at {second}{minute}{hour}"


def _each(values: Sequence[int], size: int, unit: str) -> str:
    """Say which values of a unit: "every minute", "every 5th minute from 0", "minutes 0, 7 and 9"."""
    if len(values) == size:
        return f"every {unit}"
    step = values[1] - values[0] if len(values) > 2 else 0
    if step > 1 and all(b - a == step for a, b in itertools.pairwise(values)):
        return f"{unit}s {values[0]}, {values[1]}, ... {values[-1]}"
    return f"{unit}{'s' if len(values) > 1 else ''} {_list(_spans(values, [str(n) for n in range(size)]))}"


def _days(fields: Fields) -> str:
    if fields.nth_weekdays:
        return "on the " + _list([f"{_WHICH[which]} {_day(day)} of the month" for day, which in fields.nth_weekdays])
    if len(fields.weekdays) < 7:
        names = [_day(day) for day in range(7)]
        return f"on {_list(_spans(fields.weekdays, names))}"
    if len(fields.days) == 31:
        return "every day" if len(fields.hours) * len(fields.minutes) <= _MOST_TIMES else ""
    days = _spans(fields.days, [str(day) for day in range(32)])
    if not days:
        return "on the last day of the month"
    last = " and on the last one" if fields.last_day else ""
    return f"on day{'s' if len(fields.days) > 1 else ''} {_list(days)} of the month{last}"


def _months(fields: Fields) -> str:
    if len(fields.months) == 12:
        return ""
    names = ["", *(name.capitalize() for name in MONTHS)]
    return f"in {_list(_spans(fields.months, names))}"


def _day(number: int) -> str:
    return WEEKDAYS[number].capitalize()


def _spans(values: Sequence[int], names: Sequence[str]) -> list[str]:
    """Return values by name, three or more consecutive ones as a span."""
    found: list[str] = []
    start = 0
    for end in range(1, len(values) + 1):
        if end < len(values) and values[end] == values[end - 1] + 1:
            continue
        run = values[start:end]
        found += [f"{names[run[0]]} to {names[run[-1]]}"] if len(run) > 2 else [names[value] for value in run]
        start = end
    return found


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
