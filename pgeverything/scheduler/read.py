"""Look at schedules: one, many, what became of their ticks, and when an expression would tick."""

from __future__ import annotations

from datetime import datetime
from typing import get_args

from ..engine.plan import Plan, Query, one, same
from ..engine.statements import statements
from ..errors import InvalidArgument, ScheduleNotFound
from ..jobs.values import check_filter, check_name, check_whole
from .cron import Cron
from .recurrence import EPOCH, Zoned
from .values import Schedule, ScheduleState, Tick, Trouble, check_aware, read_schedules, read_ticks
from .zones import check_zone

SQL = statements("scheduler")
PATIENCE = 30.0
"""Seconds that a schedule may be overdue: less is a deployment, not a fault."""
STATES: tuple[ScheduleState, ...] = get_args(ScheduleState)


def clock() -> Query[datetime]:
    """Return the query for the database's clock."""
    return Query(SQL["clock"], {}, one)


def get(name: str) -> Plan[Schedule]:
    """Return a schedule.

    Raises:
        ScheduleNotFound: there is none of that name.
    """
    check_name(name, "name")
    params = {"name": name, "task": None, "state": None, "after": None, "limit": 1}
    found = yield from Query(SQL["list"], params, read_schedules)
    if not found:
        raise ScheduleNotFound(f"there is no schedule {name!r}")
    return found[0]


def list_(
    *, task: str | None = None, state: ScheduleState | None = None, limit: int = 1000, after: str | None = None
) -> Plan[list[Schedule]]:
    """Return schedules by name.

    Args:
        task: only of this task.
        state: only in this state.
        limit: at most so many.
        after: only names after this one, to read on from the last page.
    """
    check_filter(task, "task")
    check_filter(after, "after")
    if state is not None and state not in STATES:
        raise InvalidArgument(f"state={state!r} must be one of {', '.join(STATES)}")
    check_whole(limit, "limit", 1, 100_000)
    params = {"name": None, "task": task, "state": state, "after": after, "limit": limit}
    return (yield from Query(SQL["list"], params, read_schedules))


def history(name: str, *, limit: int = 100, before: datetime | None = None) -> Plan[list[Tick]]:
    """Return what became of a schedule's ticks, the latest first; also of one that was removed.

    Ticks are kept for 30 days. Those that fell into a pause are recorded when it ends.

    Args:
        name: the schedule.
        limit: at most so many rows; a row can be about several ticks that did not run.
        before: only ticks before this one, to read on from the last page.
    """
    check_name(name, "name")
    check_whole(limit, "limit", 1, 100_000)
    if before is not None:
        check_aware(before, "before")
    return (yield from Query(SQL["history"], {"name": name, "limit": limit, "before": before}, read_ticks))


def preview(
    cron: str, *, timezone: str = "UTC", count: int = 5, start: datetime | None = None, seconds: bool = False
) -> Plan[list[datetime]]:
    """Return the next times of a cron expression, in its time zone, clock changes and all.

    Args:
        cron: the expression.
        timezone: an IANA name, for example "Europe/Berlin".
        count: how many; fewer where there are no more.
        start: the times after this instant; by default from now on, by the database's clock.
        seconds: whether the first of six fields is the second.

    Raises:
        InvalidArgument: the expression cannot be read, never comes true, or is surprising; the message says why.
    """
    if start is None:
        upcoming(cron, timezone, count, EPOCH, seconds=seconds)  # what is refused is refused before any SQL
        start = yield from clock()
    return upcoming(cron, timezone, count, start, seconds=seconds)


def upcoming(cron: str, timezone: str, count: int, start: datetime, *, seconds: bool = False) -> list[datetime]:
    """Return the next times of a cron expression after `start`, in its time zone."""
    zoned = Zoned(Cron(cron, seconds), check_zone(timezone))
    check_whole(count, "count", 1, 10_000)
    check_aware(start, "start")
    found: list[datetime] = []
    while len(found) < count and (tick := zoned.next(start)) is not None:
        found.append(tick.astimezone(zoned.zone.info))
        start = tick
    return found


def troubles() -> Plan[list[Trouble]]:
    """Return what is wrong with the schedules."""
    rows = yield from Query(SQL["troubles"], {"patience": PATIENCE}, same)
    return [_trouble(*row) for row in rows]


def _trouble(
    name: str,
    origin: str | None,
    disabled: bool,
    overdue: float,
    cron: str | None,
    seconds: bool,
    timezone: str,
) -> Trouble:
    if disabled:
        found = f"schedule {name!r} is disabled, because the code of {origin} no longer defines it"
        return Trouble(name, "disabled", found, "remove it, or start a worker with the code that does")
    found = f"schedule {name!r} is {overdue:.0f} s overdue"
    try:
        place = check_zone(timezone)
        if cron is not None:
            Zoned(Cron(cron, seconds), place)
    except InvalidArgument as error:
        fix = "start a worker on a machine that can, or add it again with what can be computed"
        return Trouble(name, "unreadable", f"{found} and cannot be computed on this machine ({error})", fix)
    return Trouble(name, "overdue", found, "start a worker, or read the log of the one that runs")
