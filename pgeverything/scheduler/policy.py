"""What becomes of the ticks of a schedule that is due: which run, which do not and why, and when the next one is.

Pure: everything that matters comes in as values, so every rule is tested without a database or a clock.

A tick is due when its time, later by its jitter, has come; ticks come in order, so a tick is not acted on before the
one before it. A due tick that is later than its grace is a misfire.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from .recurrence import Recurrence
from .values import Misfire, Outcome, Overlap

MOST_GRACE = timedelta(minutes=1)  # of a schedule that does not say


@dataclass(frozen=True, slots=True)
class Due:
    """A schedule that is due. `busy` says that its last job has not ended; lengths are in seconds."""

    name: str
    recurrence: Recurrence
    misfire: Misfire
    grace: float | None
    catch_up: int
    overlap: Overlap
    jitter: float
    remaining: int | None
    next_tick: datetime
    busy: bool
    now: datetime


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a tick, or of several consecutive ones that do not run: `since` is the first, `tick` the last."""

    tick: datetime
    outcome: Outcome
    since: datetime | None = None
    count: int = 1
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The fates of all due ticks, in order, and where the schedule stands after them.

    `remaining` is what is left if all of them run. When that is 0, the next tick is the one that there is if a queue
    has no room for a job after all: then something remains.
    """

    fates: tuple[Fate, ...]
    ticked_until: datetime | None
    next_tick: datetime | None
    next_run_at: datetime | None
    remaining: int | None


def run_at(name: str, tick: datetime, jitter: float) -> datetime:
    """Return when a tick is acted on: the same moment on every machine, up to `jitter` seconds later.

    By a hash of name and tick: machines agree without talking, and a tick that is looked at twice does not move.
    """
    if jitter <= 0:
        return tick
    digest = hashlib.sha256(f"{name}\0{tick.timestamp():.6f}".encode()).digest()
    return tick + timedelta(seconds=jitter * int.from_bytes(digest[:6]) / 2**48)


def decide(due: Due) -> Decision:
    """Decide what becomes of the due ticks."""
    last = _last_due(due)
    if last is None:  # not due after all, by this machine's rules of the time zone
        return Decision((), None, due.next_tick, run_at(due.name, due.next_tick, due.jitter), due.remaining)
    running = _worth_running(due, last)
    fates: list[Fate] = []
    if not running or running[0] > due.next_tick:
        until = last if not running else due.recurrence.previous(running[0] - timedelta.resolution)
        fates += skipped(due.recurrence, due.next_tick, until or due.next_tick, "misfire")
    remaining, busy = due.remaining, due.busy
    for tick in running:
        if remaining == 0:
            fates.append(Fate(tick, "ended", reason="it has run as often as it was to"))
        elif busy and due.overlap == "skip":
            fates.append(Fate(tick, "overlap"))
        else:
            fates.append(Fate(tick, "ran"))
            remaining = None if remaining is None else remaining - 1
            busy = True
    next_tick = due.recurrence.next(last)
    return Decision(
        fates=tuple(_together(fates)),
        ticked_until=last,
        next_tick=next_tick,
        next_run_at=None if next_tick is None else run_at(due.name, next_tick, due.jitter),
        remaining=remaining,
    )


def skipped(
    recurrence: Recurrence, first: datetime | None, until: datetime, outcome: Outcome, reason: str | None = None
) -> list[Fate]:
    """Return the fate of all ticks from `first` on and until an instant: one, or none when there are no such ticks."""
    if first is None or first > until:
        return []
    last = recurrence.previous(until) or first
    count = recurrence.count(first, last) + 1
    return [Fate(last, outcome, first if count > 1 else None, count, reason)]


def _last_due(due: Due) -> datetime | None:
    """Return the last tick whose time has come, and the time of all before it."""
    last = None
    surely = due.recurrence.previous(due.now - timedelta(seconds=due.jitter))
    if surely is not None and surely >= due.next_tick:
        last = surely
    tick = due.next_tick if last is None else due.recurrence.next(last)
    while tick is not None and run_at(due.name, tick, due.jitter) <= due.now:
        last, tick = tick, due.recurrence.next(tick)
    return last


def _worth_running(due: Due, last: datetime) -> list[datetime]:
    """Return the ticks to run, in order: those in time, and of the misfires what the policy says.

    They are the latest of the due ones, at most `catch_up`.
    """
    in_time: list[datetime] = []
    latest: list[datetime] = []
    following = due.recurrence.next(last)
    for tick in _backwards(due, last):
        late = due.now - run_at(due.name, tick, due.jitter)
        if len(in_time) == len(latest) and late <= _grace(due, tick, following):
            in_time.append(tick)
        latest.append(tick)
        following = tick
        if due.misfire != "all" and len(in_time) < len(latest):
            break
    if due.misfire == "all":
        return latest[::-1]
    if due.misfire == "once" and not in_time:
        return [last]
    return in_time[::-1]


def _backwards(due: Due, last: datetime) -> Iterator[datetime]:
    """Yield the due ticks from the last one back, at most `catch_up`."""
    tick: datetime | None = last
    for _ in range(due.catch_up):
        if tick is None or tick < due.next_tick:
            return
        yield tick
        tick = due.recurrence.previous(tick - timedelta.resolution)


def _grace(due: Due, tick: datetime, following: datetime | None) -> timedelta:
    """Return how late a tick may be without being a misfire."""
    if due.grace is not None:
        return timedelta(seconds=due.grace)
    return MOST_GRACE if following is None else min(following - tick, MOST_GRACE)


def _together(fates: list[Fate]) -> Iterator[Fate]:
    """Yield the fates, with consecutive ones of the same kind that did not run as one."""
    held: Fate | None = None
    for fate in fates:
        if held is not None and held.outcome == fate.outcome != "ran":
            held = Fate(fate.tick, fate.outcome, held.since or held.tick, held.count + fate.count, fate.reason)
            continue
        if held is not None:
            yield held
        held = fate
    if held is not None:
        yield held
