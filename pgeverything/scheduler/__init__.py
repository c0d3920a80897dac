"""The cron scheduler: jobs at the times of cron expressions, intervals and single dates.

`fields` reads cron expressions and `cron` finds their local times, `zones` and `recurrence` turn those into instants,
`policy` decides what becomes of each tick, `tick` does it in one transaction; `manage`, `read` and `code` are what
programs do with schedules.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ..engine.modules import AsyncModule, Module
from ..engine.plan import Async, AsyncCarrier, Carrier, Sync, method, op
from . import manage, read
from .code import Code, SyncResult, TaskLike
from .explain import explain
from .values import Schedule, ScheduleState, Tick

if TYPE_CHECKING:
    from ..engine.pool import AsyncDatabase, AsyncTarget, Database, Target

__all__ = [
    "AsyncBoundScheduler",
    "AsyncScheduler",
    "BoundScheduler",
    "Code",
    "Schedule",
    "ScheduleState",
    "Scheduler",
    "SyncResult",
    "TaskLike",
    "Tick",
    "explain",
]


class _InTransaction:
    """What makes sense inside the caller's transaction."""

    code: Code

    add = method(manage.add)
    remove = op(manage.remove)
    pause = op(manage.pause)
    resume = op(manage.resume)
    run_now = op(manage.run_now)
    get = op(read.get)
    list = op(read.list_)
    history = op(read.history)
    preview = op(read.preview)


class _Anywhere(_InTransaction):
    sync = method(manage.sync)


class Scheduler(Module, _Anywhere):
    """Schedules, blocking."""

    def __init__(
        self, target: Target | Database = None, *, schema: str = "pgeverything", code: Code | None = None
    ) -> None:
        super().__init__(target, schema=schema)
        self.code = code or Code("")


class AsyncScheduler(AsyncModule, _Anywhere):
    """Schedules, awaited."""

    def __init__(
        self, target: AsyncTarget | AsyncDatabase = None, *, schema: str = "pgeverything", code: Code | None = None
    ) -> None:
        super().__init__(target, schema=schema)
        self.code = code or Code("")


class BoundScheduler(Sync, _InTransaction):
    """Schedules inside the caller's transaction, blocking. A schedule that is changed there waits for its end."""

    def __init__(self, carrier: Callable[[], Carrier], code: Code | None = None) -> None:
        super().__init__(carrier)
        self.code = code or Code("")


class AsyncBoundScheduler(Async, _InTransaction):
    """Schedules inside the caller's transaction, awaited."""

    def __init__(self, carrier: Callable[[], Awaitable[AsyncCarrier]], code: Code | None = None) -> None:
        super().__init__(carrier)
        self.code = code or Code("")
