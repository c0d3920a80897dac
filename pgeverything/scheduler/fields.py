"""The grammar of cron expressions: text into the values of each field, and refusals that say what to write instead.

It is our own because croniter's is looser than any crontab: it runs `5-1` around the clock's end, takes `5-5` for the
whole field, `0 0 30 2 *` for a date, `*/90` for something, and a sixth field for seconds that come last. What is
accepted here goes to croniter as plain lists of values, which leave it nothing to interpret.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InvalidArgument

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")

_LONGEST = 400  # characters: every minute by name takes 168
_PLAIN = re.compile(r"[ -~\t]*")
_TERM = re.compile(r"(?:(\*)|([0-9]+|[A-Z]{3})(?:-([0-9]+|[A-Z]{3}))?)(?:/([0-9]+))?")
_LAST_WEEKDAY = re.compile(r"([0-7]|[A-Z]{3})L|L([0-7]|[A-Z]{3})")
_NTH_WEEKDAY = re.compile(r"([0-7]|[A-Z]{3})#([0-9]+)")


@dataclass(frozen=True, slots=True)
class Field:
    """What one field can say."""

    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()


_SECOND = Field("second", 0, 59)
_MINUTE = Field("minute", 0, 59)
_HOUR = Field("hour", 0, 23)
_DAY = Field("day of month", 1, 31)
_MONTH = Field("month", 1, 12, MONTHS)
_WEEKDAY = Field("day of week", 0, 7, WEEKDAYS)


@dataclass(frozen=True, slots=True)
class Fields:
    """The values of an expression's fields, each in order.

    `last_day` is an L among the days of the month. `nth_weekdays` are pairs of a weekday (0 is Sunday) and which one of
    the month it is: 1 to 5, or 0 for the last; then `weekdays` is empty. `wild` says that the minute or the hour begins
    with `*`, which is what Debian's cron goes by when clocks change.
    """

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    last_day: bool
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    nth_weekdays: tuple[tuple[int, int], ...]
    wild: bool

    @property
    def every_day(self) -> bool:
        """Whether no day is left out."""
        return len(self.days) == 31 and len(self.months) == 12 and len(self.weekdays) == 7


def parse(expression: object, seconds: bool) -> Fields:
    """Read an expression.

    Args:
        expression: five fields, or an alias such as `@daily`.
        seconds: whether there is a sixth field, in front, for seconds.

    Raises:
        InvalidArgument: it is no cron expression, or one that does not do what it seems to say.
    """
    check_seconds(seconds)
    if not isinstance(expression, str) or not 0 < len(expression) <= _LONGEST:
        raise InvalidArgument(f'cron={expression!r} must be a cron expression, for example "0 7 * * MON-FRI"')
    return _Reader(expression).read(seconds)


def check_seconds(value: object) -> None:
    """Refuse what does not say whether there are seconds: the database has a boolean for it."""
    if not isinstance(value, bool):
        raise InvalidArgument(f"seconds={value!r} must be True or False")


class _Reader:
    """Reads one expression; knows it, for the messages."""

    def __init__(self, expression: str) -> None:
        self._expression = expression

    def read(self, with_seconds: bool) -> Fields:
        second, minute, hour, day, month, weekday = self._split(with_seconds)
        days, last_day = self._days(day)
        weekdays, nth_weekdays = self._weekdays(weekday)
        if not (_is_free(day, days, _DAY) or _is_free(weekday, weekdays, _WEEKDAY)):
            raise self._refusal(
                f"day of month {day!r} and day of week {weekday!r} together mean either of them to cron, and both of "
                "them when one begins with *; add two schedules with one of the two each, or one with the day of the "
                "month and a task that looks at the weekday"
            )
        return Fields(
            seconds=self._values(second, _SECOND),
            minutes=self._values(minute, _MINUTE),
            hours=self._values(hour, _HOUR),
            days=days,
            last_day=last_day,
            months=self._values(month, _MONTH),
            weekdays=weekdays,
            nth_weekdays=nth_weekdays,
            wild=minute.startswith("*") or hour.startswith("*"),
        )

    def _split(self, with_seconds: bool) -> list[str]:
        if not _PLAIN.fullmatch(self._expression):
            raise self._refusal("it has characters that no cron expression has")
        text = self._expression.strip(" \t")
        if text.startswith("@"):
            return ["0", *self._alias(text).split()]
        fields = [field.upper() for field in re.split(r"[ \t]+", text)]
        if len(fields) == 5 and not with_seconds:
            return ["0", *fields]
        if len(fields) == 6 and with_seconds:
            return fields
        if len(fields) == 6:
            raise self._refusal("six fields need seconds=True, and then the first one is the second")
        if len(fields) == 5:
            raise self._refusal('seconds=True needs six fields, and the first one is the second: "0 " + this')
        raise self._refusal(f"it has {len(fields)} fields, not minute, hour, day of month, month, day of week")

    def _alias(self, text: str) -> str:
        if (alias := ALIASES.get(text.lower())) is not None:
            return alias
        if text.lower() == "@reboot":
            raise self._refusal("a scheduler that runs on many machines has no reboot; enqueue at the start instead")
        if text.lower().startswith("@every"):
            raise self._refusal('an interval is every="5m", not a cron expression')
        raise self._refusal(f"there is no {text}; there are {', '.join(ALIASES)}")

    def _days(self, text: str) -> tuple[tuple[int, ...], bool]:
        """Read the days of the month; L is the last one."""
        terms = text.split(",")
        if any("W" in term for term in terms):
            raise self._refusal("W (the nearest working day) is not supported")
        plain = [term for term in terms if term != "L"]
        return (self._values(",".join(plain), _DAY) if plain else ()), len(plain) < len(terms)

    def _weekdays(self, text: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Read the weekdays: plain ones, or `MON#2` the second and `FRIL` the last of a month."""
        nth = set()
        plain = []
        for term in text.split(","):
            if match := _LAST_WEEKDAY.fullmatch(term):
                nth.add((self._value(match[1] or match[2], _WEEKDAY) % 7, 0))
            elif match := _NTH_WEEKDAY.fullmatch(term):
                if not 1 <= int(match[2]) <= 5:
                    raise self._refusal(f"{term}: a month has a first to a fifth {match[1]}")
                nth.add((self._value(match[1], _WEEKDAY) % 7, int(match[2])))
            elif "#" in term or "L" in term:
                raise self._refusal(f"{term!r} is no weekday; MON#2 is the second Monday, FRIL the last Friday")
            else:
                plain.append(term)
        if nth and plain:
            raise self._refusal("plain weekdays beside # or L would be two schedules in one: add two")
        if nth:
            return (), tuple(sorted(nth))
        return tuple(sorted({value % 7 for value in self._values(text, _WEEKDAY)})), ()

    def _values(self, text: str, field: Field) -> tuple[int, ...]:
        return tuple(sorted({value for term in text.split(",") for value in self._term(term, field)}))

    def _term(self, term: str, field: Field) -> range:
        """Read `*`, `5`, `1-5`, each perhaps with a step: `*/15`, `8-18/2`, and `5/15` for `5-59/15`."""
        match = _TERM.fullmatch(term)
        if match is None:
            raise self._unreadable(term, field)
        star, first, last, step = match.groups()
        most = 6 if field is _WEEKDAY else field.most  # 7 is Sunday again
        low = field.least if star else self._value(first, field)
        high = most if star or (step and last is None) else low
        if last is not None:
            high = self._value(last, field)
            if field is _WEEKDAY and high == 0 and low > 0:
                high = 7  # FRI-SUN
        if low > high:
            raise self._refusal(f"{field.name} {term!r} runs backwards; write {_round(low, high, field)}")
        values = range(low, high + 1, int(step) if step else 1) if step != "0" else range(0)
        if step and len(values) < 2:
            raise self._refusal(f"{field.name} {term!r} has a step that leaves {_what_is_left(values)}")
        return values

    def _value(self, text: str, field: Field) -> int:
        if text in field.names:
            return field.names.index(text) + field.least
        if not text.isdecimal():
            raise self._unreadable(text, field)
        if len(text) > 2 or not field.least <= int(text) <= field.most:
            raise self._refusal(f"{field.name} {text} is not in {field.least}-{field.most}")
        return int(text)

    def _unreadable(self, term: str, field: Field) -> InvalidArgument:
        hints = {"?": "; write *", "H": "; jitter= spreads starts", "R": "; jitter= spreads starts"}
        names = f", {field.names[0]}-{field.names[-1]}" if field.names else ""
        hint = hints.get(term[:1], "") if term not in field.names else ""
        return self._refusal(
            f"{field.name} {term!r} is not a value ({field.least}-{field.most}{names}), a range, a step or *{hint}"
        )

    def _refusal(self, why: str) -> InvalidArgument:
        return InvalidArgument(f"cron={self._expression!r}: {why}")


def _is_free(text: str, values: tuple[int, ...], field: Field) -> bool:
    """Whether a day field says nothing: `*`, or `*/1`."""
    return text.startswith("*") and len(values) == (7 if field is _WEEKDAY else 31)


def _round(low: int, high: int, field: Field) -> str:
    """Return two ranges for one that goes over the end of the field."""
    ends = [low, 6 if field is _WEEKDAY else field.most, field.least, high]
    names = [field.names[value - field.least] if field.names else str(value) for value in ends]
    parts = [names[0] if low == ends[1] else "-".join(names[:2]), names[3] if high == ends[2] else "-".join(names[2:])]
    return ",".join(parts)


def _what_is_left(values: range) -> str:
    return f"only {values[0]}: write that, or every= for an interval" if values else "nothing"
