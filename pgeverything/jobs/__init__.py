"""The job queue: what can be done with jobs and queues from any program."""

from __future__ import annotations

from ..engine.plan import Async, Sync, op
from . import control, enqueue, read
from . import why as reasons
from .values import Job, JobOptions, Queue, State

__all__ = ["AsyncBoundJobs", "AsyncJobs", "BoundJobs", "Job", "JobOptions", "Jobs", "Queue", "State"]


class _InTransaction:
    """What makes sense inside the caller's transaction."""

    enqueue = op(enqueue.enqueue)
    enqueue_many = op(enqueue.enqueue_many)
    get = op(read.get)
    list = op(read.list_)
    counts = op(read.counts)
    failures = op(read.failures)
    cancel = op(control.cancel)
    retry = op(control.retry)
    pause = op(control.pause)
    resume = op(control.resume)
    configure = op(control.configure)
    queues = op(control.queues)
    why = op(reasons.why)


class _Anywhere(_InTransaction):
    wait = op(read.wait)


class Jobs(Sync, _Anywhere):
    """Jobs and queues, blocking."""


class AsyncJobs(Async, _Anywhere):
    """Jobs and queues, awaited."""


class BoundJobs(Sync, _InTransaction):
    """Jobs inside the caller's transaction, blocking."""


class AsyncBoundJobs(Async, _InTransaction):
    """Jobs inside the caller's transaction, awaited."""
