"""The job queue: what can be done with jobs and queues from any program."""

from __future__ import annotations

from ..engine.modules import AsyncModule, Module
from ..engine.plan import Async, Sync, op
from . import control, read
from .enqueue import enqueue, enqueue_many
from .values import Job, JobOptions, Queue, State
from .why import why

__all__ = ["AsyncBoundJobs", "AsyncJobQueue", "BoundJobs", "Job", "JobOptions", "JobQueue", "Queue", "State"]


class _InTransaction:
    """What makes sense inside the caller's transaction."""

    enqueue = op(enqueue)
    enqueue_many = op(enqueue_many)
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
    why = op(why)


class _Anywhere(_InTransaction):
    wait = op(read.wait)


class JobQueue(Module, _Anywhere):
    """Jobs and queues, blocking."""


class AsyncJobQueue(AsyncModule, _Anywhere):
    """Jobs and queues, awaited."""


class BoundJobs(Sync, _InTransaction):
    """Jobs inside the caller's transaction, blocking."""


class AsyncBoundJobs(Async, _InTransaction):
    """Jobs inside the caller's transaction, awaited."""
