"""Change what happens to jobs and queues: cancel, retry, pause, limits."""

from __future__ import annotations

from types import EllipsisType
from typing import get_args

from ..engine.plan import Plan, Query, nothing, one_or_none
from ..engine.statements import statements
from ..errors import InvalidArgument, JobStateError
from .read import get
from .revive import revive
from .values import MOST_BIGINT, OnFull, Queue, check_name, check_whole

SQL = statements("jobs")


def cancel(id: int, reason: str = "cancelled") -> Plan[bool]:  # noqa: A002
    """Cancel a job in whatever state it is.

    A job that is running is asked to stop: an `async def` handler is cancelled, a `def` handler sees
    `JobContext.cancelled`, and neither is tried again.

    Args:
        id: the job.
        reason: kept with it, at most 2,000 bytes.

    Returns:
        True when the job is cancelled or was asked to stop, False when it had ended already or is not known.
    """
    check_whole(id, "id", 1, MOST_BIGINT)
    check_name(reason, "reason", most=2000)
    return (yield from Query(SQL["cancel"], {"id": id, "reason": reason}, one_or_none)) is not None


def retry(id: int) -> Plan[None]:  # noqa: A002
    """Try a dead job again from its first attempt, or a scheduled one at once.

    Raises:
        JobNotFound: there is no such job.
        JobStateError: it is neither dead nor scheduled.
    """
    job = yield from get(id)
    if job.state == "dead":
        if (yield from revive(1, ids=[id])):
            return
        raise JobStateError(
            f"job {id} cannot be tried again: another unfinished job has its unique_key={job.unique_key!r}"
        )
    if job.state == "scheduled":
        yield from Query(SQL["hurry"], {"id": id}, nothing)
        return
    raise JobStateError(f"job {id} is {job.state}: only a dead or a scheduled job can be retried")


def pause(queue: str) -> Plan[None]:
    """Stop handing out the jobs of a queue. Running ones go on; enqueueing goes on."""
    check_name(queue, "queue")
    yield from Query(SQL["pause"], {"queue": queue, "paused": True}, nothing)


def resume(queue: str) -> Plan[None]:
    """Hand out the jobs of a paused queue again."""
    check_name(queue, "queue")
    yield from Query(SQL["pause"], {"queue": queue, "paused": False}, nothing)


def configure(
    queue: str,
    *,
    max_depth: int | EllipsisType | None = ...,
    on_full: OnFull | EllipsisType = ...,
    concurrency: int | EllipsisType | None = ...,
    per_key: int | EllipsisType = ...,
) -> Plan[None]:
    """Set the limits of a queue, for the whole fleet; those not given stay as they are.

    Args:
        queue: the queue's name.
        max_depth: how many jobs may be ready or waiting; None for no limit. Counted without a lock, so producers at the
            same moment can overshoot by what each of them adds.
        on_full: what an enqueue does then: "raise", "wait" (up to 30 s) or "drop" (the job is recorded as cancelled).
        concurrency: how many of its jobs may run at once in all processes together; None for no limit. Jobs that were
            claimed before a limit was set do not count.
        per_key: how many jobs of one ordering key may run at once; 1 keeps their strict order.
    """
    check_name(queue, "queue")
    values = {"max_depth": max_depth, "on_full": on_full, "concurrency": concurrency, "per_key": per_key}
    given = {name: value for name, value in values.items() if value is not ...}
    if not given:
        raise InvalidArgument("configure() needs one of max_depth=, on_full=, concurrency=, per_key=")
    for name, value in given.items():
        if name == "on_full":
            if value not in get_args(OnFull):
                raise InvalidArgument(f"on_full={value!r} must be 'raise', 'wait' or 'drop'")
        elif value is not None or name == "per_key":
            check_whole(value, name, 1, MOST_BIGINT if name == "max_depth" else 2**31 - 1)
    params = dict.fromkeys(values) | given | {"queue": queue, "given": list(given)}
    yield from Query(SQL["configure"], params, nothing)


def queues() -> Plan[list[Queue]]:
    """Return every queue that is configured or holds unfinished jobs, with its numbers."""
    return (yield from Query(SQL["queues"], {}, lambda rows: [Queue(*row) for row in rows]))
