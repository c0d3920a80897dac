"""Random cron expressions, time zones, and instants around clock changes, for tests that compare implementations."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from pgeverything.scheduler.zones import zone

# Changes by one hour, by thirty minutes, by two hours; in the night, at midnight, twice a month around Ramadan; none.
ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "America/Havana",
    "Africa/Casablanca",
    "Asia/Beirut",
    "Pacific/Apia",
    "America/St_Johns",
    "Asia/Kathmandu",
    "Africa/Lagos",
    "UTC",
]


def _field(least: int, most: int, *, star: int = 3) -> st.SearchStrategy[str]:
    """Return terms of a field that say what they seem to say: ranges run forwards, steps leave two values or more."""
    values = st.integers(least, most)
    spans = st.tuples(st.integers(least, most - 1), st.integers(1, most)).map(lambda t: (t[0], min(t[0] + t[1], most)))
    ranges = spans.map(lambda t: f"{t[0]}-{t[1]}")
    stepped = st.tuples(spans, st.integers(1, 9)).map(lambda t: f"{t[0][0]}-{t[0][1]}/{min(t[1], t[0][1] - t[0][0])}")
    from_value = st.tuples(st.integers(least, most - 1), st.integers(1, 20)).map(
        lambda t: f"{t[0]}/{min(t[1], most - t[0])}"
    )
    plain = st.one_of(values.map(str), ranges, stepped, from_value)
    lists = st.lists(plain, min_size=1, max_size=4).map(",".join)
    steps = st.integers(1, most - least).map(lambda n: f"*/{n}")
    return st.one_of(*[st.just("*")] * star, plain, lists, steps)


MINUTES = _field(0, 59, star=1)
HOURS = _field(0, 23, star=1)
MONTHS = st.one_of(*[st.just("*")] * 6, st.lists(st.integers(1, 12).map(str), min_size=1, max_size=5).map(",".join))
DAYS = st.one_of(_field(1, 31), st.sampled_from(["L", "1,L", "29-31", "31", "15,L"]))
WEEKDAYS = st.one_of(
    st.lists(
        st.sampled_from(["0", "1", "2", "3", "5", "6", "7", "SUN", "MON", "1-5", "SAT"]), min_size=1, max_size=3
    ).map(",".join),
    st.lists(st.sampled_from(["5L", "1#1", "MON#2", "3#5", "SUN#4", "6L"]), min_size=1, max_size=2).map(",".join),
)
DAY_FIELDS = st.one_of(
    st.tuples(st.just("*"), MONTHS, st.just("*")),
    st.tuples(DAYS, MONTHS, st.just("*")),
    st.tuples(st.just("*"), MONTHS, WEEKDAYS),
)
EXPRESSIONS = st.builds(lambda minute, hour, days: " ".join([minute, hour, *days]), MINUTES, HOURS, DAY_FIELDS)
"""Five-field expressions, some of which name no date at all."""

NIGHTLY = st.builds(
    lambda minute, hour: f"{minute} {hour} * * *",
    st.one_of(MINUTES, st.sampled_from(["30", "0", "15,45"])),
    st.sampled_from(["0", "1", "2", "3", "1-3", "0,2", "*", "*/2", "2-4/2", "0-5"]),
)
"""Expressions with times in the hours in which clocks change."""


def instants(name: str) -> st.SearchStrategy[datetime]:
    """Return instants within a day and a half of a change of this zone's clock, or anywhere."""
    changes = [
        stretch.start
        for year in range(2008, 2034)
        for stretch in zone(name).year(year)
        if stretch.follows != stretch.local(stretch.start)
    ]
    anywhere = st.integers(0, 60 * 24 * 365 * 20).map(lambda n: datetime(2012, 1, 1, tzinfo=UTC) + timedelta(minutes=n))
    if not changes:
        return anywhere
    around = st.tuples(st.sampled_from(changes), st.integers(-2200, 800)).map(lambda t: t[0] + timedelta(minutes=t[1]))
    return st.one_of(around, around, around, anywhere)
