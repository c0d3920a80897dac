"""Cron expressions in time zones: compared with `cronsim`, with a slow definition, and with Debian's manual page."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from cronsim import CronSim
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pgeverything import InvalidArgument
from pgeverything.scheduler.cron import Cron
from pgeverything.scheduler.recurrence import Every, Once, Recurrence, Within, Zoned
from pgeverything.scheduler.zones import zone

from .cron_lines import EXPRESSIONS, NIGHTLY, ZONES, instants

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


def cron(text: str, *, seconds: bool = False) -> Cron:
    """Return an expression, or leave the example out where the text names no date."""
    try:
        return Cron(text, seconds)
    except InvalidArgument as error:
        assume("no such date" not in str(error))
        raise


def ticks(recurrence: Recurrence, after: datetime) -> Iterator[datetime]:
    while (tick := recurrence.next(after)) is not None:
        yield tick
        after = tick


# The slow definition --------------------------------------------------------------------------------------------------


def named(line: Cron, local: datetime) -> bool:
    """Whether the expression names a local minute: by the fields, without croniter."""
    f = line.fields
    if local.minute not in f.minutes or local.hour not in f.hours or local.month not in f.months:
        return False
    weekday, last = local.isoweekday() % 7, (local + DAY).day == 1
    if f.nth_weekdays:
        return (weekday, (local.day - 1) // 7 + 1) in f.nth_weekdays or (
            (weekday, 0) in f.nth_weekdays and (local + 7 * DAY).month != local.month
        )
    return (local.day in f.days or (last and f.last_day)) and weekday in f.weekdays


def slowly(line: Cron, zone_name: str, start: datetime, end: datetime) -> list[datetime]:
    """Return the ticks after `start` and until `end`, by looking at every minute."""
    info = ZoneInfo(zone_name)
    found: set[datetime] = set()
    if line.wild:
        at = start.replace(second=0, microsecond=0)
        while at <= end:
            if named(line, at.astimezone(info).replace(tzinfo=None)):
                found.add(at)
            at += MINUTE
    else:
        local = (start - DAY * 1.5).astimezone(info).replace(tzinfo=None, second=0, microsecond=0)
        while local <= (end + DAY * 1.5).astimezone(info).replace(tzinfo=None):
            if named(line, local):
                moment = local
                while moment.replace(tzinfo=info).astimezone(UTC).astimezone(info).replace(tzinfo=None) != moment:
                    moment += MINUTE  # the clock never shows it
                found.add(moment.replace(tzinfo=info).astimezone(UTC))
            local += MINUTE
    return sorted(tick for tick in found if start < tick <= end)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ticks_are_those_that_the_rules_define(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(ZONES))
    line = cron(data.draw(st.one_of(NIGHTLY, EXPRESSIONS)))
    start = data.draw(instants(name))
    end = start + 2 * DAY
    expected = slowly(line, name, start, end)
    zoned = Zoned(line, zone(name))

    assert list(itertools.takewhile(lambda tick: tick <= end, ticks(zoned, start))) == expected
    assert zoned.count(start, end) == len(expected)
    backwards, until = [], end
    while (tick := zoned.previous(until)) is not None and tick > start:
        backwards.append(tick)
        until = tick - timedelta.resolution
    assert backwards[::-1] == expected


# The other implementation ---------------------------------------------------------------------------------------------


def simulated(text: str, zone_name: str, start: datetime, *, wild: bool) -> Iterator[datetime]:
    """Yield what `cronsim` says, without what we say differently on purpose.

    It counts from the local time of the start: where that comes twice and the start is the second one, its first ticks
    lie in the past. It repeats an instant for every time that a gap has swallowed. And where one swallows midnight, it
    gives `* 0 * * *` a tick at 01:00, though none at 03:00 to `* 2 * * *` where one swallows that.
    """
    last = start
    for tick in CronSim(text, start.astimezone(ZoneInfo(zone_name))):
        instant = tick.astimezone(UTC)
        shown = instant.astimezone(ZoneInfo(zone_name)).replace(tzinfo=None)
        if wild and next(CronSim(text, shown - timedelta(minutes=1))) != shown:
            continue
        if instant > last:
            yield instant
            last = instant


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_ticks_are_those_of_cronsim(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(ZONES))
    text = data.draw(st.one_of(EXPRESSIONS, NIGHTLY))
    line = cron(text)
    # Where clocks change by half an hour, or at a minute past midnight, cronsim steps on in whole hours of that phase.
    assume(not (line.wild and name in {"Australia/Lord_Howe", "America/St_Johns"}))
    start = data.draw(instants(name))

    expected = list(itertools.islice(simulated(text, name, start, wild=line.wild), 8))
    assert list(itertools.islice(ticks(Zoned(line, zone(name)), start), len(expected))) == expected


# Debian's manual page -------------------------------------------------------------------------------------------------

# cron(8): jobs in a skipped time run soon after the change, those in a repeated time are not run again; both only for
# jobs without a wildcard in hour or minute, which otherwise run "based on the new time immediately".
DEBIAN = [
    ("30 2 * * *", "Europe/Paris", "2026-03-29", ["03:00+02:00"]),  # swallowed: at the first instant after
    ("0 2 * * *", "Europe/Paris", "2026-03-29", ["03:00+02:00"]),
    ("15,45 2 * * *", "Europe/Paris", "2026-03-29", ["03:00+02:00"]),  # both swallowed: once
    ("0 3 * * *", "Europe/Paris", "2026-03-29", ["03:00+02:00"]),
    ("0 2,3 * * *", "Europe/Paris", "2026-03-29", ["03:00+02:00"]),
    ("30 1,2 * * *", "Europe/Paris", "2026-03-29", ["01:30+01:00", "03:00+02:00"]),
    ("30 2 * * *", "Europe/Paris", "2026-10-25", ["02:30+02:00"]),  # comes twice: the first of the two
    ("0,30 2 * * *", "Europe/Paris", "2026-10-25", ["02:00+02:00", "02:30+02:00"]),
    ("0 3 * * *", "Europe/Paris", "2026-10-25", ["03:00+01:00"]),
    ("15 1 * * *", "America/New_York", "2026-11-01", ["01:15-04:00"]),
    ("0 0 * * *", "America/Havana", "2026-03-08", ["01:00-04:00"]),  # midnight itself is swallowed
    ("30 0 * * *", "America/Havana", "2026-11-01", ["00:30-04:00"]),
    ("0 2-4/2 * * *", "Europe/Paris", "2026-03-29", ["03:00+02:00", "04:00+02:00"]),
    ("*/30 2 * * *", "Europe/Paris", "2026-03-29", []),  # a wildcard: the clock never shows 2
    ("* 0 * * *", "America/Havana", "2026-03-08", []),  # nor midnight
    ("*/30 2 * * *", "Europe/Paris", "2026-10-25", ["02:00+02:00", "02:30+02:00", "02:00+01:00", "02:30+01:00"]),
    ("20 */2 * * *", "Europe/Paris", "2026-03-29", None),  # no phantom at 03:00, and none at 02:20
    ("59 23 * * *", "Pacific/Apia", "2011-12-31", ["00:00+14:00", "23:59+14:00"]),  # the 30th was swallowed whole
    ("*/30 1 * * *", "Australia/Lord_Howe", "2026-04-05", ["01:00+11:00", "01:30+11:00", "01:30+10:30"]),
    ("45 1 * * *", "Australia/Lord_Howe", "2026-04-05", ["01:45+11:00"]),
    ("15 2 * * *", "Australia/Lord_Howe", "2026-10-04", ["02:30+11:00"]),
]


@pytest.mark.parametrize(("text", "name", "day", "expected"), DEBIAN)
def test_what_debians_manual_says(text: str, name: str, day: str, expected: list[str] | None) -> None:
    info = ZoneInfo(name)
    start = datetime.fromisoformat(day).replace(tzinfo=info).astimezone(UTC) - timedelta.resolution
    zoned = Zoned(Cron(text), zone(name))
    found = [tick.astimezone(info) for tick in itertools.islice(ticks(zoned, start), 30)]
    shown = [tick.isoformat(timespec="minutes")[11:] for tick in found if tick.isoformat()[:10] == day]
    if expected is None:
        expected = [f"{hour:02}:20+0{1 if hour < 2 else 2}:00" for hour in range(0, 24, 2) if hour != 2]
    assert shown == expected
    end = (datetime.fromisoformat(day) + DAY).replace(tzinfo=info).astimezone(UTC) - timedelta.resolution
    assert zoned.count(start, end) == len(expected)


def test_intervals_follow_real_time_through_clock_changes() -> None:
    hours = list(itertools.islice(ticks(Zoned(Cron("@hourly"), zone("Europe/Paris")), at("2026-10-24T22:00Z")), 6))
    assert {later - earlier for earlier, later in itertools.pairwise(hours)} == {timedelta(hours=1)}


def test_seconds_follow_the_same_rules() -> None:
    """Which cronsim does not say: an expression with seconds is never a fixed time to it."""
    fixed = Zoned(Cron("15,45 30 2 * * *", seconds=True), zone("Europe/Paris"))
    assert next(ticks(fixed, at("2026-03-28T12:00Z"))) == at("2026-03-29T01:00Z")
    twice = list(itertools.islice(ticks(fixed, at("2026-10-24T12:00Z")), 3))
    assert twice == [at("2026-10-25T00:30:15Z"), at("2026-10-25T00:30:45Z"), at("2026-10-26T01:30:15Z")]
    wild = Zoned(Cron("30 */20 2 * * *", seconds=True), zone("Europe/Paris"))
    assert wild.count(at("2026-10-24T22:00Z"), at("2026-10-25T22:00Z")) == 6
    assert wild.count(at("2026-03-28T22:00Z"), at("2026-03-29T21:00Z")) == 0


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


# Other kinds ----------------------------------------------------------------------------------------------------------

KINDS: list[Recurrence] = [
    Every(timedelta(seconds=90), at("2026-01-01T00:00:07Z")),
    Every(timedelta(days=9), at("1970-01-01T00:00Z")),
    Once(at("2026-06-01T12:00Z")),
    Within(Every(timedelta(hours=5), at("2026-05-30T01:00Z")), at("2026-05-30T01:00Z"), at("2026-06-03T00:00Z")),
    Within(Zoned(Cron("*/20 * * * *"), zone("Europe/Paris")), at("2026-06-01T00:10Z"), at("2026-06-01T13:00Z")),
    Zoned(Cron("0 0 29 2 *"), zone("Europe/Paris")),
    Zoned(Cron("7,8,9 30 2 * * *", seconds=True), zone("Europe/Paris")),
]


@given(
    st.sampled_from(KINDS),
    st.integers(-40 * 86400 * 10**6, 40 * 86400 * 10**6),
    st.integers(0, 3 * 86400 * 10**6),
)
def test_next_previous_and_count_agree(recurrence: Recurrence, shift: int, length: int) -> None:
    after = at("2026-06-01T00:00Z") + timedelta(microseconds=shift)
    until = after + timedelta(microseconds=length)
    found = list(itertools.takewhile(lambda tick: tick <= until, ticks(recurrence, after)))
    assert recurrence.count(after, until) == len(found)
    last = recurrence.previous(until)
    if found:
        assert last == found[-1]
    else:
        assert last is None or last <= after
    for tick in found[:3]:
        assert recurrence.previous(tick) == tick
        assert recurrence.next(tick - timedelta.resolution) == tick


def test_leap_days_and_a_fifth_monday_in_february() -> None:
    leap = ticks(Zoned(Cron("0 0 29 2 *"), zone("UTC")), at("2095-01-01T00:00Z"))
    assert [tick.year for tick in itertools.islice(leap, 3)] == [2096, 2104, 2108]  # 2100 is not one
    fifth = ticks(Zoned(Cron("0 0 * 2 MON#5"), zone("UTC")), at("2026-01-01T00:00Z"))
    assert [tick.date().isoformat() for tick in itertools.islice(fifth, 2)] == ["2044-02-29", "2072-02-29"]


def test_the_end_of_the_calendar_is_an_end() -> None:
    for recurrence in (Every(timedelta(days=36500), at("1970-01-01T00:00Z")), Zoned(Cron("@yearly"), zone("UTC"))):
        assert recurrence.next(at("9989-12-31T23:00Z")) is None


# Zones ----------------------------------------------------------------------------------------------------------------


def test_every_change_of_every_clock_is_found() -> None:
    """In steps of half an hour, which is shorter than any time between two changes that was ever decreed."""
    for name in sorted(available_timezones())[::71]:
        info = ZoneInfo(name)
        for year in (1987, 2011, 2026):
            instants = [datetime(year, 1, 1, tzinfo=UTC) + n * timedelta(minutes=30) for n in range(365 * 48)]
            offsets = [instant.astimezone(info).utcoffset() for instant in instants]
            changes = sum(one != other for one, other in itertools.pairwise(offsets))
            stretches = zone(name).year(year)
            assert len(stretches) == changes + 1, (name, year)
            for stretch in stretches:
                assert stretch.start.astimezone(info).utcoffset() == stretch.offset
                assert (stretch.end - timedelta(seconds=1)).astimezone(info).utcoffset() == stretch.offset


def test_the_rules_of_a_zone_have_a_name() -> None:
    assert zone("Europe/Berlin").rules == zone("Europe/Berlin").rules != zone("Europe/Lisbon").rules
    assert zone("UTC").rules == ""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Europe/berlin", "do you mean Europe/Berlin"),
        ("CEST", "is not a time zone that this machine knows"),
        ("Europe", "is not a time zone"),
        ("../etc/passwd", "is not a time zone"),
        ("/etc/localtime", "is not a time zone"),
        ("Mars/Olympus", "is not a time zone"),
        ("a\0b", "is not a time zone"),
    ],
)
def test_unknown_zones_are_refused(name: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        zone(name)
