"""Change schedules: add, remove, pause, resume, and run one now."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from ..durations import Duration
from ..engine.plan import Atomic, Plan, Query, nothing, one_or_none
from ..engine.statements import statements
from ..errors import QueueFull, ScheduleNotFound
from ..jobs.read import get as get_job
from ..jobs.values import Job, check_name
from .code import Code, SyncResult, TaskLike
from .code import sync as sync_code
from .definitions import Definition, define
from .policy import Decision, Fate, run_at
from .read import clock, get
from .standing import Standing, find, put, record, settle, stand, unaccounted
from .tick import fire
from .values import Misfire, Overlap, Schedule

SQL = statements("scheduler")


class Knowing(Protocol):
    """A namespace that knows what its application's code defines."""

    code: Code


def add(  # noqa: D417 - `self` is the namespace
    self: Knowing,
    name: str,
    task: str | TaskLike,
    args: Mapping[str, Any] | None = None,
    *,
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
    queue: str | None = None,
    priority: int | None = None,
    start_at: datetime | None = None,
    end_at: datetime | None = None,
    remaining: int | None = None,
) -> Plan[Schedule]:
    """Enqueue jobs of a task at the times of a schedule. Adding an existing name changes that schedule.

    A changed schedule keeps its history; when what says when it ticks is the same, it also keeps its next tick, its
    pause, and what is left of `remaining`, so a program may add its schedules each time it starts.

    Args:
        name: what the schedule is called.
        task: a task, or the name of one; a name that is not known here is for another program's worker.
        args: the handler's parameters by name, as JSON values.
        cron: a cron expression of five fields, or `@daily` and the like; or
        every: an interval of at least 1 s, counted from `start_at`, else from 1970-01-01 00:00 UTC, so that "1h" is
            every full hour; or
        at: a single time; one in the past is overdue. One of more than 30 days ago is refused: nobody would know any
            more whether it has run.
        seconds: whether the cron expression has six fields, the first of which is the second.
        timezone: the zone of the clock that `cron` speaks of, as an IANA name such as "Europe/Berlin".
        misfire: what becomes of ticks that are late by more than `grace`: "once" runs the last of all that are overdue,
            "all" runs each, "skip" none.
        grace: how late a tick may be and still run as if it were not; by default until the next tick, at most a minute.
        catch_up: how many overdue ticks one pass runs at most; older ones are misfires.
        overlap: what becomes of a tick while the last job has not ended: "allow" runs it beside, "skip" does not run
            it, "queue" runs it after (by an ordering key).
        jitter: spreads starts: a tick is acted on up to so much later, always by the same amount for the same tick; at
            most the time from one tick to the next.
        queue: the jobs' queue; by default the task's own, or "default".
        priority: the jobs' priority; by default the task's own, or 0.
        start_at: no ticks before.
        end_at: no ticks after.
        remaining: how many jobs to enqueue at most; one for which the queue has no room does not count.

    Returns:
        The schedule, with its `next_tick`.

    Raises:
        InvalidArgument: an argument is refused, before any SQL; or there is no tick left.
        InvalidTaskArguments: the task is known here and does not take these arguments.
    """
    task_name, text, options = self.code.job(task, args)
    definition = define(
        name,
        task_name,
        text,
        queue=options.queue if queue is None else queue,
        priority=options.priority if priority is None else priority,
        cron=cron,
        every=every,
        at=at,
        seconds=seconds,
        timezone=timezone,
        misfire=misfire,
        grace=grace,
        catch_up=catch_up,
        overlap=overlap,
        jitter=jitter,
        start_at=start_at,
        end_at=end_at,
        remaining=remaining,
    )
    return (yield from Atomic(_add(definition)))


def sync(self: Knowing) -> Plan[SyncResult]:
    """Bring the schedules that this application's code defines into the database, as its workers do when they start.

    For deployments that want them there before a worker runs. A schedule that is different in the code of a live worker
    stays as it is until that worker is gone; one that this application no longer defines is disabled.

    Returns:
        The names of the schedules that were added, changed and disabled, and of those that wait for a worker to go.
    """
    return (yield from sync_code(self.code))


def _add(definition: Definition) -> Plan[Schedule]:
    standing = (yield from find([definition.name])).get(definition.name)
    now = (yield from clock()) if standing is None else standing.now
    yield from put(definition, None, standing, now)
    return (yield from get(definition.name))


def remove(name: str) -> Plan[bool]:
    """Forget a schedule; its history stays. One that code defines is back when a worker with that code starts.

    Returns:
        Whether there was one.
    """
    check_name(name, "name")
    return (yield from Atomic(_remove(name)))


def _remove(name: str) -> Plan[bool]:
    standing = (yield from find([name])).get(name)
    if standing is None:
        return False
    if standing.paused:
        yield from record(name, unaccounted(standing, "paused"))
    else:
        yield from record(name, unaccounted(standing, "ended", "it was removed"))
    yield from Query(SQL["remove"], {"name": name}, nothing)
    return True


def pause(name: str) -> Plan[None]:
    """Let a schedule enqueue nothing until it is resumed.

    Raises:
        ScheduleNotFound: there is none of that name.
    """
    check_name(name, "name")
    yield from Atomic(_pause(name))


def _pause(name: str) -> Plan[None]:
    standing = yield from _locked(name)
    yield from stand(
        standing,
        paused=True,
        disabled=standing.disabled,
        ticked_until=standing.ticked_until,
        next_tick=standing.next_tick,
    )


def resume(name: str) -> Plan[None]:
    """Let a paused schedule tick again, from now on; the ticks of the pause are recorded as paused.

    Raises:
        ScheduleNotFound: there is none of that name.
    """
    check_name(name, "name")
    yield from Atomic(_resume(name))


def _resume(name: str) -> Plan[None]:
    standing = yield from _locked(name)
    if standing.paused:
        yield from settle(standing, "paused", None, paused=False, disabled=standing.disabled)


def run_now(name: str) -> Plan[Job]:
    """Enqueue a schedule's job now, beside its ticks, also when it is paused or has ended.

    Returns:
        The job. With `overlap="skip"`, when the last one has not ended, that one, with `duplicate=True`.

    Raises:
        ScheduleNotFound: there is none of that name.
        QueueFull: its queue has no room.
    """
    check_name(name, "name")
    return (yield from Atomic(_run_now(name)))


def _run_now(name: str) -> Plan[Job]:
    standing = yield from _locked(name)
    if (unfinished := (yield from Query(SQL["unfinished"], {"name": name}, one_or_none))) is not None:
        return dataclasses.replace((yield from get_job(unfinished)), duplicate=True)
    following = standing.next_tick
    acts = following is not None and not standing.paused and not standing.disabled
    decision = Decision(
        fates=(Fate((yield from clock()), "manual"),),
        ticked_until=None,
        next_tick=following,
        next_run_at=run_at(name, following, standing.jitter) if acts and following is not None else None,
        remaining=standing.remaining,
    )
    job = (yield from fire({name: decision}, {})).jobs[0]
    if job is None:
        raise QueueFull(f"the queue of schedule {name!r} has no room: try again later, or raise its max_depth")
    return (yield from get_job(job))


def _locked(name: str) -> Plan[Standing]:
    standing = (yield from find([name])).get(name)
    if standing is None:
        raise ScheduleNotFound(f"there is no schedule {name!r}")
    return standing
