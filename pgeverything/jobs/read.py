"""Read jobs: one, many, their numbers, their failures; and wait for one to end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..durations import Duration, seconds
from ..engine import codec
from ..engine.plan import Plan, Query, Rows, Sleep, one_or_none, same
from ..engine.statements import statements
from ..errors import InvalidArgument, JobFailed, JobNotFound, WaitTimeout
from .values import ENDED, MOST_BIGINT, STATES, Job, State, check_filter, check_whole

SQL = statements("jobs")


def read_jobs(rows: Rows) -> list[Job]:
    """Read the columns that every statement about whole jobs selects, in the order of :class:`Job`'s fields."""
    return [_read_job(row) for row in rows]


def _read_job(row: tuple[Any, ...]) -> Job:
    args, headers, error, result = row[5], row[6], row[25], row[26]
    fields = (
        *row[:5],
        codec.decode(args),
        codec.decode(headers) if headers else {},
        *row[7:25],
        codec.decode(error) if error else None,
        codec.decode(result) if result else None,
    )
    return Job(*fields)


def find(id: int) -> Query[Job | None]:  # noqa: A002 - the public name of the thing
    """Return the query for one job, which reads None when there is none."""
    check_whole(id, "id", 1, MOST_BIGINT)
    return Query(SQL["get"], {"id": id}, lambda rows: read_jobs(rows)[0] if rows else None)


def get(id: int) -> Plan[Job]:  # noqa: A002
    """Return one job, live or finished.

    Raises:
        JobNotFound: there is none of that id, or retention has dropped it.
    """
    job = yield from find(id)
    if job is None:
        raise JobNotFound(f"there is no job {id}, or it ended longer ago than finished jobs are kept")
    return job


def list_(
    *,
    queue: str | None = None,
    task: str | None = None,
    state: State | None = None,
    limit: int = 100,
    before: int | None = None,
) -> Plan[list[Job]]:
    """Return jobs, newest first.

    Args:
        queue: only of this queue.
        task: only of this task.
        state: only in this state.
        limit: at most so many.
        before: only ids below this one, to read on from the last page.
    """
    if state is not None and state not in STATES:
        raise InvalidArgument(f"state={state!r} must be one of {', '.join(STATES)}")
    check_filter(queue, "queue")
    check_filter(task, "task")
    check_whole(limit, "limit", 1, 100_000)
    before = MOST_BIGINT if before is None else before
    check_whole(before, "before", 1, MOST_BIGINT)
    params = {"queue": queue, "task": task, "state": state, "limit": limit, "before": before}
    return (yield from Query(SQL["list"], params, read_jobs))


def counts(queue: str | None = None) -> Plan[dict[State, int]]:
    """Return how many jobs of a queue, or of all, are in each state.

    The finished ones are those that retention still keeps; counting them reads their index, about 0.1 s a million.
    """
    check_filter(queue, "queue")
    found = yield from Query(SQL["counts"], {"queue": queue}, same)
    return dict.fromkeys(STATES, 0) | dict(found)


def failures(id: int) -> Plan[list[Mapping[str, Any]]]:  # noqa: A002
    """Return what went wrong with a job, attempt by attempt: `at`, `attempt`, `worker` and `error` of each."""
    check_whole(id, "id", 1, MOST_BIGINT)
    rows = yield from Query(SQL["failures"], {"id": id}, same)
    return [
        {"at": at, "attempt": attempt, "worker": worker, "error": codec.decode(error)}
        for at, attempt, worker, error in rows
    ]


def wait(id: int, timeout: Duration | None = None) -> Plan[Job]:  # noqa: A002
    """Wait until a job has ended, and return it.

    Args:
        id: the job.
        timeout: how long to wait; None waits for ever.

    Returns:
        The job, with its `result`.

    Raises:
        JobFailed: it ended dead or cancelled.
        JobNotFound: there is no such job.
        WaitTimeout: it has not ended in time.
    """
    check_whole(id, "id", 1, MOST_BIGINT)
    left = None if timeout is None else seconds(timeout, "timeout")
    pause = 0.01
    while True:
        state = yield from Query(SQL["state"], {"id": id}, one_or_none)
        if state is None or state in ENDED:
            break
        if left is not None and left <= 0:
            raise WaitTimeout(f"job {id} is still {state}; ask pg.jobs.why({id}) for the reason")
        pause = min(pause * 1.5, 0.5)
        step = pause if left is None else min(pause, left)
        yield Sleep(step)
        left = None if left is None else left - step
    job = yield from get(id)
    if job.state != "succeeded":
        raise JobFailed(f"job {id} is {job.state}: {job.reason or (job.error or {}).get('message', 'no reason given')}")
    return job
