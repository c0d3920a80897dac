"""The schedules that an application's code defines, and how they get into the database.

A definition stays in force while a live worker has it in its code. When none has, the one that live workers have takes
its place, and where they have none it is disabled. So in a rolling deployment the old and the new code do not take
turns at changing it, a rollback is like any other deployment, and an application that is down loses nothing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..arguments import Arguments
from ..engine.plan import Atomic, Plan, Query, nothing, same
from ..engine.statements import statements
from ..errors import InvalidArgument, TaskError
from ..jobs.values import JobOptions
from .definitions import Definition, encode_args
from .read import clock
from .standing import find, put, settle
from .values import Outcome

log = logging.getLogger("pgeverything.scheduler")
SQL = statements("scheduler")


class TaskDefinition(Protocol):
    """A registered task, as far as a schedule needs it."""

    @property
    def name(self) -> str:
        """What jobs call it."""
        ...

    @property
    def arguments(self) -> Arguments:
        """What it takes."""
        ...

    @property
    def options(self) -> JobOptions:
        """Where its jobs go, and before which others."""
        ...


class TaskLike(Protocol):
    """What `@pg.task()` returns."""

    @property
    def definition(self) -> TaskDefinition:
        """What was registered."""
        ...


class Tasks(Protocol):
    """The tasks of an application, by name."""

    def get(self, name: str) -> TaskDefinition | None:
        """Return the task of that name, or None."""
        ...


@dataclass(slots=True)
class Code:
    """What the code of an application says.

    Attributes:
        origin: what the application is called: the module that made it.
        tasks: its tasks.
        definitions: its schedules, by name.
    """

    origin: str
    tasks: Tasks | None = None
    definitions: dict[str, Definition] = field(default_factory=dict)

    def define(self, definition: Definition) -> None:
        """Add a schedule.

        Raises:
            TaskError: there is another of that name.
        """
        other = self.definitions.get(definition.name)
        if other is not None and other.digest != definition.digest:
            raise TaskError(f"two schedules are named {definition.name!r}: give one of them a name=")
        self.definitions[definition.name] = definition

    def job(self, task: str | TaskLike, args: Mapping[str, Any] | None) -> tuple[str, str, JobOptions]:
        """Return a task's name, its arguments as JSON, and its options, which are the usual ones when it is not known.

        Raises:
            InvalidArgument: it is neither a task nor the name of one, or the arguments are not JSON.
            InvalidTaskArguments: the task is known, and does not take them.
        """
        if isinstance(task, str):
            known = self.tasks.get(task) if self.tasks is not None else None
        elif (known := getattr(task, "definition", None)) is None:
            raise InvalidArgument(f"task={task!r} must be what @pg.task() returns, or the name of a task")
        text = encode_args(args)
        if known is None:
            return str(task), text, JobOptions()
        return known.name, known.arguments.check(args or {}), known.options


def origin() -> str:
    """Return the name of the module that is making an application: the first caller outside of these packages."""
    frame = sys._getframe(1)
    while (name := frame.f_globals.get("__name__", "")).startswith(("pgeverything.app", "pgeverything.scheduler")):
        if frame.f_back is None:
            break
        frame = frame.f_back
    if name != "__main__":
        return str(name)
    spec = frame.f_globals.get("__spec__")  # of `python -m shop.worker`
    return str(spec.name) if spec is not None else Path(frame.f_globals.get("__file__", "__main__")).stem


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What became of the schedules in the code, by name.

    `waiting` are those that are different in the code of a worker which is still running, or belong to its application.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    disabled: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()


def sync(code: Code, *, worker: int = 0) -> Plan[SyncResult]:
    """Bring the schedules that the code defines into the database; workers do it when they start.

    A schedule that is different in the code of a live worker stays as it is until that worker is gone. One that was
    once defined by this application, and is no longer in the code of any of its workers, is disabled.

    Args:
        code: what the code defines.
        worker: the worker in whose name it is done.
    """
    if worker and code.definitions:
        names, digests = zip(*((each.name, each.digest) for each in code.definitions.values()), strict=True)
        params = {"worker": worker, "origin": code.origin, "names": list(names), "digests": list(digests)}
        yield from Query(SQL["declare_code"], params, nothing)
    result = yield from Atomic(_compare(code, worker))
    for what, names in (("added", result.added), ("changed", result.changed)):
        if names:
            log.info("schedules %s: %s", what, ", ".join(names))
    if result.disabled:
        log.warning("disabled, because %s no longer defines them: %s", code.origin, ", ".join(result.disabled))
    return result


def _compare(code: Code, worker: int) -> Plan[SyncResult]:
    params = {"names": list(code.definitions), "origin": code.origin, "worker": worker}
    rows = yield from Query(SQL["compare_code"], params, same)
    stored = {name: (digest, of, disabled, held, kept, known) for name, digest, of, disabled, held, kept, known in rows}
    wanted: list[str] = []
    waiting: list[str] = []
    gone: list[str] = []
    for definition in code.definitions.values():
        digest, of, disabled, held, kept, _ = stored.get(definition.name, (None, None, False, False, False, False))
        if digest != definition.digest:
            waits = held
        elif of == code.origin and not disabled:
            continue
        else:  # another application's, which may be what this one was called before; or nobody's
            waits = kept and not disabled
        (waiting if waits else wanted).append(definition.name)
    for name, (_, of, disabled, _, _, known) in stored.items():
        if of == code.origin and name not in code.definitions and not disabled:
            (waiting if known else gone).append(name)
    if not wanted and not gone:
        return SyncResult(waiting=tuple(waiting))
    wanted.sort()  # so that two who do this at once wait for each other and not in a circle
    standing = yield from find([*wanted, *gone])
    now = yield from clock()
    for name in wanted:
        try:
            yield from put(code.definitions[name], code.origin, standing.get(name), now)
        except InvalidArgument as error:  # its end has passed: no reason for a worker not to start
            log.warning("left out of the schedules: %s", error)
    for name in gone:
        if (each := standing.get(name)) is not None:
            outcome: Outcome = "paused" if each.paused else "ended"
            yield from settle(each, outcome, "its code is gone", paused=each.paused, disabled=True)
    return SyncResult(
        added=tuple(name for name in wanted if name not in stored),
        changed=tuple(name for name in wanted if name in stored),
        disabled=tuple(gone),
        waiting=tuple(waiting),
    )
