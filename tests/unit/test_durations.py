from __future__ import annotations

import inspect
import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgeverything import errors
from pgeverything.durations import seconds
from pgeverything.errors import InvalidArgument

CENTURY = 100 * 365 * 86400
UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        (" 1h 30m ", 5400),
        ("2d", 172800),
        ("1w", 604800),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        (0, 0),
        (7, 7),
        (0.5, 0.5),
        (timedelta(minutes=2), 120),
        (CENTURY, CENTURY),
    ],
)
def test_durations_as_people_write_them(value: object, expected: float) -> None:
    assert seconds(value, "delay") == pytest.approx(expected)  # type: ignore[arg-type]


NOT_TEXTS = [
    "",
    " ",
    "5",
    "m",
    "5 minutes",
    "-5s",
    "5s!",
    "1h-5m",
    "s5",
    "1e3s",
    ".5s",
    "5S",
    "1m s",
    "1 0s",
    "nan",
]
NOT_TEXTS += ["\u0661s", "infs", "5300w", "9" * 400 + "s"]  # U+0661 is a digit, but not one of ours
NOT_NUMBERS = [-1, -0.1, math.nan, math.inf, CENTURY + 1, 10**400, timedelta(seconds=-1), timedelta.max]


@pytest.mark.parametrize("value", [*NOT_TEXTS, *NOT_NUMBERS, None, True, [], b"5s"])
def test_everything_else_is_refused_by_name(value: object) -> None:
    with pytest.raises(InvalidArgument, match="delay="):
        seconds(value, "delay")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["90", " 1.5 ", "0"])
def test_a_number_in_a_text_needs_its_unit(value: str) -> None:
    with pytest.raises(InvalidArgument, match=f"ttl='{value}' has no unit: write '{value.strip()}s' for seconds"):
        seconds(value, "ttl")


def test_zero_is_refused_where_it_makes_no_sense() -> None:
    assert seconds("0s", "ttl") == 0
    with pytest.raises(InvalidArgument, match="ttl='0s' must be more than 0"):
        seconds("0s", "ttl", zero=False)


@given(st.lists(st.tuples(st.integers(0, 999), st.sampled_from(sorted(UNITS))), min_size=1, max_size=6))
def test_a_text_is_the_sum_of_its_parts(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{number}{unit}" for number, unit in parts)
    assert seconds(text, "x") == pytest.approx(sum(number * UNITS[unit] for number, unit in parts))


@given(st.timedeltas(timedelta(0), timedelta(days=36500)))
def test_a_timedelta_and_its_seconds_are_the_same(value: timedelta) -> None:
    assert seconds(value, "x") == seconds(value.total_seconds(), "x") == value.total_seconds()


@given(st.one_of(st.text(), st.text("0123456789. smhdw-+e", max_size=12), st.floats(), st.integers()))
def test_the_result_is_in_range_or_there_is_none(value: str | float) -> None:
    try:
        result = seconds(value, "x")
    except InvalidArgument:
        return
    assert math.isfinite(result)
    assert 0 <= result <= CENTURY
    if isinstance(value, str):
        assert set(value.replace(" ", "").strip()) <= set("0123456789.smhdw")
        assert value.strip()[-1:].isalpha()


def test_every_error_is_in_one_tree_and_documented() -> None:
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass)]
    assert len(classes) > 10
    for each in classes:
        assert issubclass(each, errors.PgEverythingError)
        assert each.__doc__


def test_errors_are_also_what_the_language_calls_them() -> None:
    assert issubclass(errors.InvalidArgument, ValueError)
    assert issubclass(errors.InvalidTaskArguments, TypeError)
    assert issubclass(errors.JobNotFound, LookupError)
    assert issubclass(errors.WaitTimeout, TimeoutError)
    assert errors.DuplicateJob("taken", 7).job_id == 7
