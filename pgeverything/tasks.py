"""Tasks: functions that jobs run, registered by name, enqueued by their own signature."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from .arguments import Arguments
from .durations import Duration, seconds
from .engine.plan import AsyncCarrier, Carrier, Plan, adrive_on, drive_on
from .errors import InvalidArgument, TaskError, UnknownTask
from .jobs.enqueue import enqueue_text, enqueue_texts
from .jobs.values import Job, JobOptions, OnDuplicate, check_name
from .retry import Retry
from .worker.context import JobContext

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Options(TypedDict, total=False):
    """What `options(...)` of a task accepts: everything about one enqueue."""

    queue: str
    priority: int
    delay: Duration | None
    run_at: datetime | None
    unique_key: str | None
    on_duplicate: OnDuplicate
    ordering_key: str | None
    max_attempts: int | None
    timeout: Duration | None
    expires: Duration | None
    headers: Mapping[str, str] | None


@dataclass(frozen=True, slots=True, eq=False)
class Definition:
    """A registered task, as a worker needs it."""

    name: str
    function: Callable[..., Any]
    arguments: Arguments
    retry: Retry
    timeout: float | None
    options: JobOptions
    is_async: bool


class Registry:
    """The tasks of one application, by name."""

    def __init__(self) -> None:
        self._tasks: dict[str, Definition] = {}

    def __iter__(self) -> Iterator[Definition]:
        return iter(self._tasks.values())

    def __getitem__(self, name: str) -> Definition:
        try:
            return self._tasks[name]
        except KeyError:
            raise UnknownTask(
                f"no task is named {name!r} here; registered: {', '.join(self._tasks) or 'none'}"
            ) from None

    def get(self, name: str) -> Definition | None:
        """Return the task of that name, or None."""
        return self._tasks.get(name)

    def add(
        self,
        function: Callable[..., Any],
        *,
        name: str | None,
        queue: str,
        priority: int,
        retry: Retry | None,
        timeout: Duration | None,
    ) -> Definition:
        """Register a function.

        Raises:
            TaskError: the name is taken by another function, or the signature cannot be sent as JSON.
            InvalidArgument: an option is refused.
        """
        if retry is not None and not isinstance(retry, Retry):
            raise InvalidArgument(f"retry={retry!r} must be a Retry, for example Retry(attempts=3)")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TaskError(f"{_where(function)} is a generator: to call it runs nothing. Write it without `yield`")
        definition = Definition(
            name=name if name is not None else getattr(function, "__name__", ""),
            function=function,
            arguments=Arguments.of(function, JobContext),
            retry=retry or Retry(),
            timeout=None if timeout is None else seconds(timeout, "timeout", zero=False),
            options=JobOptions(queue=queue, priority=priority),
            is_async=inspect.iscoroutinefunction(function),
        )
        check_name(definition.name, "name")
        if (other := self._tasks.get(definition.name)) and not _same(other.function, function):
            raise TaskError(
                f"two tasks are named {definition.name!r}: {_where(other.function)} and {_where(function)}; "
                f"give one a name="
            )
        self._tasks[definition.name] = definition
        return definition


def _where(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _same(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two functions are one definition seen twice: a reload, or a script that is imported by its name too."""
    first, second = inspect.unwrap(one).__code__, inspect.unwrap(other).__code__
    return (first.co_filename, first.co_firstlineno, first.co_name) == (
        second.co_filename,
        second.co_firstlineno,
        second.co_name,
    )


class _Enqueuer(Generic[P]):
    """What sync and async tasks share: the definition, the options, and the plans."""

    def __init__(self, definition: Definition, options: JobOptions) -> None:
        self.definition = definition
        self._options = options

    @property
    def name(self) -> str:
        """The name that jobs of this task carry."""
        return self.definition.name

    def __repr__(self) -> str:
        return f"<task {self.definition.arguments.description}>"

    def _one(self, *args: P.args, **kwargs: P.kwargs) -> Plan[Job]:
        return enqueue_text(self.name, self.definition.arguments.bind(*args, **kwargs), self._options)

    def _many(self, args: Iterable[tuple[Any, ...]]) -> Plan[list[int]]:
        if not isinstance(args, Iterable):
            raise InvalidArgument(f"args={args!r} must be a list of tuples, one for each job, as in [(7,), (8,)]")
        bind = self.definition.arguments.bind
        texts = []
        for index, each in enumerate(args):
            if not isinstance(each, tuple):
                raise InvalidArgument(
                    f"args[{index}]={each!r} must be a tuple of positional arguments, as in [(7,), (8,)]"
                )
            texts.append(bind(*each))
        return enqueue_texts(self.name, texts, self._options)

    def _changed(self, options: Options) -> JobOptions:
        if unknown := options.keys() - {field.name for field in dataclasses.fields(JobOptions)}:
            raise InvalidArgument(f"options() takes no {', '.join(sorted(unknown))}=")
        return dataclasses.replace(self._options, **options)


