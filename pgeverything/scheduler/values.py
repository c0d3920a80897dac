"""What a schedule and a tick are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias, get_args

from ..engine import codec
from ..engine.plan import Rows
from ..errors import InvalidArgument

Misfire: TypeAlias = Literal["once", "all", "skip"]
Overlap: TypeAlias = Literal["allow", "skip", "queue"]
ScheduleState: TypeAlias = Literal["active", "paused", "disabled", "ended"]
Outcome: TypeAlias = Literal["ran", "manual", "misfire", "overlap", "paused", "ended", "full"]

MISFIRES: tuple[Misfire, ...] = get_args(Misfire)
OVERLAPS: tuple[Overlap, ...] = get_args(Overlap)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as it was when it was read.

    One of `cron`, `every` (in seconds) and `at` says when it ticks. `grace` and `jitter` are in seconds; a `grace` of
    None is the time until the next tick, at most a minute. `remaining` counts the jobs that it will still enqueue, of
    `runs` that it was given; None is without end.

    `state` is "active"; "paused" by somebody; "disabled" because the code of its application, `origin`, no longer
    defines it; or "ended" when there is no tick left. `next_tick` is the next nominal time and `next_run_at` the later
    one at which it is acted on, by its jitter. `last_tick` and `last_job_id` are of the last job it enqueued.
    """

    name: str
    task: str
    args: Mapping[str, Any]
    queue: str
    priority: int
    cron: str | None
    seconds: bool
    every: float | None
    at: datetime | None
    timezone: str
    start_at: datetime | None
    end_at: datetime | None
    misfire: Misfire
    grace: float | None
    catch_up: int
    overlap: Overlap
    jitter: float
    runs: int | None
    remaining: int | None
    origin: str | None
    state: ScheduleState
    next_tick: datetime | None
    next_run_at: datetime | None
    last_tick: datetime | None
    last_job_id: int | None
    created_at: datetime
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Tick:
    """A tick, or consecutive ticks that did not run for the same reason, and what became of them.

    `outcome` is "ran", and `job_id` the job that was enqueued; "manual" for a job that `run_now` enqueued; or why there
    was none: "misfire" (nobody was there in time), "overlap" (the last job had not ended), "paused", "ended" (the
    schedule was changed, removed or out of runs; see `reason`), "full" (the queue was).

    `tick` is the nominal time. For `count` > 1 ticks it is the last of them and `since` the first; else both are the
    same. `at` is when it was recorded: for one that ran, when its job was enqueued.
    """

    tick: datetime
    outcome: Outcome
    job_id: int | None
    at: datetime
    since: datetime
    count: int = 1
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a schedule: which kind of trouble, a sentence that says so, and one that says what to do."""

    name: str
    kind: Literal["overdue", "unreadable", "disabled"]
    found: str
    fix: str


def read_schedules(rows: Rows) -> list[Schedule]:
    """Read the columns that every statement about whole schedules selects, in the order of the fields."""
    return [_read_schedule(*row) for row in rows]


def _read_schedule(name: str, task: str, args: str, *others: Any) -> Schedule:
    return Schedule(name, task, codec.decode(args), *others)


def read_ticks(rows: Rows) -> list[Tick]:
    """Read the columns of ticks."""
    return [Tick(*row) for row in rows]


def check_aware(value: object, name: str) -> None:
    """Refuse what is not a datetime with a time zone."""
    if not isinstance(value, datetime) or value.tzinfo is None or value.utcoffset() is None:
        raise InvalidArgument(f"{name}={value!r} must be a datetime with a time zone, for example datetime.now(UTC)")
    if not 1900 <= value.year <= 9000:
        raise InvalidArgument(f"{name}={value!r} must be between the years 1900 and 9000")


def check_choice(value: object, name: str, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the choices."""
    if value not in choices:
        raise InvalidArgument(f"{name}={value!r} must be {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}")
