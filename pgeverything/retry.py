"""When a failed job runs again: :class:`Retry`, a value that a task carries and the worker asks."""

from __future__ import annotations

import logging
import math
import random as _random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .durations import Duration, seconds
from .errors import InvalidArgument

_log = logging.getLogger("pgeverything.retry")

# "Full jitter" draws from 0; we draw from a tenth of the ceiling, so that a retry is never immediate: a
# failing task cannot become a busy loop by luck, and nine tenths of the spread that parts a crowd are left.
_JITTER_FLOOR = 0.1


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a failed job is tried again, and how long it waits before each try.

    The wait after the n-th failed attempt has the ceiling ``min(most, first * factor ** (n - 1))``. With
    ``"full"`` jitter it is drawn evenly from a tenth of the ceiling up to the ceiling, so jobs that failed
    together do not come back together. This is "Full Jitter" of Marc Brooker, "Exponential Backoff And
    Jitter" (AWS Architecture Blog, 2015), which draws from 0; the floor is ours.

    Attributes:
        attempts: how many times a job is run at most, the first run included; 1 is no retry at all.
        first: the ceiling of the wait after the first failure; more than 0.
        most: what the ceiling grows to; not below `first`.
        factor: by how much the ceiling grows with each failure, from 1 (constant) to 1000.
        jitter: ``"full"``, or ``"none"`` to wait exactly the ceiling.
        delay: your own rule instead of `first`, `most`, `factor` and `jitter`: called with the number of the
            attempt that failed (from 1) and its exception, it returns the wait, which may be 0, or None to
            give up. If it raises, or returns anything else, that is logged and the other fields decide.
        exceptions: other policies by exception class; the most specific class that the exception belongs to
            wins. None as the policy means: do not retry. Such a policy has no `exceptions` of its own.

    Raises:
        InvalidArgument: a field is out of its range; the message names the field.

    """

    attempts: int = 5
    first: Duration = "1s"
    most: Duration = "1h"
    factor: float = 2.0
    jitter: Literal["full", "none"] = "full"
    delay: Callable[[int, BaseException], Duration | None] | None = None
    exceptions: Mapping[type[BaseException], Retry | None] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or isinstance(self.attempts, bool) or self.attempts < 1:
            raise InvalidArgument(f"attempts={self.attempts!r} must be a whole number from 1; 1 means no retry")
        first, most = seconds(self.first, "first", zero=False), seconds(self.most, "most", zero=False)
        if most < first:
            raise InvalidArgument(f"most={self.most!r} must not be shorter than first={self.first!r}")
        if not isinstance(self.factor, int | float) or isinstance(self.factor, bool) or not 1 <= self.factor <= 1000:
            raise InvalidArgument(f"factor={self.factor!r} must be a number from 1 to 1000; 1 waits equally long")
        if self.jitter not in ("full", "none"):
            raise InvalidArgument(f'jitter={self.jitter!r} must be "full" or "none"')
        if self.delay is not None and not callable(self.delay):
            raise InvalidArgument(
                f"delay={self.delay!r} must be a function of (attempt, exception); "
                "for a constant wait write Retry.fixed(...)"
            )
        self._check_exceptions()

    def _check_exceptions(self) -> None:
        if not isinstance(self.exceptions, Mapping):
            raise InvalidArgument(f"exceptions={self.exceptions!r} must map exception classes to Retry or None")
        for kind, policy in self.exceptions.items():
            if not isinstance(kind, type) or not issubclass(kind, BaseException):
                raise InvalidArgument(f"exceptions has the key {kind!r}, which is not an exception class")
            label = f"exceptions[{kind.__name__}]"
            if policy is not None and not isinstance(policy, Retry):
                raise InvalidArgument(f"{label}={policy!r} must be a Retry, or None to not retry")
            if policy is not None and policy.exceptions:
                raise InvalidArgument(f"{label} must not have exceptions of its own; list them all in the outer one")
        # A copy, so that a policy shared by many tasks cannot change under them.
        object.__setattr__(self, "exceptions", dict(self.exceptions))

    @classmethod
    def fixed(cls, delay: Duration, *, attempts: int = 5) -> Retry:
        """Return a policy that always waits `delay`, without jitter.

        Args:
            delay: the wait before each retry; more than 0.
            attempts: how many times a job is run at most, the first run included.

        Raises:
            InvalidArgument: an argument is out of its range.

        """
        seconds(delay, "delay", zero=False)
        return cls(attempts=attempts, first=delay, most=delay, factor=1.0, jitter="none")

    @classmethod
    def never(cls) -> Retry:
        """Return the policy of a job that is run once."""
        return cls(attempts=1)

    def next_delay(
        self,
        attempt: int,
        error: BaseException,
        max_attempts: int | None = None,
        random: Callable[[], float] = _random.random,
    ) -> float | None:
        """Return how many seconds to wait before the next attempt, or None when there is none.

        Args:
            attempt: the number of the attempt that failed, from 1.
            error: what it failed with.
            max_attempts: the job's own limit if it has one. It replaces `attempts`; a policy from
                `exceptions` keeps its own `attempts` below this limit, never above.
            random: draws from [0, 1).

        """
        policy, limit = self, self.attempts if max_attempts is None else max_attempts
        for kind in type(error).__mro__:
            if kind in self.exceptions:
                special = self.exceptions[kind]
                if special is None:
                    return None
                policy = special
                limit = special.attempts if max_attempts is None else min(special.attempts, max_attempts)
                break
        return None if attempt >= limit else policy._wait(attempt, error, random)

    def _wait(self, attempt: int, error: BaseException, random: Callable[[], float]) -> float | None:
        if self.delay is not None:
            try:
                own = self.delay(attempt, error)
                return None if own is None else seconds(own, "delay(...)")
            except Exception:
                # The job is what counts: a broken rule must not lose it or take the worker down.
                _log.exception("the delay function of a Retry failed; waiting by its other fields instead")
        ceiling = self._ceiling(attempt)
        if self.jitter == "none":
            return ceiling
        return ceiling * (_JITTER_FLOOR + (1 - _JITTER_FLOOR) * random())

    def _ceiling(self, attempt: int) -> float:
        first, most = seconds(self.first, "first"), seconds(self.most, "most")
        growth = (attempt - 1) * math.log(self.factor)
        if growth >= math.log(most) - math.log(first):  # also keeps factor ** 10**6 from overflowing
            return most
        return float(min(most, first * self.factor ** (attempt - 1)))