class Task(_Enqueuer[P], Generic[P, R_co]):
    """A registered function. Call it and it runs here; `enqueue` it and a worker runs it."""

    def __init__(
        self,
        definition: Definition,
        function: Callable[..., R_co],
        carrier: Callable[[], Carrier],
        join: Callable[[Any], Carrier],
        options: JobOptions,
    ) -> None:
        super().__init__(definition, options)
        self._function, self._carrier, self._join = function, carrier, join

    def __call__(self, *args: Any, **kwargs: Any) -> R_co:
        """Call the function itself, here and now."""
        return self._function(*args, **kwargs)

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Enqueue a job with these arguments, checked against the function's signature.

        Raises:
            InvalidTaskArguments: they do not fit, before any SQL.
            DuplicateJob, QueueFull: as `pg.jobs.enqueue` does.
        """
        return drive_on(self._carrier, self._one(*args, **kwargs))

    def enqueue_many(self, args: Iterable[tuple[Any, ...]]) -> list[int]:
        """Enqueue a job for each tuple of positional arguments, all or none, thousands in a round trip.

        Returns:
            The jobs' ids, in the order of `args`.
        """
        return drive_on(self._carrier, self._many(args))

    def options(self, **options: Unpack[Options]) -> Task[P, R_co]:
        """Return the same task with other options for what it enqueues; see `pg.jobs.enqueue` for each."""
        return Task(self.definition, self._function, self._carrier, self._join, self._changed(options))

    def on(self, held: Any) -> Task[P, R_co]:
        """Return the same task, enqueueing inside the transaction of a connection, a session or a bound facade."""
        carrier = self._join(held)
        return Task(self.definition, self._function, lambda: carrier, self._join, self._options)


class AsyncTask(_Enqueuer[P], Generic[P, R_co]):
    """A registered function of an :class:`AsyncPgEverything`; its methods are awaited."""

    def __init__(
        self,
        definition: Definition,
        function: Callable[..., R_co],
        carrier: Callable[[], Coroutine[Any, Any, AsyncCarrier]],
        join: Callable[[Any], AsyncCarrier],
        options: JobOptions,
    ) -> None:
        super().__init__(definition, options)
        self._function, self._carrier, self._join = function, carrier, join

    def __call__(self, *args: Any, **kwargs: Any) -> R_co:
        """Call the function itself, here and now."""
        return self._function(*args, **kwargs)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Enqueue a job with these arguments, checked against the function's signature."""
        return await adrive_on(self._carrier, self._one(*args, **kwargs))

    async def enqueue_many(self, args: Iterable[tuple[Any, ...]]) -> list[int]:
        """Enqueue a job for each tuple of positional arguments, all or none."""
        return await adrive_on(self._carrier, self._many(args))

    def options(self, **options: Unpack[Options]) -> AsyncTask[P, R_co]:
        """Return the same task with other options for what it enqueues."""
        return AsyncTask(self.definition, self._function, self._carrier, self._join, self._changed(options))

    def on(self, held: Any) -> AsyncTask[P, R_co]:
        """Return the same task, enqueueing inside the transaction of a connection, a session or a bound facade."""
        carrier = self._join(held)

        async def joined() -> AsyncCarrier:
            return carrier

        return AsyncTask(self.definition, self._function, joined, self._join, self._options)


class TaskDecorator(Protocol):
    """What `pg.task(...)` returns. A first parameter annotated `JobContext` is the worker's, not the enqueuer's."""

    @overload
    def __call__(self, function: Callable[Concatenate[JobContext, P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class AsyncTaskDecorator(Protocol):
    """The same for `AsyncPgEverything`."""

    @overload
    def __call__(self, function: Callable[Concatenate[JobContext, P], R], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> AsyncTask[P, R]: ...
