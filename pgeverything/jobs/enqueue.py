"""Enqueue: one job, or thousands in a round trip."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from ..durations import Duration, seconds
from ..engine import codec
from ..engine.plan import Atomic, Plan, Query, Sleep, one_or_none, same
from ..engine.statements import statements
from ..errors import DuplicateJob, InvalidArgument, QueueFull
from .read import get
from .values import Job, JobOptions, OnDuplicate, check_name

SQL = statements("jobs")

_BATCH_BYTES = 4_000_000
_FULL_WAIT = 30.0


def enqueue(
    task: str,
    args: Mapping[str, Any] | None = None,
    *,
    queue: str = "default",
    priority: int = 0,
    delay: Duration | None = None,
    run_at: datetime | None = None,
    unique_key: str | None = None,
    on_duplicate: OnDuplicate = "skip",
    ordering_key: str | None = None,
    max_attempts: int | None = None,
    timeout: Duration | None = None,
    expires: Duration | None = None,
    headers: Mapping[str, str] | None = None,
) -> Plan[Job]:
    """Enqueue one job by the name of its task.

    Args:
        task: the task's name. The worker that runs it must have it registered; this process need not.
        args: the handler's parameters by name, as JSON values.
        queue: the queue's name; it need not exist.
        priority: higher runs first; within a priority, oldest first.
        delay: how long from now the job is due; or
        run_at: when it is due, a datetime with a time zone.
        unique_key: while a job of this task with this key is unfinished, there is no second one.
        on_duplicate: "skip" returns that job with `duplicate=True`, "raise" raises, "replace" cancels it and enqueues
            this one; a job that is already running keeps running and gives up the key.
        ordering_key: jobs of one queue and key run one at a time (or `per_key` at a time), in the order of enqueue.
        max_attempts: how often it may be tried; by default the task's retry policy decides.
        timeout: how long one attempt may run; by default the task's timeout.
        expires: how long after it is due it is still worth starting; then it is dead with the reason "expired".
        headers: text for the handler's eyes, for example a W3C `traceparent`.

    Returns:
        The job. It is `cancelled` when the queue was full and says `on_full="drop"`.

    Raises:
        InvalidArgument: an argument is refused, before any SQL.
        DuplicateJob: there is one and `on_duplicate="raise"`. The transaction stays usable.
        QueueFull: the queue is full and says "raise", or "wait" and no room came within 30 s.
    """
    options = JobOptions(
        queue=queue,
        priority=priority,
        delay=delay,
        run_at=run_at,
        unique_key=unique_key,
        on_duplicate=on_duplicate,
        ordering_key=ordering_key,
        max_attempts=max_attempts,
        timeout=timeout,
        expires=expires,
        headers=headers,
    )
    check_name(task, "task")
    return enqueue_text(task, codec.encode(_as_args(args, "args"), "args"), options)


def enqueue_text(task: str, args: str, options: JobOptions) -> Plan[Job]:
    """Enqueue one job whose arguments are JSON text already."""
    params = options.params() | {
        "task": task,
        "args": args,
        "unique_key": options.unique_key,
        "on_duplicate": options.on_duplicate,
    }
    waited = 0.0
    while True:
        rows = yield from Query(SQL["enqueue"], params, same)
        identity, state, created_at = rows[0]
        if state != "full":
            break
        waited = yield from _await_room(options.queue, 1, waited)
    if state == "duplicate":
        if options.on_duplicate == "raise":
            raise DuplicateJob(
                f"job {identity} of task {task!r} has unique_key={options.unique_key!r} and is not finished",
                identity,
            )
        return dataclasses.replace((yield from get(identity)), duplicate=True)
    if state == "cancelled":
        return (yield from get(identity))
    due_at = options.run_at
    if options.delay is not None:
        due_at = created_at + timedelta(seconds=seconds(options.delay, "delay"))
    return Job(
        id=identity,
        queue=options.queue,
        task=task,
        state=state,
        priority=options.priority,
        args=codec.decode(args),
        headers=dict(options.headers or {}),
        unique_key=options.unique_key,
        ordering_key=options.ordering_key,
        max_attempts=options.max_attempts,
        timeout=None if options.timeout is None else seconds(options.timeout, "timeout"),
        expires_at=None
        if options.expires is None
        else (due_at or created_at) + timedelta(seconds=seconds(options.expires, "expires")),
        created_at=created_at,
        run_at=due_at if state == "scheduled" else None,
    )


def enqueue_many(
    task: str,
    args: Iterable[Mapping[str, Any] | None],
    *,
    queue: str = "default",
    priority: int = 0,
    delay: Duration | None = None,
    run_at: datetime | None = None,
    ordering_key: str | None = None,
    max_attempts: int | None = None,
    timeout: Duration | None = None,
    expires: Duration | None = None,
    headers: Mapping[str, str] | None = None,
) -> Plan[list[int]]:
    """Enqueue many jobs of one task with the same options: all of them or none.

    A round trip carries up to 5,000 jobs or 4 MB of arguments.

    Returns:
        The jobs' ids, in the order of `args`.

    Raises:
        InvalidArgument: an argument is refused, before any SQL.
        QueueFull: the queue has no room for all of them.
    """
    options = JobOptions(
        queue=queue,
        priority=priority,
        delay=delay,
        run_at=run_at,
        ordering_key=ordering_key,
        max_attempts=max_attempts,
        timeout=timeout,
        expires=expires,
        headers=headers,
    )
    check_name(task, "task")
    if isinstance(args, str | Mapping) or not isinstance(args, Iterable):
        raise InvalidArgument(f"args={args!r} must be a list of mappings, one for each job")
    mappings = [_as_args(each, f"args[{index}]") for index, each in enumerate(args)]
    return enqueue_texts(task, codec.encode_many(mappings, "args"), options)


def enqueue_texts(task: str, texts: Sequence[str], options: JobOptions) -> Plan[list[int]]:
    """Enqueue many jobs whose arguments are JSON text already."""
    if options.unique_key is not None:
        raise InvalidArgument("unique_key= is for one job: enqueue_many would keep only the first")
    batches = list(_batches(texts))
    if len(batches) <= 1:
        return (yield from _enqueue_batches(task, batches, options))
    return (yield from Atomic(_enqueue_batches(task, batches, options)))


def _enqueue_batches(task: str, batches: Sequence[Sequence[str]], options: JobOptions) -> Plan[list[int]]:
    params = options.params() | {"task": task}
    ids: list[int] = []
    waited = 0.0
    for batch in batches:
        while True:
            rows = yield from Query(SQL["enqueue_many"], params | {"args": f"[{','.join(batch)}]"}, same)
            added, state, _ = rows[0]
            if state != "full":
                break
            waited = yield from _await_room(options.queue, len(batch), waited)
        ids += added
    return ids


def _batches(texts: Sequence[str]) -> Generator[Sequence[str], None, None]:
    begin = size = 0
    for index, text in enumerate(texts):
        size += len(text)
        if index > begin and (size > _BATCH_BYTES or index - begin >= 5000):
            yield texts[begin:index]
            begin, size = index, len(text)
    if begin < len(texts):
        yield texts[begin:]


def _await_room(queue: str, wanted: int, waited: float) -> Plan[float]:
    """Wait until a full queue has room, when that is what it says, and return how long it was; raise otherwise."""
    pause = 0.02
    while (on_full := (yield from Query(SQL["full"], {"queue": queue, "wanted": wanted}, one_or_none))) is not None:
        if on_full != "wait":
            raise QueueFull(f"queue {queue!r} has no room for {wanted} more: try again later, or raise its max_depth")
        if waited >= _FULL_WAIT:
            break
        yield Sleep(pause)
        waited, pause = waited + pause, min(pause * 2, 0.5)
    if waited >= _FULL_WAIT:
        raise QueueFull(f"queue {queue!r} had no room for {wanted} more within {_FULL_WAIT:.0f} s")
    return waited + 0.02  # a look counts: where others are always faster, this ends too


def _as_args(args: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    if args is None:
        return {}
    if not isinstance(args, Mapping):
        raise InvalidArgument(f"{name}={args!r} must map the handler's parameter names to JSON values")
    return args
