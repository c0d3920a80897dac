"""Where a schedule stands: read under its row lock, and moved on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ..engine.plan import Plan, Query, Rows, nothing
from ..engine.statements import statements
from ..errors import InvalidArgument
from .chores import KEEP
from .definitions import Definition, Timing
from .policy import Fate, run_at, skipped
from .values import Outcome

SQL = statements("scheduler")


@dataclass(frozen=True, slots=True)
class Standing:
    """A schedule's row, as far as its ticks go. `now` is when it was read, by the database's clock."""

    name: str
    digest: str
    origin: str | None
    paused: bool
    disabled: bool
    timing: Timing
    jitter: float
    runs: int | None
    remaining: int | None
    ticked_until: datetime
    next_tick: datetime | None
    last_tick: datetime | None
    now: datetime


def find(names: Iterable[str]) -> Query[dict[str, Standing]]:
    """Return the query that locks schedules and reads where they stand, by name."""
    return Query(SQL["find"], {"names": sorted(names)}, _read)


def _read(rows: Rows) -> dict[str, Standing]:
    found = {}
    for name, digest, origin, paused, disabled, *when, jitter, runs, remaining, until, following, last, now in rows:
        timing = read_timing(*when)
        found[name] = Standing(
            name, digest, origin, paused, disabled, timing, jitter, runs, remaining, until, following, last, now
        )
    return found


def read_timing(
    cron: str | None,
    seconds: bool,
    every: float | None,
    at: datetime | None,
    timezone: str,
    start_at: datetime | None,
    end_at: datetime | None,
) -> Timing:
    """Read the columns that say when a schedule ticks."""
    utc = [None if value is None else value.astimezone(UTC) for value in (at, start_at, end_at)]
    interval = None if every is None else round(every, 6)
    return Timing(cron, seconds, interval, utc[0], timezone, utc[1], utc[2])


def unaccounted(standing: Standing, outcome: Outcome, reason: str | None = None) -> list[Fate]:
    """Return the fate of the ticks whose time has come and that nobody has acted on."""
    if standing.next_tick is None or standing.next_tick > standing.now:
        return []
    try:
        recurrence = standing.timing.recurrence
    except (
        InvalidArgument
    ):  # of a zone that this machine lacks, or of a newer release: it must be removable all the same
        return [Fate(standing.next_tick, outcome, reason=reason or "how many there were cannot be told")]
    return skipped(recurrence, standing.next_tick, standing.now, outcome, reason)


def record(name: str, fates: Iterable[Fate]) -> Plan[None]:
    """Record ticks that did not run."""
    for fate in fates:
        params = {
            "name": name,
            "tick": fate.tick,
            "since": fate.since,
            "count": fate.count,
            "outcome": fate.outcome,
            "reason": fate.reason,
        }
        yield from Query(SQL["skip"], params, nothing)


def put(definition: Definition, origin: str | None, standing: Standing | None, now: datetime) -> Plan[None]:
    """Define a schedule, new or again.

    When it ticks as before, its next tick stays as it is. Otherwise it ticks from now on, and the ticks of the old
    definition that nobody has acted on are recorded as ended.

    Raises:
        InvalidArgument: a new definition has no tick left.
    """
    recurrence = definition.timing.recurrence
    ticked_until, remaining = now, definition.runs
    fates: list[Fate] = []
    following: datetime | None = None
    if standing is not None and standing.runs == definition.runs:
        remaining = standing.remaining
    if standing is not None and _goes_on(standing, definition):
        ticked_until, following = standing.ticked_until, standing.next_tick
        if following is not None and definition.timing.cron is not None:  # by the rules of a zone that this machine has
            following = recurrence.next(ticked_until)
    else:
        if standing is not None:
            fates = unaccounted(standing, *_why_not(standing))
            ticked_until = max(now, standing.ticked_until)
        at = definition.timing.at
        # One in the past is overdue. Not one of so long ago that nobody knows any more whether it ran.
        if at is not None and at > now - KEEP and (standing is None or standing.timing != definition.timing):
            ticked_until = min(ticked_until, at - timedelta.resolution)
        following = None if remaining == 0 else recurrence.next(ticked_until)
        if following is None and standing is None:
            long = f" more than {KEEP.days} days ago; enqueue the job instead" if at is not None else ""
            raise InvalidArgument(f"schedule {definition.name!r} would never tick: its time has passed{long}")
    yield from record(definition.name, fates)
    params = definition.params() | {
        "origin": origin,
        "remaining": remaining,
        "ticked_until": ticked_until,
        "next_tick": following,
        "next_run_at": None if following is None else run_at(definition.name, following, definition.jitter),
    }
    yield from Query(SQL["put"], params, nothing)


def _goes_on(standing: Standing, definition: Definition) -> bool:
    """Whether a definition leaves the next tick as it is."""
    return (
        standing.timing == definition.timing
        and not standing.disabled
        and (standing.next_tick is not None or standing.runs == definition.runs)
    )


def _why_not(standing: Standing) -> tuple[Outcome, str | None]:
    if standing.paused:
        return "paused", None
    return "ended", "its code was gone" if standing.disabled else "the definition changed"


def stand(
    standing: Standing,
    *,
    paused: bool,
    disabled: bool,
    ticked_until: datetime,
    next_tick: datetime | None,
) -> Plan[None]:
    """Move a schedule to where it stands now."""
    acts = next_tick is not None and not paused and not disabled
    params = {
        "name": standing.name,
        "paused": paused,
        "disabled": disabled,
        "rules": _rules(standing.timing),
        "ticked_until": ticked_until,
        "next_tick": next_tick,
        "next_run_at": run_at(standing.name, next_tick, standing.jitter) if acts and next_tick else None,
    }
    yield from Query(SQL["stand"], params, nothing)


def _rules(timing: Timing) -> str | None:
    """Return the rules that this machine has, or None, which leaves the stored ones, where it has none."""
    try:
        return timing.rules
    except InvalidArgument:
        return None


def settle(standing: Standing, outcome: Outcome, reason: str | None, *, paused: bool, disabled: bool) -> Plan[None]:
    """Record what a schedule has missed until now, and let it tick from now on, unless it is paused or disabled."""
    yield from record(standing.name, unaccounted(standing, outcome, reason))
    until = max(standing.now, standing.ticked_until)
    following = standing.timing.recurrence.next(until) if standing.next_tick is not None else None
    yield from stand(standing, paused=paused, disabled=disabled, ticked_until=until, next_tick=following)
