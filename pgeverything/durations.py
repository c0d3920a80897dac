"""Durations as people write them: ``"30s"``, ``"5m"``, ``"1h"``, a number of seconds or a ``timedelta``."""

from __future__ import annotations

import functools
import math
import re
from datetime import timedelta
from typing import TypeAlias

from .errors import InvalidArgument

Duration: TypeAlias = str | int | float | timedelta
"""What every public parameter that means a length of time accepts."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(ms|[smhdw])")  # not \d, which takes every script's digits
_BARE = re.compile(r" *[0-9]+(?:\.[0-9]+)? *")
_WHOLE = re.compile(rf"(?: *{_PART.pattern})+ *")
_MOST = 100 * 365 * 86400.0  # a century: longer than any lease or delay, and far inside Postgres's interval


def seconds(value: Duration, name: str, *, zero: bool = True) -> float:
    """Return `value` as seconds.

    Args:
        value: ``"1h30m"``-style text (units ms, s, m, h, d, w), a number of seconds, or a ``timedelta``.
        name: the argument's name, for the error message.
        zero: whether nothing at all is a sensible length.

    Raises:
        InvalidArgument: not a duration, negative, not finite, longer than a century, or zero where zero is refused.
    """
    # A program writes the same few over and over.
    return _checked(value, name, zero) if type(value) in _CACHED else _check(value, name, zero)


def _check(value: Duration, name: str, zero: bool) -> float:
    result = _parse(value, name)
    if not math.isfinite(result) or result < 0 or result > _MOST or (result == 0 and not zero):
        least = "at least 0" if zero else "more than 0"
        raise InvalidArgument(f"{name}={value!r} must be {least} and at most a century")
    return result


def _parse(value: Duration, name: str) -> float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(min(value, _MOST + 1))  # an int may be too large for a float
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))
    if isinstance(value, str) and _BARE.fullmatch(value):
        raise InvalidArgument(
            f"{name}={value!r} has no unit: write {value.strip() + 's'!r} for seconds, or another unit"
        )
    raise InvalidArgument(
        f'{name}={value!r} is not a duration; write "30s", "5m", "1h30m", "2d", a number of seconds or a timedelta'
    )


_CACHED = frozenset({str, int, float})
_checked = functools.lru_cache(maxsize=512, typed=True)(_check)
