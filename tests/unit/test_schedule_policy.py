"""What becomes of due ticks: every rule without a database, and that no tick goes missing, whatever the rules."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgeverything.scheduler.cron import Cron
from pgeverything.scheduler.policy import Due, Fate, decide, run_at, skipped
from pgeverything.scheduler.recurrence import EPOCH, Every, Once, Recurrence, Within, Zoned
from pgeverything.scheduler.values import MISFIRES, OVERLAPS
from pgeverything.scheduler.zones import zone

NOW = datetime(2026, 5, 17, 12, 0, 0, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def due(overdue: timedelta, every: timedelta = HOUR, late: float = 0.0, **options: Any) -> Due:
    """Return a schedule whose next tick has been due for so long; its last due tick is `late` seconds ago."""
    recurrence = Every(every, NOW - timedelta(seconds=late))
    made = Due(
        name="s",
        recurrence=recurrence,
        misfire="once",
        grace=None,
        catch_up=100,
        overlap="allow",
        jitter=0.0,
        remaining=None,
        next_tick=NOW - timedelta(seconds=late) - overdue,
        busy=False,
        now=NOW,
    )
    return dataclasses.replace(made, **options)


def fates(schedule: Due) -> list[tuple[str, int]]:
    return [(fate.outcome, fate.count) for fate in decide(schedule).fates]


def test_a_tick_in_time_runs() -> None:
    decision = decide(due(timedelta(0), late=0.01))
    tick = NOW - timedelta(seconds=0.01)
    assert decision.fates == (Fate(tick, "ran"),)
    assert (decision.ticked_until, decision.next_tick, decision.next_run_at) == (tick, tick + HOUR, tick + HOUR)


@pytest.mark.parametrize(
    ("misfire", "expected"),
    [
        ("once", [("misfire", 3), ("ran", 1)]),
        ("skip", [("misfire", 4)]),
        ("all", [("ran", 1)] * 4),
    ],
)
def test_ticks_beyond_their_grace(misfire: str, expected: list[tuple[str, int]]) -> None:
    """Three hours late with an hour between two, seen half an hour after the last one."""
    assert fates(due(3 * HOUR, late=1800, misfire=misfire)) == expected


@pytest.mark.parametrize(
    ("misfire", "expected"),
    [
        ("once", [("misfire", 3), ("ran", 1)]),  # the one in time stands for all
        ("skip", [("misfire", 3), ("ran", 1)]),
        ("all", [("ran", 1)] * 4),
    ],
)
def test_ticks_beyond_their_grace_before_one_in_time(misfire: str, expected: list[tuple[str, int]]) -> None:
    assert fates(due(3 * HOUR, late=10, misfire=misfire)) == expected


def test_the_grace_is_the_time_to_the_next_tick_and_at_most_a_minute() -> None:
    assert fates(due(timedelta(0), late=60, misfire="skip")) == [("ran", 1)]
    assert fates(due(timedelta(0), late=61, misfire="skip")) == [("misfire", 1)]
    second = timedelta(seconds=1)
    assert fates(due(30 * second, every=second, late=0.5, misfire="skip")) == [("misfire", 30), ("ran", 1)]


def test_a_grace_of_ones_own() -> None:
    assert fates(due(3 * HOUR, late=10, misfire="skip", grace=2.5 * 3600)) == [("misfire", 1), *[("ran", 1)] * 3]
    assert fates(due(timedelta(0), late=0.5, misfire="skip", grace=0.0)) == [("misfire", 1)]


def test_catching_up_has_a_bound_and_runs_the_latest() -> None:
    decision = decide(due(9 * HOUR, late=1800, misfire="all", catch_up=3))
    missed, *ran = decision.fates
    assert (missed.outcome, missed.count, missed.since) == ("misfire", 7, NOW - timedelta(seconds=1800) - 9 * HOUR)
    assert [fate.tick for fate in ran] == [NOW - timedelta(seconds=1800) - n * HOUR for n in (2, 1, 0)]
    assert fates(due(9 * HOUR, late=1, misfire="skip", grace=1e9, catch_up=3)) == [("misfire", 7), *[("ran", 1)] * 3]


def test_overlap() -> None:
    catching_up: dict[str, Any] = {"late": 1800, "misfire": "all"}
    assert fates(due(2 * HOUR, **catching_up, overlap="skip")) == [("ran", 1), ("overlap", 2)]
    assert fates(due(2 * HOUR, **catching_up, overlap="skip", busy=True)) == [("overlap", 3)]
    for overlap in ("allow", "queue"):
        assert fates(due(2 * HOUR, **catching_up, overlap=overlap, busy=True)) == [("ran", 1)] * 3


def test_a_limited_number_of_runs() -> None:
    decision = decide(due(3 * HOUR, late=1800, misfire="all", remaining=2))
    assert [(fate.outcome, fate.count) for fate in decision.fates] == [("ran", 1), ("ran", 1), ("ended", 2)]
    assert decision.remaining == 0
    assert decide(due(timedelta(0), late=1, remaining=3)).remaining == 2
    skipped_ones = decide(due(timedelta(0), late=1, remaining=3, overlap="skip", busy=True))
    assert (skipped_ones.remaining, skipped_ones.next_tick is None) == (3, False)


def test_the_last_tick_before_the_end() -> None:
    tick = NOW - timedelta(seconds=1)
    schedule = due(timedelta(0), late=1, recurrence=Within(Every(HOUR, tick), None, NOW + MINUTE))
    decision = decide(schedule)
    assert [fate.outcome for fate in decision.fates] == ["ran"]
    assert decision.next_tick is None


def test_a_single_time_however_late_it_is_seen() -> None:
    at = NOW - timedelta(days=400)
    for misfire, expected in (("once", "ran"), ("all", "ran"), ("skip", "misfire")):
        decision = decide(due(timedelta(0), recurrence=Once(at), next_tick=at, misfire=misfire))
        assert [fate.outcome for fate in decision.fates] == [expected]
        assert decision.next_tick is None


def test_a_tick_that_is_not_due_by_our_rules_is_left_alone() -> None:
    later = NOW + MINUTE
    decision = decide(due(timedelta(0), next_tick=later))
    assert (decision.fates, decision.ticked_until, decision.next_tick) == ((), None, later)


def test_jitter_is_the_same_everywhere_and_spread() -> None:
    ticks = [NOW + n * HOUR for n in range(1000)]
    shifts = [(run_at("s", tick, 60.0) - tick).total_seconds() for tick in ticks]
    assert shifts == [
        (run_at("s", tick.astimezone(zone("Asia/Tokyo").info), 60.0) - tick).total_seconds() for tick in ticks
    ]
    assert all(0 <= shift < 60 for shift in shifts)
    assert 25 < sum(shifts) / len(shifts) < 35
    assert run_at("s", NOW, 60.0) != run_at("t", NOW, 60.0)
    assert run_at("s", NOW, 0.0) == NOW


def test_jitter_moves_the_start_and_not_the_tick() -> None:
    tick = NOW - timedelta(seconds=30)
    shift = run_at("s", tick, 3600.0) - tick
    schedule = due(timedelta(0), late=30, jitter=3600.0, next_tick=tick)
    assert decide(dataclasses.replace(schedule, now=tick + shift - timedelta.resolution)).fates == ()
    decision = decide(dataclasses.replace(schedule, now=tick + shift))
    assert decision.fates == (Fate(tick, "ran"),)
    assert decision.next_tick == tick + HOUR
    assert decision.next_run_at == run_at("s", tick + HOUR, 3600.0)


def test_what_was_skipped_is_one_fate() -> None:
    hourly = Every(HOUR, EPOCH)
    first = NOW - 5 * HOUR
    assert skipped(hourly, first, NOW, "paused") == [Fate(NOW, "paused", first, 6)]
    assert skipped(hourly, NOW, NOW + MINUTE, "paused") == [Fate(NOW, "paused")]
    assert skipped(hourly, NOW + HOUR, NOW, "paused") == []
    assert skipped(hourly, None, NOW, "paused") == []


# No tick goes missing -------------------------------------------------------------------------------------------------

RECURRENCES: list[Recurrence] = [
    Every(timedelta(seconds=1), EPOCH),
    Every(timedelta(seconds=37.25), NOW),
    Every(HOUR, EPOCH),
    Zoned(Cron("*/7 * * * *"), zone("Europe/Berlin")),
    Zoned(Cron("15,45 0-5 * * *"), zone("America/New_York")),
    Zoned(Cron("0 9 * * MON-FRI"), zone("Asia/Kolkata")),
    Zoned(Cron("0 0 29 2 *"), zone("UTC")),
    Within(Every(MINUTE, NOW), NOW - 2 * HOUR, NOW + MINUTE),
    Once(NOW - HOUR),
]


@given(
    recurrence=st.sampled_from(RECURRENCES),
    downtime=st.integers(0, 3 * 86400),
    naps=st.lists(st.integers(1, 4000), max_size=6),
    jitter=st.sampled_from([0.0, 0.5, 30.0, 4000.0]),
    grace=st.sampled_from([None, 0.0, 5.0, 7200.0]),
    misfire=st.sampled_from(MISFIRES),
    overlap=st.sampled_from(OVERLAPS),
    remaining=st.sampled_from([None, 1, 5]),
    catch_up=st.sampled_from([1, 3, 100]),
    busy=st.booleans(),
)
def test_every_tick_is_accounted_for_exactly_once(
    recurrence: Recurrence, downtime: int, naps: list[int], **options: Any
) -> None:
    """Through a downtime and some passes after it: the fates cover the ticks without a gap, and in few rows."""
    start = NOW - timedelta(seconds=downtime)
    first = recurrence.next(start)
    if first is None:
        return
    made = [
        Due(name="s", recurrence=recurrence, next_tick=first, now=NOW, **options),
    ]
    expected = start
    ran = 0
    for nap in [0, *naps]:
        schedule = dataclasses.replace(made[-1], now=made[-1].now + timedelta(seconds=nap))
        decision = decide(schedule)
        for fate in decision.fates:
            begin = fate.since or fate.tick
            assert begin == recurrence.next(expected)
            assert recurrence.count(expected, fate.tick) == fate.count
            assert (fate.count > 1) == (fate.since is not None)
            expected = fate.tick
            ran += fate.outcome == "ran"
            if fate.outcome == "ran":
                assert run_at("s", fate.tick, schedule.jitter) <= schedule.now
        assert len(decision.fates) <= schedule.catch_up + 3
        if decision.fates:
            assert decision.ticked_until == expected
        assert decision.next_tick == recurrence.next(expected)
        if decision.next_tick is None or decision.remaining == 0:
            break
        assert decision.next_run_at is not None
        assert decision.next_run_at > schedule.now
        made.append(dataclasses.replace(schedule, next_tick=decision.next_tick, remaining=decision.remaining))
    if options["remaining"] is not None:
        assert ran <= options["remaining"]
