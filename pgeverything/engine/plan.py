"""An operation is written once, as a plan: a generator that yields what it wants done and does no I/O itself.

A plan yields :class:`Query`, :class:`Sleep`, :class:`Watch` and :class:`Atomic` values and returns a result. Two small
drivers run plans, :func:`drive` by blocking and :func:`adrive` by awaiting. :class:`op` turns a plan function into a
method of a sync or an async namespace, with the function's own signature on both.

psycopg (``generators.py`` and ``waiting.py``) and httpx (``auth_flow``) are built this way, for the same reason: one
implementation, two worlds, and unit tests that need neither a database nor a clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeAlias, TypeVar, overload

from .statements import Statement

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Rows: TypeAlias = Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Query(Generic[T_co]):
    """One statement, its parameters, and how to read its rows.

    ``row = yield from query`` runs it inside a plan.
    """

    statement: Statement
    params: Mapping[str, object]
    read: Callable[[Rows], T_co]

    def __iter__(self) -> Generator[Query[Any], Any, T_co]:
        return (yield self)  # type: ignore[no-any-return]  # the driver sends what `read` returned


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait this many seconds, without holding a connection."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Atomic(Generic[T_co]):
    """Run a plan as one unit: in a transaction of its own, or as a part of the caller's."""

    plan: Plan[T_co]

    def __iter__(self) -> Generator[Atomic[Any], Any, T_co]:
        return (yield self)  # type: ignore[no-any-return]  # the driver sends what the plan returned


class Hints(Protocol):
    """Where other processes' hints arrive."""

    @property
    def channel(self) -> str | None:
        """A channel of this process alone, which a hint may be sent to instead; None while none arrive."""
        ...

    def watch(self, hint: str, wake: Callable[[], object]) -> Callable[[], None]:
        """Call `wake`, in any thread, for every such hint and when some may have been missed; returns how to stop."""
        ...


class Watching:
    """Between two looks at the database: a wait that a hint cuts short. Leave its `with` block when done.

    A hint that arrives after `with` was entered, or after the last wait, is not missed: look, then wait.
    """

    def __init__(self, event: Any, stop: Callable[[], None], hints: Hints | None = None) -> None:
        self.event, self._stop, self._hints = event, stop, hints  # the event is of the kind that the driver waits for

    @property
    def channel(self) -> str | None:
        """A channel of this process alone, for who means only us; None while hints do not arrive."""
        return self._hints.channel if self._hints is not None else None

    def wait(self, seconds: float) -> Plan[bool]:
        """Wait at most this many seconds, without holding a connection; returns whether a hint came."""
        return (yield Wait(self, seconds))  # type: ignore[no-any-return]  # the driver sends whether a hint came

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()


@dataclass(frozen=True, slots=True)
class Watch:
    """Begin to watch for a hint, which another process sends as a notification: a TAB and the hint.

    ``with (yield from Watch("locks:x")) as watching:`` and then, in turns, look and ``yield from watching.wait(1.0)``.
    A hint is never the only way to learn of something: where LISTEN does not work, the wait takes its full time.
    """

    hint: str

    def __iter__(self) -> Generator[Watch, Any, Watching]:
        return (yield self)  # type: ignore[no-any-return]  # the driver sends the Watching


@dataclass(frozen=True, slots=True)
class Wait:
    """What :meth:`Watching.wait` yields."""

    watching: Watching
    seconds: float


Step: TypeAlias = Query[Any] | Sleep | Watch | Wait | Atomic[Any]
Plan: TypeAlias = Generator[Step, Any, T_co]


class Carrier(Protocol):
    """Whatever holds a connection for blocking callers."""

    @property
    def hints(self) -> Hints | None:
        """Where hints arrive; None where they cannot."""
        ...

    def execute(self, query: Query[Any]) -> Rows:
        """Run one statement and return its rows."""
        ...

    def atomic(self) -> AbstractContextManager[Carrier]:
        """Return a carrier on which statements are one unit."""
        ...


class AsyncCarrier(Protocol):
    """Whatever holds a connection for asyncio."""

    @property
    def hints(self) -> Hints | None:
        """Where hints arrive; None where they cannot."""
        ...

    async def execute(self, query: Query[Any]) -> Rows:
        """Run one statement and return its rows."""
        ...

    def atomic(self) -> AbstractAsyncContextManager[AsyncCarrier]:
        """Return a carrier on which statements are one unit."""
        ...


def drive(carrier: Carrier, plan: Plan[T]) -> T:
    """Run a plan to its result, blocking."""
    return drive_on(lambda: carrier, plan)


def drive_on(carrier: Callable[[], Carrier], plan: Plan[T]) -> T:
    """Run a plan to its result, blocking. Nothing is connected before its first step, so bad input is refused first."""
    try:
        step = next(plan)
        while True:
            try:
                answer = step.read(carrier().execute(step)) if isinstance(step, Query) else _perform(carrier, step)
            except Exception as error:
                step = plan.throw(error)
            else:
                step = plan.send(answer)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a generator returns what it is annotated with
    except BaseException:
        plan.close()  # interrupted: not only when the traceback is forgotten
        raise


