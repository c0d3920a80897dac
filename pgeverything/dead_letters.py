"""Dead letters: jobs that are out of attempts, rejected, expired, or too dangerous to run again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from .engine.modules import AsyncModule, Module
from .engine.plan import Async, Plan, Query, Sync, op, same, whole
from .engine.statements import statements
from .errors import InvalidArgument, JobNotFound
from .jobs.read import find, read_jobs
from .jobs.values import MOST_BIGINT, Job, check_filter, check_name, check_whole

SQL = statements("dead_letters")
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class DeadGroup:
    """Dead jobs of one task that died of the same thing. `latest_id` and the error are those of the newest of them."""

    task: str
    fingerprint: str | None
    reason: str | None
    count: int
    first_at: datetime
    last_at: datetime
    latest_id: int
    error_type: str | None
    error_message: str | None


def list_(
    *, queue: str | None = None, task: str | None = None, fingerprint: str | None = None, limit: int = 100
) -> Plan[list[Job]]:
    """Return dead jobs, latest death first, by any of the filters."""
    check_whole(limit, "limit", 1, 100_000)
    params: dict[str, object] = _matching(queue, task, fingerprint) | {"limit": limit}
    return (yield from Query(SQL["list"], params, read_jobs))


def groups(*, queue: str | None = None, task: str | None = None, limit: int = 100) -> Plan[list[DeadGroup]]:
    """Return dead jobs grouped by task and fingerprint (exception type and the innermost frame of your code)."""
    check_whole(limit, "limit", 1, 100_000)
    check_filter(queue, "queue")
    check_filter(task, "task")
    params = {"queue": queue, "task": task, "limit": limit}
    return (yield from Query(SQL["groups"], params, lambda rows: [DeadGroup(*row) for row in rows]))


def get(id: int) -> Plan[Job]:  # noqa: A002 - the public name of the thing
    """Return one dead job.

    Raises:
        JobNotFound: there is no dead job of that id.
    """
    job = yield from find(id)
    if job is None or job.state != "dead":
        raise JobNotFound(f"there is no dead job {id}" + (f": it is {job.state}" if job else ""))
    return job


def count(*, queue: str | None = None, task: str | None = None, fingerprint: str | None = None) -> Plan[int]:
    """Return how many dead jobs match the filters."""
    params = _matching(queue, task, fingerprint) | {"ids": None}
    return (yield from Query(SQL["count"], params, whole))


def redrive(
    ids: Iterable[int] | None = None,
    *,
    queue: str | None = None,
    task: str | None = None,
    fingerprint: str | None = None,
    to_queue: str | None = None,
    limit: int | None = None,
    rate: float | None = None,
    dry_run: bool = False,
    everything: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Plan[int]:
    """Give dead jobs a fresh life, oldest death first: attempts start over, `redriven` counts up.

    Moves 1,000 jobs a statement; when it is interrupted, each job is either moved or still dead.

    Args:
        ids: these jobs; or all that match
        queue: this queue,
        task: this task,
        fingerprint: this fingerprint.
        to_queue: run them on this queue; `origin` remembers where they died.
        limit: at most so many.
        rate: jobs a second, by spreading the times they are due; None for all at once.
        dry_run: only count.
        everything: needed to redrive with no filter at all.
        progress: called after each statement with the number of jobs redriven so far.

    Returns:
        How many jobs were redriven, or would be. A job whose unique key is in use again stays dead and is not counted,
        except by `dry_run`.

    Raises:
        InvalidArgument: no filter and not `everything=True`, or a bad value.
    """
    filters = _filters(ids, queue, task, fingerprint, everything)
    if to_queue is not None:
        check_name(to_queue, "to_queue")
    if rate is not None and not (isinstance(rate, int | float) and rate is not True and 0 < rate < math.inf):
        raise InvalidArgument(f"rate={rate!r} must be a number of jobs a second, more than 0")
    most = _limit(limit)
    if dry_run:
        return min((yield from Query(SQL["count"], filters, whole)), most)
    gap = 1.0 / rate if rate else 0.0
    done = 0
    while done < most:
        params = filters | {
            "to_queue": to_queue,
            "limit": min(_BATCH, most - done),
            "start": done * gap,
            "gap": gap,
        }
        moved = len((yield from Query(SQL["redrive"], params, same))[0][0])
        done += moved
        if not moved:
            break
        if progress is not None:
            progress(done)
    return done


def discard(
    ids: Iterable[int] | None = None,
    *,
    queue: str | None = None,
    task: str | None = None,
    fingerprint: str | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    everything: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Plan[int]:
    """End dead jobs for good: they join the finished ones as cancelled, with the reason "discarded".

    The filters, and the other arguments, are those of `redrive`.

    Returns:
        How many jobs were discarded, or would be.
    """
    filters = _filters(ids, queue, task, fingerprint, everything)
    most = _limit(limit)
    if dry_run:
        return min((yield from Query(SQL["count"], filters, whole)), most)
    done = 0
    while done < most:
        gone = yield from Query(SQL["discard"], filters | {"limit": min(_BATCH, most - done)}, whole)
        done += gone
        if not gone:
            break
        if progress is not None:
            progress(done)
    return done


def _filters(
    ids: Iterable[int] | None, queue: str | None, task: str | None, fingerprint: str | None, everything: bool
) -> dict[str, object]:
    if ids is not None and not isinstance(ids, Iterable):
        raise InvalidArgument(f"ids={ids!r} must be a list of job ids: [{ids}]")
    chosen = None if ids is None else list(ids)
    for each in chosen or ():
        check_whole(each, "ids", 1, MOST_BIGINT)
    if not everything and chosen is None and queue is None and task is None and fingerprint is None:
        raise InvalidArgument("say which: ids, queue=, task= or fingerprint=, or everything=True")
    return _matching(queue, task, fingerprint) | {"ids": chosen}


def _matching(queue: str | None, task: str | None, fingerprint: str | None) -> dict[str, object]:
    check_filter(queue, "queue")
    check_filter(task, "task")
    check_filter(fingerprint, "fingerprint")
    return {"queue": queue, "task": task, "fingerprint": fingerprint}


def _limit(limit: int | None) -> int:
    if limit is None:
        return MOST_BIGINT
    check_whole(limit, "limit", 1, MOST_BIGINT)
    return limit


class _Operations:
    list = op(list_)
    groups = op(groups)
    get = op(get)
    count = op(count)
    redrive = op(redrive)
    discard = op(discard)


class BoundDeadLetters(Sync, _Operations):
    """Dead letters inside the caller's transaction, blocking."""


class AsyncBoundDeadLetters(Async, _Operations):
    """Dead letters inside the caller's transaction, awaited."""


class DeadLetters(Module, _Operations):
    """Dead letters, blocking."""


class AsyncDeadLetters(AsyncModule, _Operations):
    """Dead letters, awaited."""
