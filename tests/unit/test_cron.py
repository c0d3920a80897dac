"""What cron expressions are accepted and what they mean; what is refused and what the refusal says."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgeverything import InvalidArgument
from pgeverything.scheduler import explain
from pgeverything.scheduler.cron import Cron
from pgeverything.scheduler.fields import ALIASES, Fields, parse

from .cron_lines import EXPRESSIONS


def fields(text: str, *, seconds: bool = False) -> Fields:
    return parse(text, seconds)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("5", (5,)),
        ("5,1,5", (1, 5)),
        ("10-13", (10, 11, 12, 13)),
        ("7-7", (7,)),  # the whole field to croniter
        ("*/20", (0, 20, 40)),
        ("10-20/5", (10, 15, 20)),
        ("50/4", (50, 54, 58)),
        ("0,30-32,58/1", (0, 30, 31, 32, 58, 59)),
        ("*", tuple(range(60))),
        ("00,07", (0, 7)),
    ],
)
def test_values(text: str, minutes: tuple[int, ...]) -> None:
    assert fields(f"{text} * * * *").minutes == minutes


@pytest.mark.parametrize(
    ("text", "weekdays"),
    [
        ("SUN", (0,)),
        ("7", (0,)),
        ("0,7", (0,)),
        ("mon-fri", (1, 2, 3, 4, 5)),
        ("5-7", (0, 5, 6)),
        ("FRI-SUN", (0, 5, 6)),
        ("SUN-TUE", (0, 1, 2)),
        ("*/2", (0, 2, 4, 6)),
        ("0-7", (0, 1, 2, 3, 4, 5, 6)),
        ("1/3", (1, 4)),
    ],
)
def test_weekdays(text: str, weekdays: tuple[int, ...]) -> None:
    assert fields(f"0 0 * * {text}").weekdays == weekdays


def test_the_last_and_the_nth() -> None:
    assert fields("0 0 L * *").last_day
    assert fields("0 0 15,L * *").days == (15,)
    assert fields("0 0 * * 5L").nth_weekdays == ((5, 0),)
    assert fields("0 0 * * L5,MON#2").nth_weekdays == ((1, 2), (5, 0))
    assert fields("0 0 * * FRIL").nth_weekdays == fields("0 0 * * 5l").nth_weekdays
    assert fields("0 0 * * 7#1").nth_weekdays == ((0, 1),)


def test_months_have_names() -> None:
    assert fields("0 0 1 jan,MAR-May *").months == (1, 3, 4, 5)


def test_seconds_come_first() -> None:
    assert fields("*/15 30 7 * * *", seconds=True).seconds == (0, 15, 30, 45)
    assert fields("30 7 * * *").seconds == (0,)


@pytest.mark.parametrize(("alias", "text"), ALIASES.items())
def test_aliases(alias: str, text: str) -> None:
    assert fields(alias) == fields(alias.upper()) == fields(text)
    assert fields(alias, seconds=True) == fields(text)


def test_blanks_do_not_matter() -> None:
    assert fields(" 0\t7  * * * ") == fields("0 7 * * *")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        # What croniter 7 takes and does something surprising with.
        ("5-1 * * * *", "minute '5-1' runs backwards; write 5-59,0-1"),
        ("0 22-2 * * *", "hour '22-2' runs backwards; write 22-23,0-2"),
        ("0 0 1 NOV-FEB *", "month 'NOV-FEB' runs backwards; write NOV-DEC,JAN-FEB"),
        ("0 0 * * SAT-MON", "day of week 'SAT-MON' runs backwards; write SAT,SUN-MON"),
        ("0 0 30 2 *", "there is no such date in any year"),
        ("0 0 31 4,6,9,11 *", "there is no such date in any year"),
        ("*/90 * * * *", "minute '\\*/90' has a step that leaves only 0"),
        ("59/15 * * * *", "minute '59/15' has a step that leaves only 59"),
        ("0 0 13 * FRI", "together mean either of them to cron"),
        ("0 0 */2 * MON", "together mean either of them"),
        ("0 0 1-31 * MON", "together mean either of them"),
        ("0 0 L * 5L", "together mean either of them"),
        ("* * * * * *", "six fields need seconds=True, and then the first one is the second"),
        ("0 0 ? * MON", "day of month '\\?' is not a value .*; write \\*"),
        ("H * * * *", "minute 'H' is not a value .*; jitter= spreads starts"),
        ("R * * * *", "jitter="),
        ("0 0 15W * *", "W .* is not supported"),
        ("0 0 LW * *", "W .* is not supported"),
        ("0 0 * * MON,5L", "plain weekdays beside # or L"),
        # What is no cron expression anywhere.
        ("", "must be a cron expression"),
        ("x" * 500, "must be a cron expression"),
        (None, "must be a cron expression"),
        (5, "must be a cron expression"),
        ("* * * *", "it has 4 fields"),
        ("0 0 1 1 * 2030 x", "it has 7 fields"),
        ("60 * * * *", "minute 60 is not in 0-59"),
        ("0 24 * * *", "hour 24 is not in 0-23"),
        ("0 0 0 * *", "day of month 0 is not in 1-31"),
        ("0 0 32 * *", "day of month 32 is not in 1-31"),
        ("0 0 1 13 *", "month 13 is not in 1-12"),
        ("0 0 * * 8", "day of week 8 is not in 0-7"),
        ("0 0 * * MON#0", "a month has a first to a fifth MON"),
        ("0 0 * * MON#6", "a month has a first to a fifth MON"),
        ("0 0 * * MON-FRI#2", "is no weekday"),
        ("0 0 * * L", "'L' is no weekday"),
        ("0 0 L-3 * *", "day of month 'L-3' is not a value"),
        ("*/0 * * * *", "has a step that leaves nothing"),
        ("-5 * * * *", "minute '-5' is not a value"),
        ("1.5 * * * *", "minute '1.5' is not a value"),
        ("1,,2 * * * *", "minute '' is not a value"),
        ("MON * * * *", "minute 'MON' is not a value"),
        ("0 0 * MON *", "month 'MON' is not a value"),
        ("\u0665 * * * *", "characters that no cron expression has"),
        ("0 0\n* * *", "characters that no cron expression has"),
        ("0 0\u00a0* * *", "characters that no cron expression has"),
        ("@reboot", "a scheduler that runs on many machines has no reboot"),
        ("@every 5m", 'an interval is every="5m"'),
        ("@fortnightly", "there is no @fortnightly; there are @yearly"),
    ],
)
def test_refusals_say_what_to_write(text: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as refused:
        Cron(text)
    assert "cron=" in str(refused.value)


def test_five_fields_with_seconds_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="seconds=True needs six fields"):
        Cron("* * * * *", seconds=True)


@given(st.text(alphabet="0123456789*/-,#LW?@ MONFRIJANhr\t", max_size=30), st.booleans())
def test_any_text_is_read_or_refused(text: str, seconds: bool) -> None:
    try:
        cron = Cron(text, seconds)
    except InvalidArgument:
        return
    assert cron.first(datetime(2026, 1, 1)) is not None  # noqa: DTZ001 - the wall clock has no zone


@given(EXPRESSIONS)
def test_every_expression_is_explained(text: str) -> None:
    try:
        words = explain(text)
    except InvalidArgument:
        return  # it names no date: see test_cron_zones.py
    assert words.startswith("at ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 7 * * MON-FRI", "at 07:00 on Mon to Fri"),
        ("30 2 * * *", "at 02:30 every day"),
        ("0,30 9,17 1 * *", "at 09:00, 09:30, 17:00 and 17:30 on day 1 of the month"),
        ("*/15 * * * *", "at minutes 0, 15, ... 45"),
        ("* * * * *", "at every minute"),
        ("5 8-18 * * *", "at minute 5 of hours 8 to 18"),
        ("0 0 L * *", "at 00:00 on the last day of the month"),
        (
            "0 0 1,15,L JAN,JUN-AUG *",
            "at 00:00 on days 1 and 15 of the month and on the last one in Jan and Jun to Aug",
        ),
        ("0 6 * * MON#1,5L", "at 06:00 on the first Mon of the month and last Fri of the month"),
        ("*/7 * * * *", "at minutes 0, 7, ... 56"),
    ],
)
def test_explanations(text: str, words: str) -> None:
    assert explain(text) == words


def test_explanations_with_seconds() -> None:
    assert explain("*/10 * * * * *", seconds=True) == "at seconds 0, 10, ... 50 of every minute"
    assert explain("15 30 2 * * *", seconds=True) == "at 02:30:15 every day"


@pytest.mark.parametrize(
    ("expression", "gap"),
    [
        ("*/5 * * * *", timedelta(minutes=5)),
        ("0 9,17 * * *", timedelta(hours=8)),
        ("0,50 0,5,6 * * *", timedelta(minutes=10)),
        ("0 23,0 * * *", timedelta(hours=1)),
        ("59 0,23 * * *", timedelta(hours=1)),
        ("0 9 * * MON,FRI", timedelta(days=3)),
        ("0 0 1,L * *", timedelta(days=1)),
        ("0 0 29 2 *", timedelta(days=4 * 365 + 1)),
        ("0 0 * 2 TUE#5", timedelta(days=28 * 365 + 7)),
    ],
)
def test_the_shortest_time_from_one_tick_to_the_next(expression: str, gap: timedelta) -> None:
    assert Cron(expression).shortest() == gap


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["0", "7,9", "*/20", "30", "0,59"]), min_size=3, max_size=3))
def test_no_two_ticks_are_nearer_than_the_shortest_time(fields: list[str]) -> None:
    cron = Cron(f"{fields[0]} {fields[1]} {fields[2].replace('30', '4').replace('59', '23')} * * *", seconds=True)
    times = []
    at = datetime(2026, 1, 1)  # noqa: DTZ001
    for _ in range(800):
        found = cron.first(at)
        assert found is not None
        times.append(found)
        at = found + timedelta(seconds=1)
    assert min(after - before for before, after in itertools.pairwise(times)) == cron.shortest()
