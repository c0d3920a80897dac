"""What a schedule is to do and when, as it was asked for: checked when it is made, before any SQL."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from ..durations import Duration, seconds
from ..engine import codec
from ..errors import InvalidArgument
from ..jobs.values import MOST_BIGINT, JobOptions, check_name, check_whole
from .cron import Cron
from .fields import check_seconds
from .recurrence import EPOCH, Every, Once, Recurrence, Within, Zoned
from .values import MISFIRES, OVERLAPS, Misfire, Overlap, check_aware, check_choice
from .zones import check_zone, zone

SHORTEST = 1.0  # seconds between two ticks of an interval
MOST_CATCH_UP = 10_000
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Timing:
    """When a schedule ticks, as plain values that a row of the database holds too. `every` is in seconds."""

    cron: str | None
    seconds: bool
    every: float | None
    at: datetime | None
    timezone: str
    start_at: datetime | None
    end_at: datetime | None

    @property
    def recurrence(self) -> Recurrence:
        """Return its ticks."""
        return _recurrence(self)

    @property
    def shortest(self) -> float:
        """Return the shortest time between two of its ticks, in seconds, by a clock that does not change."""
        if self.cron is not None:
            return Cron(self.cron, self.seconds).shortest().total_seconds()
        return math.inf if self.every is None else self.every

    @property
    def rules(self) -> str:
        """Name the rules of its time zone that this machine has; empty where clocks do not matter."""
        return "" if self.cron is None else zone(self.timezone).rules


@lru_cache(maxsize=4096)
def _recurrence(timing: Timing) -> Recurrence:
    recurrence: Recurrence
    if timing.cron is not None:
        recurrence = Zoned(Cron(timing.cron, timing.seconds), zone(timing.timezone))
    elif timing.every is not None:
        anchor = EPOCH if timing.start_at is None else timing.start_at
        recurrence = Every(timedelta(seconds=timing.every), anchor)
    else:
        assert timing.at is not None  # noqa: S101 - one of the three, by a check of the table too
        recurrence = Once(timing.at)
    if timing.start_at is None and timing.end_at is None:
        return recurrence
    return Within(recurrence, timing.start_at, timing.end_at)


@dataclass(frozen=True, slots=True)
class Definition:
    """A schedule as it was asked for. Two that say the same have the same `digest`."""

    name: str
    task: str
    args: str
    queue: str
    priority: int
    timing: Timing
    misfire: Misfire
    grace: float | None
    catch_up: int
    overlap: Overlap
    jitter: float
    runs: int | None

    @property
    def digest(self) -> str:
        """Return a short hash of what it says."""
        said = dataclasses.asdict(self) | {"args": codec.decode(self.args)}
        text = json.dumps(said, sort_keys=True, default=datetime.isoformat)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def params(self) -> dict[str, object]:
        """Return it as statement parameters."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        timing = own.pop("timing")
        return own | dataclasses.asdict(timing) | {"digest": self.digest, "rules": timing.rules}


def define(
    name: str,
    task: str,
    args: str,
    *,
    priority: int = 0,
    queue: str = "default",
    cron: str | None = None,
    every: Duration | None = None,
    at: datetime | None = None,
    seconds: bool = False,
    timezone: str = "UTC",
    misfire: Misfire = "once",
    grace: Duration | None = None,
    catch_up: int = 100,
    overlap: Overlap = "allow",
    jitter: Duration = 0,
    start_at: datetime | None = None,
    end_at: datetime | None = None,
    remaining: int | None = None,
) -> Definition:
    """Check what was asked for; see `Scheduler.add` for the arguments.

    Raises:
        InvalidArgument: an argument is refused.
    """
    check_name(name, "name", most=_LONGEST_NAME)
    check_name(task, "task")
    JobOptions(queue=queue, priority=priority)
    check_choice(misfire, "misfire", MISFIRES)
    check_choice(overlap, "overlap", OVERLAPS)
    check_whole(catch_up, "catch_up", 1, MOST_CATCH_UP)
    if remaining is not None:
        check_whole(remaining, "remaining", 1, MOST_BIGINT)
    timing = _timing(cron, every, at, seconds, timezone, start_at, end_at)
    spread = _length(jitter, "jitter")
    if spread > 0 and spread > (shortest := timing.shortest):
        raise InvalidArgument(
            f"jitter={jitter!r} is longer than the {shortest:g} s from one tick to the next: a tick waits for the one "
            f"before it, so they would pile up; say {shortest:g} at most"
        )
    return Definition(
        name=name,
        task=task,
        args=args,
        queue=queue,
        priority=priority,
        timing=timing,
        misfire=misfire,
        grace=None if grace is None else _length(grace, "grace"),
        catch_up=catch_up,
        overlap=overlap,
        jitter=spread,
        runs=remaining,
    )


def _timing(
    cron: str | None,
    every: Duration | None,
    at: datetime | None,
    with_seconds: bool,
    timezone: str,
    start_at: datetime | None,
    end_at: datetime | None,
) -> Timing:
    if sum(each is not None for each in (cron, every, at)) != 1:
        raise InvalidArgument("say when: one of cron=, every= and at=")
    check_seconds(with_seconds)
    if with_seconds and cron is None:
        raise InvalidArgument("seconds=True is about the first field of a cron expression: it needs cron=")
    check_zone(timezone)
    if timezone != "UTC" and cron is None:
        raise InvalidArgument(
            "timezone= is for cron=: an interval and a single time are the same everywhere; "
            'for a local time every day use cron="0 0 * * *"'
        )
    if at is not None and (start_at is not None or end_at is not None):
        raise InvalidArgument("at= is a single time: it has no start_at= and no end_at=")
    if cron is not None:
        Cron(cron, with_seconds)
    interval = None if every is None else _length(every, "every")
    if interval is not None and interval < SHORTEST:
        raise InvalidArgument(f"every={every!r} must be at least {SHORTEST:g} s")
    for value, name in ((at, "at"), (start_at, "start_at"), (end_at, "end_at")):
        if value is not None:
            check_aware(value, name)
    if start_at is not None and end_at is not None and end_at < start_at:
        raise InvalidArgument("end_at= is before start_at=: there would be no tick")
    return Timing(cron, with_seconds, interval, _utc(at), timezone, _utc(start_at), _utc(end_at))


def _length(value: Duration, name: str) -> float:
    """Return a duration in whole microseconds, as Postgres keeps it: what is read back must be the same."""
    return round(seconds(value, name), 6)


def _utc(value: datetime | None) -> datetime | None:
    return None if value is None else value.astimezone(UTC)


def encode_args(args: Mapping[str, Any] | None) -> str:
    """Return a job's arguments as JSON text.

    Raises:
        InvalidArgument: they are not a mapping, or not JSON.
    """
    if args is not None and not isinstance(args, Mapping):
        raise InvalidArgument(f"args={args!r} must map the handler's parameter names to JSON values")
    return codec.encode(dict(args or {}), "args")
