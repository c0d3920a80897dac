"""Dead letters: jobs that are out of attempts, rejected or expired, and messages that no delivery could get rid of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from ..engine.modules import AsyncModule, Module
from ..engine.plan import Async, Plan, Query, Sync, one, op, whole
from ..engine.statements import statements
from ..errors import InvalidArgument, JobNotFound
from ..jobs.read import find, read_jobs
from ..jobs.revive import revive
from ..jobs.values import MOST_BIGINT, Job, check_filter, check_name, check_whole
from .values import DeadDelivery, DeadGroup, read_deliveries, read_delivery_groups, read_groups

__all__ = ["AsyncDeadLetters", "DeadDelivery", "DeadGroup", "DeadLetter", "DeadLetters"]

SQL = statements("dead_letters")
_BATCH = 1000

DeadLetter: TypeAlias = Job | DeadDelivery
"""A dead job, or a dead delivery of a subscription."""


def list_(
    *,
    queue: str | None = None,
    task: str | None = None,
    fingerprint: str | None = None,
    subscription: str | None = None,
    limit: int = 100,
) -> Plan[list[DeadLetter]]:
    """Return dead letters, latest death first, by any of the filters.

    `queue` and `task` choose jobs, `subscription` chooses deliveries; without them there are both.
    """
    check_whole(limit, "limit", 1, 100_000)
    params = _matching(queue, task, fingerprint, subscription) | {"limit": limit, "ids": None}
    found: list[tuple[Any, DeadLetter]] = []
    if subscription is None:
        jobs = yield from Query(SQL["list"], params, read_jobs)
        found += [((job.finished_at, job.id), job) for job in jobs]
    if queue is None and task is None:
        deliveries = yield from Query(SQL["list_deliveries"], params, read_deliveries)
        found += [((delivery.died_at, delivery.id), delivery) for delivery in deliveries]
    found.sort(key=lambda each: each[0], reverse=True)
    return [letter for _, letter in found[:limit]]


def groups(
    *, queue: str | None = None, task: str | None = None, subscription: str | None = None, limit: int = 100
) -> Plan[list[DeadGroup]]:
    """Return dead letters grouped by task or subscription and by fingerprint, the largest group first.

    A fingerprint is an exception's type and the innermost frame of your code.
    """
    check_whole(limit, "limit", 1, 100_000)
    params = _matching(queue, task, None, subscription) | {"limit": limit}
    found: list[DeadGroup] = []
    if subscription is None:
        found += yield from Query(SQL["groups"], params, read_groups)
    if queue is None and task is None:
        found += yield from Query(SQL["group_deliveries"], params, read_delivery_groups)
    found.sort(key=lambda group: (group.count, group.last_at), reverse=True)
    return found[:limit]


def get(id: int) -> Plan[DeadLetter]:  # noqa: A002 - the public name of the thing
    """Return one dead job or delivery.

    Raises:
        JobNotFound: there is no dead letter of that id.
    """
    job = yield from find(id)
    if job is not None and job.state == "dead":
        return job
    params = _matching(None, None, None, None) | {"ids": [id], "limit": 1}
    if deliveries := (yield from Query(SQL["list_deliveries"], params, read_deliveries)):
        return deliveries[0]
    why = f"job {id} is {job.state}" if job else "no dead job and no dead message has this id"
    raise JobNotFound(f"there is no dead letter {id}: {why}")


def count(
    *,
    queue: str | None = None,
    task: str | None = None,
    fingerprint: str | None = None,
    subscription: str | None = None,
) -> Plan[int]:
    """Return how many dead letters match the filters."""
    return (yield from _count(_matching(queue, task, fingerprint, subscription) | {"ids": None}))


def redrive(
    ids: Iterable[int] | None = None,
    *,
    queue: str | None = None,
    task: str | None = None,
    fingerprint: str | None = None,
    subscription: str | None = None,
    to_queue: str | None = None,
    limit: int | None = None,
    rate: float | None = None,
    dry_run: bool = False,
    everything: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Plan[int]:
    """Give dead letters a fresh life, oldest death first: attempts start over, `redriven` counts up.

    Jobs run again; messages are delivered again to their subscription, and what `on_dead="hold"` holds back behind one
    follows it. Moves 1,000 a statement; when it is interrupted, each is either moved or still dead. What dies again
    meanwhile stays dead.

    Args:
        ids: these; or all that match
        queue: this queue,
        task: this task,
        fingerprint: this fingerprint,
        subscription: this subscription.
        to_queue: only jobs, and run them on this queue; `origin` remembers where they died.
        limit: at most so many.
        rate: so many a second, by spreading the times they are due; None for all at once.
        dry_run: only count.
        everything: needed to redrive with no filter at all.
        progress: called after each statement with the number redriven so far.

    Returns:
        How many were redriven, or would be. A job whose unique key is in use again stays dead and is not counted,
        except by `dry_run`.

    Raises:
        InvalidArgument: no filter and not `everything=True`, or a bad value.
        JobStateError: in your transaction, when another one has just taken the unique key of one of these jobs.
    """
    filters = _filters(ids, queue, task, fingerprint, subscription, everything)
    if to_queue is not None:
        check_name(to_queue, "to_queue")
        if subscription is not None:
            raise InvalidArgument("to_queue= is for jobs: a subscription's message goes back to its subscription")
    if rate is not None and not (isinstance(rate, int | float) and rate is not True and 1e-6 <= rate < math.inf):
        raise InvalidArgument(f"rate={rate!r} must be a number of jobs a second, at least 0.000001")
    filters["to_queue"] = to_queue
    most, gap = _limit(limit), 1.0 / rate if rate else 0.0
    if dry_run:
        return min((yield from _count(filters)), most)
    done = 0
    filters["until"] = yield from Query(SQL["now"], {}, one)
    for statement in _of_kinds(filters, "redrive", "redrive_deliveries"):
        moved = -1
        while moved and done < most:
            params: dict[str, Any] = filters | {"limit": min(_BATCH, most - done), "start": done * gap, "gap": gap}
            moved = yield from revive(**params) if statement == "redrive" else _revive_deliveries(params)
            done += moved
            if moved and progress is not None:
                progress(done)
    return done


def _revive_deliveries(params: dict[str, Any]) -> Plan[int]:
    return len((yield from Query(SQL["redrive_deliveries"], params, one)))


def discard(
    ids: Iterable[int] | None = None,
    *,
    queue: str | None = None,
    task: str | None = None,
    fingerprint: str | None = None,
    subscription: str | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    everything: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Plan[int]:
    """End dead letters for good. Jobs join the finished ones as cancelled, with the reason "discarded".

    Messages are forgotten, and what `on_dead="hold"` holds back behind one goes on. The filters, and the other
    arguments, are those of `redrive`.

    Returns:
        How many were discarded, or would be.
    """
    filters = _filters(ids, queue, task, fingerprint, subscription, everything)
    most = _limit(limit)
    if dry_run:
        return min((yield from _count(filters)), most)
    done = 0
    for statement in _of_kinds(filters, "discard", "discard_deliveries"):
        gone = -1
        while gone and done < most:
            gone = yield from Query(SQL[statement], filters | {"limit": min(_BATCH, most - done)}, whole)
            done += gone
            if gone and progress is not None:
                progress(done)
    return done


def _count(filters: dict[str, object]) -> Plan[int]:
    found = 0
    for statement in _of_kinds(filters, "count", "count_deliveries"):
        found += yield from Query(SQL[statement], filters, whole)
    return found


def _of_kinds(filters: dict[str, object], jobs: str, deliveries: str) -> list[str]:
    """Return the statements for what the filters can choose."""
    statements_ = [jobs] if filters["subscription"] is None else []
    if filters["queue"] is None and filters["task"] is None and filters.get("to_queue") is None:
        statements_.append(deliveries)
    return statements_


def _filters(
    ids: Iterable[int] | None,
    queue: str | None,
    task: str | None,
    fingerprint: str | None,
    subscription: str | None,
    everything: bool,
) -> dict[str, object]:
    if ids is not None and not isinstance(ids, Iterable):
        raise InvalidArgument(f"ids={ids!r} must be a list of ids: [{ids}]")
    chosen = None if ids is None else list(ids)
    for each in chosen or ():
        check_whole(each, "ids", 1, MOST_BIGINT)
    filters = _matching(queue, task, fingerprint, subscription)
    if not everything and chosen is None and not any(value is not None for value in filters.values()):
        raise InvalidArgument("say which: ids, queue=, task=, fingerprint= or subscription=, or everything=True")
    return filters | {"ids": chosen}


def _matching(
    queue: str | None, task: str | None, fingerprint: str | None, subscription: str | None
) -> dict[str, object]:
    filters = {"queue": queue, "task": task, "fingerprint": fingerprint, "subscription": subscription}
    for name, value in filters.items():
        check_filter(value, name)
    if subscription is not None and (queue is not None or task is not None):
        raise InvalidArgument("queue= and task= choose jobs, subscription= chooses messages: nothing is both")
    return dict(filters)


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