def _perform(carrier: Callable[[], Carrier], step: Sleep | Watch | Wait | Atomic[Any]) -> object:
    if isinstance(step, Sleep):
        time.sleep(step.seconds)
        return None
    if isinstance(step, Watch):
        event = threading.Event()
        return _watched(carrier().hints, step, event, event.set)
    if isinstance(step, Wait):
        hinted = step.watching.event.wait(step.seconds)
        step.watching.event.clear()
        return hinted
    with carrier().atomic() as inner:
        return drive(inner, step.plan)


async def adrive(carrier: AsyncCarrier, plan: Plan[T]) -> T:
    """Run a plan to its result, awaiting."""

    async def held() -> AsyncCarrier:
        return carrier

    return await adrive_on(held, plan)


async def adrive_on(carrier: Callable[[], Awaitable[AsyncCarrier]], plan: Plan[T]) -> T:
    """Run a plan to its result, awaiting. Nothing is connected before its first step."""

    async def perform(step: Step) -> object:
        if isinstance(step, Query):
            return step.read(await (await carrier()).execute(step))
        if isinstance(step, Sleep):
            await asyncio.sleep(step.seconds)
            return None
        if isinstance(step, Watch):
            event, loop = asyncio.Event(), asyncio.get_running_loop()
            hints = (await carrier()).hints
            return _watched(hints, step, event, lambda: loop.call_soon_threadsafe(event.set))
        if isinstance(step, Wait):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(step.seconds):
                    await step.watching.event.wait()
            hinted = step.watching.event.is_set()
            step.watching.event.clear()
            return hinted
        async with (await carrier()).atomic() as inner:
            return await adrive(inner, step.plan)

    try:
        step = next(plan)
        while True:
            try:
                answer = await perform(step)
            except Exception as error:
                step = plan.throw(error)
            else:
                step = plan.send(answer)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a generator returns what it is annotated with
    except BaseException:
        plan.close()  # interrupted: not only when the traceback is forgotten
        raise


def _watched(hints: Hints | None, step: Watch, event: Any, wake: Callable[[], object]) -> Watching:
    return Watching(event, hints.watch(step.hint, wake) if hints is not None else lambda: None, hints)


class Sync:
    """A namespace whose operations block. Holds the carrier they run on."""

    def __init__(self, carrier: Callable[[], Carrier]) -> None:
        self._carrier = carrier


class Async:
    """A namespace whose operations are awaited."""

    def __init__(self, carrier: Callable[[], Awaitable[AsyncCarrier]]) -> None:
        self._carrier = carrier


class op(Generic[P, T]):  # noqa: N801 - used like `property`
    """Makes a plan function a method: ``enqueue = op(enqueue_plan)`` in a :class:`Sync` or an :class:`Async` class.

    Type checkers see the plan's own parameters and result on both; the async method returns a coroutine.
    """

    def __init__(self, plan: Callable[P, Plan[T]]) -> None:
        self.plan = plan
        self.__doc__ = plan.__doc__
        self.__wrapped__ = plan

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, namespace: None, owner: type) -> op[P, T]: ...
    @overload
    def __get__(self, namespace: Sync, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, namespace: Async, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, namespace: Any, owner: type) -> Any:
        if namespace is None:
            return self
        plan, carrier = self._of(namespace), namespace._carrier
        if isinstance(namespace, Sync):

            @functools.wraps(self.plan)
            def method(*args: P.args, **kwargs: P.kwargs) -> T:
                return drive_on(carrier, plan(*args, **kwargs))
        else:

            @functools.wraps(self.plan)
            async def method(*args: P.args, **kwargs: P.kwargs) -> T:
                return await adrive_on(carrier, plan(*args, **kwargs))

        # Cached in the instance, which then shadows this descriptor: 3 microseconds a call instead of 20.
        namespace.__dict__[self._name] = method
        return method

    def _of(self, namespace: Sync | Async) -> Callable[P, Plan[T]]:  # noqa: ARG002 - `method` needs it
        """Return the plan as this namespace has it."""
        return self.plan


class method(op[P, T]):  # noqa: N801 - used like `property`
    """The same for a plan whose first parameter is the namespace, which holds what a module remembers between calls."""

    def __init__(self, plan: Callable[Concatenate[Any, P], Plan[T]]) -> None:
        super().__init__(plan)  # type: ignore[arg-type]  # `_of` gives the first parameter

    def _of(self, namespace: Sync | Async) -> Callable[P, Plan[T]]:
        return functools.partial(self.plan, namespace)  # type: ignore[arg-type]  # which P leaves out


def one(rows: Rows) -> Any:
    """Read the first column of the only row."""
    return rows[0][0]


def whole(rows: Rows) -> int:
    """Read the only row's only column as a whole number."""
    return int(rows[0][0])


def one_or_none(rows: Rows) -> Any:
    """Read the first column of the first row, or None when there is no row."""
    return rows[0][0] if rows else None


def nothing(rows: Rows) -> None:
    """Read nothing."""


def same(rows: Rows) -> Rows:
    """Read the rows as they are."""
    return rows
