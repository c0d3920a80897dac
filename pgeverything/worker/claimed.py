"""A job in the hands of a worker."""

from __future__ import annotations

import asyncio
import threading
from typing import Any


class Claimed:
    """A claimed job: what the claim returned, and what has happened to it since.

    A plain slotted class, because one is made for every job. `token` fences it: a claim of the same job by anybody
    else has another one, and statements about this claim name job, token and worker.
    """

    __slots__ = (
        "args",
        "attempt",
        "cancelled",
        "completed",
        "crashes",
        "created_at",
        "expired",
        "headers",
        "interrupted",
        "interrupts",
        "job",
        "lost",
        "max_attempts",
        "note",
        "ordering_key",
        "priority",
        "progress",
        "progress_changed",
        "queue",
        "runner",
        "stop",
        "task",
        "thread",
        "timeout",
        "token",
        "transacting",
        "unique_key",
        "worker",
    )

    def __init__(self, row: tuple[Any, ...], worker: int) -> None:
        (
            self.job,
            self.token,
            self.task,
            self.args,
            self.attempt,
            self.queue,
            self.priority,
            self.ordering_key,
            self.max_attempts,
            self.timeout,
            self.expired,
            self.crashes,
            self.headers,
            self.unique_key,
            self.created_at,
        ) = row
        self.worker = worker
        self.cancelled = False  # somebody asked for it
        self.interrupted = False  # the worker stops and cannot wait any longer
        self.interrupts = 0  # how often its async handler was cancelled
        self.lost = False  # the lease is gone: the job is somebody else's
        self.completed = False  # its own transaction has ended it
        self.transacting = False  # its handler has its transaction open
        self.runner: asyncio.Task[None] | None = None  # set while an async handler runs
        self.stop: threading.Event | None = None  # set when a context was made
        self.thread: asyncio.Future[Any] | None = None  # a thread that outlived the timeout
        self.progress: float | None = None
        self.note: str | None = None
        self.progress_changed = False

    def interrupt(self) -> None:
        """Tell the handler to stop: cancel it when it is async, raise its flag when it is not."""
        if self.stop is not None:
            self.stop.set()
        if self.runner is not None:
            self.interrupts += self.runner.cancel()
