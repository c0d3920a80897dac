"""Functions that handle messages, registered by the subscription they serve; workers run them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidArgument, SubscriptionError, TaskError
from ..events.patterns import compile_pattern
from ..jobs.values import check_name, check_whole
from ..retry import Retry
from .values import OnDead, Start, check_place, check_settings

MOST_IN_FLIGHT = 100_000


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """A registered function, as a worker needs it.

    `takes_transaction`: whether its second parameter is the bound facade of its transaction.
    """

    name: str
    pattern: str
    function: Callable[..., Any]
    is_async: bool
    transactional: bool
    takes_transaction: bool
    start: dict[str, Any]
    settings: dict[str, Any]
    retry: Retry
    max_in_flight: int


class Handlers:
    """The handlers of one application, by subscription."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._handlers.values())

    def __len__(self) -> int:
        return len(self._handlers)

    def add(
        self,
        function: Callable[..., Any],
        pattern: str,
        *,
        name: str | None,
        start: Start,
        max_deliveries: int,
        on_dead: OnDead,
        ordered: bool,
        transactional: bool,
        retry: Retry | None,
        max_in_flight: int,
    ) -> Handler:
        """Register a function.

        Raises:
            InvalidArgument: an option is refused.
            TaskError: the function does not take a message.
            SubscriptionError: another function handles the subscription already.
        """
        called = name if name is not None else getattr(function, "__name__", "")
        check_name(called, "name")
        check_whole(max_in_flight, "max_in_flight", 1, MOST_IN_FLIGHT)
        if retry is not None and not isinstance(retry, Retry):
            raise InvalidArgument(f'retry={retry!r} must be a Retry, for example Retry(first="5s")')
        handler = Handler(
            name=called,
            pattern=compile_pattern(pattern).pattern,
            function=function,
            is_async=inspect.iscoroutinefunction(function),
            transactional=transactional,
            takes_transaction=_parameters(function, called, transactional=transactional) == 2,
            start=check_place(start, "start"),
            settings=check_settings(ordered, max_deliveries, on_dead),
            retry=retry or Retry(),
            max_in_flight=max_in_flight,
        )
        there = self._handlers.get(called)
        if there is not None and _where(there.function) != _where(function):
            raise SubscriptionError(
                f"subscription {called!r} has two handlers, {_where(there.function)} and {_where(function)}; "
                "give one a name= of its own"
            )
        self._handlers[called] = handler
        return handler


def _parameters(function: Callable[..., Any], name: str, *, transactional: bool) -> int:
    """Return how many of our arguments a function takes: the message, and perhaps the transaction."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    needed = [p for p in parameters if p.kind in positional and p.default is p.empty]
    others = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if others or not 1 <= len(needed) <= 2:
        raise TaskError(f"the handler of {name!r} must take the message, and with transactional=True the transaction")
    if len(needed) == 2 and not transactional:
        raise TaskError(
            f"the handler of {name!r} takes two arguments: the second is its transaction, which it has with "
            "transactional=True"
        )
    return len(needed)


def _where(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
